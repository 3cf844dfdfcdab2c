"""Carry memory in one recurrent vector, as the deterministic path of an RSSM (DreamerV3)."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
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
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, config=SETTINGS)
class GRUConfig:
    """Set the sizes of the recurrent vector."""

    kind: Literal["gru"] = "gru"
    """Name of this mixer."""

    layers: int = Field(default=2, ge=1, le=1024)
    """Number of blocks."""

    state: int = Field(default=90, ge=1, le=65_536)
    """Size of the vector of each block. It must be at least the number of tokens."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.layers


@plain_dataclass
class GRUCache:
    """Keep the vector of each of n candidates, state [B, n, H]."""

    state: Tensor

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.state = pick(self.state, index)

    def nbytes(self) -> int:
        """Return the bytes of all candidates."""
        return self.state.numel() * self.state.element_size()


@register(GRUConfig)
class GRU(Mixer):
    """Update one vector per frame, h' = GRU(frame, action; h), which every token reads.

    A noisy copy reads the h' that it would lead to itself. Only a written copy is carried on. Memory: state [B, H].
    """

    def __init__(self, config: GRUConfig, context: MixerContext):
        super().__init__()
        if config.state < context.tokens:
            raise ValueError(
                f"model.mixer.state={config.state} must be at least "
                f"the number of tokens, {context.tokens}"
            )
        self.state = config.state
        per_token = config.state // context.tokens
        inputs = context.tokens * per_token + context.actions
        self.read = nn.Linear(context.width, per_token)
        self.cell = nn.GRUCell(inputs, config.state)
        self.out = nn.Linear(config.state, context.width, bias=False)
        scale = torch.randn(context.tokens, config.state) / math.sqrt(config.state)
        self.pos_embed = nn.Parameter(scale)

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents."""
        return {"state": like.new_zeros(batch, self.state)}

    def forward(
        self, u: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> MixerOutput:
        """Process sequences u [B, T, R, S, D]."""
        copies = u.shape[2]
        action = frames.action[:, :, None].expand(-1, -1, copies, -1)
        inputs = self._inputs(u, action)
        h = memory["state"]
        states = []
        for t in range(u.shape[1]):
            h = h.masked_fill(frames.reset[:, t, None], 0.0)
            before = h[:, None].expand(-1, copies, -1)
            new = self._cell(inputs[:, t], before)
            states.append(new)
            written = frames.writes[:, t, None]
            h = torch.where(written, new[:, -1], h)
        return MixerOutput(self._output(torch.stack(states, 1)), {"state": h})

    def _inputs(self, u: Tensor, action: Tensor) -> Tensor:
        """Project u [..., S, D] and action [..., A] for the three gates of the cell. Returns [..., 3 H]."""
        x = torch.cat((self.read(u).flatten(-2), action), -1)
        return F.linear(x, self.cell.weight_ih, self.cell.bias_ih)

    def _cell(self, inputs: Tensor, h: Tensor) -> Tensor:
        """Apply `nn.GRUCell` to projected inputs [..., 3 H] and h [..., H]. Returns the new h."""
        hidden = F.linear(h, self.cell.weight_hh, self.cell.bias_hh)
        input_reset, input_keep, input_new = inputs.chunk(3, -1)
        hidden_reset, hidden_keep, hidden_new = hidden.chunk(3, -1)
        reset = torch.sigmoid(input_reset + hidden_reset)
        keep = torch.sigmoid(input_keep + hidden_keep)
        new = torch.tanh(input_new + reset * hidden_new)
        return (1 - keep) * new + keep * h

    def _output(self, h: Tensor) -> Tensor:
        """Return what each token reads of h [..., H], as [..., S, D]."""
        by_token = h[..., None, :] * (1 + self.pos_embed)
        return self.out(by_token)

    def start_rollout(self, memory: MixerMemory, n: int, frames: int) -> GRUCache:
        """Return the cache of n candidates, which begin with the vector of their memory."""
        return GRUCache(memory["state"][:, None].expand(-1, n, -1))

    def rollout_step(self, u: Tensor, frame: RolloutInputs, cache: GRUCache) -> Tensor:
        """Process successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        With `frame.write`, the cache keeps the first one.
        """
        states = []
        h = cache.state
        for inputs in self._inputs(u, frame.action).unbind(2):
            h = self._cell(inputs, h)
            states.append(h)
        if frame.write:
            cache.state = states[0]
        return self._output(torch.stack(states, 2))
