"""Merge the shared prefixes of candidate action sequences, so that each is imagined once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DISTINCT = 0.8
"""Fraction of distinct prefixes above which every candidate is imagined by itself: selecting costs copies."""


@dataclass(frozen=True)
class Level:
    """Hold one step of the tree of candidates, in B memories with N candidates each.

    m is the largest number of distinct prefixes in any memory. Memories with fewer repeat one of theirs.
    """

    parents: Tensor | None
    """int64 [B, m]: prefix of the step before that each prefix continues; None: the same ones in order"""

    action: Tensor
    """int64 [B, m]: action that continues it"""

    prefix: Tensor
    """int64 [B, N]: prefix of each candidate"""


def levels(actions: Tensor, choices: int) -> Iterator[Level]:
    """Yield the tree of candidates int64 [B, N, H] step by step; actions are 0 ... choices - 1."""
    batch, n, horizon = actions.shape
    everyone = torch.arange(n, device=actions.device).expand(batch, -1)
    prefix = actions.new_zeros(batch, n)
    count = 1
    merged = True
    for step in range(horizon):
        action = actions[:, :, step]
        if not merged:
            yield Level(None, action, prefix)
            continue
        code = prefix * choices + action  # of the prefix that ends with this action
        used = torch.zeros(
            batch, count * choices, dtype=torch.bool, device=actions.device
        )
        used.scatter_(1, code, True)
        count = int(used.sum(1).max())
        if count > MAX_DISTINCT * n:
            merged = False
            parents, prefix = prefix, everyone
            yield Level(parents, action, prefix)
            continue
        distinct, rank = _distinct(used, count)
        prefix = rank.gather(1, code)
        yield Level(distinct // choices, distinct % choices, prefix)


def _distinct(used: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """List the used codes of each row, and number them.

    used bool [B, codes] -> codes int64 [B, count], where rows with fewer repeat their first, and rank [B, codes]
    """
    rank = used.cumsum(1) - 1
    first = used.int().argmax(1, keepdim=True)
    codes = first.expand(-1, count).clone()
    row, code = used.nonzero(as_tuple=True)
    codes[row, rank[row, code]] = code
    return codes, rank
