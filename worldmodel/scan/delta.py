"""Compute the delta rule (arXiv 2406.06484): values replace what a key holds.

`reference` is the recurrence, `chunked` an equal, faster form of it.

Glossary: b sequences of l tokens, values of width m, keys and queries of size n
    X     [b, l, m]  values
    beta  [b, l]     write strength, 0 ... 1. A token with beta = 0 leaves no trace: it only reads.
    K     [b, l, n]  keys of length 1 (which part of the state a token replaces)
    Q     [b, l, n]  queries (which part of the state a token reads)
    S     [b, m, n]  state:  S_t = S_{t-1} + beta_t (X_t - S_{t-1} K_t) K_t^T,   Y_t = S_t Q_t
    Y     [b, l, m]  what the tokens read

There is no decay: the state changes only by writing. `reset` and `peek` are those of `scan.chunked`. Every scan takes
`DeltaInputs`. It returns Y and S after the last token and, with `peek`, what that read, [b, l, m].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from lssvwm.worldmodel.fused_ops import delta_carry, inner
from lssvwm.worldmodel.scan.chunked import autocast_type, by_chunk
from torch import Tensor

CHUNK = 36
"""Tokens in a chunk of `chunked`."""


class DeltaInputs(NamedTuple):
    """Hold the inputs of a scan, see the glossary."""

    X: Tensor
    beta: Tensor
    K: Tensor
    Q: Tensor
    S: Tensor
    reset: Tensor | None = None
    peek: Tensor | None = None


def reference(inputs: DeltaInputs) -> tuple[Tensor, ...]:
    """Compute the recurrence token by token. It is slow, and the other scans are tested against it."""
    X, beta, K, Q, S, reset, peek = inputs
    Y, peeked = [], []
    for t in range(X.shape[1]):
        if reset is not None:
            begins = reset[:, t, None, None]
            S = torch.where(begins, torch.zeros_like(S), S)
        if peek is not None and t % peek.shape[2] == 0:
            queries = peek[:, t // peek.shape[2]]
            peeked.append(torch.einsum("bmn,bsn->bsm", S, queries))
        key = K[:, t]
        stored = torch.einsum("bmn,bn->bm", S, key)
        innovation = X[:, t] - stored
        change = beta[:, t, None] * innovation
        S = S + torch.einsum("bm,bn->bmn", change, key)
        read = torch.einsum("bmn,bn->bm", S, Q[:, t])
        Y.append(read)
    if peek is None:
        return torch.stack(Y, 1), S
    return torch.stack(Y, 1), S, torch.cat(peeked, 1)


def chunked(inputs: DeltaInputs, chunk: int = CHUNK) -> tuple[Tensor, ...]:
    """Compute the scan in chunks: a triangular system inside a chunk, the recurrence between chunks.

    Any length works. Masks cut the sums at a reset. Under autocast, products and their factors have its type. The
    triangular systems and the carried state keep theirs.
    """
    X, beta, K, Q, S, reset, peek = inputs
    length = X.shape[1]
    if length <= chunk and reset is None and peek is None:
        return _one_chunk(inputs)
    frame = 1 if peek is None else peek.shape[2]
    size = min(max(1, chunk // frame) * frame, length)  # whole frames
    queries = [Q] if peek is None else [Q, peek.flatten(1, 2)]
    if reset is None:
        reset = torch.zeros_like(beta, dtype=torch.bool)
    low = autocast_type(beta)
    X, K, *queries = (by_chunk(v.to(low), size) for v in (X, K, *queries))
    beta = by_chunk(beta, size)
    token = torch.arange(size, device=X.device)
    earlier = token[:, None] > token
    episodes = _episodes(by_chunk(reset, size), low)
    # 1. solve for the change that each token makes, given the state before the chunk: U = UX - UK S^T
    hidden = ~(earlier & episodes.same)
    overlap = inner(K, K)
    overlap = overlap.masked_fill(hidden, 0.0)
    weighted = overlap.to(beta.dtype) * beta[..., None]
    solve = _inverse(weighted) * beta[..., None, :]
    solve = solve.to(low)
    UX = solve @ X
    UK = (solve * episodes.fresh.mT) @ K
    # 2. carry the state from chunk to chunk
    kept = episodes.fresh[:, :, -1].to(S.dtype)
    U, before, S = delta_carry(UX, UK, K * episodes.lasts, S, kept)
    # 3. read the state before the chunk, and the changes of the chunk itself
    visible = [~earlier.T]
    if peek is not None:
        number = token // frame
        visible.append(number[:, None] > number)
    outputs = []
    for q, shown in zip(queries, visible):
        old = inner(q, before)
        old = old * episodes.fresh
        hidden = ~(shown & episodes.same)
        score = inner(q, K)
        score = score.masked_fill(hidden, 0.0)
        factors = (v.flatten(0, 1) for v in (old, score, U))
        y = torch.baddbmm(*factors).view(U.shape)
        outputs.append(y.flatten(1, 2)[:, :length])
    Y, *peeked = outputs
    return Y, S, *peeked


def _one_chunk(inputs: DeltaInputs) -> tuple[Tensor, Tensor]:
    """Compute the scan of few tokens, such as those of one frame, in few operations."""
    X, beta, K, Q, S, _, _ = inputs
    X, K, Q = (v.to(S.dtype) for v in (X, K, Q))
    both = torch.cat((K, Q), 1)
    stored, old = inner(both, S).chunk(2, 1)
    strength = beta[..., None]
    change = strength * (X - stored)
    if X.shape[1] > 1:
        overlap = strength * inner(K, K)
        change = torch.linalg.solve_triangular(
            overlap,
            change,
            upper=False,
            unitriangular=True,
        )
    score = inner(Q, K).tril()
    Y = torch.baddbmm(old, score, change)
    S = torch.baddbmm(S, change.mT, K)
    return Y, S


def _inverse(lower: Tensor) -> Tensor:
    """Return the inverse of 1 + `lower`, which is strictly lower triangular, [..., c, c]."""
    one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    with torch.autocast(lower.device.type, enabled=False):
        return torch.linalg.solve_triangular(
            lower, one.expand_as(lower), upper=False, unitriangular=True
        )


class _Episodes(NamedTuple):
    """Hold masks of chunks in which episodes begin."""

    same: Tensor
    """True for pairs of tokens of one episode, [b, k, c, c]."""

    fresh: Tensor
    """1 for tokens before the first reset of their chunk: they see the state before it, [b, k, c, 1]."""

    lasts: Tensor
    """1 for tokens after the last reset of their chunk: they reach the state after it, [b, k, c, 1]."""


def _episodes(reset: Tensor, dtype: torch.dtype) -> _Episodes:
    """Return the masks of chunks with resets [b, k, c]."""
    episode = reset.cumsum(-1)
    same = episode[..., :, None] == episode[..., None, :]
    fresh = (episode == 0).to(dtype)
    lasts = (episode == episode[..., -1:]).to(dtype)
    return _Episodes(same, fresh[..., None], lasts[..., None])
