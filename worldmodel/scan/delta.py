"""Compute the gated delta rule (arXiv 2412.06464), with one write strength per token for all heads.

`reference` is the recurrence, `chunked` an equal, faster form of it.

Glossary: b sequences of l tokens, h heads of width p, keys and queries of size n
    X     [b, l, h, p]  values
    beta  [b, l]        write strength, 0 ... 1. A token with beta = 0 and no decay leaves no trace.
    K     [b, l, n]     keys of length 1 (which part of the state a token replaces), shared by the heads
    Q     [b, l, n]     queries (which part of the state a token reads), shared by the heads
    S     [b, h, p, n]  state:  S' = exp(decay_t) S_{t-1},   S_t = S' + beta_t (X_t - S' K_t) K_t^T,   Y_t = S_t Q_t
    decay [b, l, h]     log decay, <= 0; None: the state does not decay
    Y     [b, l, h, p]  what the tokens read

`reset` and `peek` are those of `scan.chunked`. Every scan takes `DeltaInputs`. It returns Y and S after the last token
and, with `peek`, what that read, [b, l, h, p].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from lssvwm.worldmodel.fused_ops import delta_carry, inner
from torch import Tensor
from torch.nn import functional as F

CHUNK = 36
"""Tokens in a chunk of `chunked`."""


class DeltaInputs(NamedTuple):
    """Hold the inputs of a scan, see the glossary."""

    X: Tensor
    beta: Tensor
    K: Tensor
    Q: Tensor
    S: Tensor
    decay: Tensor | None = None
    reset: Tensor | None = None
    peek: Tensor | None = None


def reference(inputs: DeltaInputs) -> tuple[Tensor, ...]:
    """Compute the recurrence token by token. It is slow, and the other scans are tested against it."""
    X, beta, K, Q, S, decay, reset, peek = inputs
    Y, peeked = [], []
    for t in range(X.shape[1]):
        if reset is not None:
            begins = reset[:, t, None, None, None]
            S = torch.where(begins, torch.zeros_like(S), S)
        if peek is not None and t % peek.shape[2] == 0:
            queries = peek[:, t // peek.shape[2]]
            peeked.append(torch.einsum("bhpn,bsn->bshp", S, queries))
        if decay is not None:
            S = S * torch.exp(decay[:, t])[..., None, None]
        stored = torch.einsum("bhpn,bn->bhp", S, K[:, t])
        change = beta[:, t, None, None] * (X[:, t] - stored)
        S = S + torch.einsum("bhp,bn->bhpn", change, K[:, t])
        Y.append(torch.einsum("bhpn,bn->bhp", S, Q[:, t]))
    if peek is None:
        return torch.stack(Y, 1), S
    return torch.stack(Y, 1), S, torch.cat(peeked, 1)


def chunked(inputs: DeltaInputs, chunk: int = CHUNK) -> tuple[Tensor, ...]:
    """Compute the scan in chunks: a triangular system inside a chunk, the recurrence between chunks.

    Any length works. Masks cut the sums at a reset. Everything has the type of the inputs: autocast is ignored. The
    log decay within a chunk must stay above -60, so that its inverse fits into float32.
    """
    X, beta, K, Q, S, decay, reset, peek = inputs
    length, h, p = X.shape[1:]
    frame = 1 if peek is None else peek.shape[2]
    size = min(max(1, chunk // frame) * frame, length)  # whole frames
    queries = [Q] if peek is None else [Q, peek.flatten(1, 2)]
    X, beta, K, *queries = (
        _by_chunk(v, size) for v in (X.flatten(2), beta, K, *queries)
    )
    total = None
    if decay is not None:
        total = _by_chunk(decay, size).cumsum(2)  # since the chunk began [b, k, c, h]
        X = X * torch.exp(-total).repeat_interleave(p, -1)
    token = torch.arange(size, device=X.device)
    earlier = token[:, None] > token
    readable = None
    fresh = reaching = 1.0
    if reset is not None:
        episode = _by_chunk(reset, size).cumsum(-1)
        readable = episode[..., :, None] == episode[..., None, :]
        # an episode began in the chunk: these tokens do not see the state before it
        fresh = (episode == 0).to(X.dtype)[..., None]
        # no episode begins later in the chunk: these tokens reach the state after it
        reaching = (episode == episode[..., -1:]).to(X.dtype)[..., None]
    # 1. solve for what tokens add to the state, given the state before the chunk: U = UX - UK S^T
    overlap = _masked(inner(K, K), earlier, readable)
    right = torch.cat((X, K * fresh), -1) * beta[..., None]
    solved = torch.linalg.solve_triangular(
        overlap * beta[..., None], right, upper=False, unitriangular=True
    )
    UX, UK = solved.split([h * p, K.shape[-1]], -1)
    # 2. carry the state from chunk to chunk
    kept = fade = None
    if reset is not None:
        kept = fresh[:, :, -1]
    if total is not None:
        fade = torch.exp(total[:, :, -1]).repeat_interleave(p, -1)
    U, before, S = delta_carry(UX, UK, K * reaching, S.flatten(1, 2), kept, fade)
    # 3. read the state before the chunk, and the chunk itself
    outputs = []
    for queries_, since, visible in _readers(queries, total, frame, earlier):
        score = _masked(inner(queries_, K), visible, readable)
        y = torch.baddbmm(
            (inner(queries_, before) * fresh).flatten(0, 1),
            score.flatten(0, 1),
            U.flatten(0, 1),
        ).unflatten(0, U.shape[:2])
        if since is not None:
            y = y * torch.exp(since).repeat_interleave(p, -1)
        outputs.append(y.flatten(1, 2)[:, :length].unflatten(-1, (h, p)))
    Y, *peeked = outputs
    return Y, S.unflatten(1, (h, p)), *peeked


def _readers(queries, total, frame, earlier):
    token = torch.arange(len(earlier), device=earlier.device)
    found = [(queries[0], total, ~earlier.T)]
    if len(queries) > 1:
        start = None
        if total is not None:
            ends = total[:, :, frame - 1 :: frame]
            start = F.pad(ends, (0, 0, 1, 0))[:, :, :-1].repeat_interleave(frame, 2)
        number = token // frame
        found.append((queries[1], start, number[:, None] > number))
    return found


def _masked(score: Tensor, visible: Tensor, readable: Tensor | None) -> Tensor:
    """Set the scores [b, k, c, c] of tokens to zero that are not visible or of another episode."""
    shown = visible if readable is None else visible & readable
    return score.masked_fill(~shown, 0.0)


def _by_chunk(v: Tensor, size: int) -> Tensor:
    """Cut the tokens of v [b, l, ...] into chunks [b, k, size, ...], with zeros after the last token."""
    missing = -v.shape[1] % size
    if missing:
        v = F.pad(v, (0, 0) * (v.dim() - 2) + (0, missing))
    return v.unflatten(1, (v.shape[1] // size, size))
