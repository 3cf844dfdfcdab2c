"""Script explorers for MiniGrid: they read the map and walk shortest paths on it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from lssvwm.envs.base import (
    Discrete,
    Explorer,
    SlotRandom,
    counts,
    flags,
    slots_where,
)
from lssvwm.envs.minigrid.places import AHEAD, FORWARD, LEFT, RIGHT, Cell, Places

NOISE = {"cells": 0.15, "stumble": 0.4}
"""Odds of a random action of the explorers that stroll."""
PAUSE = 0.03
"""Odds per step that a strolling explorer stops to turn about at random."""
MAX_PAUSE = 8
"""Longest such stop, in steps."""
TURN = 0.1
"""Odds per step that "momentum" turns although the way is free."""


Cells = list[Cell]


class ExploredGrid(Protocol):
    """List everything that an explorer reads of a live environment."""

    batch: int
    actions: Discrete
    episode: np.ndarray
    seeds: np.ndarray
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

    A walk depends on its seed and the episode's seed only.
    """

    def __init__(self, env: ExploredGrid, name: str, seed: int):
        self.env = env
        self.name = name
        self.random = SlotRandom(env, seed)
        self.strolls = name in NOISE
        self.looked = flags(env.batch)
        self.right_side = np.ones(env.batch, bool)
        self.pause = counts(env.batch)
        self.stroll: list[Cells] = [[] for _ in range(env.batch)]
        """Cells that a strolling explorer has yet to visit, the next one last."""

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        batch = self.env.batch
        self._notice_resets()
        if self.name == "random":
            return self.random.integers(self.env.actions.n)
        action = counts(batch)
        if self.name == "noop":
            return action
        context = self.env.in_context()
        slots = range(batch) if self.active is None else slots_where(self.active)
        for slot in slots:
            target = self._target(slot, context[slot])
            action[slot] = self._towards(slot, target)
        return self._disturb(action) if self.strolls else action

    def _notice_resets(self) -> None:
        begun = self.random.renew()
        self.looked[begun] = False
        self.pause[begun] = 0
        for slot in slots_where(begun):
            if self.strolls or self.name == "seek":
                self.right_side[slot] = self.random.rngs[slot].random() < 0.5
            if self.strolls:
                self.stroll[slot] = self._draw_stroll(slot)

    def _target(self, slot: int, in_context: bool) -> Cell | None:
        """Return the cell to walk to; None: turn on the spot."""
        places = self.env.places[slot]
        if not in_context:
            if self.name == "guide":
                return None
            return places.goal if self.right_side[slot] else places.wrong
        here = self._cell(slot)
        is_near_cue = here[0] <= 2
        if is_near_cue and self.env.sees_evidence(slot):
            self.looked[slot] = True
        if not self.looked[slot]:
            return places.lookout
        stroll = self.stroll[slot]
        if stroll and stroll[-1] == here:
            stroll.pop()
            looks_again = bool(stroll) and stroll[-1] == places.lookout
            self.looked[slot] = not looks_again
        return stroll[-1] if stroll else places.fork

    def _cell(self, slot: int) -> Cell:
        x, y = self.env.x[slot], self.env.y[slot]
        return int(x), int(y)

    def _draw_stroll(self, slot: int) -> list[Cell]:
        """Return up to two hallway cells, each followed by the lookout; last first."""
        places = self.env.places[slot]
        cells: list[Cell] = []
        if places.fork is None or places.lookout is None:
            return cells
        fork_x, fork_y = places.fork
        first_x = places.lookout[0] + 2
        if first_x >= fork_x:
            return cells  # the hallway is too short
        rng = self.random.rngs[slot]
        for _ in range(rng.integers(3)):
            x = int(rng.integers(first_x, fork_x))
            cells.append(places.lookout)
            cells.append((x, fork_y))
        return cells

    def _towards(self, slot: int, target: Cell | None) -> int:
        """Return the first action of a shortest path; LEFT at its end."""
        x, y = self._cell(slot)
        if target is None or target == (x, y):
            return LEFT
        table = self.env.field(slot, target)
        if table is None:
            return LEFT
        heading = int(self.env.heading[slot])
        dx, dy = AHEAD[heading]
        # Heading 0 of the table is up, MiniGrid's heading 0 is right.
        to_left, ahead, to_right = (np.arange(3) + heading) % 4
        left = table[to_left, y, x]
        right = table[to_right, y, x]
        forward = table[ahead, y + dy, x + dx]
        return int(np.argmin([left, right, forward]))

    def _disturb(self, action: np.ndarray) -> np.ndarray:
        """Replace some actions by random ones, and turn about during pauses."""
        random = self.random.integers(self.env.actions.n)
        pause_draw, noise_draw, length_draw = self.random.uniform(3)
        starts = (self.pause == 0) & (pause_draw < PAUSE)
        length = 1 + (length_draw * MAX_PAUSE).astype(np.int64)
        self.pause[starts] = length[starts]
        pausing = self.pause > 0
        self.pause[pausing] -= 1
        errs = noise_draw < NOISE[self.name]
        action = np.where(errs, random, action)
        return np.where(pausing, random % 2, action)


class Momentum(Explorer):
    """Walk straight on, turn by chance and where the way is blocked.

    There, it tries other actions too. A walk depends on its seed and the episode's only.
    """

    def __init__(self, env: ExploredGrid, seed: int):
        self.env = env
        self.random = SlotRandom(env, seed)
        self.side = counts(env.batch)

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        batch = self.env.batch
        n = self.env.actions.n
        begun = self.random.renew()
        turn_draw, try_draw = self.random.uniform(2)
        turns = turn_draw < TURN
        side = self.random.integers(2)
        self.side = np.where(turns, side, self.side * ~begun)
        blocked = np.array([self._is_blocked(slot) for slot in range(batch)])
        turn = np.where(self.side == 0, LEFT, RIGHT)
        action = np.where(turns | blocked, turn, FORWARD)
        tries = try_draw < 0.5
        has_others = n > FORWARD + 1
        other = self.random.integers(n)
        return np.where(blocked & tries & has_others, other, action)

    def _is_blocked(self, slot: int) -> bool:
        env = self.env.envs[slot]
        ahead = env.grid.get(*env.front_pos)
        return ahead is not None and not ahead.can_overlap()
