"""Test that no value is read on the host, which would wait for a GPU."""

from __future__ import annotations

import pytest
import torch
from lssvwm.worldmodel import RolloutPolicy, imagination
from lssvwm.worldmodel.mixers import attention
from lssvwm.worldmodel.scan import chunked
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    torch.ops.aten._local_scalar_dense.default,  # item, float, int, bool
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
)


class HostReads(TorchDispatchMode):
    """Collect the operations whose result depends on values read on the host."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in READS:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch) -> None:
    """Let the code take the paths of a GPU."""
    for module in (attention, chunked, imagination):
        monkeypatch.setattr(module, "host_may_read", lambda _: False)

    def one_hot(index: torch.Tensor, classes: int) -> torch.Tensor:
        """Do what PyTorch does on GPUs: not check the range of the index."""
        return (index[..., None] == torch.arange(classes)).long()

    monkeypatch.setattr(functional, "one_hot", one_hot)


@torch.no_grad()
def test_observing_and_imagining_read_nothing_on_the_host(kind, tiny, sequences):
    model = tiny(**kind).eval()
    frames, action, first = sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    actions = torch.randint(0, 4, (2, 6, 4))
    model.imagine(memory, actions)
    with HostReads() as reads:
        memory, _ = model.observe(memory, frames[:, :1], action[:, :1], first[:, :1])
        model.imagine(memory, actions)
        model.imagine(memory, RolloutPolicy.along(actions), decode=True)
    assert not reads.found


def test_host_reads_are_counted() -> None:
    with HostReads() as reads:
        float(torch.ones(1)[0])
        torch.ones(2).nonzero()
    assert len(reads.found) == 2
