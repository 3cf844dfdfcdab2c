"""Look at maps of tiles from inside: tiles of a view, occlusion, drawing.

Mazes and MiniGrid share these functions. Shapes: B slots, v tiles along a side of the
view, t pixels along a side of a tile. Row 0 of a view is the farthest. The agent is in
the middle of the last row and looks up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np


def view_offsets(view: int, forward: np.ndarray, cols: int) -> np.ndarray:
    """Return the view's tiles in a flattened map from the agent, int64 [4, v, v].

    Indexed by heading.

    forward: int64 [4, 2], row and column change of a step, clockwise by heading
    cols: columns of the map
    """
    rows_down, cols_right = np.indices((view, view))
    ahead = view - 1 - rows_down
    aside = cols_right - view // 2
    strides = np.array([cols, 1])
    front = forward @ strides
    right = np.roll(front, -1)
    return ahead * front[:, None, None] + aside * right[:, None, None]


@dataclass(frozen=True)
class LightTables:
    """Tabulate MiniGrid's `Grid.process_vis` for one row of a view.

    A row is a number whose bits are its tiles. Tables are indexed by the lit tiles and
    by the clear tiles of a row.
    """

    bits: np.ndarray
    """Value of each tile, [v]."""
    here: np.ndarray
    """Tiles lit in the end, [2^v, 2^v]."""
    ahead: np.ndarray
    """Tiles lit in the next row ahead, [2^v, 2^v]."""
    unpacked: np.ndarray
    """Tiles of each number, bool [2^v, v]."""


@cache
def _light_tables(view: int) -> LightTables:
    numbers = np.arange(1 << view)
    columns = np.arange(view)
    lit, clear = np.meshgrid(numbers, numbers, indexing="ij")
    ahead = np.zeros_like(lit)
    neighbours = list(itertools.pairwise(columns))
    backwards = [(right, left) for left, right in reversed(neighbours)]
    for column, neighbour in neighbours + backwards:
        passes = lit >> column & clear >> column & 1
        lit = lit | passes << neighbour
        ahead = ahead | passes << column
        ahead = ahead | passes << neighbour
    small = np.min_scalar_type(numbers[-1])
    return LightTables(
        bits=(1 << columns).astype(small),
        here=lit.astype(small),
        ahead=ahead.astype(small),
        unpacked=(numbers[:, None] >> columns & 1).astype(bool),
    )


def visible(is_clear: np.ndarray) -> np.ndarray:
    """Return the tiles that no others hide, bool [B, v, v].

    is_clear: bool [B, v, v], true for tiles that one sees past
    """
    batch, view, _ = is_clear.shape
    tables = _light_tables(view)
    clear = is_clear @ tables.bits
    seen = np.empty_like(clear)
    middle = tables.bits[view // 2]
    lit = np.full(batch, middle)
    for row in reversed(range(view)):
        clear_here = clear[:, row]
        seen[:, row] = tables.here[lit, clear_here]
        lit = tables.ahead[lit, clear_here]
    return tables.unpacked[seen]


def tile_strips(tiles: np.ndarray) -> np.ndarray:
    """Return each pixel row of a tile and a channel as one unit, [N, 3, t].

    tiles: uint8 [N, 3, t, t]
    """
    strip = np.dtype(("V", tiles.shape[-1]))
    return np.ascontiguousarray(tiles).view(strip)[..., 0]


def draw_tiles(strips: np.ndarray, frames: np.ndarray, margin: int = 0) -> None:
    """Draw views into `frames`, `margin` pixels from the left and from the top.

    strips: [B, v, v, 3, t], units of `tile_strips` by tile of the view
    frames: uint8 [B, 3, S, S]
    """
    batch, view, _, channels, tile = strips.shape
    side = frames.shape[-1]
    plane = side * side
    shape = (batch, channels, view, tile, view)
    strides = (channels * plane, plane, side * tile, side, tile)
    first = margin * side + margin
    inside = np.ndarray(shape, strips.dtype, frames, offset=first, strides=strides)
    np.copyto(inside, strips.transpose(0, 3, 1, 4, 2))
