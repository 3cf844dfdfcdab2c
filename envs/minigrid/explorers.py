"""Script explorers for MiniGrid: they read the map and walk shortest paths on it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from lssvwm.envs.base import Discrete, Explorer
from lssvwm.envs.minigrid.places import AHEAD, FORWARD, LEFT, RIGHT, Cell, Places

NOISE = {"cells": 0.15, "stumble": 0.4}
"""Odds of a random action of the explorers that stroll."""
PAUSE = 0.03
"""Odds per step that a strolling explorer stops to turn about at random."""
MAX_PAUSE = 8
"""Longest such stop, in steps."""
TURN = 0.1
"""Odds per step that "momentum" turns although the way is free."""


class ExploredGrid(Protocol):
    """List everything that an explorer reads of a live environment."""

    batch: int
    actions: Discrete
    episode: np.ndarray
    x: np.ndarray
    y: np.ndarray
    heading: np.ndarray
    places: list[Places]
    envs: list[Any]

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the guided part."""
        ...

    def sees_evidence(self, slot: int) -> bool:
        """Return whether the cue or the goal is in the current frame."""
        ...

    def field(self, slot: int, target: Cell) -> np.ndarray | None:
        """Return least steps to `target` by heading, y, x; None if things can change."""
        ...


class MiniGridExplorer(Explorer):
    """Walk to the places that belong to `name`, episode by episode.

    - `random`: uniform actions.
    - `noop`: turns left on the spot, for MiniGrid has no action that does nothing.
    - `guide` (Memory): goes to look at the cue, walks to the fork, turns on the spot.
    - `oracle`: as `guide`, then to the right side; elsewhere straight to the goal.
    - `seek`: as `guide`, then to a random side.
    - `cells`: as `seek`, but first strolls up and down the hallway, to the cue every
      other time, with random actions and pauses.
    - `stumble`: as `cells` with many random actions, some of which lead nowhere.
    """

    def __init__(self, env: ExploredGrid, name: str, seed: int):
        self.env = env
        self.name = name
        self.rng = np.random.default_rng([seed, 3])
        self.strolls = name in NOISE
        self.episode = np.full(env.batch, -1, np.int64)
        self.looked = np.zeros(env.batch, bool)
        self.right_side = np.ones(env.batch, bool)
        self.pause = np.zeros(env.batch, np.int64)
        self.stroll: list[list[Cell]] = [[] for _ in range(env.batch)]
        """Cells that a strolling explorer has yet to visit, the next one last."""

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        batch = self.env.batch
        random = self.rng.integers(self.env.actions.n, size=batch)
        self._notice_resets()
        if self.name == "random":
            return random
        action = np.zeros(batch, np.int64)
        if self.name == "noop":
            return action
        context = self.env.in_context()
        active = np.ones(batch, bool) if self.active is None else self.active
        for slot in np.flatnonzero(active).tolist():
            target = self._target(slot, context[slot])
            action[slot] = self._towards(slot, target)
        return self._disturb(action, random) if self.strolls else action

    def _notice_resets(self) -> None:
        begun = self.env.episode != self.episode
        self.episode = self.env.episode.copy()
        self.looked[begun] = False
        self.pause[begun] = 0
        if self.strolls or self.name == "seek":
            self.right_side[begun] = self.rng.random(int(begun.sum())) < 0.5
        if self.strolls:
            for slot in np.flatnonzero(begun).tolist():
                self.stroll[slot] = self._draw_stroll(slot)

    def _target(self, slot: int, in_context: bool) -> Cell | None:
        """Return the cell to walk to; None: turn on the spot."""
        places = self.env.places[slot]
        if not in_context:
            if self.name == "guide":
                return None
            return places.goal if self.right_side[slot] else places.wrong
        here = int(self.env.x[slot]), int(self.env.y[slot])
        is_near_cue = here[0] <= 2
        self.looked[slot] |= is_near_cue and self.env.sees_evidence(slot)
        if not self.looked[slot]:
            return places.lookout
        stroll = self.stroll[slot]
        if stroll and stroll[-1] == here:
            stroll.pop()
            must_look_again = bool(stroll) and stroll[-1] == places.lookout
            self.looked[slot] = not must_look_again
        return stroll[-1] if stroll else places.fork

    def _draw_stroll(self, slot: int) -> list[Cell]:
        """Return up to two hallway cells, each followed by the lookout; last first."""
        places = self.env.places[slot]
        cells: list[Cell] = []
        if places.fork is None or places.lookout is None:
            return cells
        first_x = places.lookout[0] + 2
        if first_x >= places.fork[0]:
            return cells  # the hallway is too short
        for _ in range(self.rng.integers(3)):
            x = int(self.rng.integers(first_x, places.fork[0]))
            cells += [places.lookout, (x, places.fork[1])]
        return cells

    def _towards(self, slot: int, target: Cell | None) -> int:
        """Return the first action of a shortest path; LEFT at its end."""
        table = None if target is None else self.env.field(slot, target)
        x = int(self.env.x[slot])
        y = int(self.env.y[slot])
        if table is None or (x, y) == target:
            return LEFT
        heading = int(self.env.heading[slot])
        dx, dy = AHEAD[heading]
        # Heading 0 of the table is up, MiniGrid's heading 0 is right.
        left = table[heading % 4, y, x]
        right = table[(heading + 2) % 4, y, x]
        forward = table[(heading + 1) % 4, y + dy, x + dx]
        return int(np.argmin([left, right, forward]))

    def _disturb(self, action: np.ndarray, random: np.ndarray) -> np.ndarray:
        """Replace some actions by random ones, and turn about during pauses."""
        draw = self.rng.random((2, self.env.batch))
        starts = (self.pause == 0) & (draw[0] < PAUSE)
        count = int(starts.sum())
        self.pause[starts] = self.rng.integers(1, MAX_PAUSE + 1, size=count)
        pausing = self.pause > 0
        self.pause[pausing] -= 1
        errs = draw[1] < NOISE[self.name]
        action = np.where(errs, random, action)
        return np.where(pausing, random % 2, action)


class Momentum(Explorer):
    """Walk straight on, turn by chance and where the way is blocked.

    There, it tries other actions too.
    """

    def __init__(self, env: ExploredGrid, seed: int):
        self.env = env
        self.rng = np.random.default_rng([seed, 3])
        self.side = np.zeros(env.batch, np.int64)

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        batch = self.env.batch
        n = self.env.actions.n
        turns = self.rng.random(batch) < TURN
        self.side = np.where(turns, self.rng.integers(2, size=batch), self.side)
        blocked = np.array([self._is_blocked(slot) for slot in range(batch)])
        turn = np.where(self.side == 0, LEFT, RIGHT)
        action = np.where(turns | blocked, turn, FORWARD)
        tries = self.rng.random(batch) < 0.5
        has_others = n > FORWARD + 1
        other = self.rng.integers(n, size=batch)
        return np.where(blocked & tries & has_others, other, action)

    def _is_blocked(self, slot: int) -> bool:
        env = self.env.envs[slot]
        ahead = env.grid.get(*env.front_pos)
        return ahead is not None and not ahead.can_overlap()
