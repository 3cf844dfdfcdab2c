"""The protocol every environment follows: B episodes stepped together, numpy in and out.

Shapes: B slots, C x H x W a frame, A the width of a continuous action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

RUNNING, SUCCESS, WRONG, TIMEOUT = 0, 1, 2, 3
"""Values of `truth()["outcome"]`."""


@dataclass(frozen=True)
class Discrete:
    """`n` actions, numbered from 0 and named in that order."""

    n: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """Continuous actions, float32 [B, A], between `low` and `high` (one bound per dimension)."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class Step(NamedTuple):
    """What a step returns: reward float32 [B], terminated bool [B], truncated bool [B]."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class BatchedEnv(ABC):
    """B independent environments stepped together, numpy in and out.

    An episode that has ended is not reset by `step`: the caller resets it. Stepping an ended slot changes
    nothing, returns reward 0 and keeps the slot's flags.
    """

    batch: int
    frame_shape: tuple[int, int, int]  # C, H, W (uint8)
    actions: Discrete | Box
    explorers: tuple[str, ...]  # names that `explorer` accepts
    episode: (
        np.ndarray
    )  # int64 [B], episodes begun in each slot; explorers notice a reset by it

    @abstractmethod
    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]` (int64 [M]); the seed alone decides the episode."""

    @abstractmethod
    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, int64 [B] or float32 [B, A]."""

    @abstractmethod
    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, C, H, W]."""

    def goals(self) -> np.ndarray | None:
        """Return the images of where to go, uint8 [B, C, H, W]; None where goals are no images."""
        return None

    @abstractmethod
    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to this frame (forced ones too), zeros after a reset."""

    @abstractmethod
    def in_context(self) -> np.ndarray:
        """Return bool [B], true while the guided part lasts, in which an evaluated agent only observes."""

    @abstractmethod
    def truth(self) -> dict[str, np.ndarray]:
        """Return what evaluation may know and a model may not, one array [B] each.

        `success` bool; `goal_distance` int64, least steps to success from the present pose (-1 unknown);
        `evidence_age` int64, frames since cue or goal was last visible (-1 unknown); `outcome` int64
        (0 running, 1 success, 2 wrong choice, 3 time-out); `goal` int64, a label of the right answer.
        """

    def bearing(self, slot: int) -> float | None:
        """Return which way the agent of `slot` faces on its map, in radians clockwise from up; for people. None where
        it does not look ahead from the lower edge of its frames: what it remembers is not drawn as a map then."""
        return None

    @abstractmethod
    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`; raises ValueError with the valid names for any other."""

    def guide(self, seed: int) -> Explorer:
        """Return who walks while the context lasts: the explorer `guide`, or the first one where there is none."""
        return self.explorer(
            "guide" if "guide" in self.explorers else self.explorers[0], seed
        )


class Explorer(ABC):
    """Chooses scripted actions for all slots, and may read the environment's ground truth to do so."""

    active: np.ndarray | None = (
        None  # bool [B], slots whose action is used (None: all); skip the others
    )

    @abstractmethod
    def act(self) -> np.ndarray:
        """Return actions for all B slots, in the shape that `BatchedEnv.step` takes."""


class Mixture(Explorer):
    """Draws one of several explorers for every episode of every slot, so that a data set mixes them.

    `weights` maps explorer names to their odds; raises ValueError for an empty or negative set of weights.
    """

    def __init__(self, env: BatchedEnv, weights: Mapping[str, float], seed: int):
        odds = np.array(list(weights.values()), np.float64)
        if len(odds) == 0 or odds.min() < 0 or odds.sum() <= 0:
            raise ValueError(
                f"explorer weights must be positive numbers, at least one; got {dict(weights)}"
            )
        self.env = env
        self.names = tuple(weights)
        self.odds = odds / odds.sum()
        self.parts = [env.explorer(name, seed) for name in self.names]
        self.rng = np.random.default_rng([seed, 2])
        self.choice = np.zeros(env.batch, np.int64)
        self.episode = np.full(env.batch, -1, np.int64)

    def act(self) -> np.ndarray:
        """Return each slot's action by the explorer drawn for its present episode."""
        fresh = self.env.episode != self.episode
        self.choice[fresh] = self.rng.choice(
            len(self.names), size=int(fresh.sum()), p=self.odds
        )
        self.episode = self.env.episode.copy()
        proposals = [self._propose(index) for index in np.unique(self.choice)]
        action = proposals[0]
        for index, proposed in zip(np.unique(self.choice), proposals):
            action = np.where(beside(self.choice == index, action), proposed, action)
        return action

    def _propose(self, index: int) -> np.ndarray:
        part = self.parts[index]
        part.active = self.choice == index
        return part.act()


def beside(mask: np.ndarray, action: Any) -> np.ndarray:
    """Return `mask` [B] in a shape that selects among actions [B, ...]."""
    return mask.reshape(-1, *[1] * (action.ndim - 1))
