"""Scripted explorers for MiniGrid: they may read the map, and walk shortest paths on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from lssvwm.envs.base import Explorer
from lssvwm.envs.minigrid.env import AHEAD, FORWARD, LEFT, RIGHT

if TYPE_CHECKING:
    from lssvwm.envs.minigrid.env import Cell, MiniGridEnv

NOISE = {"cells": 0.15, "stumble": 0.4}
"""Share of random actions of the explorers that stroll."""
DWELL, DWELL_STEPS = 0.03, 8
"""Chance per step that a strolling explorer stops to turn about at random, and for how many steps at most."""
TURN = 0.1
"""Chance per step that "momentum" turns although the way is free."""


class MiniGridExplorer(Explorer):
    """Walks to what `name` says, episode by episode.

    "random": uniform actions. "noop": turns left on the spot, for MiniGrid has no action that does nothing.
    "guide" (Memory): goes to look at the cue, walks to the fork and turns on the spot there.
    "oracle": the same, then the right side; elsewhere straight to the goal. "seek": the same, then a side
    drawn by lot. "cells": as "seek", but strolling up and down the hallway before it comes to the fork, to the
    cue every other time, with random actions and pauses in between. "stumble": the same with many random actions,
    which shows what comes of those that lead nowhere.
    """

    def __init__(self, env: MiniGridEnv, name: str, seed: int):
        self.env = env
        self.name = name
        self.rng = np.random.default_rng([seed, 3])
        self.episode = np.full(env.batch, -1, np.int64)
        self.looked = np.zeros(env.batch, bool)
        self.right_side = np.ones(env.batch, bool)
        self.pause = np.zeros(env.batch, np.int64)
        self.stroll: list[list[Cell]] = [
            [] for _ in range(env.batch)
        ]  # cells that "cells" has yet to visit

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        random = self.rng.integers(self.env.actions.n, size=self.env.batch)
        self._notice_resets()
        if self.name == "random":
            return random
        action = np.zeros(self.env.batch, np.int64)
        if self.name == "noop":
            return action
        context = self.env.in_context()
        for slot in np.flatnonzero(
            np.ones(self.env.batch) if self.active is None else self.active
        ).tolist():
            action[slot] = self._towards(slot, self._target(slot, context[slot]))
        return self._disturb(action, random) if self.name in NOISE else action

    def _notice_resets(self) -> None:
        fresh = self.env.episode != self.episode
        self.episode = self.env.episode.copy()
        self.looked[fresh] = False
        self.pause[fresh] = 0
        if self.name in ("seek", *NOISE):
            self.right_side[fresh] = self.rng.random(int(fresh.sum())) < 0.5
        if self.name in NOISE:
            for slot in np.flatnonzero(fresh).tolist():
                self.stroll[slot] = self._draw_stroll(slot)

    def _target(self, slot: int, in_context: bool) -> Cell | None:
        places = self.env.places[slot]
        if not in_context:
            if self.name == "guide":
                return None
            return places.goal if self.right_side[slot] else places.wrong
        beside_cue = self.env.x[slot] <= 2
        self.looked[slot] |= beside_cue and self.env.sees_evidence(slot)
        if not self.looked[slot]:
            return places.lookout
        stroll = self.stroll[slot]
        if stroll and (stroll[-1] == (self.env.x[slot], self.env.y[slot])):
            stroll.pop()
            self.looked[slot] = not stroll or stroll[-1] != places.lookout
        return stroll[-1] if stroll else places.fork

    def _draw_stroll(self, slot: int) -> list[Cell]:
        """Return up to four cells of the hallway, each followed by the one beside the cue; last first."""
        places, cells = self.env.places[slot], []
        if (
            places.fork is None
            or places.lookout is None
            or places.lookout[0] + 2 >= places.fork[0]
        ):
            return cells  # no hallway to speak of
        for _ in range(self.rng.integers(3)):
            x = int(self.rng.integers(places.lookout[0] + 2, places.fork[0]))
            cells += [places.lookout, (x, places.fork[1])]
        return cells

    def _towards(self, slot: int, target: Cell | None) -> int:
        """Return the first action of a shortest path to `target`, a turn to the left where it ends."""
        table = None if target is None else self.env.field(slot, target)
        if table is None:
            return LEFT
        x, y, heading = (
            int(self.env.x[slot]),
            int(self.env.y[slot]),
            int(self.env.heading[slot]),
        )
        if (x, y) == target:
            return LEFT
        dx, dy = AHEAD[heading]
        up = heading + 1
        options = [
            table[(up - 1) % 4, y, x],
            table[(up + 1) % 4, y, x],
            table[up % 4, y + dy, x + dx],
        ]
        return int(np.argmin(options))

    def _disturb(self, action: np.ndarray, random: np.ndarray) -> np.ndarray:
        draw = self.rng.random((2, self.env.batch))
        starts = (self.pause == 0) & (draw[0] < DWELL)
        self.pause[starts] = self.rng.integers(
            1, DWELL_STEPS + 1, size=int(starts.sum())
        )
        pausing = self.pause > 0
        self.pause[pausing] -= 1
        action = np.where(draw[1] < NOISE[self.name], random, action)
        return np.where(pausing, random % 2, action)


class Momentum(Explorer):
    """Walks straight on, turns now and then and where the way is blocked, and tries other actions there."""

    def __init__(self, env: MiniGridEnv, seed: int):
        self.env = env
        self.rng = np.random.default_rng([seed, 3])
        self.side = np.zeros(env.batch, np.int64)

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        batch, n = self.env.batch, self.env.actions.n
        turn = self.rng.random(batch) < TURN
        self.side = np.where(turn, self.rng.integers(2, size=batch), self.side)
        blocked = np.array([self._blocked(slot) for slot in range(batch)])
        action = np.where(
            turn | blocked, np.where(self.side == 0, LEFT, RIGHT), FORWARD
        )
        tries = blocked & (self.rng.random(batch) < 0.5) & (n > FORWARD + 1)
        return np.where(tries, self.rng.integers(n, size=batch), action)

    def _blocked(self, slot: int) -> bool:
        env = self.env.envs[slot]
        ahead = env.grid.get(*env.front_pos)
        return ahead is not None and not ahead.can_overlap()
