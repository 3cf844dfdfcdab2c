"""The state-space scan of Mamba-2 (SSD, arXiv 2405.21060): one signature, several equal ways to compute it.

Glossary (paper's letters)
    X   [b, l, h, p]   values: h heads of width p
    dt  [b, l, h]      step size, > 0; a token with dt = 0 neither decays nor adds to the state: it only reads
    A   [h]            decay rate, < 0;  log decay of one token = dt * A
    B   [b, l, n]      keys   (which part of the state a token writes), shared by the heads
    C   [b, l, n]      queries (which part of the state a token reads), shared by the heads
    S   [b, h, p, n]   state:  S_t = exp(dt_t A) S_{t-1} + dt_t X_t B_t^T,   Y_t = S_t C_t
    reset [b, l]       true where an episode begins: the state is zero before that token

All functions return (Y [b, l, h, p], S after the last token).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reference(X: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor, reset: Tensor | None = None):
    """The recurrence, token by token: slow, obviously right, the oracle of the tests."""
    Y = []
    for t in range(X.shape[1]):
        if reset is not None:
            S = torch.where(reset[:, t, None, None, None], torch.zeros_like(S), S)
        decay = torch.exp(dt[:, t] * A)
        write = torch.einsum("bhp,bn->bhpn", dt[:, t, :, None] * X[:, t], B[:, t])
        S = decay[:, :, None, None] * S + write
        Y.append(torch.einsum("bhpn,bn->bhp", S, C[:, t]))
    return torch.stack(Y, 1), S


def chunked(
    X: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor, reset: Tensor | None = None, chunk: int = 32
):
    """The scan in chunks: attention-like inside a chunk, the recurrence between chunks (SSD paper, section 6).

    Any length works; a reset cuts the sum inside a chunk and the state between chunks, with no large numbers
    involved, so float32 keeps its precision across episode boundaries.
    """
    b, length, h, p = X.shape
    c = min(chunk, length)
    pad = -length % c
    if pad:
        X, dt, B, C = (F.pad(v, (0, 0) * (v.dim() - 2) + (0, pad)) for v in (X, dt, B, C))
        reset = None if reset is None else F.pad(reset, (0, pad))
    k = X.shape[1] // c
    V = (X * dt[..., None]).view(b, k, c, h, p)
    B, C = B.reshape(b, k, c, -1), C.reshape(b, k, c, -1)
    cum = (dt * A).view(b, k, c, h).cumsum(2)  # log decay from the chunk's start
    causal = torch.ones(c, c, dtype=torch.bool, device=X.device).tril()
    first = last = None
    if reset is not None:
        segment = reset.reshape(b, k, c).cumsum(-1)
        causal = causal & (segment[..., :, None] == segment[..., None, :])[:, :, None]
        first = (segment == 0).to(X.dtype)[..., None]  # tokens that still see the state before the chunk
        last = (segment == segment[..., -1:]).to(X.dtype)[..., None]  # tokens that reach the state after it
    # 1. inside each chunk
    line = cum.transpose(2, 3)
    decay = torch.exp((line[..., :, None] - line[..., None, :]).masked_fill(~causal, float("-inf")))
    Y = ((decay * (C @ B.transpose(-1, -2))[:, :, None]) @ V.transpose(2, 3)).transpose(2, 3)  # b k c h p
    # 2. what each chunk adds to the state
    to_end = torch.exp(cum[:, :, -1:] - cum)
    to_end = to_end if last is None else to_end * last
    added = (V * to_end[..., None]).flatten(-2).transpose(-1, -2) @ B  # b k (h p) n
    # 3. carry the state from chunk to chunk
    through = torch.exp(cum[:, :, -1])
    through = (through if first is None else through * first[:, :, -1]).repeat_interleave(p, -1)[..., None]
    S, before = S.flatten(1, 2), []
    for more, kept in zip(added.unbind(1), through.unbind(1)):  # an index i would cost k whole tensors going backward
        before.append(S)
        S = torch.addcmul(more, kept, S)
    # 4. read it
    read = (C @ torch.stack(before, 1).transpose(-1, -2)).unflatten(-1, (h, p))
    from_start = torch.exp(cum)
    from_start = from_start if first is None else from_start * first
    Y = torch.addcmul(Y, read, from_start[..., None])
    return Y.reshape(b, k * c, h, p)[:, :length], S.unflatten(1, (h, p))


def rotate(V: Tensor, angle: Tensor) -> Tensor:
    """Turn the leading pairs of `V` [..., n] by `angle` [..., r], r <= n / 2; the rest stays as it is."""
    r = angle.shape[-1]
    if r == 0:
        return V
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = V[..., :r], V[..., r : 2 * r], V[..., 2 * r :]
    return torch.cat((a * cos - b * sin, a * sin + b * cos, rest), -1)
