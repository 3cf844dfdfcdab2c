"""Share what tiled mixers have: a state per tile of tokens (LSSVWM, section 3.2).

Shapes, in addition to those of `base`
    G, s     tiles per frame, tokens per tile (G * s = S)
    h, p     heads, width of a head (h * p = inner = 2 D)
    N        size of keys and queries
"""

from __future__ import annotations

from einops import rearrange
from lssvwm.worldmodel.mixers.base import Mixer, MixerContext
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from torch import Tensor
from torch.nn import functional as F

EXPAND = 2
"""Width of the values, as a multiple of the width of tokens."""


class TiledMixer(Mixer):
    """Cut frames into tiles. Raises ValueError for tiles and heads that do not fit the model."""

    path_integrator: PathIntegrator

    def __init__(self, side: int, head_dim: int, context: MixerContext):
        super().__init__()
        rows, columns = context.grid
        if rows % side or columns % side:
            raise ValueError(
                f"tile {side} does not divide the token grid {rows} x {columns}"
            )
        self.inner = EXPAND * context.width
        if self.inner % head_dim:
            raise ValueError(
                f"model.mixer.head_dim={head_dim} must divide "
                f"2 x model.width = {self.inner}"
            )
        self.grid = context.grid
        self.side = side
        self.head_dim = head_dim
        self.heads = self.inner // head_dim

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

    def token_resets(self, reset: Tensor) -> Tensor:
        """Mark the first token of each reset frame in every tile. [B, T] -> [B G, T s]"""
        by_token = F.pad(reset[..., None], (0, self.side**2 - 1)).flatten(1)
        return by_token.repeat_interleave(self.tiles, 0)

    def values(self, X: Tensor) -> Tensor:
        """Return the values of projected tokens by head. [..., inner] -> [..., h, p]"""
        return F.silu(X).unflatten(-1, (self.heads, self.head_dim))


def by_tile(v: Tensor) -> Tensor:
    """Make one sequence of tokens of each tile. [B, T, G, s, ...] -> [B G, T s, ...]"""
    return rearrange(v, "b t g s ... -> (b g) (t s) ...")


def by_frame(v: Tensor, batch: int, frames: int) -> Tensor:
    """Undo `by_tile`. [B G, T s, ...] -> [B, T, G, s, ...]"""
    return rearrange(v, "(b g) (t s) ... -> b t g s ...", b=batch, t=frames)
