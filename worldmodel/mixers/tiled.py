"""Share what tiled mixers have: a state per tile of tokens (LSSVWM, section 3.2).

Shapes, in addition to those of `base`
    G, s     tiles per frame, tokens per tile (G * s = S)
    inner    width of the values (2 D)
    N        size of keys and queries
"""

from __future__ import annotations

from einops import rearrange
from lssvwm.worldmodel.fused_ops import at_least_float32, host_may_read
from lssvwm.worldmodel.mixers.base import Mixer, MixerContext
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from torch import Tensor, nn
from torch.nn import functional as F

EXPAND = 2
"""Width of the values, as a multiple of the width of tokens."""
GATE_START, GATE_SLOPE = 0.9, 0.5
"""Strength of a new write gate, and its slope. A sigmoid is flat near 0: it never closes entirely."""


class WriteGate(nn.Linear):
    """Decide how strongly tokens are written, by what is seen.

    The loss term `write` sets the price of writing. It closes the gate for tokens that are not worth storing. The gates
    of all blocks look at embedded frames, before the first block. After it, a dark frame holds what memory adds to it.
    Gates that looked at that would let memory copy itself, for as long as it is dark.
    """

    def __init__(self, width: int, parts: int):
        super().__init__(width, parts)
        nn.init.zeros_(self.bias)

    def forward(self, u: Tensor) -> Tensor:
        """Return openings [..., parts] for tokens u [..., D]: write strengths before they are clipped."""
        u = F.layer_norm(u, u.shape[-1:])
        return GATE_START + GATE_SLOPE * at_least_float32(super().forward(u))


def write_strength(opening: Tensor) -> Tensor:
    """Clip openings to write strengths from 0 to 1."""
    return opening.clamp(0, 1)


class TiledMixer(Mixer):
    """Cut frames into tiles. Raises ValueError for tiles that do not divide the token grid."""

    path_integrator: PathIntegrator

    def __init__(self, side: int, context: MixerContext):
        super().__init__()
        rows, columns = context.grid
        if rows % side or columns % side:
            raise ValueError(
                f"tile {side} does not divide the token grid {rows} x {columns}"
            )
        self.inner = EXPAND * context.width
        self.grid = context.grid
        self.side = side

    @property
    def tiles(self) -> int:
        """Number of tiles per frame."""
        rows, columns = self.grid
        return (rows // self.side) * (columns // self.side)

    def integrator(self) -> PathIntegrator:
        """Return what sums up the agent's motion."""
        return self.path_integrator

    def tile(self, x: Tensor) -> Tensor:
        """Order tokens by tiles. [..., S, d] -> [..., G, s, d]"""
        rows, columns = self.grid
        if self.side == 1:
            return x.unsqueeze(-2)
        if self.side == rows == columns:
            return x.unsqueeze(-3)
        lead, side = x.shape[:-2], self.side
        x = x.reshape(-1, rows, columns, x.shape[-1])
        pattern = "b (gh th) (gw tw) d -> b (gh gw) (th tw) d"
        x = rearrange(x, pattern, th=side, tw=side)
        return x.reshape(*lead, *x.shape[1:])

    def untile(self, x: Tensor) -> Tensor:
        """Order tokens by rows again. [..., G, s, d] -> [..., S, d]"""
        rows, columns = self.grid
        if self.side == 1:
            return x.squeeze(-2)
        if self.side == rows == columns:
            return x.squeeze(-3)
        lead, side = x.shape[:-3], self.side
        x = x.reshape(-1, *x.shape[-3:])
        pattern = "b (gh gw) (th tw) d -> b (gh th gw tw) d"
        x = rearrange(x, pattern, gw=columns // side, th=side)
        return x.reshape(*lead, *x.shape[1:])

    def erase(self, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor | None]:
        """Erase the state [B, ...] before a single frame with reset [B, 1].

        Longer sequences leave that to the scan. Returns the state, and the tokens [B G, T s] before which the scan
        erases it.
        """
        if reset.shape[1] > 1:
            return state, self.token_resets(reset)
        if host_may_read(reset) and not reset.any():
            return state, None  # to erase nothing would still copy the state
        one_per_axis = [1] * (state.dim() - 1)
        erased = reset.view(-1, *one_per_axis)
        return state.masked_fill(erased, 0.0), None

    def token_resets(self, reset: Tensor) -> Tensor:
        """Mark the first token of each reset frame in every tile. [B, T] -> [B G, T s]"""
        later_tokens = self.side**2 - 1
        by_token = F.pad(reset[..., None], (0, later_tokens)).flatten(1)
        return by_token.repeat_interleave(self.tiles, 0)


def by_tile(v: Tensor) -> Tensor:
    """Make one sequence of tokens of each tile. [B, T, G, s, ...] -> [B G, T s, ...]"""
    return rearrange(v, "b t g s ... -> (b g) (t s) ...")


def by_frame(v: Tensor, batch: int, frames: int) -> Tensor:
    """Undo `by_tile`. [B G, T s, ...] -> [B, T, G, s, ...]"""
    return rearrange(v, "(b g) (t s) ... -> b t g s ...", b=batch, t=frames)


def by_row(v: Tensor) -> Tensor:
    """Make one sequence of tokens of successive frames. [B, n, R, G, s, d] -> [B, n, G, R s, d]"""
    return v.squeeze(2) if v.shape[2] == 1 else v.transpose(2, 3).flatten(3, 4)


def by_copy(v: Tensor, frames: int) -> Tensor:
    """Undo `by_row`. [B, n, G, R s, d] -> [B, n, R, G, s, d]"""
    return v.unflatten(3, (frames, -1)).transpose(2, 3)
