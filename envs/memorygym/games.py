"""Read one environment of Memory Gym, and walk shortest ways on its grid.

Cells are (row, column). Headings are 0 up, 1 right, 2 down, 3 left, as in
`envs.maze.layout`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from lssvwm.envs.maze.layout import FAR, STEPS, Cell, distance_field

NOOP, LEFT, RIGHT, FORWARD = range(4)
"""Actions of the grid variants. In the others, 3 * horizontal + vertical move."""


class Game:
    """Read what evaluation and explorers need of one environment.

    This class serves variants of which only time and success are read.
    """

    explorers: tuple[str, ...] = ()
    """Names of the scripted explorers in `strategy`."""

    def __init__(self, env: Any):
        self.env = env
        self.frame = 0
        """Frames since the reset."""

    def begin(self) -> None:
        """Note that an episode began."""
        self.frame = 0

    def update(self) -> None:
        """Note that the environment made a step."""
        self.frame += 1

    def out_of_time(self) -> bool:
        """Return whether the limit of the environment is reached."""
        limit = self.env.max_episode_steps
        return getattr(self.env, "t", -1) == limit

    def succeeded(self, info: dict[str, Any]) -> bool:
        """Return whether the episode that ended with `info` is a success."""
        return bool(info.get("success", False))

    def in_context(self) -> bool:
        """Return whether the next action has no effect because the task is shown."""
        return False

    def retries(self) -> bool:
        """Return whether this frame begins another attempt after a failure."""
        return False

    def distance(self) -> int:
        """Return the least steps to success; -1: unknown."""
        return -1

    def evidence_age(self) -> int:
        """Return the frames since the evidence was visible; -1: never, or unknown."""
        return -1

    def goal(self) -> int:
        """Return the label of the right answer; -1: unknown."""
        return -1

    def strategy(self, name: str, rng: np.random.Generator) -> Strategy:
        """Return how the explorer `name` plays the episode that began."""
        raise NotImplementedError


class GridGame(Game):
    """Read an environment whose agent turns and steps on a square grid."""

    @property
    def side(self) -> int:
        """Cells in a row of the grid."""
        raise NotImplementedError

    @property
    def corner(self) -> tuple[float, float, float]:
        """Pixels (x, y) of the grid's upper left corner, and the side of a cell."""
        raise NotImplementedError

    @property
    def cell(self) -> Cell:
        """Cell of the agent."""
        return to_cell(self.env.normalized_agent_position)

    @property
    def heading(self) -> int:
        """Heading of the agent. The package counts the other way round."""
        return -int(self.env.agent.face_direction.value) % 4

    def around(self, cell: Cell) -> list[Cell]:
        """Return the cells next to `cell`: above, right, below, left."""
        row, col = cell
        near = [(row + down, col + right) for down, right in STEPS]
        return [other for other in near if self.contains(other)]

    def contains(self, cell: Cell) -> bool:
        """Return whether `cell` is on the grid."""
        return min(cell) >= 0 and max(cell) < self.side

    def steps(self, floor: np.ndarray, target: Cell) -> int:
        """Return the least actions to `target` on the cells `floor`; -1: no way.

        floor: bool [side, side]
        """
        row, col = self.cell
        steps = int(_field(floor, target)[self.heading, row + 1, col + 1])
        return steps if steps < FAR else -1

    def towards(self, floor: np.ndarray, target: Cell) -> int:
        """Return the first action of a shortest way to `target`; NOOP at its end."""
        if target == self.cell:
            return NOOP
        table = _field(floor, target)
        heading = self.heading
        row, col = self.cell
        down, right = STEPS[heading]
        here = table[:, row + 1, col + 1]
        options = {
            FORWARD: table[heading, row + 1 + down, col + 1 + right],
            LEFT: here[heading - 1],
            RIGHT: here[(heading + 1) % 4],
        }
        return min(options, key=lambda action: options[action])


class FreeMoves(GridGame):
    """Read a variant whose agent moves a few pixels in any of eight directions."""

    def steps(self, floor: np.ndarray, target: Cell) -> int:
        """Return -1: shortest ways may cut corners."""
        return -1

    def towards(self, floor: np.ndarray, target: Cell) -> int:
        """Return the action towards the next cell of a way, or its middle.

        It moves along one axis, so that it cuts no corner.
        """
        cell = target if target == self.cell else self._following(floor, target)
        left, upper, width = self.corner
        x, y = self.env.agent.rect.center
        right = left + (cell[1] + 0.5) * width - x
        down = upper + (cell[0] + 0.5) * width - y
        if max(abs(right), abs(down)) < self.env.agent.speed:
            return NOOP
        if abs(right) > abs(down):
            return 6 if right > 0 else 3
        return 2 if down > 0 else 1

    def _following(self, floor: np.ndarray, target: Cell) -> Cell:
        """Return the next cell of a way to `target`."""
        table = _field(floor, target)
        row, col = self.cell
        steps = {
            (row + down, col + right): table[heading, row + 1 + down, col + 1 + right]
            for heading, (down, right) in enumerate(STEPS)
        }
        return min(steps, key=lambda cell: steps[cell])


class Strategy:
    """Choose where to go in one episode."""

    floor: np.ndarray
    """Cells to walk on, bool [side, side]."""

    def target(self) -> Cell | None:
        """Return the cell to go to; None: no action has an effect.

        The explorer calls this once for each frame.
        """
        raise NotImplementedError


def to_cell(position: Any) -> Cell:
    """Return the cell at the package's (x, y)."""
    x, y = position
    return int(y), int(x)


def _field(floor: np.ndarray, target: Cell) -> np.ndarray:
    """Return the least actions to `target`, int32 [4, side + 2, side + 2]."""
    return _cached_field(floor.tobytes(), len(floor), target)


@lru_cache(maxsize=4096)
def _cached_field(floor: bytes, side: int, target: Cell) -> np.ndarray:
    cells = np.frombuffer(floor, bool).reshape(side, side)
    row, col = target
    return distance_field(np.pad(cells, 1), (row + 1, col + 1))
