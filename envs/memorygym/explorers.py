"""Script explorers of Memory Gym: each episode has a strategy that names cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from lssvwm.envs.base import Discrete, Explorer, SlotRandom, counts, slots_where
from lssvwm.envs.memorygym.games import Strategy

NOISE = {"noisy": 0.15, "stumble": 0.15}
"""Odds of a random action of the explorers that err."""


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

    A walk depends on its seed and the episode's seed only.
    """

    def __init__(self, env: PlayedGames, name: str, seed: int):
        self.env = env
        self.name = name
        self.random = SlotRandom(env, seed)
        self.strategies: dict[int, Strategy] = {}

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        for slot in slots_where(self.random.renew()):
            game = self.env.games[slot]
            rng = self.random.rngs[slot]
            self.strategies[slot] = game.strategy(self.name, rng)
        action = counts(self.env.batch)
        slots = range(self.env.batch)
        for slot in slots if self.active is None else slots_where(self.active):
            action[slot] = self._choose(slot)
        return action

    def _choose(self, slot: int) -> int:
        strategy = self.strategies[slot]
        target = strategy.target()
        rng = self.random.rngs[slot]
        errs = rng.random() < NOISE.get(self.name, 0)
        if target is None or errs:
            return int(rng.integers(self.env.actions.n))
        return self.env.games[slot].towards(strategy.floor, target)
