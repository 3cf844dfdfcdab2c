"""The scan by fla-core's Triton kernels (`simple_gla`): NVIDIA GPUs, an ordinary wheel, `pip install 'lssvwm[fla]'`."""

from __future__ import annotations

import torch
from fla.ops.simple_gla import chunk_simple_gla  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.nn import functional as F


def scan(
    X: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    S: Tensor,
    reset: Tensor | None = None,
):
    """`ssm.chunked`, by chunks of gated linear attention; episodes are sequences of their own in one packed row."""
    b, length, h, _ = X.shape
    starts = torch.zeros(b, length, dtype=torch.bool, device=X.device)
    if reset is not None:
        starts |= reset
    fresh = starts[:, 0].clone()  # these begin without the state before
    starts[:, 0] = True
    begins = starts.flatten().nonzero()[:, 0]
    row = begins // length
    goes_on = (begins % length == 0) & ~fresh[row]
    state = torch.where(goes_on[:, None, None, None], S[row].transpose(-1, -2), 0.0)
    ends = F.pad(begins, (0, 1), value=b * length)
    q, k = (
        v[:, :, None].expand(-1, -1, h, -1).flatten(0, 1)[None].contiguous()
        for v in (C, B)
    )
    v = (X * dt[..., None]).flatten(0, 1)[None].contiguous()
    g = (dt * A).flatten(0, 1)[None].float().contiguous()
    Y, last = chunk_simple_gla(
        q,
        k,
        v,
        g=g,
        scale=1.0,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=ends,
    )
    final = F.pad(row, (0, 1), value=b)
    return Y.view(X.shape), last[final[1:] != final[:-1]].transpose(-1, -2)
