"""Find ways and lines of sight on the floor of a maze.

Positions are (up, right) in tiles from the lower left corner, as in `simulator`. Cell
(r, c) covers the positions from (r, c) to (r + 1, c + 1).
"""

from __future__ import annotations

from collections import deque

import numpy as np
from lssvwm.envs.maze.layout import STEPS, Cell

SPACING = 0.05
"""Distance of the points that are checked along a line, in tiles."""


class Floor:
    """Hold the floor of a maze, bool [n, n], with ways to its cells."""

    def __init__(self, cells: np.ndarray):
        self.cells = cells
        self.free = [(int(row), int(col)) for row, col in np.argwhere(cells)]
        """Floor cells."""
        self._padded = np.pad(cells, 1)
        self._ways: dict[Cell, np.ndarray] = {}

    def is_clear(
        self, start: np.ndarray, ends: np.ndarray, radius: float = 0.0
    ) -> np.ndarray:
        """Return bool [M], true where a disc can move straight from `start` to an end.

        start: [2], at which the disc may touch a wall
        ends: [M, 2]
        """
        ways = ends - start
        longest = np.abs(ways).max(initial=0)
        count = int(np.ceil(longest / SPACING)) + 1
        share = np.linspace(0, 1, count)[:, None, None]
        points = start + share * ways
        corners = radius * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
        cells = np.floor(points[:, :, None] + corners).astype(int) + 1
        last = len(self._padded) - 1
        row, col = np.moveaxis(cells.clip(0, last), -1, 0)
        is_free = self._padded[row, col].all(-1)
        near = np.abs(points - start).max(-1) < radius
        return (is_free | near).all(0)

    def steps_to(self, cell: Cell) -> np.ndarray:
        """Return the least moves between neighbours to `cell`, int64 [n, n]; -1: none."""
        if cell not in self._ways:
            self._ways[cell] = self._search(cell)
        return self._ways[cell]

    def _search(self, cell: Cell) -> np.ndarray:
        steps = np.full(self.cells.shape, -1)
        steps[cell] = 0
        queue = deque([cell])
        while queue:
            here = queue.popleft()
            for near in self._around(here):
                if steps[near] < 0:
                    steps[near] = steps[here] + 1
                    queue.append(near)
        return steps

    def _around(self, cell: Cell) -> list[Cell]:
        row, col = cell
        near = [(row + down, col + right) for down, right in STEPS]
        return [(r, c) for r, c in near if self._padded[r + 1, c + 1]]

    def way(self, start: Cell, end: Cell) -> list[Cell]:
        """Return the cells of a shortest way after `start`, up to `end`.

        Empty at the end, or without a way.
        """
        steps = self.steps_to(end)
        cells: list[Cell] = []
        here = start
        while steps[here] > 0:
            here = min(self._around(here), key=lambda cell: steps[cell])
            cells.append(here)
        return cells


def to_cell(position: np.ndarray) -> Cell:
    """Return the cell of a position [2]."""
    up, right = np.floor(position).astype(int).tolist()
    return up, right


def middle(cell: Cell) -> np.ndarray:
    """Return the position of a cell's middle, [2]."""
    return np.array(cell) + 0.5


def from_agent(pose: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return places [..., K, 2] as seen from poses [..., 3]: right, ahead, in tiles."""
    offset = places - pose[..., None, 1:]
    up, right = offset[..., 0], offset[..., 1]
    cos = np.cos(pose[..., :1])
    sin = np.sin(pose[..., :1])
    to_right = right * cos - up * sin
    to_front = right * sin + up * cos
    return np.stack([to_right, to_front], -1)
