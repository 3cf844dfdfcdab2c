"""Compute the state-space scan of Mamba-2 (SSD, arXiv 2405.21060).

`reference` is the recurrence, `chunked` an equal, faster form of it.

Glossary (the paper's letters): b sequences of l tokens, h heads of width p, keys and queries of size n
    X   [b, l, h, p]   values
    dt  [b, l, h]      step size, > 0. A token with dt = 0 neither decays the state nor adds to it: it only reads.
    A   [h]            decay rate, < 0. The log decay of one token is dt * A.
    B   [b, l, n]      keys (which part of the state a token writes), shared by the heads
    C   [b, l, n]      queries (which part of the state a token reads), shared by the heads
    S   [b, h, p, n]   state:  S_t = exp(dt_t A) S_{t-1} + dt_t X_t B_t^T,   Y_t = S_t C_t
    Y   [b, l, h, p]   what the tokens read

Beyond the paper
    reset [b, l]       true where an episode begins: the state is zero before that token
    peek [b, f, s, n]  further queries, one for each of the tokens taken as f frames of s (f s = l). They read the
                       state as it was before their frame. Resets must then come with the first tokens of frames.

Every scan takes `ScanInputs`. It returns Y and S after the last token and, with `peek`, what that read, [b, l, h, p].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from lssvwm.worldmodel.fused_ops import addcmul, carry, host_may_read, inner, outer
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32
"""Tokens in a chunk of `chunked`."""
STRONG = 60.0
"""Log decay within a chunk whose inverse still fits well into float32."""


class ScanInputs(NamedTuple):
    """Hold the inputs of a scan, see the glossary."""

    X: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    S: Tensor
    reset: Tensor | None = None
    peek: Tensor | None = None


def reference(inputs: ScanInputs) -> tuple[Tensor, ...]:
    """Compute the recurrence token by token. It is slow, and the other scans are tested against it."""
    X, dt, A, B, C, S, reset, peek = inputs
    Y, peeked = [], []
    for t in range(X.shape[1]):
        if reset is not None:
            begins = reset[:, t, None, None, None]
            S = torch.where(begins, torch.zeros_like(S), S)
        if peek is not None and t % peek.shape[2] == 0:
            queries = peek[:, t // peek.shape[2]]
            peeked.append(torch.einsum("bhpn,bsn->bshp", S, queries))
        decay = torch.exp(dt[:, t] * A)
        values = dt[:, t, :, None] * X[:, t]
        write = torch.einsum("bhp,bn->bhpn", values, B[:, t])
        S = decay[:, :, None, None] * S + write
        Y.append(torch.einsum("bhpn,bn->bhp", S, C[:, t]))
    if peek is None:
        return torch.stack(Y, 1), S
    return torch.stack(Y, 1), S, torch.cat(peeked, 1)


class _Reader(NamedTuple):
    """Hold queries of all chunks, and where in their chunk they read."""

    queries: Tensor
    """Queries [b, k, c, n] of k chunks of c tokens."""

    decay: Tensor
    """Log decay from the chunk's start to where each query reads, [b, k, c, h]."""

    visible: Tensor
    """True for the tokens of its chunk that a query reads, [c, c]."""


class _Chunks(NamedTuple):
    """Hold the tokens of k chunks of c tokens, and the state before each."""

    X: Tensor
    dt: Tensor
    B: Tensor

    decay: Tensor
    """Log decay from the chunk's start to each token, [b, k, c, h]."""

    before: Tensor
    """State before each chunk, [b, k, h p, n]."""

    began: Tensor
    """True where an episode began in the chunk, [b, k, c, 1]."""

    same_episode: Tensor
    """True for pairs of tokens of the same episode, [b, k, c, c]."""


def chunked(inputs: ScanInputs, chunk: int = CHUNK) -> tuple[Tensor, ...]:
    """Compute the scan in chunks (SSD paper, section 6).

    It is attention-like inside a chunk, and the recurrence between chunks. Any length works. Masks cut the sum at a
    reset, not a large decay, so that float32 keeps its precision across episodes. Under autocast, products and their
    factors have its type. Log decays and the carried state keep theirs.
    """
    X, dt, A, B, C, S, reset, peek = inputs
    length, h, p = X.shape[1:]
    frame = 1 if peek is None else peek.shape[2]
    size = min(max(1, chunk // frame) * frame, length)  # whole frames
    queries = [C] if peek is None else [C, peek.flatten(1, 2)]
    if reset is None:
        reset = torch.zeros_like(dt[..., 0], dtype=torch.bool)
    low = autocast_type(dt)
    X, B, *queries = (v.to(low) for v in (X, B, *queries))
    X, dt, B, *queries = (by_chunk(v, size) for v in (X, dt, B, *queries))
    decay = (dt * A).cumsum(2)  # log decay from the chunk's start to each token
    readers = _readers(queries, decay, frame)
    episode = by_chunk(reset, size).cumsum(-1)
    same_episode = episode[..., :, None] == episode[..., None, :]
    # an episode began in the chunk: these tokens do not see the state before it
    began = episode > 0
    began = began[..., None]
    # no episode begins later in the chunk: these tokens reach the state after it
    last_episode = episode[..., -1:]
    lasts = episode == last_episode
    lasts = lasts[..., None]
    total = decay[:, :, -1:]
    to_end = torch.exp(total - decay)
    strength = dt * to_end * lasts
    kept = torch.exp(decay[:, :, -1])
    kept = kept.masked_fill(began[:, :, -1], 0.0)
    written = X * strength.to(low)[..., None]
    added = outer(written.flatten(-2), B)  # [b, k, h p, n]
    before, S = carry(added, kept, S.flatten(1, 2))
    chunks = _Chunks(X, dt, B, decay, before, began, same_episode)
    outputs = _read(readers, chunks)
    outputs = [y.flatten(1, 2)[:, :length] for y in outputs]
    Y, *peeked = outputs
    return Y, S.unflatten(1, (h, p)), *peeked


def _read(readers: list[_Reader], chunks: _Chunks) -> list[Tensor]:
    """Read the state before each chunk, and the chunk itself. Returns [b, k, c, h, p] for each reader.

    The decay from a token to a query is a factor of the query times one of the token. Where a factor may leave the
    range of float32, heads are read one by one.
    """
    X, dt, B, decay = chunks.X, chunks.dt, chunks.B, chunks.decay
    by_head = X.shape[-2:]
    readable = host_may_read(decay) and not torch.compiler.is_compiling()
    factored = readable and float(decay.detach().min()) > -STRONG
    weight = dt * torch.exp(-decay) if factored else dt
    V = X * weight.to(X.dtype)[..., None]
    outputs = []
    for reader in readers:
        shown = reader.visible & chunks.same_episode
        score = inner(reader.queries, B)
        score = score.masked_fill(~shown, 0.0)
        read = inner(reader.queries, chunks.before)
        read = read.masked_fill(chunks.began, 0.0)
        fade = torch.exp(reader.decay)
        fade = fade.to(X.dtype)[..., None]
        if factored:
            y = read + score @ V.flatten(-2)
            y = y.unflatten(-1, by_head) * fade
        else:
            own = _by_head(score, V, decay, reader.decay)
            y = addcmul(own, read.unflatten(-1, by_head), fade)
        outputs.append(y)
    return outputs


def autocast_type(v: Tensor) -> torch.dtype:
    """Return the type of products: autocast's, or that of v."""
    device = v.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return v.dtype


def by_chunk(v: Tensor, size: int) -> Tensor:
    """Cut the tokens of v [b, l, ...] into chunks [b, k, size, ...], with zeros after the last token."""
    missing = -v.shape[1] % size
    if missing:
        no_pad = (0, 0) * (v.dim() - 2)
        v = F.pad(v, (*no_pad, 0, missing))
    chunks = v.shape[1] // size
    return v.unflatten(1, (chunks, size))


def _readers(queries: list[Tensor], decay: Tensor, frame: int) -> list[_Reader]:
    """Return the readers of all chunks.

    A token reads the tokens up to itself. When peeking, it reads those before its frame.
    """
    size = decay.shape[2]
    token = torch.arange(size, device=decay.device)
    readers = [_Reader(queries[0], decay, token[:, None] >= token)]
    if len(queries) > 1:
        ends = decay[:, :, frame - 1 :: frame]
        frame_start = F.pad(ends, (0, 0, 1, 0))
        frame_start = frame_start[:, :, :-1]
        number = token // frame
        earlier = number[:, None] > number
        start = frame_start.repeat_interleave(frame, 2)
        readers.append(_Reader(queries[1], start, earlier))
    return readers


def _by_head(score: Tensor, V: Tensor, decay: Tensor, query_decay: Tensor) -> Tensor:
    """Read the queries' own chunk head by head, however strong its decay.

    score [b, k, q, c] (0 where a query must not read), values V [b, k, c, h, p], log decay from the chunk's start to
    the tokens [b, k, c, h] and to the queries [b, k, q, h] -> [b, k, q, h, p]
    """
    to_query = query_decay.transpose(2, 3)[..., :, None]
    to_token = decay.transpose(2, 3)[..., None, :]
    gap = to_query - to_token
    fade = torch.exp(gap.clamp(max=0.0))  # the score of tokens after the query is zero
    weight = fade.to(score.dtype) * score[:, :, None]
    read = weight @ V.transpose(2, 3)
    return read.transpose(2, 3)
