"""Compute the scan by fla-core's Triton kernels (`simple_gla`): NVIDIA GPUs, `pip install 'lssvwm[fla]'`."""

from __future__ import annotations

import torch
from fla.ops.simple_gla import (  # pyright: ignore[reportMissingImports]
    chunk_simple_gla,
)
from lssvwm.worldmodel.scan.chunked import ScanInputs
from torch import Tensor
from torch.nn import functional as F


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Compute the scan without `peek` by chunks of gated linear attention.

    Episodes are sequences of their own in one packed row.
    """
    X, dt, A, B, C, S, reset, _ = inputs
    b, length, h, _ = X.shape
    starts = torch.zeros(b, length, dtype=torch.bool, device=X.device)
    if reset is not None:
        starts |= reset
    without_past = starts[:, 0].clone()  # these begin with a reset
    starts[:, 0] = True
    begins = starts.flatten().nonzero()[:, 0]
    row = begins // length
    continues = (begins % length == 0) & ~without_past[row]
    past = S[row].transpose(-1, -2)
    state = torch.where(continues[:, None, None, None], past, 0.0)
    ends = F.pad(begins, (0, 1), value=b * length)
    Y, last = chunk_simple_gla(
        _by_head(C, h),
        _by_head(B, h),
        _packed(X * dt[..., None]),
        g=_packed(dt * A).float(),
        scale=1.0,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=ends,
    )
    next_row = F.pad(row, (0, 1), value=b)
    is_last = next_row[1:] != next_row[:-1]
    return Y.view(X.shape), last[is_last].transpose(-1, -2)


def _packed(v: Tensor) -> Tensor:
    """Put all sequences v [b, l, ...] into one row [1, b l, ...]."""
    return v.flatten(0, 1)[None].contiguous()


def _by_head(v: Tensor, heads: int) -> Tensor:
    """Repeat v [b, l, n] for every head, packed. Returns [1, b l, h, n]."""
    return _packed(v[:, :, None].expand(-1, -1, heads, -1))
