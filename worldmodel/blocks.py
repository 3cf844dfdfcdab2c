"""Build a block of the world model: memory mixer, frame-local attention, MLP (LSSVWM, arXiv 2505.20171).

Shapes
    x [B, T, R, S, D]    tokens: B sequences, T frames, R copies of a frame, S tokens per frame, width D.
                         Copies stand in scan order: (noisy, clean) in training, one of the two otherwise.
    x [B, n, R, S, D]    tokens of R successive imagined frames of each of n candidates that share a memory.
                         Of two frames, the first is written and the second reads.
    k                    frames that local attention sees, the present one included
    q, key, value [..., h, R, S, d]   by head

Every layer has two methods. `forward` processes whole sequences and returns the memory after them. `imagine_step` or
`rollout_step` processes imagined frames. It only reads the memory and keeps what was imagined in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from lssvwm.worldmodel.attention_heads import project_heads
from lssvwm.worldmodel.fused_ops import addcmul
from lssvwm.worldmodel.mixers.base import (
    Mixer,
    MixerMemory,
    RolloutCache,
    RolloutInputs,
    SequenceInputs,
    pick,
)
from torch import Tensor, nn
from torch.nn import functional as F

BlockMemory = dict[str, MixerMemory]
"""Memory of one block: that of its `mixer` and that of its local `attention` (empty if there is none)."""


@dataclass
class FrameCache:
    """Keep key and value [B, n, h, (k-1) S, d] of the last frames of n candidates."""

    key: Tensor
    value: Tensor

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.key = pick(self.key, index)
        self.value = pick(self.value, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates."""
        return sum(x.numel() * x.element_size() for x in (self.key, self.value))


@dataclass
class BlockCache:
    """Keep what n candidates imagined, as mixer and local attention of one block need it."""

    mixer: RolloutCache
    attention: FrameCache | None

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.mixer.select(index)
        if self.attention is not None:
            self.attention.select(index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        local = 0 if self.attention is None else self.attention.nbytes()
        return local + self.mixer.nbytes()


class LocalAttention(nn.Module):
    """Attend from a frame's tokens to each other and to recent frames (section 3.3).

    There are `window - 1` recent frames. A noisy copy sees itself and the clean copies of the frames before. No frame
    sees another frame's noisy copy.
    Memory: key and value [B, k-1, h, S, d] of the last frames.
    """

    def __init__(self, width: int, tokens: int, window: int, heads: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # the last `tokens` keys are those of the frame itself
        self.bias = nn.Parameter(torch.zeros(heads, tokens, window * tokens))

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents."""
        tokens = self.bias.shape[1]
        head_dim = self.out.in_features // self.heads
        shape = (batch, self.window - 1, self.heads, tokens, head_dim)
        return {"key": like.new_zeros(shape), "value": like.new_zeros(shape)}

    def attend(
        self,
        q: Tensor,
        own: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        """Attend to keys and values of the frame itself and of past frames.

        q, own [..., h, R, S, d], past [..., h, (k-1) S, d], visible [..., (k-1) S] -> [..., R, S, D]
        """
        copies, tokens = q.shape[-3:-1]
        rows = (copies, tokens)
        q = q / math.sqrt(q.shape[-1])
        far = q.flatten(-3, -2) @ past[0].transpose(-1, -2)
        near = q @ own[0].transpose(-1, -2)
        # expanded by copy, so that the bias's gradient sums over leading sizes only
        bias = self.bias[:, None].expand(-1, copies, -1, -1)
        shown = torch.zeros_like(visible, dtype=bias.dtype)
        shown = shown.masked_fill(~visible, float("-inf"))
        mask = F.pad(shown, (0, tokens))[..., None, None, None, :]
        far = far.unflatten(-2, rows)
        score = torch.cat((far, near), -1) + bias + mask
        weight = torch.softmax(score, -1)
        past_tokens = weight.shape[-1] - tokens
        old, new = weight.split([past_tokens, tokens], -1)
        from_past = (old.flatten(-3, -2) @ past[1]).unflatten(-2, rows)
        y = from_past + new @ own[1]
        return self.out(y.movedim(-4, -2).flatten(-2))

    def forward(
        self, u: Tensor, visible: Tensor, memory: MixerMemory
    ) -> tuple[Tensor, MixerMemory]:
        """Process sequences u [B, T, R, S, D]. Returns the same shape, and the memory after the last frame.

        visible [B, T, k-1] marks the past frames that each frame may see. They see the last copy of each.
        """
        q, k, v = project_heads(self.qkv, u, self.heads)
        past_key, key = self._past(memory["key"], k)
        past_value, value = self._past(memory["value"], v)
        visible = visible.repeat_interleave(u.shape[3], -1)
        y = self.attend(q, (k, v), (past_key, past_value), visible)
        return y, {"key": key, "value": value}

    def _past(self, remembered: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return the past of each frame [B, T, h, (k-1) S, d], and what to remember after the last frame.

        remembered [B, k-1, h, S, d], own [B, T, h, R, S, d]
        """
        past, frames = self.window - 1, own.shape[1]
        line = torch.cat((remembered.to(own.dtype), own[:, :, :, -1]), 1)
        carried = line[:, line.shape[1] - past :].to(remembered.dtype)
        if not past:
            return line[:, :frames, :, :0], carried
        shifted = [line[:, j : j + frames] for j in range(past)]
        return torch.cat(shifted, -2), carried

    def start_rollout(self, memory: MixerMemory, n: int) -> FrameCache:
        """Return the cache of n candidates, which begin with the frames in memory."""
        key, value = (
            rearrange(memory[name], "b k h s d -> b 1 h (k s) d").expand(
                -1, n, -1, -1, -1
            )
            for name in ("key", "value")
        )
        return FrameCache(key, value)

    def rollout_step(
        self, u: Tensor, cache: FrameCache, frame: RolloutInputs
    ) -> Tensor:
        """Process successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        With `frame.write`, the cache keeps the first one.
        """
        tokens = u.shape[3]
        projected = project_heads(self.qkv, u, self.heads)
        by_frame = (v.unbind(-3) for v in projected)
        visible = frame.visible
        out = []
        for i, (query, own_key, own_value) in enumerate(zip(*by_frame)):
            key = torch.cat((cache.key, own_key), -2)
            value = torch.cat((cache.value, own_value), -2)
            written = frame.write and i == 0
            if frame.read or not written:
                y = self._attend(query, key, value, visible)
            else:
                y = torch.zeros_like(u[:, :, i])
            out.append(y)
            if written:
                cache.key = key[..., tokens:, :]
                cache.value = value[..., tokens:, :]
                visible = F.pad(visible, (0, 1), value=True)
                visible = visible[..., 1:]
        return torch.stack(out, 2)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor
    ) -> Tensor:
        """Attend from one frame to the last k frames, its own tokens included.

        query [B, n, h, S, d], key and value [B, n, h, k S, d], visible [B, n, k-1] -> [B, n, S, D]
        """
        tokens = query.shape[-2]
        hidden = ~visible.repeat_interleave(tokens, -1)
        mask = torch.zeros_like(hidden, dtype=query.dtype)
        mask = mask.masked_fill(hidden, float("-inf"))
        mask = F.pad(mask, (0, tokens))
        mask = mask[..., None, None, :] + self.bias
        scale = math.sqrt(query.shape[-1])
        score = query @ key.transpose(-1, -2) / scale
        y = torch.softmax(score + mask, -1) @ value
        return self.out(y.transpose(-2, -3).flatten(-2))


class BlockOutput(NamedTuple):
    """Hold what a block makes of sequences."""

    tokens: Tensor
    """[B, T, R, S, D]"""

    memory: BlockMemory
    """Memory after the last frame"""

    gates: Tensor | None
    """Openings of the write gates for the tokens of each frame, [B, T, k]; None: the mixer has no write gate"""


Layer = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """Apply mixer, local attention (if any) and MLP, each on a residual path.

    The condition of a frame (action and noise level) gives scale, shift and gate of each layer.
    """

    def __init__(
        self,
        width: int,
        mlp_ratio: float,
        mixer: Mixer,
        attention: LocalAttention | None,
    ):
        super().__init__()
        self.mixer = mixer
        self.attention = attention
        hidden = round(mlp_ratio * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.modulate = nn.Linear(width, 9 * width)
        nn.init.normal_(self.modulate.weight, std=0.3 / math.sqrt(width))
        with torch.no_grad():
            self.modulate.bias.zero_()
            self.modulate.bias[6 * width :].fill_(0.5)  # gates start half open

    def initial(self, batch: int, like: Tensor) -> BlockMemory:
        """Return the empty memory of `batch` agents, with device and type of `like`."""
        attention = self.attention
        return {
            "mixer": self.mixer.initial(batch, like),
            "attention": {} if attention is None else attention.initial(batch, like),
        }

    def start_rollout(self, memory: BlockMemory, n: int, frames: int) -> BlockCache:
        """Return the cache of n candidates that imagine at most `frames` frames."""
        mixer = self.mixer.start_rollout(memory["mixer"], n, frames)
        if self.attention is None:
            return BlockCache(mixer, None)
        return BlockCache(mixer, self.attention.start_rollout(memory["attention"], n))

    def _modulation(self, condition: Tensor) -> list[tuple[Tensor, ...]]:
        """Return scale, shift and gate [..., 1, D] of each layer."""
        modulation = self.modulate(F.silu(condition)).unsqueeze(-2).chunk(9, -1)
        return [modulation[i::3] for i in range(3)]

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        frames: SequenceInputs,
        memory: BlockMemory,
    ) -> BlockOutput:
        """Process sequences x [B, T, R, S, D]."""
        carried: BlockMemory = {"mixer": {}, "attention": {}}
        gates = None

        def mixer(u: Tensor) -> Tensor:
            nonlocal gates
            y, carried["mixer"], gates = self.mixer(u, frames, memory["mixer"])
            return y

        def attention(u: Tensor) -> Tensor:
            assert self.attention is not None
            y, carried["attention"] = self.attention(
                u, frames.visible, memory["attention"]
            )
            return y

        modulation = self._modulation(condition)
        x = _residual(x, modulation[0], mixer)
        if self.attention is not None:
            x = _residual(x, modulation[1], attention)
        x = _residual(x, modulation[2], self.mlp)
        return BlockOutput(x, carried, gates)

    def imagine_step(
        self, x: Tensor, condition: Tensor, frame: RolloutInputs, cache: BlockCache
    ) -> Tensor:
        """Process successive imagined frames x [B, n, R, S, D].

        Returns the same shape. Without `frame.read`, the written frame is left out.
        """

        def mixer(u: Tensor) -> Tensor:
            return self.mixer.rollout_step(u, frame, cache.mixer)

        def attention(u: Tensor) -> Tensor:
            assert self.attention is not None and cache.attention is not None
            return self.attention.rollout_step(u, cache.attention, frame)

        modulation = self._modulation(condition)
        x = _residual(x, modulation[0], mixer)
        if self.attention is not None:
            x = _residual(x, modulation[1], attention)
        unread = int(frame.write and not frame.read)
        if unread == x.shape[2]:
            return x[:, :, unread:]
        own = tuple(v[:, :, unread:] for v in modulation[2])
        return _residual(x[:, :, unread:], own, self.mlp)


def _residual(x: Tensor, modulation: Sequence[Tensor], layer: Layer) -> Tensor:
    """Add a layer's output to x, between scale, shift and gate [..., 1, D]."""
    scale, shift, gate = modulation
    u = addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
    return addcmul(x, gate, layer(u))
