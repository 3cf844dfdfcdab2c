"""Draw random numbers for a batch from one generator, or from one for each entry.

An entry that has its own generator gets the same numbers in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]
Source = torch.Generator | Generators
"""One generator, or one for each entry of the first dimension of what is drawn."""


def uniform(shape: Sequence[int], source: Source) -> Tensor:
    """Draw uniform numbers from 0 up to, but not including, 1."""
    return _draw(shape, source, Tensor.uniform_)


def normal(
    shape: Sequence[int], source: Source, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw normal numbers of mean 0 and variance 1."""
    return _draw(shape, source, Tensor.normal_, dtype)


def integers(low: int, high: int, shape: Sequence[int], source: Source) -> Tensor:
    """Draw whole numbers from `low` up to, but not including, `high`, int64."""

    def fill(part: Tensor, generator: torch.Generator) -> None:
        part.random_(low, high, generator=generator)

    return _draw(shape, source, fill, torch.int64)


def as_generators(source: Source, batch: int) -> Generators:
    """Return the generators of a source; raises ValueError unless there are 1 or `batch`."""
    found = [source] if isinstance(source, torch.Generator) else source
    if len(found) not in (1, batch):
        raise ValueError(
            f"got {len(found)} generators for a batch of {batch}: "
            "give one for all entries, or one for each"
        )
    return found


def _draw(
    shape: Sequence[int],
    source: Source,
    fill: Callable[..., Any],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Let each generator fill its part of a new tensor, on the generators' device."""
    found = as_generators(source, shape[0])
    numbers = torch.empty(*shape, device=found[0].device, dtype=dtype)
    for part, generator in zip(numbers.chunk(len(found)), found):
        fill(part, generator=generator)
    return numbers
