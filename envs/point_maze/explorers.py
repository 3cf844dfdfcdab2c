"""Script explorers of the point maze: they know its walls and doors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from lssvwm.envs.base import Explorer, flags, never, slots_where

NOISE = 0.7
"""Standard deviation of the noise of `walk` and `seek`, per action component."""
TURN = 2.0
"""Normal noise beyond which `momentum` takes a new direction."""


class ExploredPoints(Protocol):
    """List everything that an explorer reads of a live environment."""

    batch: int
    slots: np.ndarray
    episode: np.ndarray
    seeds: np.ndarray
    position: np.ndarray
    goal: np.ndarray
    has_goal: bool

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the guided part."""
        ...

    def spots_of(self, slot: int) -> list[np.ndarray]:
        """Return the positions of the spots, [2] each."""
        ...

    def reached(self, target: np.ndarray) -> np.ndarray:
        """Return bool [B], true for agents near their `target` [B, 2]."""
        ...

    def steer(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the actions that lead through doors towards `target`, [M, 2]."""
        ...

    def draw_position(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a free position, [2]."""
        ...


class PointExplorer(Explorer):
    """Walk to the places that belong to `name`, episode by episode.

    - `oracle`: round all spots, then to the goal.
    - `guide`: round all spots, then anywhere.
    - `walk`: from one random place to another, with noise.
    - `seek`: as `walk`, and after the context to the spots in random order.
    - `momentum`: straight on, with turns by chance.
    - `random`: normal noise. `noop`: zeros.

    A walk depends on its seed and the episode's seed only.
    """

    def __init__(self, env: ExploredPoints, name: str, seed: int):
        self.env = env
        self.name = name
        self.seed = seed
        self.episode = never(env.batch)
        self.seeking = flags(env.batch)
        """Slots whose context has ended, bool [B]."""
        self.target = np.zeros((env.batch, 2))
        self.way = np.zeros((env.batch, 2))
        self.pending: list[list[np.ndarray]] = [[] for _ in range(env.batch)]
        self.rngs = [np.random.default_rng(0) for _ in range(env.batch)]

    def act(self) -> np.ndarray:
        """Return one action per slot, float32 [B, 2]."""
        self._notice_changes()
        noise = np.stack([rng.normal(size=2) for rng in self.rngs])
        match self.name:
            case "noop":
                return np.zeros((self.env.batch, 2), np.float32)
            case "random":
                return noise.clip(-1, 1).astype(np.float32)
            case "momentum":
                return self._momentum(noise)
        return self._walk(noise)

    def _notice_changes(self) -> None:
        """Plan in slots whose episode began or whose context ended."""
        env = self.env
        begun = env.episode != self.episode
        for slot in slots_where(begun):
            seeds = [self.seed, int(env.seeds[slot]), 3]
            self.episode[slot] = env.episode[slot]
            self.rngs[slot] = np.random.default_rng(seeds)
            self._plan(slot, seeking=False)
        ended = ~env.in_context() & ~self.seeking
        for slot in slots_where(ended):
            self._plan(slot, seeking=True)

    def _momentum(self, noise: np.ndarray) -> np.ndarray:
        turns = np.abs(noise).max(1) > TURN
        self.way[turns] = noise[turns]
        longest = np.abs(self.way).max(1, keepdims=True).clip(min=1e-6)
        return (self.way / longest).astype(np.float32)

    def _walk(self, noise: np.ndarray) -> np.ndarray:
        env = self.env
        for slot in slots_where(env.reached(self.target)):
            self.target[slot] = self._next_target(slot)
        action = env.steer(env.position, self.target, env.slots)
        is_noisy = self.name in ("walk", "seek")
        return (action + NOISE * noise * is_noisy).clip(-1, 1).astype(np.float32)

    def _plan(self, slot: int, seeking: bool) -> None:
        """Draw direction and targets for the context, or for the time after it."""
        rng = self.rngs[slot]
        self.seeking[slot] = seeking
        self.way[slot] = rng.normal(size=2)
        self.pending[slot] = []
        if self._visits_spots(seeking):
            spots = self.env.spots_of(slot)
            order = rng.permutation(len(spots))
            self.pending[slot] = [spots[i] for i in order]
        self.target[slot] = self._next_target(slot)

    def _visits_spots(self, seeking: bool) -> bool:
        if seeking:
            return self.name == "seek"
        return self.name in ("oracle", "guide")

    def _next_target(self, slot: int) -> np.ndarray:
        env = self.env
        if self.name == "oracle" and self.seeking[slot] and env.has_goal:
            return env.goal[slot]
        if self.pending[slot]:
            return self.pending[slot].pop()
        return env.draw_position(slot, self.rngs[slot])
