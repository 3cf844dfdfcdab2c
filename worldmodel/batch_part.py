"""Divide a batch over processes, each of which trains on some rows.

Losses and gradients of all processes add up to those of the whole batch. For this, every process draws random numbers
for the whole batch, from generators in the same state, and keeps those of its rows. It divides sums over its rows by
counts over the whole batch. A process without a part has the whole batch. Then nothing is exchanged.

Shapes: N sequences of the whole batch, B sequences of this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, distributed
from torch.autograd import Function


@dataclass(frozen=True)
class Part:
    """Name the rows of one process: `begin` to `end` of `total`."""

    begin: int
    end: int
    total: int

    @property
    def rows(self) -> slice:
        """Return the rows as an index."""
        return slice(self.begin, self.end)


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def divided(part: Part | None) -> Iterator[None]:
    """Let the functions below know which rows tensors [B, ...] hold; None: the whole batch.

    All processes must call the functions that exchange numbers in the same order.
    """
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def own_rows() -> slice:
    """Return the rows of this process as an index into the whole batch."""
    part = _part.get()
    return slice(None) if part is None else part.rows


def own(x: Tensor, dim: int = 0) -> Tensor:
    """Return the rows of this process of values of the whole batch, N along `dim`."""
    part = _part.get()
    if part is None:
        return x
    return x[(slice(None),) * dim + (part.rows,)]


def whole(rows: int) -> int:
    """Return the sequences N of the whole batch, where this process has `rows`."""
    part = _part.get()
    return rows if part is None else part.total


def fraction() -> float:
    """Return the fraction of the batch that this process has."""
    part = _part.get()
    return 1.0 if part is None else (part.end - part.begin) / part.total


def all_sum(x: Tensor) -> Tensor:
    """Add up a tensor over all processes, without a gradient."""
    if _part.get() is None:
        return x
    x = x.detach().clone()
    distributed.all_reduce(x)
    return x


def share_of_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Return what this process adds to the weighted mean over the whole batch."""
    return (x * weight).sum() / all_sum(weight.sum()).clamp(min=1.0)


def spread(x: Tensor) -> Tensor:
    """Place rows [B, ...] in the whole batch [N, ...]; the others are 0."""
    part = _part.get()
    if part is None:
        return x
    out = x.new_zeros(part.total, *x.shape[1:])
    out[part.rows] = x
    return out


def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, [B, ...] -> [N, ...]; gradients return to their processes."""
    part = _part.get()
    return x if part is None else cast("Tensor", _Gather.apply(x, part))


def own_index(row: Tensor) -> tuple[Tensor, Tensor]:
    """Convert row numbers of the whole batch to those of this process.

    Returns them, and which rows this process has; the others get the nearest one that it has.
    """
    part = _part.get()
    if part is None:
        return row, torch.ones_like(row, dtype=torch.bool)
    is_own = (row >= part.begin) & (row < part.end)
    return row.clamp(part.begin, part.end - 1) - part.begin, is_own


def pick(x: Tensor, row: Tensor, at: Tensor) -> Tensor:
    """Return x[row, at] for int64 [K] rows of the whole batch, without a gradient."""
    index, is_own = own_index(row)
    found = x[index, at]
    if _part.get() is None:
        return found
    found[~is_own] = 0
    return all_sum(found)


class _Gather(Function):
    @staticmethod
    def forward(ctx, x: Tensor, part: Part) -> Tensor:
        ctx.part = part
        out = spread(x.byte() if x.dtype == torch.bool else x)
        distributed.all_reduce(out)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous().clone()
        distributed.all_reduce(grad)
        return grad[ctx.part.rows], None
