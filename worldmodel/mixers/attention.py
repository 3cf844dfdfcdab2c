"""Carry memory by causal attention: keys and values of the last frames are cached.

It sees everything within its window, at a cost that grows with the window. With `path_integration`, the leading pairs
of keys and queries stand for places, as in `tiled_ssd`.

Shapes, in addition to those of `base`
    h, d                 heads, width of a head (h * d = D)
    F                    frames before the present one (window - 1)
    q, k, v [..., h, R, S, d]     queries, keys, values

Memory: key and value [B, F, h, S, d] of the last frames, and valid [B, F], true where a frame may be attended to.
With `path_integration`, also pose [B, 1, 3].
"""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Literal

import torch
from lssvwm.worldmodel.attention_heads import project_heads
from lssvwm.worldmodel.fused_ops import at_least_float32, host_may_read, rotate
from lssvwm.worldmodel.mixers.base import (
    SETTINGS,
    Mixer,
    MixerContext,
    MixerMemory,
    MixerOutput,
    RolloutInputs,
    SequenceInputs,
    pick,
    register,
)
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

SEGMENT = 32
"""Frames that are processed at once: time and space grow with frames x window, not with frames squared."""
SAME_PLACE_LOGIT = 16.0
"""Initial contribution of the same place to a logit, with `path_integration`. With r waves per head, other places add
exp(16^2 / 4 r) on average. So few waves, or many heads, cannot single out one place of a thousand."""
LONGEST_WAVE = 1e4
"""Longest wavelength of the rotation by frames (RoPE), as a multiple of the shortest."""


@dataclass(frozen=True, config=SETTINGS)
class AttentionConfig:
    """Set window and size of causal attention."""

    kind: Literal["attention"] = "attention"
    """Name of this mixer."""

    layers: int = Field(default=3, ge=1, le=1024)
    """Number of blocks."""

    window: int = Field(default=512, ge=1, le=10**6)
    """Frames that attention sees, the present one included."""

    heads: int = Field(default=4, ge=1, le=1024)
    """Number of heads. It must divide model.width."""

    path_integration: bool = False
    """Rotate keys and queries by the agent's place, as tiled_ssd does."""

    rope_fraction: float = Field(default=0.75, ge=0, le=1, allow_inf_nan=False)
    """Fraction of keys and queries that is rotated by the agent's place. Only used with `path_integration`."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.layers


@plain_dataclass
class KeyValueCache:
    """Keep keys and values of the frames that n candidates imagined.

    There is one key and one value [B, n, h, S, d] per frame.
    """

    memory: MixerMemory
    """Shared key, value and valid."""

    rotated_key: Tensor
    """Shared keys, rotated by the numbers of their frames."""

    pose: Tensor | None = None
    """Pose of each candidate, [B, n, 1, 3]."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.keys = [pick(x, index) for x in self.keys]
        self.values = [pick(x, index) for x in self.values]
        if self.pose is not None:
            self.pose = pick(self.pose, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        own = (*self.keys, *self.values)
        return sum(x.numel() * x.element_size() for x in own)


@register(AttentionConfig)
class Attention(Mixer):
    """Attend from a frame's tokens to each other and to those of the last frames.

    There are `window - 1` of these frames. Keys are rotated by the number of their frame (RoPE), so that logits depend
    on how long ago a key was written. With `path_integration`, the leading pairs of each head are rotated by phases of
    the place instead. Each head has its own waves.
    """

    def __init__(self, config: AttentionConfig, context: MixerContext):
        super().__init__()
        if context.width % config.heads:
            raise ValueError(
                f"model.mixer.heads={config.heads} must divide "
                f"model.width={context.width}"
            )
        self.window = config.window
        self.heads = config.heads
        self.tokens = context.tokens
        self.head_dim = context.width // config.heads
        self.waves = 0  # rotated pairs of a head
        path_integrator = None
        if config.path_integration and context.pose != "none":
            self.waves = _waves(config, self.head_dim)
            path_integrator = _path_integrator(context, self.waves * config.heads)
        self.qkv = nn.Linear(context.width, 3 * context.width, bias=False)
        self.out = nn.Linear(context.width, context.width, bias=False)
        self.path_integrator = path_integrator
        if path_integrator is not None:
            shape = (2, config.heads, 1, 1, 2 * self.waves)  # of queries and of keys
            self.scale = nn.Parameter(torch.full(shape, 0.2))
            self.shift = nn.Parameter(torch.zeros(shape))
            self._start_with_places()

    @torch.no_grad()
    def _start_with_places(self) -> None:
        """Make keys and queries stand for places only, until training adds their content."""
        logit = SAME_PLACE_LOGIT * math.sqrt(self.head_dim)
        self.shift[..., : self.waves] = math.sqrt(logit / self.waves)

    def integrator(self) -> PathIntegrator | None:
        """Return what sums up the agent's motion, with `path_integration`."""
        return self.path_integrator

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents."""
        past = self.window - 1
        shape = (batch, past, self.heads, self.tokens, self.head_dim)
        memory = {
            "key": like.new_zeros(shape),
            "value": like.new_zeros(shape),
            "valid": torch.zeros(batch, past, dtype=torch.bool, device=like.device),
        }
        if self.path_integrator is not None:
            memory["pose"] = like.new_zeros(batch, 1, 3)
        return memory

    def project(self, u: Tensor, phase: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of u [..., R, S, D], each [..., h, R, S, d].

        Queries and keys are rotated by the phases [..., R, S, h r] of their places, if there are any.
        """
        q, k, v = project_heads(self.qkv, u, self.heads)
        if phase is None:
            return q, k, v
        angle = phase.unflatten(-1, (self.heads, -1)).movedim(-2, -4)
        q = self._rotate_by_place(q, angle, self.scale[0], self.shift[0])
        k = self._rotate_by_place(k, angle, self.scale[1], self.shift[1])
        return q, k, v

    def _rotate_by_place(
        self, x: Tensor, angle: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        """Rotate the leading pairs of x [..., h, R, S, d] by angle [..., h, R, S, r]."""
        rotated = 2 * self.waves
        leading = x[..., :rotated] * scale + shift
        return torch.cat((rotate(leading, angle), x[..., rotated:]), -1)

    def _rotate_by_frame(self, x: Tensor, frame: Tensor) -> Tensor:
        """Rotate the pairs of x [..., d] that do not stand for places.

        The angle is proportional to the number of the frame, which is broadcast.
        """
        placed = 2 * self.waves
        place, rest = x.split([placed, self.head_dim - placed], -1)
        pairs = rest.shape[-1] // 2
        exponent = torch.arange(pairs, device=x.device, dtype=x.dtype)
        rate = LONGEST_WAVE ** (-exponent / max(1, pairs - 1))
        rotated = rotate(rest, frame[..., None] * rate)
        return torch.cat((place, rotated), -1) if placed else rotated

    def phases(self, pose: Tensor) -> Tensor:
        """Return the phases [..., S, h r] of the tokens of frames at poses [..., 1, 3]."""
        assert self.path_integrator is not None
        return self.path_integrator.phases(pose).squeeze(-3)

    def forward(
        self, u: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> MixerOutput:
        """Process sequences u [B, T, R, S, D]."""
        writes, reset = frames.writes, frames.reset
        phase, pose = None, None
        if self.path_integrator is not None:
            with torch.autocast(u.device.type, enabled=False):
                tile = at_least_float32(u.unsqueeze(-3))
                poses, pose = self.path_integrator(tile, frames, memory["pose"])
                phase = self.phases(poses)
        out = []
        for i in range(0, u.shape[1], SEGMENT):
            part = slice(i, i + SEGMENT)
            part_phase = None if phase is None else phase[:, part]
            y, memory = self._segment(
                u[:, part], part_phase, writes[:, part], reset[:, part], memory
            )
            out.append(y)
        if pose is not None:
            memory["pose"] = pose
        return MixerOutput(torch.cat(out, 1), memory)

    def _segment(
        self,
        u: Tensor,
        phase: Tensor | None,
        writes: Tensor,
        reset: Tensor,
        memory: MixerMemory,
    ) -> tuple[Tensor, MixerMemory]:
        """Process a part of the sequences. Returns tokens and the new key, value and valid."""
        frames, copies, tokens = u.shape[1:4]
        q, k, v = (x.transpose(1, 2) for x in self.project(u, phase))
        past = _without_unused(memory)
        past_key = past["key"].transpose(1, 2)
        key = torch.cat((past_key.to(k.dtype), k[:, :, :, -1]), 2)
        value = torch.cat(
            (past["value"].transpose(1, 2).to(v.dtype), v[:, :, :, -1]), 2
        )
        valid = torch.cat((past["valid"], writes), 1)
        first = valid.shape[1] - frames  # number of the segment's first frame
        episode = F.pad(reset.long().cumsum(1), (first, 0))
        mask = self._mask(valid, episode, frames, copies)
        mask = mask.repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)[:, None]
        number = torch.arange(valid.shape[1], device=u.device)[:, None, None]
        q = self._rotate_by_frame(q, number[first:])
        k = self._rotate_by_frame(k, number[first:])
        past_key = self._rotate_by_frame(key, number[..., 0])
        keys = torch.cat((past_key.flatten(2, 3), k.flatten(2, 4)), 2)
        values = torch.cat((value.flatten(2, 3), v.flatten(2, 4)), 2)
        y = F.scaled_dot_product_attention(q.flatten(2, 4), keys, values, mask)
        y = y.unflatten(2, (frames, copies, tokens))
        valid = valid & (episode == episode[:, -1:])
        kept = valid[..., None, None, None].to(u.dtype)
        carried = {
            "key": key.transpose(1, 2) * kept,
            "value": value.transpose(1, 2) * kept,
            "valid": valid,
        }
        y = self.out(y.permute(0, 2, 3, 4, 1, 5).flatten(-2))
        kept = self.window - 1
        return y, {name: _last(x, kept) for name, x in carried.items()}

    def _mask(self, valid: Tensor, episode: Tensor, frames: int, copies: int) -> Tensor:
        """Return what each copy of the last frames may attend to, true where allowed.

        valid [B, F + T] and episode number [B, F + T] -> [B, T R, F + T + T R]: written frames, then copies
        """
        total = valid.shape[1]
        number = torch.arange(total, device=valid.device)
        ago = number[-frames:, None] - number
        before = (ago > 0) & (ago < self.window)
        same_episode = episode[:, -frames:, None] == episode[:, None]
        visible = valid[:, None] & same_episode & before
        itself = torch.eye(frames * copies, dtype=torch.bool, device=valid.device)
        itself = itself.expand(len(valid), -1, -1)
        return torch.cat((visible.repeat_interleave(copies, 1), itself), -1)

    def start_rollout(self, memory: MixerMemory, n: int, frames: int) -> KeyValueCache:
        """Return the empty cache of n candidates."""
        shared = _without_unused(memory)
        key = shared["key"]
        number = torch.arange(key.shape[1], device=key.device)[:, None, None]
        pose = None
        if self.path_integrator is not None:
            pose = memory["pose"][:, None].expand(-1, n, -1, -1)
        return KeyValueCache(shared, self._rotate_by_frame(key, number), pose)

    def rollout_step(
        self, u: Tensor, frame: RolloutInputs, cache: KeyValueCache
    ) -> Tensor:
        """Process successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        With `frame.write`, the cache keeps the first one.
        """
        poses, phase = None, None
        if self.path_integrator is not None:
            with torch.autocast(u.device.type, enabled=False):
                assert cache.pose is not None
                tile = at_least_float32(u.unsqueeze(-3))
                poses = self.path_integrator.follow(tile, frame, cache.pose)
                phase = self.phases(poses)
        past = cache.memory["valid"].shape[1]
        projected = (x.unbind(-3) for x in self.project(u, phase))
        out = []
        for i, (q, k, v) in enumerate(zip(*projected)):
            now = u.new_full((), past + len(cache.keys))
            q = self._rotate_by_frame(q, now) / math.sqrt(self.head_dim)
            k = self._rotate_by_frame(k, now)
            out.append(self._attend(q, k, v, now, cache))
            if frame.write and i == 0:
                cache.keys.append(k)
                cache.values.append(v)
        if frame.write and poses is not None:
            cache.pose = poses[:, :, 0]
        return self.out(torch.stack(out, 2).movedim(3, -2).flatten(-2))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, now: Tensor, cache: KeyValueCache
    ) -> Tensor:
        """Attend to the shared memory, to the cache and to the frame itself.

        q, k, v [B, n, h, S, d] and number of the frame -> [B, n, h, S, d]
        """
        shared = cache.memory
        past = shared["valid"].shape[1]
        ago = now - torch.arange(past, device=q.device)
        hidden = ~(shared["valid"] & (ago < self.window))
        hidden = hidden[:, None, None, None, :, None]
        far = torch.einsum("bnhsd,bjhzd->bnhsjz", q, cache.rotated_key)
        far = far.masked_fill(hidden, float("-inf")).flatten(-2)
        first = max(0, len(cache.keys) - (self.window - 1))
        keys, values = cache.keys[first:], cache.values[first:]
        cached = [q @ x.transpose(-1, -2) for x in keys]
        near = q @ k.transpose(-1, -2)
        score = torch.cat((far, *cached, near), -1)
        sizes = [far.shape[-1], *(self.tokens for _ in keys), self.tokens]
        to_shared, *to_cached, to_own = torch.softmax(score, -1).split(sizes, -1)
        to_shared = to_shared.unflatten(-1, (-1, self.tokens))
        y = torch.einsum("bnhsjz,bjhzd->bnhsd", to_shared, shared["value"])
        y = y + to_own @ v
        for weight, value in zip(to_cached, values):
            y = y + weight @ value
        return y


def _waves(config: AttentionConfig, head_dim: int) -> int:
    """Return the pairs of a head that stand for places. Raises ValueError if there are none."""
    waves = int(config.rope_fraction * head_dim) // 2
    if not waves:
        raise ValueError(
            f"model.mixer.path_integration=true rotates no pair of {head_dim} numbers "
            f"with model.mixer.rope_fraction={config.rope_fraction:g}: increase it"
        )
    return waves


def _path_integrator(context: MixerContext, phases: int) -> PathIntegrator:
    rows, columns = context.grid
    if rows != columns:
        raise ValueError(
            "model.mixer.path_integration needs as many rows of tokens as columns, "
            f"got {rows} x {columns}"
        )
    return PathIntegrator(context, rows, phases)


def _without_unused(memory: MixerMemory) -> MixerMemory:
    """Return key, value and valid.

    On CPUs, leading frames that no sequence may attend to are left out.
    """
    used = memory["valid"].any(0)
    first = 0
    if host_may_read(used):
        first = int(used.int().argmax()) if bool(used.any()) else len(used)
    return {name: memory[name][:, first:] for name in ("key", "value", "valid")}


def _last(x: Tensor, n: int) -> Tensor:
    """Return the last n frames of x [B, F, ...], after zeros if there are fewer."""
    x = x[:, max(0, x.shape[1] - n) :]
    missing = n - x.shape[1]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [missing, 0])
