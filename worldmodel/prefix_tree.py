"""Candidates of discrete actions begin alike: what they share needs to be imagined only once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WORTH = 0.8
"""Above this share of distinct beginnings, every candidate goes on by itself: selecting costs copies."""


@dataclass(frozen=True)
class Level:
    """One step of the tree that candidates form: m distinct beginnings (the largest number in any memory; where there
    are fewer, the rest repeat one that exists).

    parents int64 [B, m]: which beginning of the step before each of them continues (None: as they were); action [B, m]
    what it continues by; of int64 [B, N]: the beginning that each candidate has.
    """

    parents: Tensor | None
    action: Tensor
    of: Tensor


def levels(actions: Tensor, choices: int) -> Iterator[Level]:
    """The tree of candidates int64 [B, N, H] with actions 0 .. choices - 1, step by step."""
    batch, n, horizon = actions.shape
    rows, each = (
        torch.arange(batch, device=actions.device)[:, None],
        torch.arange(n, device=actions.device),
    )
    of, width, apart = actions.new_zeros(batch, n), 1, False
    for h in range(horizon):
        if apart:
            yield Level(None, actions[:, :, h], of)
            continue
        code = of * choices + actions[:, :, h]
        there = torch.zeros(
            batch, width * choices, dtype=torch.bool, device=actions.device
        )
        there[rows, code] = True
        width = int(there.sum(1).max())
        if width > WORTH * n:
            parents, apart, of = of, True, each.expand(batch, -1)
            yield Level(parents, actions[:, :, h], of)
            continue
        rank = there.cumsum(1) - 1
        found = there.int().argmax(1, keepdim=True).expand(-1, width).clone()
        row, column = there.nonzero(as_tuple=True)
        found[row, rank[row, column]] = column
        of = rank.gather(1, code)
        yield Level(found // choices, found % choices, of)
