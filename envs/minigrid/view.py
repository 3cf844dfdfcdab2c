"""Draw MiniGrid's egocentric pictures of many environments, from tiles it drew once.

The result equals MiniGrid's `get_pov_render` bit for bit, at a fraction of its cost.
Shapes: B slots, v tiles along a side of the view, t pixels along a side of a tile. Rows
count from the top. The agent sits in the middle of the last row and looks up.
"""

from __future__ import annotations

import numpy as np
from lssvwm.envs.base import blank_frames
from lssvwm.envs.tile_view import draw_tiles, tile_strips, view_offsets, visible
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj

UNSEEN, EMPTY = 0, 1
FORWARD = np.array([(dy, dx) for dx, dy in DIR_TO_VEC])
"""Row and column change of one step forward, by MiniGrid's heading, [4, 2]."""
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
        alone = self._draw(thing)
        occupied = self._draw(thing, agent=True)
        self.tiles = np.concatenate([self.tiles, [alone, occupied]])
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
        self._offsets = view_offsets(view, FORWARD, self._cols)
        size = rows * self._cols
        first_cell = edge * self._cols + edge
        self._starts = np.arange(batch) * size + first_cell

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
        """Return the tiles of `codes` that no others hide, bool [B, v, v]."""
        return visible(self.atlas.clear[codes])

    def draw(
        self, codes: np.ndarray, visible: np.ndarray, carried: np.ndarray, side: int
    ) -> np.ndarray:
        """Return frames uint8 [B, 3, side, side], black to the right and below.

        carried: int64 [B], code of the object that each agent carries
        """
        seen = np.where(visible, codes, UNSEEN)
        index = 2 * seen
        middle = self.view // 2
        index[:, -1, middle] = 2 * carried + 1
        strips = tile_strips(self.atlas.tiles)
        frames = blank_frames(len(codes), side)
        draw_tiles(strips[index], frames)
        return frames
