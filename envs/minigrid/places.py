"""Find the cells of a MiniGrid episode that matter: goal, cue, fork."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from lssvwm.envs.maze.layout import distance_field

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

Cell = tuple[int, int]
"""Column x and row y, as in MiniGrid."""

LEFT, RIGHT, FORWARD = 0, 1, 2
"""Actions of MiniGrid that move the agent."""
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Change of (x, y) of one step forward, by MiniGrid's heading."""
DECISION = 3
"""Steps from the end of a Memory hallway to either object: forward, turn, forward."""
MAX_BUDGET = 12
"""Largest default budget of a decision, in steps."""
FIXED_KINDS = {"empty", "wall", "floor", "goal", "lava"}
"""Kinds of object that never change."""


@dataclass(frozen=True)
class Places:
    """Hold the cells that ground truth and explorers need; None where there is none."""

    goal: Cell | None = None
    """Cell of success."""
    wrong: Cell | None = None
    """Cell of the wrong choice."""
    evidence: Cell | None = None
    """Cell on which the choice depends: Memory's cue, else the goal."""
    lookout: Cell | None = None
    """Cell next to the cue."""
    fork: Cell | None = None
    """Last cell before the choice."""
    label: int = -1
    """Cue: 0 ball, 1 key; -1: there is none."""

    @property
    def answer(self) -> int:
        """Right answer: 2 * cue, plus 1 if the goal lies above the hallway. 0 without a cue."""
        if self.goal is None or self.fork is None:
            return 0
        return 2 * self.label + int(self.goal[1] < self.fork[1])


def find_places(env: OneMiniGrid, codes: np.ndarray, kinds: list[str]) -> Places:
    """Return the places of the episode in `env`.

    codes: int64 [H, W], positions in `kinds`
    """
    from minigrid.envs.memory import MemoryEnv

    if isinstance(env, MemoryEnv):
        middle = env.height // 2
        goal = _cell(env.success_pos)
        cue = kinds[codes[middle - 1, 1]]
        return Places(
            goal=goal,
            wrong=_cell(env.failure_pos),
            evidence=(1, middle - 1),
            lookout=(2, middle),
            fork=(goal[0] - 1, middle),
            label=("ball", "key").index(cue),
        )
    y, x = np.nonzero(np.array(kinds)[codes] == "goal")
    if len(x) != 1:
        return Places()
    goal = int(x[0]), int(y[0])
    return Places(goal=goal, evidence=goal)


def _cell(position: Any) -> Cell:
    return int(position[0]), int(position[1])


def is_fixed(env: OneMiniGrid, kinds: set[str]) -> bool:
    """Return whether only the agent can change: no doors, no objects to carry."""
    from minigrid.envs.memory import MemoryEnv
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

    step = type(env).step
    if step is MemoryEnv.step:
        return True
    return step is OneMiniGrid.step and kinds <= FIXED_KINDS


def default_budget(fork: Cell, view: int) -> int:
    """Return the decision's steps: too few to look back at the cue and then choose."""
    # Close by, the cue at x = 1 shows at the side of the view after one turn.
    turns = 1 if fork[0] - 1 <= view // 2 else 2
    there_and_back = 2 * turns + 2 * max(0, fork[0] - view)
    return min(MAX_BUDGET, there_and_back + DECISION - 1)


def floor_of(walkable: np.ndarray, places: Places) -> np.ndarray:
    """Return the cells to walk on without ending the episode, bool [H, W].

    The edge is never among them.
    """
    floor = walkable.copy()
    floor[[0, -1]] = False
    floor[:, [0, -1]] = False
    for cell in (places.goal, places.wrong):
        if cell is not None:
            x, y = cell
            floor[y, x] = False
    return floor


@lru_cache(maxsize=512)
def cached_field(floor: bytes, shape: tuple[int, int], target: Cell) -> np.ndarray:
    """Return `distance_field` of a floor [H, W] given as bytes."""
    x, y = target
    return distance_field(np.frombuffer(floor, bool).reshape(shape), (y, x))
