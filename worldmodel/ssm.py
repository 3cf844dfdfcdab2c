"""The state-space scan of Mamba-2 (SSD, arXiv 2405.21060): one signature, several equal ways to compute it.

Glossary (paper's letters)
    X   [b, l, h, p]   values: h heads of width p
    dt  [b, l, h]      step size, > 0; a token with dt = 0 neither decays nor adds to the state: it only reads
    A   [h]            decay rate, < 0;  log decay of one token = dt * A
    B   [b, l, n]      keys   (which part of the state a token writes), shared by the heads
    C   [b, l, n]      queries (which part of the state a token reads), shared by the heads
    S   [b, h, p, n]   state:  S_t = exp(dt_t A) S_{t-1} + dt_t X_t B_t^T,   Y_t = S_t C_t
    reset [b, l]       true where an episode begins: the state is zero before that token

    peek [b, f, s, n]  more queries, one for each of the tokens taken as f frames of s (f s = l): they read the state
                       as it was before their frame. Resets must then come with the first tokens of frames.

All functions return (Y [b, l, h, p], S after the last token) and, with `peek`, what it read, [b, l, h, p].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
"""Tokens in a chunk of `chunked`."""
STRONG = 60.0
"""Log decay within a chunk whose inverse still fits well into float32."""


def reference(
    X: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor, reset=None, peek: Tensor | None = None
):
    """The recurrence, token by token: slow, obviously right, the oracle of the tests."""
    Y, before = [], []
    for t in range(X.shape[1]):
        if reset is not None:
            S = torch.where(reset[:, t, None, None, None], torch.zeros_like(S), S)
        if peek is not None and t % peek.shape[2] == 0:
            before.append(torch.einsum("bhpn,bsn->bshp", S, peek[:, t // peek.shape[2]]))
        decay = torch.exp(dt[:, t] * A)
        write = torch.einsum("bhp,bn->bhpn", dt[:, t, :, None] * X[:, t], B[:, t])
        S = decay[:, :, None, None] * S + write
        Y.append(torch.einsum("bhpn,bn->bhp", S, C[:, t]))
    return (torch.stack(Y, 1), S) if peek is None else (torch.stack(Y, 1), S, torch.cat(before, 1))


def chunked(
    X: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    S: Tensor,
    reset: Tensor | None = None,
    peek: Tensor | None = None,
    chunk: int = CHUNK,
):
    """The scan in chunks: attention-like inside a chunk, the recurrence between chunks (SSD paper, section 6).

    Any length works; a reset cuts the sum inside a chunk and the state between chunks by masks, not by a large decay,
    so that float32 keeps its precision across episode boundaries.
    """
    b, length, h, p = X.shape
    s = 1 if peek is None else peek.shape[2]
    c = min(max(1, chunk // s) * s, length)  # whole frames
    Q = C[:, None] if peek is None else torch.stack((peek.flatten(1, 2), C), 1)  # b r l n
    pad = -length % c
    if pad:
        X, dt, B = (F.pad(v, (0, 0) * (v.dim() - 2) + (0, pad)) for v in (X, dt, B))
        Q, reset = F.pad(Q, (0, 0, 0, pad)), None if reset is None else F.pad(reset, (0, pad))
    k, r = X.shape[1] // c, Q.shape[1]
    V = (X * dt[..., None]).view(b, k, c, h, p)
    B = B.reshape(b, k, c, -1)
    Q = Q.unflatten(2, (k, c)).transpose(1, 2).flatten(2, 3)  # b k (r c) n
    cum = (dt * A).view(b, k, c, h).cumsum(2)  # log decay from the chunk's start to each token
    since, at = cum, torch.arange(c, device=X.device)  # and to where each query reads
    reach = at[:, None] >= at
    if peek is not None:
        ends = F.pad(cum[:, :, s - 1 :: s], (0, 0, 1, 0))[:, :, :-1]  # to the end of the frame before
        since = torch.cat((ends.repeat_interleave(s, 2), cum), 2)
        reach = torch.cat((at[:, None] // s > at // s, reach))
    first = last = None
    if reset is not None:
        segment = reset.reshape(b, k, c).cumsum(-1)
        mine = segment.repeat(1, 1, r)
        reach = reach & (mine[..., :, None] == segment[..., None, :])
        first = (mine == 0).to(X.dtype)[..., None]  # queries that still see the state before the chunk
        last = (segment == segment[..., -1:]).to(X.dtype)[..., None]  # tokens that reach the state after it
    # 1. inside each chunk
    Y = _inside((Q @ B.transpose(-1, -2)).masked_fill(~reach, 0.0), V, cum, since)
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
    read = (Q @ torch.stack(before, 1).transpose(-1, -2)).unflatten(-1, (h, p))
    from_start = torch.exp(since) if first is None else torch.exp(since) * first
    Y = torch.addcmul(Y, read, from_start[..., None]).unflatten(2, (r, c))
    *peeked, Y = (y.reshape(b, k * c, h, p)[:, :length] for y in Y.unbind(2))
    return Y, S.unflatten(1, (h, p)), *peeked


def _inside(score: Tensor, V: Tensor, cum: Tensor, since: Tensor) -> Tensor:
    """What queries read of their own chunk: score [b, k, q, c] (0 where they must not look), values V [b, k, c, h, p],
    log decays cum [b, k, c, h] at the tokens and since [b, k, q, h] at the queries -> [b, k, q, h, p].

    The decay between the two is a product of one factor each, which all scores can share, as long as neither leaves
    the range of float32; a chunk that forgets more than that is computed head by head.
    """
    if not torch.compiler.is_compiling() and float(cum.detach().min()) > -STRONG:
        grown = (V * torch.exp(-cum)[..., None]).flatten(-2)
        return (score @ grown).unflatten(-1, V.shape[-2:]) * torch.exp(since)[..., None]
    gap = since.transpose(2, 3)[..., :, None] - cum.transpose(2, 3)[..., None, :]
    decay = torch.exp(gap.clamp(max=0.0))  # tokens after the query: whatever, their score is zero
    return ((decay * score[:, :, None]) @ V.transpose(2, 3)).transpose(2, 3)


def interleaved(scan):
    """The same for a scan that knows of no `peek`: those queries become tokens of step size zero before their frame."""

    def wrapped(X, dt, A, B, C, S, reset=None, peek: Tensor | None = None):
        if peek is None:
            return scan(X, dt, A, B, C, S, reset)
        frames = peek.shape[1:3]
        X, dt, B, C = (v.unflatten(1, frames) for v in (X, dt, B, C))
        twice = (torch.stack(pair, 2).flatten(1, 3) for pair in ((X, X), (torch.zeros_like(dt), dt), (B, B), (peek, C)))
        X, dt, B, C = twice
        if reset is not None:
            reset = reset.unflatten(1, frames)
            reset = torch.stack((reset, torch.zeros_like(reset)), 2).flatten(1, 3)
        Y, S = scan(X, dt, A, B, C, S, reset)
        before, Y = (y.flatten(1, 2) for y in Y.unflatten(1, (frames[0], 2, frames[1])).unbind(2))
        return Y, S, before

    return wrapped


def rotate(V: Tensor, angle: Tensor) -> Tensor:
    """Turn the leading pairs of `V` [..., n] by `angle` [..., r], r <= n / 2; the rest stays as it is."""
    return _Rotation.apply(V, angle) if angle.shape[-1] else V  # type: ignore[return-value]


class _Rotation(torch.autograd.Function):
    """Written out, because it is made of many small steps over large tensors: half the time of what autograd does."""

    @staticmethod
    def forward(ctx, V: Tensor, angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        out = _turned(V, cos, sin)
        ctx.save_for_backward(out, cos, sin)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, cos, sin = ctx.saved_tensors
        r, angle = cos.shape[-1], None
        if ctx.needs_input_grad[1]:  # a point on a circle moves at a right angle to where it is
            angle = torch.addcmul(out[..., :r] * grad[..., r : 2 * r], out[..., r : 2 * r], grad[..., :r], value=-1)
            angle = angle.sum_to_size(cos.shape)
        return _turned(grad, cos, -sin), angle


def _turned(V: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r, out = cos.shape[-1], V.clone()
    out[..., :r].mul_(cos).addcmul_(V[..., r : 2 * r], sin, value=-1)
    out[..., r : 2 * r].mul_(cos).addcmul_(V[..., :r], sin)
    return out
