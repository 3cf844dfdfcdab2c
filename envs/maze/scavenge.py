"""Define Scavenge: reach the cued ball, then the next, until the time is up."""

from __future__ import annotations

from typing import Literal

import numpy as np
from lssvwm.envs.base import STRICT, TIMEOUT, counts, flags, slots_where
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.object_maze import MAX_OBJECTS, ObjectMaze, check_size
from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=STRICT)
class ScavengeConfig:
    """Set up Scavenge, whose cue changes each time its ball is reached."""

    kind: Literal["scavenge"] = "scavenge"
    """Name of this kind of environment."""
    n: int = Field(default=11, ge=5, le=1025)
    """Side of the maze, in tiles; odd."""
    objects: int = Field(default=3, ge=2, le=MAX_OBJECTS)
    """Balls, each of another colour."""
    steps: int = Field(default=500, ge=1, le=10**6)
    """Steps of an episode."""
    loops: float = Field(default=0.12, ge=0, le=1, allow_inf_nan=False)
    """Probability with which an inner wall is removed; 0: exactly one path."""

    def __post_init__(self) -> None:
        check_size(self.n, self.objects)

    def build(self, batch: int) -> ScavengeEnv:
        """Return `batch` scavenging mazes."""
        return ScavengeEnv(self, batch)


class ScavengeEnv(ObjectMaze):
    """Reach the ball of the cued colour, then the next one.

    ## Description
    The cue changes each time its ball is reached. No part of an episode is guided.

    ## Actions
    left, right, forward, stay.

    ## Observation
    uint8 [B, 3, 64, 64]: the 3 x 3 tiles ahead, with a border of the cued colour.

    ## Reward
    1 on the cued ball.

    ## Termination
    Never; truncated after `steps`.
    """

    def __init__(self, config: ScavengeConfig, batch: int):
        super().__init__(config, batch)
        self.steps = config.steps
        self.hops = np.zeros((batch, config.steps + 1), np.int64)
        """Colours from each cue to the next, drawn at the start, int64 [B, steps + 1]."""
        self.reached = counts(batch)

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        self.hops[slot] = rng.integers(1, self.labels, size=self.steps + 1)
        self.reached[slot] = 0
        self._show_cue(slot)

    def _show_cue(self, slot: int) -> None:
        self.border[slot] = rendering.CUE_BORDER + self.cue[slot]

    def set_goal(self, slot: int, k: int) -> None:
        """Make ball k the goal of `slot`, and show its colour."""
        super().set_goal(slot, k)
        self._show_cue(slot)

    def _rules(self, running: np.ndarray) -> np.ndarray:
        reached = self.of_cue(self.touched()) & running
        for slot in slots_where(reached):
            self._change_cue(slot)
        self.finish(TIMEOUT, running & (self.clock >= self.steps))
        return reached.astype(np.float32)

    def _change_cue(self, slot: int) -> None:
        hop = self.hops[slot, self.reached[slot]]
        self.cue[slot] = (self.cue[slot] + hop) % self.labels
        self.reached[slot] += 1
        self.phase[slot] += 1
        self._show_cue(slot)
        self._aim(slot)

    def in_context(self) -> np.ndarray:
        """Return false everywhere: no part of an episode is guided."""
        return flags(self.batch)

    def _success(self) -> np.ndarray:
        return self.rewarded.copy()
