"""Lay out random mazes with coloured balls and a cue for one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.engine import GridMaze
from lssvwm.envs.maze.layout import Cell, carve

MAX_OBJECTS = len(rendering.COLOURS)


def check_size(n: int, objects: int) -> None:
    """Raise ValueError for a side that no maze has, or too many objects for it."""
    if n % 2 == 0:
        raise ValueError(f"maze size n must be odd and at least 5, got n={n}")
    cells = (n // 2) ** 2
    if cells <= objects:
        raise ValueError(
            f"n={n} is too small for objects={objects}: it has {cells} cells"
        )


class ObjectMaze(GridMaze):
    """Share the layout of Return, Recall and Scavenge: coloured balls and a cue.

    `config` is the configuration of one of them, with `n`, `objects` and `loops`.
    """

    explorers = (
        "oracle",
        "guide",
        "tour",
        "cells",
        "seek",
        "stumble",
        "forage",
        "momentum",
        "wall",
        "random",
        "noop",
    )
    spacing = 1
    """1: start and objects lie on any floor; 2: on cells at odd coordinates only."""

    def __init__(self, config: Any, batch: int):
        super().__init__(batch, config.n, config.n, labels=config.objects)
        self.n = config.n
        self.loops = config.loops
        self.objects = np.zeros((batch, config.objects, 2), np.int64)
        self.start = np.zeros((batch, 3), np.int64)

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        floor, spots = self._draw_layout(rng)
        start, objects = spots[0], spots[1:]
        self.lay(slot, floor)
        self.objects[slot] = objects
        for colour, (row, col) in enumerate(objects.tolist()):
            self.put_tile(slot, (row, col), rendering.OBJECT + colour)
        self.start[slot] = *start, rng.integers(4)
        self.put_agent(slot, *self.start[slot])
        self.cue[slot] = rng.integers(self.labels)
        self._prepare(slot, rng)
        self._aim(slot)

    def _draw_layout(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a floor, and the start and object cells on it.

        floor: bool [n, n]
        cells: int64 [1 + K, 2]
        """
        step = self.spacing
        for _ in range(1000):
            floor = carve(self.n, self.loops, rng)
            free = np.argwhere(floor[1::step, 1::step]) * step + 1
            cells = rng.permutation(free)
            spots = self._place(floor, cells[0], cells[1:])
            if len(spots) == 1 + self.labels:
                return floor, spots
        raise ValueError(
            f"n={self.n} is too small for {self.labels} objects: they block one another"
        )

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Return the start and the first K suitable cells, int64 [1 + K or fewer, 2]."""
        return np.concatenate([start[None], cells[: self.labels]])

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        """Draw everything else that an episode of the task needs."""

    def _aim(self, slot: int) -> None:
        """Point the goal field of `slot` at its cued object."""
        self.goal_field[slot] = self.field(slot, self.goal_cell(slot))

    def goal_cell(self, slot: int) -> Cell:
        """Return the cell of the cued object."""
        row, col = self.objects[slot, self.cue[slot]]
        return int(row), int(col)

    def object_names(self) -> tuple[str, ...]:
        """Return the colours of the balls."""
        return rendering.COLOUR_NAMES[: self.labels]

    def set_goal(self, slot: int, k: int) -> None:
        """Make ball k the goal of `slot`."""
        self.cue[slot] = k
        self._aim(slot)
        self._drawn = False

    def move_object(self, slot: int, k: int, rng: np.random.Generator) -> None:
        """Move ball k to a random cell that the agent does not see.

        Raises ValueError if the agent sees it now, or if there is no such cell.
        """
        step = self.spacing
        free = np.zeros_like(self.floor[slot])
        free[1::step, 1::step] = self.floor[slot][1::step, 1::step]
        seen = self._cells_in_view(slot)
        row, col = self.objects[slot, k]
        if seen[row, col]:
            raise ValueError("the ball is in view: look away, then move it")
        rows, cols = self.objects[slot].T
        free[rows, cols] = False
        cells = np.argwhere(free & ~seen)
        if not len(cells):
            raise ValueError("no free cell is out of view")
        self.put_tile(slot, (int(row), int(col)), rendering.FLOOR)
        self.objects[slot, k] = cells[rng.integers(len(cells))]
        row, col = self.objects[slot, k]
        self.put_tile(slot, (int(row), int(col)), rendering.OBJECT + k)
        self._aim(slot)

    def _cells_in_view(self, slot: int) -> np.ndarray:
        """Return the cells before the agent, hidden ones included, bool [R, C]."""
        seen = np.zeros(self.tiles.shape, bool)
        seen.reshape(-1)[self.tiles_in_view()[slot]] = True
        inside = slice(rendering.PAD, -rendering.PAD)
        return seen[slot, inside, inside]

    def touched(self) -> np.ndarray:
        """Return bool [B, K], true for the object under each agent."""
        return self.at(self.objects)

    def tour_cells(self, slot: int) -> list[Cell]:
        """Return the cells of all objects."""
        return [(row, col) for row, col in self.objects[slot].tolist()]

    def choice_cells(self, slot: int) -> list[Cell]:
        """Return the cells of all objects."""
        return self.tour_cells(slot)
