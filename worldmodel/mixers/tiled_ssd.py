"""Carry memory by the block-wise SSM scan of LSSVWM (arXiv 2505.20171, section 3.2).

Beyond the paper, a fraction of its keys stands for places.

Shapes, in addition to those of `base`
    G, s                  tiles per frame, tokens per tile (G * s = S)
    h, p                  heads, width of a head (h * p = inner = 2 D)
    N                     size of keys and queries
    X [..., G, s, h, p]   values                   dt [..., G, s, h]   step sizes
    B [..., G, s, N]      keys                     C [..., G, s, N]    queries
    gate [..., S, inner]  gate of what is read (by token, not by tile)

X, dt, A, B, C and the state are those of `scan.chunked`. Memory: state [B, G, h, p, N] and pose [B, G, 3].
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

import torch
from lssvwm.worldmodel.fused_ops import addcmul, at_least_float32, rotate
from lssvwm.worldmodel.mixers.base import (
    SETTINGS,
    MixerContext,
    MixerMemory,
    MixerOutput,
    RolloutInputs,
    SequenceInputs,
    pick,
    put,
    register,
)
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from lssvwm.worldmodel.mixers.tiled import (
    TiledMixer,
    WriteGate,
    by_copy,
    by_frame,
    by_row,
    by_tile,
    write_strength,
)
from lssvwm.worldmodel.scan import backends
from lssvwm.worldmodel.scan.backends import Scan
from lssvwm.worldmodel.scan.chunked import ScanInputs, chunked
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, config=SETTINGS)
class TiledSSDConfig:
    """Set the sizes of the tiled Mamba-2 scan. Every tile of tokens has a state."""

    kind: Literal["tiled_ssd"] = "tiled_ssd"
    """Name of this mixer."""

    tiles: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 3), min_length=1
    )
    """Side of the tiles of each block, in tokens. There is one block per entry. Each must divide the token grid."""

    state: int = Field(default=128, ge=1, le=65_536)
    """Size of keys and queries: each head of a tile keeps `head_dim` x `state` numbers."""

    head_dim: int = Field(default=32, ge=1, le=65_536)
    """Width of a head. It must divide 2 x model.width."""

    rope_fraction: float = Field(default=0.75, ge=0, le=1, allow_inf_nan=False)
    """Fraction of keys and queries that is rotated by the agent's place. 0: plain Mamba-2."""

    write_gate: bool = False
    """Multiply the step size of each token by a write gate, see `model.loss.write`."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.tiles)


class TokenCache:
    """Keep the tokens that n candidates imagined, in SSD's attention-like form.

    The memory that they share is not copied and not written.
    """

    def __init__(self, memory: MixerMemory, n: int, tokens: int):
        """Reserve room for at most `tokens` imagined tokens per tile of each of n candidates."""
        state = memory["state"]
        batch, tiles, heads, head_dim, size = state.shape
        self.state = state
        self.pose = memory["pose"][:, None].expand(-1, n, -1, -1)
        self.used = 0
        self.keys = state.new_empty(batch, n, tiles, tokens, size)
        self.values = state.new_empty(batch, n, tiles, heads, tokens, head_dim)
        self.decay = state.new_empty(batch, n, tiles, heads, tokens)
        """Log decay from the shared memory to each token."""
        self.total = state.new_zeros(batch, n, tiles, heads)
        """Log decay from the shared memory to the last token."""

    def read(self, C: Tensor) -> Tensor:
        """Read the shared memory and the tokens. C [B, n, G, s, N] -> [B, n, G, h, s, p]"""
        shared = torch.einsum("bkgsn,bghpn->bkghsp", C, self.state)
        Y = shared * torch.exp(self.total)[..., None, None]
        if not self.used:
            return Y
        keys = self.keys[..., : self.used, :]
        values = self.values[..., : self.used, :]
        decay = self.decay[..., : self.used]
        fade = torch.exp(self.total[..., None] - decay)
        score = (C @ keys.transpose(-1, -2))[..., None, :, :]
        weight = score * fade[..., None, :]
        return Y + weight @ values

    def write(self, values: Tensor, B: Tensor, decay: Tensor) -> None:
        """Append the tokens of a frame.

        values [B, n, G, h, s, p], keys B [B, n, G, s, N], log decay since the frame began [B, n, G, h, s]
        """
        whole_decay = self.total[..., None] + decay
        self.keys = put(self.keys, B, self.used, -2)
        self.values = put(self.values, values, self.used, -2)
        self.decay = put(self.decay, whole_decay, self.used, -1)
        self.total = self.total + decay[..., -1]
        self.used += B.shape[3]

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        for name in ("keys", "values", "decay", "total", "pose"):
            setattr(self, name, pick(getattr(self, name), index))

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        own = (self.keys, self.values, self.decay, self.total)
        return sum(v.numel() * v.element_size() for v in own)


class StateCache:
    """Keep a state for each of n candidates, from the first imagined frame on."""

    def __init__(self, memory: MixerMemory, n: int):
        self.shared = memory["state"]
        self.pose = memory["pose"][:, None].expand(-1, n, -1, -1)
        self.state: Tensor | None = None
        """Own state of each candidate, [B, n, G, h p, N]; None before the first frame."""

    def read(self, C: Tensor) -> Tensor:
        """Read the state. C [B, n, G, s, N] -> [B, n, G, h, s, p]"""
        if self.state is None:
            return torch.einsum("bkgsn,bghpn->bkghsp", C, self.shared)
        Y = C @ self.state.transpose(-1, -2)  # [B, n, G, s, h p]
        return Y.unflatten(-1, self.shared.shape[2:4]).transpose(-2, -3)

    def write(self, values: Tensor, B: Tensor, decay: Tensor) -> None:
        """Add the tokens of a frame to the state.

        values [B, n, G, h, s, p], keys B [B, n, G, s, N], log decay since the frame began [B, n, G, h, s]
        """
        frame_decay = decay[..., -1]
        keep = torch.exp(frame_decay).repeat_interleave(values.shape[-1], -1)
        keep = keep[..., None]  # [B, n, G, h p, 1]
        V = values * torch.exp(frame_decay[..., None] - decay)[..., None]
        V = V.transpose(-1, -2).flatten(3, 4)  # [B, n, G, h p, s]
        differentiable = torch.is_grad_enabled()
        if self.state is None:  # the shared state must not change
            state = self.shared.flatten(2, 3)[:, None] * keep
        elif differentiable:
            state = self.state * keep
        else:
            state = self.state.mul_(keep)
        V, B = V.flatten(0, 2), B.flatten(0, 2)
        if differentiable:
            sums = torch.baddbmm(state.flatten(0, 2), V, B)
            self.state = sums.unflatten(0, state.shape[:3])
        else:
            state.flatten(0, 2).baddbmm_(V, B)
            self.state = state

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.pose = pick(self.pose, index)
        if self.state is not None:
            self.state = pick(self.state, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        if self.state is None:
            return 0
        return self.state.numel() * self.state.element_size()


@plain_dataclass
class Query:
    """Hold what a token needs to read memory."""

    gate: Tensor
    X: Tensor
    C: Tensor


@plain_dataclass
class Token(Query):
    """Hold what a token needs to read and to write memory."""

    dt: Tensor
    B: Tensor
    opening: Tensor | None = None
    """Write strength [..., G, s, 1]; None: there is no write gate."""

    def gated(self, dt: Tensor) -> Tensor:
        """Multiply step sizes dt [..., G, s, h] by the write strength."""
        return dt if self.opening is None else dt * write_strength(self.opening)


@register(TiledSSDConfig)
class TiledSSD(TiledMixer):
    """Scan every tile of tokens over time with Mamba-2. Every tile has a state.

    Differences from Mamba-2, all for reading and writing by frames:
    - There is no short convolution. It would leak noisy tokens into clean ones.
    - Keys and queries are normalised.
    - The leading pairs of both are rotated by phases that stand for a place (`PathIntegrator`). So what was written is
      found again by where it is. Mamba-3 rotates by data-dependent phases, too.
    """

    def __init__(self, config: TiledSSDConfig, context: MixerContext):
        super().__init__(config.tiles[context.layer], context)
        if self.inner % config.head_dim:
            raise ValueError(
                f"model.mixer.head_dim={config.head_dim} must divide "
                f"2 x model.width = {self.inner}"
            )
        self.head_dim = config.head_dim
        self.heads = self.inner // config.head_dim
        state = config.state
        self.state = state
        rotated = 0.0 if context.pose == "none" else config.rope_fraction
        self.waves = int(rotated * state) // 2  # rotated pairs
        self.scan: Scan = chunked
        projected = 2 * self.inner + 2 * state + self.heads
        self.project = nn.Linear(context.width, projected, bias=False)
        self.path_integrator = PathIntegrator(context, self.side, self.waves)
        self.scale_B = nn.Parameter(torch.ones(state))
        self.scale_C = nn.Parameter(torch.ones(state))
        self.shift_B = nn.Parameter(torch.zeros(state))
        self.shift_C = nn.Parameter(torch.zeros(state))
        self.D = nn.Parameter(torch.ones(self.heads))
        log_A = torch.linspace(math.log(0.001), math.log(0.2), self.heads)
        self.A_log = nn.Parameter(log_A)
        dt = torch.exp(torch.linspace(math.log(0.3), math.log(0.05), self.heads))
        inverse_softplus = dt + torch.log(-torch.expm1(-dt))
        self.dt_bias = nn.Parameter(inverse_softplus)
        self.out = nn.Linear(self.inner, context.width, bias=False)
        self.write_gate = WriteGate(context.width, 1) if config.write_gate else None
        self._start_with_places()

    @torch.no_grad()
    def _start_with_places(self) -> None:
        """Make keys and queries stand for places only, until training adds their content."""
        rotated = 2 * self.waves
        for scale in (self.scale_B, self.scale_C):
            scale[:rotated] = 0.2
        for shift in (self.shift_B, self.shift_C):
            shift[: self.waves] = 1.0

    def use_backend(self, name: str, device: torch.device) -> None:
        """Compute the scan by a backend of SSD."""
        _, self.scan = backends.select_backend(name, device)

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents."""
        shape = (batch, self.tiles, self.heads, self.head_dim, self.state)
        return {
            "state": like.new_zeros(shape),
            "pose": like.new_zeros(batch, self.tiles, 3),
        }

    def _token(self, u: Tensor, seen: Tensor) -> Token:
        """Project tokens u [..., S, D] to what they read and write by.

        Embedded tokens `seen` [..., S, D] open the write gate.
        """
        size, inner = self.state, self.inner
        placed = inner + 2 * size + self.heads
        gate, rest = self.project(u).split([inner, placed], -1)
        sizes = [inner, size, size, self.heads]
        X, B, C, dt = self.tile(rest).split(sizes, -1)
        B = F.layer_norm(B, (size,), self.scale_B, self.shift_B)
        dt = F.softplus(dt + self.dt_bias)
        opening = None
        if self.write_gate is not None:
            opening = self.write_gate(self.tile(seen))
        return Token(gate, self.values(X), self._queries(C), dt, B, opening)

    def _query(self, u: Tensor) -> Query:
        """Project tokens u [..., S, D] to what they read by. It saves the projections that only writing needs."""
        size, inner = self.state, self.inner
        parts = self.project.weight.split([2 * inner, size, size, self.heads])
        gate_and_values, _, queries, _ = parts
        weight = torch.cat((gate_and_values, queries))
        gate, rest = F.linear(u, weight).split([inner, inner + size], -1)
        X, C = self.tile(rest).split([inner, size], -1)
        return Query(gate, self.values(X), self._queries(C))

    def values(self, X: Tensor) -> Tensor:
        """Return the values of projected tokens by head. [..., inner] -> [..., h, p]"""
        return F.silu(X).unflatten(-1, (self.heads, self.head_dim))

    def _queries(self, C: Tensor) -> Tensor:
        C = F.layer_norm(C, (self.state,), self.scale_C, self.shift_C)
        return C / math.sqrt(self.state)

    def _output(self, Y: Tensor, query: Query) -> Tensor:
        """Gate what was read, Y [..., G, s, h, p]. Returns [..., S, D]."""
        skip = self.D[:, None].to(query.X.dtype)
        y = addcmul(Y, query.X, skip)
        y = self.untile(y.flatten(-2))
        y = F.layer_norm(y * F.silu(query.gate), (self.inner,))
        return self.out(y)

    def forward(
        self, u: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> MixerOutput:
        """Scan sequences u [B, T, R, S, D], R at most 2.

        The first of two copies reads the state before its frame.
        """
        *noisy, clean = u.unbind(2)  # a slice would cost whole tensors going backward
        token = self._token(clean, frames.seen)
        readers = [self._query(copy) for copy in noisy]
        # sums over thousands of frames: bf16 would ruin memory
        with torch.autocast(u.device.type, enabled=False):
            dt, B, C = (at_least_float32(v) for v in (token.dt, token.B, token.C))
            noisy_C = [at_least_float32(reader.C) for reader in readers]
            poses, pose = self.path_integrator(self.tile(u), frames, memory["pose"])
            *noisy_phases, phase = self.path_integrator.phases(poses).unbind(2)
            B, C = rotate(B, phase), rotate(C, phase)
            rotated = [rotate(*pair) for pair in zip(noisy_C, noisy_phases)]
        peek = [v.transpose(1, 2).flatten(0, 1) for v in rotated]
        kept = frames.writes.to(dt.dtype)[..., None]
        dt = token.gated(dt) * kept[..., None, None]
        X, dt, B, C = (by_tile(v) for v in (token.X, dt, B, C))
        A = -torch.exp(self.A_log)
        state, reset = self.erase(memory["state"], frames.reset)
        inputs = ScanInputs(X, dt, A, B, C, state.flatten(0, 1), reset, *peek)
        Y, state, *peeked = self.scan(inputs)
        copies = [by_frame(y, *frames.reset.shape) for y in (*peeked, Y)]
        queries = (*readers, token)
        outputs = [self._output(y, query) for y, query in zip(copies, queries)]
        state = state.view_as(memory["state"])
        gates = None
        if token.opening is not None:
            gates = token.opening.flatten(2) * kept
        memory = {"state": state, "pose": pose}
        return MixerOutput(torch.stack(outputs, 2), memory, gates)

    def start_rollout(
        self, memory: MixerMemory, n: int, frames: int
    ) -> TokenCache | StateCache:
        """Return a cache of tokens or of states, whichever is smaller at the end."""
        tokens = frames * self.side**2
        per_token = self.state + self.inner + self.heads
        if tokens * per_token < self.inner * self.state:
            return TokenCache(memory, n, tokens)
        return StateCache(memory, n)

    def rollout_step(
        self, u: Tensor, frame: RolloutInputs, cache: TokenCache | StateCache
    ) -> Tensor:
        """Read memory and cache for successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        A written frame is added to the cache, and the candidates move to its pose.
        """
        query = self._token(u, frame.seen) if frame.write else self._query(u)
        with torch.autocast(u.device.type, enabled=False):
            poses = self.path_integrator.follow(self.tile(u), frame, cache.pose)
            phase = self.path_integrator.phases(poses)
            C = by_row(rotate(at_least_float32(query.C), phase))
            Y = cache.read(C)
            if isinstance(query, Token):
                B = rotate(at_least_float32(query.B[:, :, 0]), phase[:, :, 0])
                Y = _write(query, C, Y, B, -torch.exp(self.A_log), cache)
                cache.pose = poses[:, :, 0]
        Y = by_copy(Y.transpose(-2, -3).flatten(-2), u.shape[2])
        return self._output(Y.unflatten(-1, query.X.shape[-2:]), query)


def _write(
    token: Token,
    C: Tensor,
    Y: Tensor,
    B: Tensor,
    A: Tensor,
    cache: TokenCache | StateCache,
) -> Tensor:
    """Add a frame with keys B [B, n, G, s, N] to the cache.

    The first s of the queries C [B, n, G, R s, N] belong to its tokens. Each reads the frame up to itself.
    Returns Y [B, n, G, h, R s, p], to which they add what they read of the frame.
    """
    dt = token.gated(at_least_float32(token.dt[:, :, 0]))
    X = at_least_float32(token.X[:, :, 0])
    values = X * dt[..., None]
    values = values.transpose(-2, -3)
    decay = (dt * A).transpose(-1, -2).cumsum(-1)  # [B, n, G, h, s]
    tokens, queries = B.shape[3], C.shape[3]
    last = decay[..., -1:]
    after = last.expand(*decay.shape[:-1], queries - tokens)
    until = torch.cat((decay, after), -1)  # decay up to each query
    later = torch.ones(queries, tokens, dtype=torch.bool, device=dt.device).triu(1)
    gap = until[..., :, None] - decay[..., None, :]
    gap = gap.masked_fill(later, float("-inf"))
    score = (C @ B.transpose(-1, -2))[..., None, :, :]
    own = (score * torch.exp(gap)) @ values
    Y = Y * torch.exp(until)[..., None] + own
    cache.write(values, B, decay)
    return Y
