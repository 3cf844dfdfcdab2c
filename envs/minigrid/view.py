"""Draw MiniGrid's egocentric pictures of many environments, from tiles it drew once.

The result equals MiniGrid's `get_pov_render` bit for bit, at a fraction of its cost.
Shapes: B slots, v tiles along a side of the view, t pixels along a side of a tile. Rows
count from the top. The agent sits in the middle of the last row and looks up.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj

UNSEEN, EMPTY = 0, 1
HEADING_UP = 3
"""MiniGrid's heading up, in which it draws the agent of a view."""
ENDING = ("goal", "lava")
"""Kinds of object that end an episode."""


class TileAtlas:
    """Number every kind of object that occurs, and keep MiniGrid's tile of it.

    A kind is a type, a colour and a state. By code:

    - `kinds`: MiniGrid's type names.
    - `clear`: bool, whether the agent sees past it.
    - `walkable`: bool, whether a step on it is possible and the episode goes on.
    - `tiles`: uint8 [2 * codes, 3, t, t], at 2 * code + 1 with the agent on it.
    """

    def __init__(self, tile: int):
        self.tile = tile
        self.kinds = ["unseen", "empty"]
        self.clear = np.array([False, True])
        self.walkable = np.array([False, True])
        unseen = self._draw(None, lit=False)
        empty = self._draw(None)
        occupied = self._draw(None, agent=True)
        self.tiles = np.stack([unseen, unseen, empty, occupied])
        self._codes: dict[tuple, int] = {}

    def code(self, thing: WorldObj | None) -> int:
        """Return the number of an object of a grid; None is an empty cell."""
        if thing is None:
            return EMPTY
        key = (type(thing), *thing.encode())
        code = self._codes.get(key)
        return self._add(key, thing) if code is None else code

    def _add(self, key: tuple, thing: WorldObj) -> int:
        code = len(self.kinds)
        self._codes[key] = code
        self.kinds.append(thing.type)
        self.clear = np.append(self.clear, thing.see_behind())
        goes_on = thing.can_overlap() and thing.type not in ENDING
        self.walkable = np.append(self.walkable, goes_on)
        pictures = [self._draw(thing), self._draw(thing, agent=True)]
        self.tiles = np.concatenate([self.tiles, pictures])
        return code

    def _draw(
        self, thing: WorldObj | None, agent: bool = False, lit: bool = True
    ) -> np.ndarray:
        heading = HEADING_UP if agent else None
        picture = Grid.render_tile(thing, heading, lit, self.tile)  # type: ignore[arg-type]
        return picture.astype(np.uint8).transpose(2, 0, 1)


class TileView:
    """Keep the maps of B environments as tile codes, and look at them.

    Outside a map is wall, as in MiniGrid.

    maps: int64 [B, height, width]
    """

    def __init__(self, batch: int, width: int, height: int, view: int, tile: int):
        self.view = view
        self.atlas = TileAtlas(tile)
        edge = view - 1
        rows = height + 2 * edge
        self._cols = width + 2 * edge
        wall = self.atlas.code(Wall())
        self._codes = np.full((batch, rows, self._cols), wall, np.int64)
        self.maps = self._codes[:, edge:-edge, edge:-edge]
        self._offsets = _view_offsets(view, self._cols)
        first_cell = edge * self._cols + edge
        self._starts = np.arange(batch) * (rows * self._cols) + first_cell

    def load(self, slot: int, grid: Grid) -> None:
        """Read all of `grid` into `slot`; call it again when the grid has changed."""
        code = self.atlas.code
        codes = [EMPTY if thing is None else code(thing) for thing in grid.grid]
        shape = grid.height, grid.width
        self.maps[slot] = np.reshape(codes, shape)

    def kinds(self, slot: int) -> set[str]:
        """Return MiniGrid's names of the types of object in the map of `slot`."""
        counts = np.bincount(self.maps[slot].ravel())
        return {self.atlas.kinds[code] for code in np.flatnonzero(counts)}

    def look(self, x: np.ndarray, y: np.ndarray, heading: np.ndarray) -> np.ndarray:
        """Return the codes in front of each agent, hidden ones too, int64 [B, v, v].

        x, y, heading: int64 [B]
        """
        here = self._starts + y * self._cols + x
        tiles = here[:, None, None] + self._offsets[heading]
        return self._codes.reshape(-1)[tiles]

    def visible(self, codes: np.ndarray) -> np.ndarray:
        """Return the tiles that no other hides (`process_vis`), bool [B, v, v]."""
        columns = np.arange(self.view)
        is_clear = self.atlas.clear[codes]
        clear = (is_clear << columns).sum(axis=2)
        seen, ahead = _sweeps(self.view)
        rows = np.empty_like(clear)
        middle = self.view // 2
        lit = np.full(len(codes), 1 << middle)
        for row in reversed(range(self.view)):
            clear_here = clear[:, row]
            rows[:, row] = seen[lit, clear_here]
            lit = ahead[lit, clear_here]
        return (rows[:, :, None] >> columns & 1).astype(bool)

    def draw(
        self, codes: np.ndarray, visible: np.ndarray, carried: np.ndarray, side: int
    ) -> np.ndarray:
        """Return frames uint8 [B, 3, side, side], black to the right and below.

        carried: int64 [B], code of the object that each agent carries
        """
        index = 2 * np.where(visible, codes, UNSEEN)
        index[:, -1, self.view // 2] = 2 * carried + 1
        tile = self.atlas.tile
        # One pixel row of one channel of a tile is moved as a unit.
        strip = np.dtype(("V", tile))
        strips = self.atlas.tiles.view(strip)[..., 0]
        batch = len(codes)
        frames = np.zeros((batch, 3, side, side), np.uint8)
        shape = (batch, 3, self.view, tile, self.view)
        plane = side * side
        strides = (3 * plane, plane, side * tile, side, tile)
        targets = np.ndarray(shape, strip, frames, strides=strides)
        np.copyto(targets, strips[index].transpose(0, 3, 1, 4, 2))
        return frames


def _view_offsets(view: int, stride: int) -> np.ndarray:
    """Return the view's tiles in a flat map from the agent, int64 [4, v, v].

    Indexed by heading. `stride` is the number of columns of the map.
    """
    rows, cols = np.indices((view, view))
    ahead = view - 1 - rows
    aside = cols - view // 2
    offsets = []
    for dx, dy in DIR_TO_VEC:
        down = dy * ahead + dx * aside
        right = dx * ahead - dy * aside
        offsets.append(down * stride + right)
    return np.stack(offsets)


@cache
def _sweeps(view: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate `process_vis` for one row of the view, int64 [2^v, 2^v] twice.

    Both tables are indexed by the bits of lit and of clear tiles. The first holds the
    bits seen in this row in the end, the second those lit in the next row ahead.
    """
    bits = np.arange(1 << view)
    lit, clear = np.meshgrid(bits, bits, indexing="ij")
    ahead = np.zeros_like(lit)
    rightwards = [(column, column + 1) for column in range(view - 1)]
    leftwards = [(column + 1, column) for column in reversed(range(view - 1))]
    for column, neighbour in rightwards + leftwards:
        passes = lit >> column & clear >> column & 1
        lit = lit | passes << neighbour
        ahead = ahead | passes << column
        ahead = ahead | passes << neighbour
    return lit, ahead
