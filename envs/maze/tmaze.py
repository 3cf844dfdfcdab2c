"""Define the T-maze: a cue at the foot of a corridor names the right arm."""

from __future__ import annotations

from typing import Literal

import numpy as np
from lssvwm.envs.base import STRICT, SUCCESS, TIMEOUT, WRONG, flags, never
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.engine import Fields, GridMaze
from lssvwm.envs.maze.layout import Cell, distance_field
from pydantic import Field
from pydantic.dataclasses import dataclass

ARM = 2
"""Tiles of each arm."""
LEFT_END = rendering.PANEL + 3
RIGHT_END = rendering.PANEL + 4
"""Walls at the ends of the arms: magenta and cyan."""


@dataclass(frozen=True, config=STRICT)
class TMazeConfig:
    """Set up the T-maze, a corridor with a cue at its foot and two arms."""

    kind: Literal["tmaze"] = "tmaze"
    """Name of this kind of environment."""
    length: int = Field(default=16, ge=4, le=10**5)
    """Tiles of the corridor; at least 7 if `autonomous`."""
    delay: int = Field(default=0, ge=0, le=10**6)
    """Dark frames after the last frame that shows the cue; 0: none."""
    steps: int | None = Field(default=None, ge=1, le=10**7)
    """Steps after which an episode is truncated; null: 4 * length + 32 + delay."""
    budget: int = Field(default=12, ge=1, le=10**6)
    """Steps for the decision, counted from one tile below the junction."""
    autonomous: bool = False
    """Without a guide: the agent starts in the corridor and must find the cue."""

    def __post_init__(self) -> None:
        if self.autonomous and self.length < 7:
            raise ValueError(
                f"an autonomous T-maze needs length >= 7, got length={self.length}"
            )

    def build(self, batch: int) -> TMazeEnv:
        """Return `batch` T-mazes."""
        return TMazeEnv(self, batch)


class TMazeEnv(GridMaze):
    """Walk up a corridor and turn into the arm that the cue names.

    ## Description
    Red means left, green right. The arms end at a magenta (left) or cyan (right) wall,
    in view only from inside an arm. With `autonomous`, the agent starts somewhere in
    the corridor and the cue lies behind it.

    ## Actions
    left, right, forward, stay.

    ## Observation
    uint8 [B, 3, 64, 64]: the 3 x 3 tiles ahead. The cue is a wall panel on both sides
    of the second tile, in view from the first two tiles.

    ## Reward
    1 on the end tile of the cued arm.

    ## Termination
    On either end tile; truncated after `budget` or `steps`.
    """

    explorers = (
        "oracle",
        "guide",
        "look",
        "tour",
        "cells",
        "seek",
        "stumble",
        "momentum",
        "wall",
        "random",
        "noop",
    )
    first_evidence = rendering.PANEL

    def __init__(self, config: TMazeConfig, batch: int):
        rows = config.length + 3
        cols = 2 * ARM + 3
        super().__init__(batch, rows, cols, labels=2)
        self.config = config
        default_steps = 4 * config.length + 32 + config.delay
        self.steps = default_steps if config.steps is None else config.steps
        self.middle = ARM + 1
        self.ends = np.array(self.choice_cells(0))
        self.left_at = never(batch)
        """Clock when the context ended, int64 [B]; -1: it lasts."""
        self.delayed = flags(batch)
        """Slots in which the dark frames have begun or are not due, bool [B]."""
        self._plan = self._floor_plan()
        self._plan_fields: Fields = {}

    def _floor_plan(self) -> np.ndarray:
        floor = np.zeros((self.rows, self.cols), bool)
        floor[1, 1:-1] = True
        floor[1:-1, self.middle] = True
        return floor

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        cue = int(rng.integers(2))
        self.lay(slot, self._plan)
        for side in (-1, 1):
            cell = self.rows - 3, self.middle + side
            self.put_tile(slot, cell, rendering.PANEL + cue)
        self.put_tile(slot, (1, 0), LEFT_END)
        self.put_tile(slot, (1, self.cols - 1), RIGHT_END)
        start = self.rows - 2
        if self.config.autonomous:
            start = int(rng.integers(3, self.rows - 6))
        self.put_agent(slot, start, self.middle, 0)
        self.cue[slot] = cue
        self.goal_field[slot] = self.field(slot, self.choice_cells(slot)[cue])
        self.left_at[slot] = -1
        self.delayed[slot] = self.config.delay == 0

    def _rules(self, running: np.ndarray) -> np.ndarray:
        self._darken(running)
        at_junction = self.row <= 2
        leaves = self.in_context() & at_junction & (self.dark == 0)
        self.left_at[leaves] = self.clock[leaves]
        self.phase += leaves
        ends = np.broadcast_to(self.ends, (self.batch, 2, 2))
        at_end = self.at(ends)
        at_goal = self.of_cue(at_end)
        self.finish(SUCCESS, at_goal & running)
        self.finish(WRONG, at_end.any(1) & running)
        deciding = self.left_at >= 0
        steps = self.clock - self.left_at
        spent = deciding & (steps >= self.config.budget)
        out_of_steps = self.clock >= self.steps
        self.finish(TIMEOUT, running & (spent | out_of_steps))
        return at_goal.astype(np.float32)

    def _darken(self, running: np.ndarray) -> None:
        """Count dark frames, which begin where the cue is out of view first."""
        self.dark = np.maximum(self.dark - running, 0)
        saw_cue = self.of_cue(self.seen_at) >= 0
        out_of_view = self.row <= self.rows - 4
        enters = running & ~self.delayed & out_of_view & saw_cue
        self.dark[enters] = self.config.delay
        self.delayed[enters] = True

    def in_context(self) -> np.ndarray:
        """Return bool [B], true until the agent first stands below the junction.

        Always false if `autonomous`.
        """
        return (self.left_at < 0) & (not self.config.autonomous)

    def tour_cells(self, slot: int) -> list[Cell]:
        """Return the cell below the junction during the context, then none."""
        return [(2, self.middle)] if self.left_at[slot] < 0 else []

    def field(self, slot: int, cell: Cell) -> np.ndarray:
        """Return the distances of all poses to `cell`, which are those of every slot."""
        if cell not in self._plan_fields:
            self._plan_fields[cell] = distance_field(self._plan, cell)
        return self._plan_fields[cell]

    def choice_cells(self, slot: int) -> list[Cell]:
        """Return the ends of both arms."""
        return [(1, 1), (1, self.cols - 2)]

    def look_cells(self, slot: int) -> list[Cell]:
        """Return the foot of the corridor, then the end of the cued arm."""
        foot = self.rows - 2, self.middle
        return [foot, self.choice_cells(slot)[self.cue[slot]]]

    def roam_cells(self, slot: int) -> np.ndarray:
        """Return corridor cells, half of them below the junction; later mostly ends."""
        rows = np.arange(2, self.rows - 1)
        corridor = np.stack([rows, np.full_like(rows, self.middle)], -1)
        below_junction = corridor[:1]
        if self.left_at[slot] < 0:
            repeated = np.repeat(below_junction, len(rows), axis=0)
            return np.concatenate([corridor, repeated])
        return np.concatenate([self.ends, self.ends, below_junction])
