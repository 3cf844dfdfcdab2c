"""MiniGrid's egocentric pictures for many environments at once, put together from tiles that MiniGrid drew.

The result equals MiniGrid's `get_pov_render` bit for bit, at a fraction of its cost.
Shapes: B slots, v tiles along a side of the view, t pixels along a side of a tile. Rows count away from
the top: the agent sits in the middle of the last row and looks up.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj

UNSEEN, EMPTY = 0, 1


class TileAtlas:
    """Numbers every kind of object (type, colour, state) it meets and keeps the tile MiniGrid draws for it.

    By code: `kinds`, MiniGrid's type names; `clear` bool, whether one sees past it; `walkable` bool, whether
    one may step on it and the episode goes on. `tiles` is uint8 [2 * codes, 3, t, t], at 2 * code the tile as
    seen and at 2 * code + 1 with the agent on it.
    """

    def __init__(self, tile: int):
        self.tile = tile
        unseen = self._draw(None, lit=False)
        self.kinds = ["unseen", "empty"]
        self.clear = np.array([False, True])
        self.walkable = np.array([False, True])
        self.tiles = np.stack(
            [unseen, unseen, self._draw(None), self._draw(None, agent=True)]
        )
        self._codes: dict[tuple, int] = {}

    def code(self, thing: WorldObj | None) -> int:
        """Return the number of `thing`, an object of a MiniGrid grid or None for an empty cell."""
        if thing is None:
            return EMPTY
        key = (type(thing), *thing.encode())
        code = self._codes.get(key)
        return self._add(key, thing) if code is None else code

    def _add(self, key: tuple, thing: WorldObj) -> int:
        code = self._codes[key] = len(self.kinds)
        self.kinds.append(thing.type)
        self.clear = np.append(self.clear, thing.see_behind())
        goes_on = thing.can_overlap() and thing.type not in ("goal", "lava")
        self.walkable = np.append(self.walkable, goes_on)
        self.tiles = np.concatenate(
            [self.tiles, [self._draw(thing), self._draw(thing, agent=True)]]
        )
        return code

    def _draw(
        self, thing: WorldObj | None, agent: bool = False, lit: bool = True
    ) -> np.ndarray:
        picture = Grid.render_tile(thing, 3 if agent else None, lit, self.tile)  # type: ignore[arg-type]
        return picture.astype(np.uint8).transpose(2, 0, 1)


class TileView:
    """Keeps the maps of B environments of one size as tile codes, and looks at them.

    `maps` is int64 [B, height, width]; outside a map is wall, as in MiniGrid.
    """

    def __init__(self, batch: int, width: int, height: int, view: int, tile: int):
        self.batch, self.view, self.edge = batch, view, view - 1
        self.atlas = TileAtlas(tile)
        shape = (batch, height + 2 * self.edge, width + 2 * self.edge)
        self._codes = np.full(shape, self.atlas.code(Wall()), np.int64)
        self.maps = self._codes[
            :, self.edge : self.edge + height, self.edge : self.edge + width
        ]
        self._offsets = _view_offsets(view, stride=shape[2])
        self._starts = np.arange(batch) * shape[1] * shape[2] + self.edge * (
            shape[2] + 1
        )

    def load(self, slot: int, grid: Grid) -> None:
        """Read the whole of `grid` into `slot`; call it again when something in the grid has changed."""
        code = self.atlas.code
        codes = [EMPTY if thing is None else code(thing) for thing in grid.grid]
        self.maps[slot] = np.array(codes).reshape(grid.height, grid.width)

    def kinds(self, slot: int) -> set[str]:
        """Return MiniGrid's names of the types of object in the map of `slot`."""
        return {
            self.atlas.kinds[code]
            for code in np.flatnonzero(np.bincount(self.maps[slot].ravel()))
        }

    def look(self, x: np.ndarray, y: np.ndarray, heading: np.ndarray) -> np.ndarray:
        """Return the codes in front of each agent, int64 [B, v, v], hidden ones too; inputs int64 [B]."""
        here = self._starts + y * self._codes.shape[2] + x
        return self._codes.reshape(-1)[here[:, None, None] + self._offsets[heading]]

    def visible(self, codes: np.ndarray) -> np.ndarray:
        """Return bool [B, v, v], which tiles of `codes` the agent sees past the others (`process_vis`)."""
        columns = np.arange(self.view)
        clear = (self.atlas.clear[codes] << columns).sum(axis=2)
        after, ahead = _sweeps(self.view)
        rows = np.empty_like(clear)
        mask = np.full(len(codes), 1 << self.view // 2)
        for row in reversed(range(self.view)):
            rows[:, row] = after[mask, clear[:, row]]
            mask = ahead[mask, clear[:, row]]
        return (rows[:, :, None] >> columns & 1).astype(bool)

    def draw(
        self, codes: np.ndarray, visible: np.ndarray, carried: np.ndarray, side: int
    ) -> np.ndarray:
        """Return frames uint8 [B, 3, side, side], black to the right and below; `carried`: codes [B]."""
        index = 2 * np.where(visible, codes, UNSEEN)
        index[:, -1, self.view // 2] = 2 * carried + 1
        tile = self.atlas.tile
        frames = np.zeros((len(codes), 3, side, side), np.uint8)
        strip = np.dtype(
            ("V", tile)
        )  # one pixel row of one channel of a tile, moved as a unit
        strips = self.atlas.tiles.view(strip)[..., 0][index]
        shape = (len(codes), 3, self.view, tile, self.view)
        strides = (3 * side * side, side * side, side * tile, side, tile)
        np.copyto(
            np.ndarray(shape, strip, frames, strides=strides),
            strips.transpose(0, 3, 1, 4, 2),
        )
        return frames


def _view_offsets(view: int, stride: int) -> np.ndarray:
    """Return int64 [4, v, v]: by heading, where a tile of the view lies in a flat map, from the agent."""
    ahead, aside = np.mgrid[view - 1 : -1 : -1, -(view // 2) : view // 2 + 1]
    headings = [(int(dx), int(dy)) for dx, dy in DIR_TO_VEC]
    return np.stack(
        [
            (dy * ahead + dx * aside) * stride + dx * ahead - dy * aside
            for dx, dy in headings
        ]
    )


@cache
def _sweeps(view: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate `process_vis` for one row: int64 [2^v, 2^v] twice, by bits seen so far and of clear tiles.

    The first table gives the bits seen in this row in the end, the second those lit in the next row ahead.
    """
    mask, clear = np.meshgrid(np.arange(1 << view), np.arange(1 << view), indexing="ij")
    ahead = np.zeros_like(mask)
    for column in range(view - 1):
        passes = mask >> column & clear >> column & 1
        mask, ahead = mask | passes << column + 1, ahead | passes * 3 << column
    for column in reversed(range(1, view)):
        passes = mask >> column & clear >> column & 1
        mask, ahead = mask | passes << column - 1, ahead | passes * 3 << column - 1
    return mask, ahead
