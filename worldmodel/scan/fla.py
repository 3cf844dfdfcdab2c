"""Compute scans by fla-core's Triton kernels: NVIDIA GPUs, `pip install 'lssvwm[fla]'`.

Episodes are sequences of their own in one packed row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fla.ops.gated_delta_rule import (  # pyright: ignore[reportMissingImports]
    chunk_gated_delta_rule,
)
from fla.ops.simple_gla import (  # pyright: ignore[reportMissingImports]
    chunk_simple_gla,
)
from lssvwm.worldmodel.scan.chunked import ScanInputs
from lssvwm.worldmodel.scan.delta import DeltaInputs
from torch import Tensor
from torch.nn import functional as F


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Compute SSD without `peek`, by chunks of gated linear attention."""
    X, dt, A, B, C, S, reset, _ = inputs
    h = X.shape[2]
    packing = _pack(X, S, reset)
    Y, last = chunk_simple_gla(
        _by_head(C, h),
        _by_head(B, h),
        _packed(X * dt[..., None]),
        g=_packed(dt * A).float(),
        scale=1.0,
        initial_state=packing.state,
        output_final_state=True,
        cu_seqlens=packing.bounds,
    )
    return Y.view(X.shape), last[packing.is_last].transpose(-1, -2)


def delta_scan(inputs: DeltaInputs) -> tuple[Tensor, Tensor]:
    """Compute the delta rule without `peek`; all values form one head."""
    X, beta, K, Q, S, reset, _ = inputs
    packing = _pack(X, S[:, None], reset)
    strength = _packed(beta)[..., None]
    Y, last = chunk_gated_delta_rule(
        _by_head(Q, 1),
        _by_head(K, 1),
        _by_head(X, 1),
        g=torch.zeros_like(strength),
        beta=strength,
        scale=1.0,
        initial_state=packing.state,
        output_final_state=True,
        cu_seqlens=packing.bounds,
    )
    last = last[packing.is_last, 0]
    return Y.view(X.shape), last.transpose(-1, -2)


class _Packing(NamedTuple):
    """Say which tokens of the packed row form an episode, and what precedes it."""

    bounds: Tensor
    """First token of each of e episodes, and the number of all tokens, [e + 1]."""

    state: Tensor
    """State before each episode, [e, h, n, p]."""

    is_last: Tensor
    """True for the last episode of each sequence, [e]."""


def _pack(X: Tensor, S: Tensor, reset: Tensor | None) -> _Packing:
    """Split sequences X [b, l, ...] with states S [b, h, p, n] at their resets [b, l]."""
    b, length = X.shape[:2]
    if reset is None:
        row = torch.arange(b, device=X.device)
        bounds = length * torch.arange(b + 1, device=X.device)
        state = S.transpose(-1, -2).contiguous()
        return _Packing(bounds, state, torch.ones_like(row, dtype=torch.bool))
    starts = reset.clone()
    without_past = starts[:, 0].clone()  # these begin with a reset
    starts[:, 0] = True
    begins = starts.flatten().nonzero()[:, 0]
    row = begins // length
    continues = (begins % length == 0) & ~without_past[row]
    past = S[row].transpose(-1, -2)
    state = torch.where(continues[:, None, None, None], past, 0.0)
    next_row = F.pad(row, (0, 1), value=b)
    bounds = F.pad(begins, (0, 1), value=b * length)
    return _Packing(bounds, state.contiguous(), next_row[1:] != next_row[:-1])


def _packed(v: Tensor) -> Tensor:
    """Put all sequences v [b, l, ...] into one row [1, b l, ...]."""
    return v.flatten(0, 1)[None].contiguous()


def _by_head(v: Tensor, heads: int) -> Tensor:
    """Repeat v [b, l, n] for every head, packed. Returns [1, b l, h, n]."""
    return _packed(v[:, :, None].expand(-1, -1, heads, -1))
