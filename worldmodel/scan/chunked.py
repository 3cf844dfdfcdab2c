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
from lssvwm.worldmodel.fused_ops import addcmul, carry, inner, outer
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
"""Tokens in a chunk of `chunked`."""
STRONG = 60.0
"""Log decay within a chunk whose inverse still fits well into float32."""


def reference(
    X: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    S: Tensor,
    reset=None,
    peek: Tensor | None = None,
):
    """The recurrence, token by token: slow, obviously right, the oracle of the tests."""
    Y, before = [], []
    for t in range(X.shape[1]):
        if reset is not None:
            S = torch.where(reset[:, t, None, None, None], torch.zeros_like(S), S)
        if peek is not None and t % peek.shape[2] == 0:
            before.append(
                torch.einsum("bhpn,bsn->bshp", S, peek[:, t // peek.shape[2]])
            )
        decay = torch.exp(dt[:, t] * A)
        write = torch.einsum("bhp,bn->bhpn", dt[:, t, :, None] * X[:, t], B[:, t])
        S = decay[:, :, None, None] * S + write
        Y.append(torch.einsum("bhpn,bn->bhp", S, C[:, t]))
    return (
        (torch.stack(Y, 1), S)
        if peek is None
        else (torch.stack(Y, 1), S, torch.cat(before, 1))
    )


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
    so that float32 keeps its precision across episode boundaries. Under autocast, products and what they are made of
    are in its type; log decays and the state that is carried on stay as they are.
    """
    length, h, p = X.shape[1:]
    s = 1 if peek is None else peek.shape[2]
    c = min(max(1, chunk // s) * s, length)  # whole frames
    queries = [C] if peek is None else [C, peek.flatten(1, 2)]
    reset = torch.zeros_like(dt[..., 0], dtype=torch.bool) if reset is None else reset
    device = X.device.type
    low = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else dt.dtype
    )
    X, B, *queries = (v.to(low) for v in (X, B, *queries))
    pad = -length % c
    if pad:
        X, dt, B, *queries = (
            F.pad(v, (0, 0) * (v.dim() - 2) + (0, pad)) for v in (X, dt, B, *queries)
        )
        reset = F.pad(reset, (0, pad))
    k = X.shape[1] // c
    X, dt, B, *queries = (v.unflatten(1, (k, c)) for v in (X, dt, B, *queries))
    cum = (dt * A).cumsum(
        2
    )  # log decay from the chunk's start to each token [b, k, c, h]
    at = torch.arange(c, device=X.device)
    looks = [
        (cum, at[:, None] >= at)
    ]  # log decay to where each query reads, and which tokens it may see
    if peek is not None:
        ends = F.pad(cum[:, :, s - 1 :: s], (0, 0, 1, 0))[
            :, :, :-1
        ]  # to the end of the frame before
        looks.append((ends.repeat_interleave(s, 2), at[:, None] // s > at // s))
    segment = reset.unflatten(1, (k, c)).cumsum(-1)
    alike = segment[..., :, None] == segment[..., None, :]
    late = (segment > 0)[
        ..., None
    ]  # queries that no longer see the state before the chunk
    last = (segment == segment[..., -1:])[
        ..., None
    ]  # tokens that reach the state after it
    to_end, through = (
        torch.exp(cum[:, :, -1:] - cum) * last,
        torch.exp(cum[:, :, -1]).masked_fill(late[:, :, -1], 0.0),
    )
    # 1. what each chunk adds to the state, which is carried from chunk to chunk
    added = outer((X * (dt * to_end).to(low)[..., None]).flatten(-2), B)  # b k (h p) n
    before, S = carry(added, through, S.flatten(1, 2))
    # 2. read it, and the chunk itself: the decay to the query is a factor of both, and the decay from the token one of
    # its value, as long as that stays well in the range of float32; a chunk that forgets more goes head by head
    mild = not torch.compiler.is_compiling() and float(cum.detach().min()) > -STRONG
    V = X * (dt * torch.exp(-cum) if mild else dt).to(low)[..., None]
    Y = []
    for Q, (since, reach) in zip(queries, looks):
        score = inner(Q, B).masked_fill(~(reach & alike), 0.0)
        read, faded = (
            inner(Q, before).masked_fill(late, 0.0),
            torch.exp(since).to(low)[..., None],
        )
        if mild:
            y = (read + score @ V.flatten(-2)).unflatten(-1, (h, p)) * faded
        else:
            y = addcmul(
                _by_head(score, V, cum, since), read.unflatten(-1, (h, p)), faded
            )
        Y.append(y.flatten(1, 2)[:, :length])
    return Y[0], S.unflatten(1, (h, p)), *Y[1:]


def _by_head(score: Tensor, V: Tensor, cum: Tensor, since: Tensor) -> Tensor:
    """What queries read of their own chunk, however much it forgets: score [b, k, q, c] (0 where they must not look),
    values V [b, k, c, h, p], log decays cum [b, k, c, h] at the tokens and since [b, k, q, h] at the queries ->
    [b, k, q, h, p]"""
    gap = since.transpose(2, 3)[..., :, None] - cum.transpose(2, 3)[..., None, :]
    decay = torch.exp(
        gap.clamp(max=0.0)
    )  # tokens after the query: whatever, their score is zero
    return ((decay.to(score.dtype) * score[:, :, None]) @ V.transpose(2, 3)).transpose(
        2, 3
    )


def interleaved(scan):
    """The same for a scan that knows of no `peek`: those queries become tokens of step size zero before their frame."""

    def wrapped(X, dt, A, B, C, S, reset=None, peek: Tensor | None = None):
        X = X.to(dt.dtype)
        if peek is None:
            return scan(X, dt, A, B, C, S, reset)
        frames = peek.shape[1:3]
        X, dt, B, C = (v.unflatten(1, frames) for v in (X, dt, B, C))
        twice = (
            torch.stack(pair, 2).flatten(1, 3)
            for pair in ((X, X), (torch.zeros_like(dt), dt), (B, B), (peek, C))
        )
        X, dt, B, C = twice
        if reset is not None:
            reset = reset.unflatten(1, frames)
            reset = torch.stack((reset, torch.zeros_like(reset)), 2).flatten(1, 3)
        Y, S = scan(X, dt, A, B, C, S, reset)
        before, Y = (
            y.flatten(1, 2) for y in Y.unflatten(1, (frames[0], 2, frames[1])).unbind(2)
        )
        return Y, S, before

    return wrapped
