"""Read Mystery Path on a grid: an invisible path, from which the agent falls."""

from __future__ import annotations

from typing import Any

import numpy as np
from lssvwm.envs.maze.layout import Cell
from lssvwm.envs.memorygym.games import FreeMoves, GridGame, Strategy, to_cell

LAPSES = {"careless": 0.4, "wander": 0.7}
"""Fraction of their choices in which explorers try any cell next to the path."""


class MysteryPathGame(GridGame):
    """Read Mystery Path.

    The evidence is the agent's latest fall. An attempt ends with a fall: whatever the
    next action, the agent is back at the start.
    """

    explorers = ("oracle", "noisy", "seek", "stumble", "careless", "wander", "blind", "guess")

    def __init__(self, env: Any):
        super().__init__(env)
        self.fell_at = -1
        """Frame of the latest fall; -1: none."""

    def begin(self) -> None:
        """Note the path of the episode that began."""
        super().begin()
        self.fell_at = -1
        self.path = np.zeros((self.side, self.side), bool)
        for node in self.env.mystery_path.path:
            self.path[node.y, node.x] = True

    def update(self) -> None:
        """Note whether the agent fell."""
        super().update()
        if self.fell:
            self.fell_at = self.frame

    @property
    def side(self) -> int:
        """Cells in a row of the grid."""
        return self.env.grid_dim

    @property
    def corner(self) -> tuple[float, float, float]:
        """Pixels (x, y) of the grid's upper left corner, and the side of a cell."""
        return 0, 0, self.env.tile_dim

    @property
    def fell(self) -> bool:
        """True while the agent is off the path."""
        return self.env.is_off_path

    @property
    def start(self) -> Cell:
        """First cell of the path."""
        return to_cell(self.env.start)

    @property
    def end(self) -> Cell:
        """Last cell of the path: the goal."""
        return to_cell(self.env.end)

    def retries(self) -> bool:
        """Return whether the agent was put back to the start."""
        return self.fell_at >= 0 and self.fell_at == self.frame - 1

    def distance(self) -> int:
        """Return the least steps along the path; -1 after a fall."""
        return -1 if self.fell else self.steps(self.path, self.end)

    def evidence_age(self) -> int:
        """Return the frames since the latest fall; -1: none."""
        return -1 if self.fell_at < 0 else self.frame - self.fell_at

    def goal(self) -> int:
        """Return the number of the goal's cell."""
        row, col = self.end
        return row * self.side + col

    def strategy(self, name: str, rng: np.random.Generator) -> Strategy:
        """Return how the explorer `name` plays the episode that began."""
        if name in ("oracle", "noisy"):
            return FollowPath(self)
        lapses = LAPSES.get(name, 0.0)
        return SeekPath(self, rng, forgets=name == "guess", lapses=lapses)


class FreeMysteryPathGame(FreeMoves, MysteryPathGame):
    """Read Mystery Path with free moves."""


class FollowPath(Strategy):
    """Follow the path, which it knows."""

    def __init__(self, game: MysteryPathGame):
        self.game = game
        self.floor = game.path

    def target(self) -> Cell | None:
        """Return the goal; None after a fall."""
        return None if self.game.fell else self.game.end


class SeekPath(Strategy):
    """Find the path cell by cell, and remember its cells and the falls.

    It knows what frames show, and the rules: the path is a chain from the start to the
    opposite side. At its last known cell it first tries the cells nearest to that side.
    With `forgets`, every attempt begins from nothing. A fraction `lapses` of its choices
    takes any cell next to the known path, cells of earlier falls included.
    """

    def __init__(
        self,
        game: MysteryPathGame,
        rng: np.random.Generator,
        forgets: bool = False,
        lapses: float = 0.0,
    ):
        self.game = game
        self.rng = rng
        self.forgets = forgets
        self.lapses = lapses
        self._forget()

    def _forget(self) -> None:
        start = self.game.start
        self.chain = [start]
        """Cells of the path in the order of their discovery."""
        self.floor = np.zeros_like(self.game.path)
        self.floor[start] = True
        self.known = {start}
        self.tried: Cell | None = None

    def target(self) -> Cell | None:
        """Return the next cell to try; None after a fall."""
        if self.forgets and self.game.retries():
            self._forget()
        self._learn()
        if self.game.fell:
            return None
        if self.tried is None:
            self.tried = self._choose()
            self.floor[self.tried] = True
        return self.tried

    def _learn(self) -> None:
        here = self.game.cell
        if here not in self.known:
            self.known.add(here)
            if not self.game.fell:
                self.chain.append(here)
        self.floor[here] = not self.game.fell
        if self.tried == here:
            self.tried = None

    def _choose(self) -> Cell:
        """Return an unknown cell next to the latest cell of the path that has any.

        In a lapse, return any cell next to the path.
        """
        if self.lapses and self.rng.random() < self.lapses:
            cells = self._next_to_path()
            return cells[self.rng.integers(len(cells))]
        for cell in reversed(self.chain):
            unknown = [
                near for near in self.game.around(cell) if near not in self.known
            ]
            if unknown:
                return min(unknown, key=self._cost)
        return self.game.start

    def _next_to_path(self) -> list[Cell]:
        """Return the cells next to the known path, unknown ones and those of falls."""
        around = {near for cell in self.chain for near in self.game.around(cell)}
        return sorted(around.difference(self.chain))

    def _cost(self, cell: Cell) -> float:
        """Return the cells to the opposite side, with a random share to break ties."""
        last = self.game.side - 1
        row, col = self.game.start
        far = [
            abs(place - (last - began))
            for place, began in zip(cell, (row, col))
            if began in (0, last)
        ]
        return min(far) + self.rng.random()
