"""Script explorers of Memory Gym: each episode has a strategy that names cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from lssvwm.envs.base import Discrete, Explorer, SlotRandom, counts, slots_where
from lssvwm.envs.memorygym.games import Strategy

NOISE = {"noisy": 0.15, "stumble": 0.15}
"""Odds of a random action of the explorers that err."""
BLIND_START = 0.06
"""Odds that the explorer `blind` starts a blind walk."""
BLIND_STEPS = (4, 16)
"""Least and most actions of a blind walk."""
REPEAT = 0.75
"""Odds that an action of a blind walk repeats the one before."""


class PlayedGames(Protocol):
    """List everything that an explorer reads of a live environment."""

    batch: int
    actions: Discrete
    episode: np.ndarray
    seeds: np.ndarray

    @property
    def games(self) -> Sequence[Any]:
        """A `GridGame` for each slot."""
        ...


class StrategyExplorer(Explorer):
    """Walk to the cells that a strategy names; explorers in `NOISE` also err.

    `blind` now and then takes several actions whatever happens. From the others alone a model
    would learn that an agent that walks on has not fallen, and imagine that of every plan.
    A walk depends on its seed and the episode's seed only.
    """

    def __init__(self, env: PlayedGames, name: str, seed: int):
        self.env = env
        self.name = name
        self.random = SlotRandom(env, seed)
        self.strategies: dict[int, Strategy] = {}
        self.blind_steps = counts(env.batch)
        """Steps of blind walks that are left."""
        self.last = counts(env.batch)
        """The latest actions."""

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        for slot in slots_where(self.random.renew()):
            game = self.env.games[slot]
            rng = self.random.rngs[slot]
            self.strategies[slot] = game.strategy(self.name, rng)
            self.blind_steps[slot] = 0
        action = counts(self.env.batch)
        slots = range(self.env.batch)
        for slot in slots if self.active is None else slots_where(self.active):
            self.last[slot] = action[slot] = self._choose(slot)
        return action

    def _choose(self, slot: int) -> int:
        strategy = self.strategies[slot]
        target = strategy.target()
        rng = self.random.rngs[slot]
        if self.name == "blind" and self._walks_blindly(slot):
            repeats = rng.random() < REPEAT
            return int(self.last[slot] if repeats else rng.integers(self.env.actions.n))
        errs = rng.random() < NOISE.get(self.name, 0)
        if target is None or errs:
            return int(rng.integers(self.env.actions.n))
        return self.env.games[slot].towards(strategy.floor, target)

    def _walks_blindly(self, slot: int) -> bool:
        rng = self.random.rngs[slot]
        if not self.blind_steps[slot] and rng.random() < BLIND_START:
            self.blind_steps[slot] = rng.integers(*BLIND_STEPS, endpoint=True)
        walks = self.blind_steps[slot] > 0
        self.blind_steps[slot] -= walks
        return bool(walks)
