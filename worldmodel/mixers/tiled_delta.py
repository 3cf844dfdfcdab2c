"""Carry memory by the delta rule (arXiv 2406.06484), in the tiles of LSSVWM.

SSD adds whatever it is shown again. The delta rule replaces the value stored under a key. What is known already changes
nothing, however long it is looked at. A write gate keeps tokens out that are not worth storing; the loss sets its
price.

Memory has two parts. Each has its own values, keys and write gate:
    place     keys are rotated by the agent's place: a map
    content   keys depend on the token alone: what was seen, wherever that was. Their queries mean the same at any
              distance.

Shapes, in addition to those of `tiled`
    m                    width of a part's values
    X [..., G, s, m]     values                 beta [..., G, s]   write strengths
    K [..., G, s, N]     keys of length 1       Q [..., G, s, N]   queries of length 1

Memory: place and content [B, G, m, N], pose [B, G, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from lssvwm.worldmodel.fused_ops import addcmul, at_least_float32, rotate, unit
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
from lssvwm.worldmodel.scan.backends import DeltaScan
from lssvwm.worldmodel.scan.delta import DeltaInputs, chunked
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, config=SETTINGS)
class TiledDeltaConfig:
    """Set the sizes of the tiled delta rule. Every tile of tokens has a state."""

    kind: Literal["tiled_delta"] = "tiled_delta"
    """Name of this mixer."""

    tiles: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(1, 3), min_length=1
    )
    """Side of the tiles of each block, in tokens. There is one block per entry. Each must divide the token grid."""

    state: int = Field(default=128, ge=1, le=65_536)
    """Size of the keys of places. A tile keeps 2 x model.width x `state` numbers of them."""

    content: int = Field(default=32, ge=0, le=65_536)
    """Size of the keys and of the values of contents. 0: memory holds places only."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.tiles)


@plain_dataclass
class Read:
    """Hold queries of one part of memory."""

    Q: Tensor


@plain_dataclass
class Write(Read):
    """Hold queries, and what is written to one part of memory."""

    X: Tensor
    K: Tensor
    opening: Tensor
    """Openings of the write gate"""

    @property
    def beta(self) -> Tensor:
        """Return the write strengths."""
        return write_strength(self.opening)


@plain_dataclass
class Tokens:
    """Hold tokens, projected to what they read and write."""

    gate: Tensor
    """Gate of what is read, [..., S, inner]"""

    X: Tensor
    """Values of all parts, [..., G, s, inner]"""

    parts: list[Read] | list[Write]
    """Queries, or all that is written, of each part of memory"""


class TokenCache:
    """Keep the changes that imagined tokens make to the state that n candidates share."""

    def __init__(self, state: Tensor, n: int, tokens: int):
        """Reserve room for at most `tokens` imagined tokens per tile; state [B, G, m, N]."""
        batch, tiles, width, size = state.shape
        self.state = state
        self.used = 0
        self.keys = state.new_empty(batch, n, tiles, tokens, size)
        self.changes = state.new_empty(batch, n, tiles, tokens, width)

    def read(self, Q: Tensor) -> Tensor:
        """Read the shared state and the tokens. Q [B, n, G, s, N] -> [B, n, G, s, m]"""
        Y = torch.einsum("bkgsn,bgmn->bkgsm", Q, self.state)
        if not self.used:
            return Y
        keys = self.keys[..., : self.used, :]
        changes = self.changes[..., : self.used, :]
        score = Q @ keys.transpose(-1, -2)
        return Y + score @ changes

    def add(self, K: Tensor, changes: Tensor) -> None:
        """Append the tokens of a frame: keys [B, n, G, s, N], changes [B, n, G, s, m]."""
        self.keys = put(self.keys, K, self.used, -2)
        self.changes = put(self.changes, changes, self.used, -2)
        self.used += K.shape[3]

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.keys = pick(self.keys, index)
        self.changes = pick(self.changes, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared state."""
        own = (self.keys, self.changes)
        return sum(v.numel() * v.element_size() for v in own)


class StateCache:
    """Keep a state for each of n candidates, from the first imagined frame on."""

    def __init__(self, state: Tensor, n: int):
        self.shared = state
        self.n = n
        self.state: Tensor | None = None
        """Own state of each candidate, [B, n, G, m, N]; None before the first frame."""

    def read(self, Q: Tensor) -> Tensor:
        """Read the state. Q [B, n, G, s, N] -> [B, n, G, s, m]"""
        if self.state is None:
            return torch.einsum("bkgsn,bgmn->bkgsm", Q, self.shared)
        return Q @ self.state.transpose(-1, -2)

    def add(self, K: Tensor, changes: Tensor) -> None:
        """Add the tokens of a frame: keys [B, n, G, s, N], changes [B, n, G, s, m]."""
        state = self.state
        if state is None:  # the shared state must not change
            state = self.shared[:, None]
            state = state.expand(-1, self.n, -1, -1, -1)
        rows = [v.flatten(0, 2) for v in (state, changes.transpose(-1, -2), K)]
        if self.state is None or torch.is_grad_enabled():
            self.state = torch.baddbmm(*rows).view(state.shape)
        else:
            rows[0].baddbmm_(rows[1], rows[2])

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.n = index.shape[1]
        if self.state is not None:
            self.state = pick(self.state, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared state."""
        if self.state is None:
            return 0
        return self.state.numel() * self.state.element_size()


@plain_dataclass
class DeltaCache:
    """Keep the caches of the parts of memory, and the poses of the candidates."""

    parts: list[TokenCache | StateCache]
    pose: Tensor
    """Pose of each tile, [B, n, G, 3]."""

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.pose = pick(self.pose, index)
        for part in self.parts:
            part.select(index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        return sum(part.nbytes() for part in self.parts)


@plain_dataclass(frozen=True)
class Part:
    """Describe one part of memory."""

    name: str
    width: int
    """Size of a value."""
    size: int
    """Size of a key."""
    waves: int = 0
    """Rotated pairs of a key."""


class KeyNorm(nn.Module):
    """Normalise keys or queries [..., N] to length 1, after a scale and a shift."""

    def __init__(self, size: int, waves: int):
        super().__init__()
        self.size = size
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size))
        with torch.no_grad():  # places only, until training adds their content
            self.scale[: 2 * waves] = 0.2
            self.shift[:waves] = 1.0

    def forward(self, v: Tensor) -> Tensor:
        """Return vectors of length 1."""
        v = F.layer_norm(v, (self.size,), self.scale, self.shift)
        return unit(at_least_float32(v))


class _Position(NamedTuple):
    """Hold what a scan needs to know of sequences besides their tokens."""

    phases: Sequence[Tensor]
    """Phases of the tokens of each copy, [B, T, G, s, r]"""

    strength: Tensor
    """Write strength of each token, [B, T, G, s]"""

    reset: Tensor
    """True where memory is erased before the frame, [B, T]"""


@register(TiledDeltaConfig)
class TiledDelta(TiledMixer):
    """Write every tile of tokens by the delta rule, into a state of its own."""

    def __init__(self, config: TiledDeltaConfig, context: MixerContext):
        super().__init__(config.tiles[context.layer], context)
        waves = 0 if context.pose == "none" else config.state // 2
        parts = (
            Part("place", self.inner, config.state, waves),
            Part("content", config.content, config.content),
        )
        self.parts = [part for part in parts if part.size]
        self.inner += config.content
        self.sizes = [part.size for part in self.parts]
        self.widths = [part.width for part in self.parts]
        self.size = sum(self.sizes)
        self.scan: DeltaScan = chunked
        self.project = nn.Linear(
            context.width, 2 * self.inner + 2 * self.size, bias=False
        )
        self.write_gate = WriteGate(context.width, len(self.parts))
        self.path_integrator = PathIntegrator(context, self.side, waves)
        norms = [KeyNorm(part.size, part.waves) for part in self.parts]
        self.key_norm = nn.ModuleList(norms)
        self.query_norm = deepcopy(self.key_norm)
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, context.width, bias=False)

    def use_backend(self, name: str, device: torch.device) -> None:
        """Compute the scan by a backend of the delta rule."""
        _, self.scan = backends.select_backend(name, device, "delta")

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents."""
        memory = {
            part.name: like.new_zeros(batch, self.tiles, part.width, part.size)
            for part in self.parts
        }
        return memory | {"pose": like.new_zeros(batch, self.tiles, 3)}

    def _written(self, u: Tensor, seen: Tensor) -> Tokens:
        """Project tokens u [..., S, D] to what they read and write by.

        Embedded tokens `seen` [..., S, D] open the write gates.
        """
        inner, size = self.inner, self.size
        gate, rest = self.project(u).split([inner, inner + 2 * size], -1)
        X, K, Q = self.tile(rest).split([inner, size, size], -1)
        X = F.silu(X)
        keys = self._normalised(self.key_norm, K)
        queries = self._normalised(self.query_norm, Q)
        openings = self.write_gate(self.tile(seen)).unbind(-1)
        values = X.split(self.widths, -1)
        parts = zip(queries, values, keys, openings)
        return Tokens(gate, X, [Write(*fields) for fields in parts])

    def _read(self, u: Tensor) -> Tokens:
        """Do as `_written` without the projections that only writing needs."""
        inner, size = self.inner, self.size
        weights = self.project.weight.split([2 * inner, size, size])
        gates_and_values, _, queries = weights
        weight = torch.cat((gates_and_values, queries))
        gate, rest = F.linear(u, weight).split([inner, inner + size], -1)
        X, Q = self.tile(rest).split([inner, size], -1)
        parts = [Read(q) for q in self._normalised(self.query_norm, Q)]
        return Tokens(gate, F.silu(X), parts)

    def _normalised(self, norms: nn.ModuleList, v: Tensor) -> list[Tensor]:
        """Return keys or queries of each part, of length 1."""
        by_part = v.split(self.sizes, -1)
        return [norm(own) for norm, own in zip(norms, by_part)]

    def _output(self, Y: Sequence[Tensor], tokens: Tokens) -> Tensor:
        """Gate what was read of each part, [..., G, s, m]. Returns [..., S, D]."""
        skip = self.D.to(tokens.X.dtype)
        y = torch.cat(tuple(Y), -1)
        y = self.untile(addcmul(y, tokens.X, skip))
        y = F.layer_norm(y * F.silu(tokens.gate), (self.inner,))
        return self.out(y)

    def _rotated(self, part: Part, v: Tensor, phase: Tensor) -> Tensor:
        return rotate(v, phase) if part.waves else v

    def forward(
        self, u: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> MixerOutput:
        """Scan sequences u [B, T, R, S, D], R at most 2.

        The first of two copies reads the state before its frame.
        """
        *noisy, clean = u.unbind(2)  # a slice would cost whole tensors going backward
        written = self._written(clean, frames.seen)
        kept = frames.writes.to(u.dtype)[..., None, None]
        writes = [part for part in written.parts if isinstance(part, Write)]
        copies = [*(self._read(copy) for copy in noisy), written]
        # sums over thousands of frames: bf16 would ruin poses
        with torch.autocast(u.device.type, enabled=False):
            poses, pose = self.path_integrator(self.tile(u), frames, memory["pose"])
            phases = self.path_integrator.phases(poses).unbind(2)
        carried: MixerMemory = {"pose": pose}
        by_part = []
        for i, part in enumerate(self.parts):
            tokens = [copy.parts[i] for copy in copies]
            at = _Position(phases, writes[i].beta * kept, frames.reset)
            outputs, carried[part.name] = self._scan(
                part, tokens, at, memory[part.name]
            )
            by_part.append(outputs)
        read = zip(*by_part)
        out = [self._output(Y, tokens) for Y, tokens in zip(read, copies)]
        openings = torch.stack([own.opening for own in writes], -1)
        openings = openings * kept[..., None]
        return MixerOutput(torch.stack(out, 2), carried, openings.flatten(2))

    def _scan(
        self, part: Part, tokens: list[Read | Write], at: _Position, state: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Scan one part of memory, for the tokens of each copy.

        The last copy is written. Returns what each copy reads, [B, T, G, s, m], and the last state [B, G, m, N].
        """
        own = tokens[-1]
        assert isinstance(own, Write)
        placed = zip(tokens, at.phases)
        *queries, Q = (self._rotated(part, v.Q, phase) for v, phase in placed)
        K = self._rotated(part, own.K, at.phases[-1])
        X, beta, K, Q = (by_tile(v) for v in (own.X, at.strength, K, Q))
        state, reset = self.erase(state, at.reset)
        peek = [v.transpose(1, 2).flatten(0, 1) for v in queries]
        inputs = DeltaInputs(X, beta, K, Q, state.flatten(0, 1), reset, *peek)
        Y, last, *peeked = self.scan(inputs)
        outputs = [by_frame(y, *at.reset.shape) for y in (*peeked, Y)]
        return outputs, last.view_as(state)

    def start_rollout(self, memory: MixerMemory, n: int, frames: int) -> DeltaCache:
        """Return caches of tokens or of states, whichever is smaller at the end."""
        tokens = frames * self.side**2
        caches: list[TokenCache | StateCache] = []
        for part in self.parts:
            fewer = tokens * (part.size + part.width) < part.width * part.size
            state = memory[part.name]
            caches.append(
                TokenCache(state, n, tokens) if fewer else StateCache(state, n)
            )
        pose = memory["pose"][:, None]
        return DeltaCache(caches, pose.expand(-1, n, -1, -1))

    def rollout_step(
        self, u: Tensor, frame: RolloutInputs, cache: DeltaCache
    ) -> Tensor:
        """Read memory and cache for successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        A written frame is added to the cache, and the candidates move to its pose.
        """
        tokens = self._written(u, frame.seen) if frame.write else self._read(u)
        with torch.autocast(u.device.type, enabled=False):
            poses = self.path_integrator.follow(self.tile(u), frame, cache.pose)
            phase = self.path_integrator.phases(poses)
            outputs = []
            for part, own, stored in zip(self.parts, tokens.parts, cache.parts):
                Q = by_row(self._rotated(part, own.Q, phase))
                if isinstance(own, Write):
                    K = self._rotated(part, own.K[:, :, 0], phase[:, :, 0])
                    Y = _write(own, K, Q, stored)
                else:
                    Y = stored.read(Q)
                outputs.append(by_copy(Y, u.shape[2]))
            if frame.write:
                cache.pose = poses[:, :, 0]
        return self._output(outputs, tokens)


def _write(
    token: Write, K: Tensor, Q: Tensor, cache: TokenCache | StateCache
) -> Tensor:
    """Add a frame with keys K [B, n, G, s, N] to a cache.

    The first s of the queries Q [B, n, G, R s, N] belong to its tokens. Each reads the frame up to itself.
    Returns what is read, [B, n, G, R s, m].
    """
    tokens = K.shape[3]
    both = torch.cat((Q, K), 3)
    before, stored = cache.read(both).split([Q.shape[3], tokens], 3)
    strength = token.beta[..., None]
    changes = strength * (token.X[:, :, 0] - stored)
    if tokens > 1:
        overlap = strength * (K @ K.transpose(-1, -2))
        changes = torch.linalg.solve_triangular(
            overlap, changes, upper=False, unitriangular=True
        )
    cache.add(K, changes)
    score = Q @ K.transpose(-1, -2)
    return before + score.tril() @ changes
