"""Script explorers of Memory Maze, which know the maze and roll along shortest ways."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from lssvwm.envs.base import Explorer, SlotRandom, counts, slots_where
from lssvwm.envs.memorymaze.places import Floor, from_agent, middle, to_cell

NOISE = {"noisy": 0.2, "walk": 0.2}
"""Odds of a random action of the explorers that err."""
REACH = 0.35
"""Distance at which a place counts as reached, in tiles. A touch needs less than 0.39."""
CLEARANCE = 0.13
"""Free space on both sides of a straight way, in tiles. The ball's radius is 0.1."""
TURN = 0.297
"""Turn that one action causes until the ball has stopped turning, in radians."""
COAST = 0.157
"""Further turn after the latest change of heading, as a fraction of it."""
RADIUS = 0.78
"""Radius of the circle that the ball describes at full speed and turn, in tiles."""
STRAIGHT = 0.3
"""Largest error of the heading that never stops the ball from rolling, in radians."""
STUCK = 100
"""Steps after which a walker gives up its place."""
FORWARD = 1
TURNS = {0: (0, FORWARD), -1: (2, 4), 1: (3, 5)}
"""Actions without and with rolling, by the direction of the turn."""


class ExploredMazes(Protocol):
    """List everything that an explorer reads of a live environment."""

    batch: int
    actions: Any
    episode: np.ndarray
    seeds: np.ndarray
    poses: np.ndarray
    targets: np.ndarray
    target: np.ndarray
    seen_at: np.ndarray
    floors: list[Floor]


class MazeWalker(Explorer):
    """Roll to the places that belong to `name`.

    - `oracle`: to the present target. `noisy`: the same, with random actions.
    - `seek`: to the present target if it was in view before, else to random places.
    - `walk`: to random places, with random actions, as in the published data set.

    A walk depends on its seed and the episode's seed only.
    """

    def __init__(self, env: ExploredMazes, name: str, seed: int):
        self.env = env
        self.name = name
        self.random = SlotRandom(env, seed)
        self.heading = np.zeros(env.batch)
        self.place = np.zeros((env.batch, 2))
        """Random place to go to, [B, 2]."""
        self.left = counts(env.batch)
        """Steps until a random place is given up, int64 [B]."""

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        begun = self.random.renew()
        self.left[begun] = 0
        self.heading[begun] = self.env.poses[begun, 0]
        action = counts(self.env.batch)
        slots = range(self.env.batch)
        for slot in slots if self.active is None else slots_where(self.active):
            action[slot] = self._choose(slot)
        self.heading = self.env.poses[:, 0].copy()
        return action

    def _choose(self, slot: int) -> int:
        rng = self.random.rngs[slot]
        goal = self._goal(slot)
        if rng.random() < NOISE.get(self.name, 0):
            return int(rng.integers(self.env.actions.n))
        pose = self.env.poses[slot]
        turned = wrap(pose[0] - self.heading[slot])
        return steer(self.env.floors[slot], pose, turned, goal)

    def _goal(self, slot: int) -> np.ndarray:
        """Return the place to go to, [2]."""
        target = self.env.target[slot]
        knows = self.name != "seek" or self.env.seen_at[slot, target] >= 0
        if self.name != "walk" and knows:
            return self.env.targets[slot, target]
        away = np.abs(self.place[slot] - self.env.poses[slot, 1:]).max()
        self.left[slot] -= 1
        if self.left[slot] < 0 or away < REACH:
            free = self.env.floors[slot].free
            index = self.random.rngs[slot].integers(len(free))
            self.place[slot] = middle(free[index])
            self.left[slot] = STUCK
        return self.place[slot]


class WayBack(Explorer):
    """Roll back along `places` [B, T, 2], the last one first; then stand.

    Places that the ball has reached are left out, so that it does not wait for them.
    """

    def __init__(self, env: ExploredMazes, places: np.ndarray):
        self.env = env
        self.places = places
        self.left = np.full(env.batch, places.shape[1])
        """Places not reached yet, int64 [B]."""
        self.heading = env.poses[:, 0].copy()

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        action = counts(self.env.batch)
        for slot in range(self.env.batch):
            action[slot] = self._choose(slot)
        self.heading = self.env.poses[:, 0].copy()
        return action

    def _choose(self, slot: int) -> int:
        pose = self.env.poses[slot]
        away = np.hypot(*(self.places[slot] - pose[1:]).T)
        while self.left[slot] and away[self.left[slot] - 1] < REACH:
            self.left[slot] -= 1
        if not self.left[slot]:
            return 0
        goal = self.places[slot, self.left[slot] - 1]
        turned = wrap(pose[0] - self.heading[slot])
        return steer(self.env.floors[slot], pose, turned, goal)


def steer(floor: Floor, pose: np.ndarray, turned: float, goal: np.ndarray) -> int:
    """Return the action of a ball that rolls to `goal` [2].

    turned: latest change of heading, in radians
    """
    ahead = _next_place(floor, pose[1:], goal)
    to_right, to_front = from_agent(pose, ahead[None])[0]
    error = np.arctan2(to_right, to_front) - COAST * turned
    error = wrap(error)
    turn = int(np.clip(np.rint(error / TURN), -1, 1))
    away = np.hypot(to_right, to_front)
    return TURNS[turn][_may_roll(abs(error), away)]


def _may_roll(error: float, away: float) -> bool:
    """Return whether a ball that rolls and turns reaches a place, rather than orbits it."""
    if error < STRAIGHT:
        return True
    return error < np.pi / 2 and bool(away > 2 * RADIUS * np.sin(error))


def _next_place(floor: Floor, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the farthest place of the way to `goal` that lies straight ahead, [2]."""
    way = floor.way(to_cell(position), to_cell(goal))
    places = np.array([*(middle(cell) for cell in way[:-1]), goal])
    clear = floor.is_clear(position, places, CLEARANCE)
    return places[np.flatnonzero(clear)[-1]] if clear.any() else places[0]


def wrap(angle: float) -> float:
    """Return an angle between -pi and pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
