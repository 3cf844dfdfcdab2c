"""Define Return and Recall: tour a maze, then find a ball from memory."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from lssvwm.envs.base import STRICT, SUCCESS, TIMEOUT, WRONG, counts, slots_where
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.layout import (
    AHEAD,
    LEFT,
    RIGHT,
    STAY,
    distance_field,
    reachable,
)
from lssvwm.envs.maze.object_maze import MAX_OBJECTS, ObjectMaze, check_size
from pydantic import Field
from pydantic.dataclasses import dataclass

MIN_DISTANCE = 6
"""Least steps from start to ball in Return, turns left out, so that none is in view."""


class TourMaze(ObjectMaze):
    """Share the course of Return and Recall: a tour, a dark delay, then the query.

    The tour leads back to the start. When just enough time is left for the way home,
    the agent is led there. `last_action` then holds the steps that it is made to take.
    So no jump in space interrupts the observed path.
    """

    def __init__(self, config: ReturnConfig | RecallConfig, batch: int, delay: int):
        super().__init__(config, batch)
        self.tour = config.tour
        self.delay = delay
        self.grey_query = not config.coloured_query
        self.budget = counts(batch)
        self.home = np.zeros((batch, 3), np.int64)
        """Pose of the agent at the query, int64 [B, 3]."""
        self.home_field = np.zeros_like(self.goal_field)

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        self.home[slot] = self.start[slot]

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        floor = self.floor[slot]
        row, col, heading = self.home[slot].tolist()
        self.home_field[slot] = distance_field(floor, (row, col), heading)

    def set_goal(self, slot: int, k: int) -> None:
        """Make ball k the goal of `slot`; the query begins with the next frame."""
        self.home[slot] = self.row[slot], self.col[slot], self.heading[slot]
        super().set_goal(slot, k)
        skipped = self.tour + self.delay - 1 - self.clock[slot]
        self.clock[slot] += skipped
        was_seen = self.seen_at[slot] >= 0
        self.seen_at[slot, was_seen] += skipped  # ages of the evidence stay

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Lead agents home that would be late otherwise; in the dark, stay."""
        left = self.tour - self.clock
        late = (left > 0) & (self._steps_home(action) >= left)
        if late.any():
            ways = [self._steps_home(way) for way in (LEFT, RIGHT, AHEAD, STAY)]
            homewards = np.argmin(ways, 0)
            action = np.where(late, homewards, action)
        return super()._executed(action)

    def _steps_home(self, action: int | np.ndarray) -> np.ndarray:
        """Return the steps home after `action`, int32 [B]."""
        heading, row, col = self.next_pose(action)
        return self.home_field[self.slots, heading, row, col]

    def _rules(self, running: np.ndarray) -> np.ndarray:
        until_query = self.tour + self.delay - self.clock
        is_dark = (until_query > 0) & (until_query <= self.delay)
        self.dark = np.where(is_dark, until_query, 0)
        begins = running & (until_query == 0)
        for slot in slots_where(begins):
            self._query(slot)
        seeking = running & (until_query < 0)
        touched = self.touched()
        at_goal = self.of_cue(touched) & seeking
        self.finish(SUCCESS, at_goal)
        self._touch(touched.any(1) & seeking)
        spent = -until_query >= self.budget
        self.finish(TIMEOUT, seeking & spent)
        return at_goal.astype(np.float32)

    def _touch(self, where: np.ndarray) -> None:
        """Apply the effect of touching another object than the cued one."""

    def _query(self, slot: int) -> None:
        # Moves only agents whose tour was too short to turn in.
        self.put_agent(slot, *self.home[slot])
        self.border[slot] = rendering.CUE_BORDER + self.cue[slot]
        self.disguise[slot] = self.grey_query
        self.phase[slot] += 1

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during tour and delay."""
        return self.clock < self.tour + self.delay


@dataclass(frozen=True, config=STRICT)
class ReturnConfig:
    """Set up Return: a tour back to the start, then the way to a ball."""

    kind: Literal["return"] = "return"
    """Name of this kind of environment."""
    n: int = Field(default=9, ge=5, le=1025)
    """Side of the maze, in tiles; odd."""
    objects: int = Field(default=3, ge=2, le=MAX_OBJECTS)
    """Balls, each of another colour."""
    tour: int = Field(default=64, ge=1, le=10**6)
    """Frames of the tour."""
    slack: float = Field(default=1.5, ge=1, le=1e6, allow_inf_nan=False)
    """Step budget at the query, in shortest paths to the cued ball."""
    coloured_query: bool = True
    """Show the colours of the balls at the query; false: all are grey."""
    loops: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    """Probability with which an inner wall is removed; 0: exactly one path."""

    def __post_init__(self) -> None:
        check_size(self.n, self.objects)

    def build(self, batch: int) -> ReturnEnv:
        """Return `batch` return mazes."""
        return ReturnEnv(self, batch)


class ReturnEnv(TourMaze):
    """Walk a maze and come back, then go to a ball seen on the way.

    ## Description
    A guided tour of `tour` frames ends at the start, in the pose of the first frame.
    Then the border shows the colour of one ball, at least `MIN_DISTANCE` steps away.

    ## Actions
    left, right, forward, stay. Near the end of the tour, the steps home are forced.

    ## Observation
    uint8 [B, 3, 64, 64]: the 3 x 3 tiles ahead; at the query with a coloured border.

    ## Reward
    1 on the cued ball.

    ## Termination
    On the cued ball; truncated after ceil(slack * shortest path) steps.
    """

    spacing = 2

    def __init__(self, config: ReturnConfig, batch: int):
        super().__init__(config, batch, delay=0)
        self.slack = config.slack

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Leave out cells near the start."""
        row, col = start.tolist()
        # The least over all headings counts no turn at the start.
        steps = distance_field(floor, (row, col)).min(0)
        rows, cols = cells.T
        is_far = steps[rows, cols] >= MIN_DISTANCE
        return super()._place(floor, start, cells[is_far])

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        row, col, heading = self.home[slot]
        shortest = int(self.goal_field[slot, heading, row, col])
        self.budget[slot] = math.ceil(self.slack * shortest)


@dataclass(frozen=True, config=STRICT)
class RecallConfig:
    """Set up Recall: a tour, a dark delay, then a choice among grey balls."""

    kind: Literal["recall"] = "recall"
    """Name of this kind of environment."""
    n: int = Field(default=11, ge=5, le=1025)
    """Side of the maze, in tiles; odd."""
    objects: int = Field(default=4, ge=2, le=MAX_OBJECTS)
    """Balls, each of another colour."""
    tour: int = Field(default=128, ge=1, le=10**6)
    """Frames of the tour."""
    delay: int = Field(default=64, ge=0, le=10**6)
    """Dark frames after the tour; 0: none."""
    budget: int = Field(default=96, ge=1, le=10**6)
    """Steps after the query."""
    coloured_query: bool = False
    """Show the colours of the balls at the query: the control without memory."""
    loops: float = Field(default=0.12, ge=0, le=1, allow_inf_nan=False)
    """Probability with which an inner wall is removed; 0: exactly one path."""

    def __post_init__(self) -> None:
        check_size(self.n, self.objects)

    def build(self, batch: int) -> RecallEnv:
        """Return `batch` recall mazes."""
        return RecallEnv(self, batch)


class RecallEnv(TourMaze):
    """Walk a maze, wait in the dark, then touch the cued ball from memory.

    ## Description
    A guided tour of `tour` frames ends at the start and `delay` dark frames follow.
    Then the border shows a colour while all balls are grey, and the heading is a new
    one. Without the tour, at most 1 / objects of the episodes succeed.

    ## Actions
    left, right, forward, stay. Steps home are forced, and so is staying in the dark.

    ## Observation
    uint8 [B, 3, 64, 64]: the 3 x 3 tiles ahead; at the query with a coloured border.

    ## Reward
    1 if the first ball touched is the cued one.

    ## Termination
    On any ball; truncated after `budget` steps.
    """

    def __init__(self, config: RecallConfig, batch: int):
        super().__init__(config, batch, delay=config.delay)
        self.budget[:] = config.budget

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Leave out cells in which an object blocks the way to another."""
        placed: list[tuple[int, int]] = []
        home = start[0], start[1]
        for row, col in cells.tolist():
            if len(placed) == self.labels:
                break
            if reachable(floor, home, [*placed, (row, col)]):
                placed.append((row, col))
        return np.array([tuple(start), *placed])

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        super()._prepare(slot, rng)
        self.home[slot, 2] = rng.integers(4)

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        self.goal_field[slot] = self._goal_field_around(slot)

    def _goal_field_around(self, slot: int) -> np.ndarray:
        """Return distances to the cued object that touch no other, int32 [4, R, C]."""
        others = np.delete(self.objects[slot], self.cue[slot], axis=0)
        rows, cols = others.T
        floor = self.floor[slot].copy()
        floor[rows, cols] = False
        return distance_field(floor, self.goal_cell(slot))

    def _touch(self, where: np.ndarray) -> None:
        self.finish(WRONG, where)
