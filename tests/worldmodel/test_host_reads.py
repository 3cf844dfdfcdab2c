"""Test that observing and imagining read no value on the host, which would wait for a GPU."""

from __future__ import annotations

import torch
from lssvwm.worldmodel import RolloutPolicy

from tests.host_reads import host_reads


@torch.no_grad()
def test_observing_and_imagining_read_nothing_on_the_host(kind, tiny, sequences):
    model = tiny(**kind).eval()
    frames, action, first = sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    actions = torch.randint(0, 4, (2, 6, 4))
    model.imagine(memory, actions)
    with host_reads() as reads:
        memory, _ = model.observe(memory, frames[:, :1], action[:, :1], first[:, :1])
        model.imagine(memory, actions)
        model.imagine(memory, RolloutPolicy.along(actions), decode=True)
    assert not reads


def test_host_reads_are_counted() -> None:
    with host_reads() as reads:
        float(torch.ones(1)[0])
        torch.ones(2).nonzero()
        torch.ones(2).tolist()
    assert len(reads) == 3
