"""Define the interface of an environment: B episodes stepped together, numpy arrays.

Shapes: B slots, C x H x W a frame, A the width of a continuous action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import ConfigDict

RUNNING, SUCCESS, WRONG, TIMEOUT = 0, 1, 2, 3
"""Values of `truth()["outcome"]`."""
STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Options of every configuration class: unknown settings fail, docstrings describe."""


@dataclass(frozen=True)
class Discrete:
    """Describe `n` actions, numbered from 0 and named in that order."""

    n: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Box:
    """Describe continuous actions between `low` and `high`, one bound per dimension.

    Actions: float32 [B, A]
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


class Step(NamedTuple):
    """Hold the results of a step.

    reward: float32 [B]
    terminated, truncated: bool [B]
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class HasExperts(Protocol):
    """Offer scripted explorers, which read the live environment to choose actions."""

    explorers: tuple[str, ...]
    """Names that `explorer` accepts."""

    @abstractmethod
    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`.

        Raises ValueError with the valid names for any other name.
        """

    def guide(self, seed: int) -> Explorer:
        """Return the explorer that acts during the context: `guide`, else the first."""
        name = "guide" if "guide" in self.explorers else self.explorers[0]
        return self.explorer(name, seed)


@runtime_checkable
class HasMap(Protocol):
    """Draw a map of an episode for videos, never for a model."""

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the map of `slot` with its agent, uint8 [3, H, W]."""
        ...

    def bearing(self, slot: int) -> float | None:
        """Return the heading on the map, in radians clockwise from up.

        None: the frames are not views ahead of the agent. A video then shows no map of
        the memory.
        """
        ...


@runtime_checkable
class HasObjects(Protocol):
    """Let a person change a running episode, never a training run."""

    def object_names(self) -> tuple[str, ...]:
        """Return the colours of the objects."""
        ...

    def set_goal(self, slot: int, k: int) -> None:
        """Make object k the goal of `slot`; the next frame shows it."""
        ...

    def move_object(self, slot: int, k: int, rng: np.random.Generator) -> None:
        """Move object k to a random place that the agent does not see.

        Raises ValueError if the agent sees it now, or if there is no such place.
        """
        ...


@runtime_checkable
class HasLayout(Protocol):
    """Give the ground truth of mazes for probes of a memory, never for a model."""

    def layout(self) -> np.ndarray:
        """Return the floor of each maze, bool [B, n, n], row 0 at the bottom."""
        ...

    def objects(self) -> np.ndarray:
        """Return all objects as seen from the agents, float32 [B, K, 2].

        Right and ahead, in tiles.
        """
        ...

    def way_back(self, places: np.ndarray) -> Explorer:
        """Return an explorer that follows positions [B, T, 2], the last one first.

        Up and right, in tiles, as in poses.
        """
        ...


class BatchedEnv(HasExperts, ABC):
    """Step B independent environments together.

    `step` does not reset an episode that has ended: the caller resets it. Stepping an
    ended slot changes nothing, returns reward 0 and keeps the slot's flags.
    """

    batch: int
    frame_shape: tuple[int, int, int]
    """Channels, height and width of a frame (uint8)."""
    actions: Discrete | Box
    episode: np.ndarray
    """Episodes begun in each slot, int64 [B]. Explorers notice a reset by it."""
    seeds: np.ndarray
    """Seed of the present episode in each slot, int64 [B]."""
    answers: int = 1
    """Right answers that an episode may have; a task list holds each equally often."""
    copyable: bool = True
    """`copy.deepcopy` gives an environment that continues in the same way."""

    @abstractmethod
    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; the seed alone decides it.

        where, seeds: int64 [M]
        """

    @abstractmethod
    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, int64 [B] or float32 [B, A]."""

    @abstractmethod
    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, C, H, W]."""

    def goals(self) -> np.ndarray | None:
        """Return the goal images, uint8 [B, C, H, W]; None if goals are no images."""
        return None

    def renewed(self) -> BatchedEnv:
        """Return a new environment of this kind with one slot, if it is not `copyable`."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the environments hold, such as processes; they cannot be used then."""
        return

    @abstractmethod
    def last_action(self) -> np.ndarray:
        """Return the last executed action (forced ones too), zeros after a reset."""

    def pose(self) -> np.ndarray | None:
        """Return the pose of each agent, float32 [B, 3]; None: the environment has none.

        Heading in radians clockwise from up, then the position: up and right, in tiles.
        """
        return None

    @abstractmethod
    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the guided part of an episode.

        An evaluated agent only observes while it is true.
        """

    def retries(self) -> np.ndarray:
        """Return bool [B], true on a frame that begins another attempt after a failure."""
        return flags(self.batch)

    def answer(self) -> np.ndarray:
        """Return the number of each episode's right answer, int64 [B], below `answers`."""
        return counts(self.batch)

    @abstractmethod
    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth for evaluation, one array [B] each; never for a model.

        - `success`: bool.
        - `goal_distance`: int64, least steps to success from the present pose. -1: unknown.
        - `evidence_age`: int64, frames since cue or goal was last visible. -1: unknown.
        - `outcome`: int64, 0 running, 1 success, 2 wrong choice, 3 time-out.
        - `goal`: int64, label of the right answer.
        """


class Explorer(ABC):
    """Choose scripted actions for all slots from the environment's ground truth."""

    active: np.ndarray | None = None
    """Slots whose action is used, bool [B]. None: all. An explorer may skip the rest."""

    @abstractmethod
    def act(self) -> np.ndarray:
        """Return actions for all B slots, in the shape that `BatchedEnv.step` takes."""


class Episodes(Protocol):
    """List what random walks need of a live environment."""

    batch: int
    episode: np.ndarray
    seeds: np.ndarray


class SlotRandom:
    """Draw random numbers for each slot from its own generator.

    The generator starts with each episode, from a seed and the episode's seed.
    A walk therefore does not depend on the other slots.
    """

    def __init__(self, env: Episodes, seed: int):
        self.env = env
        self.seed = seed
        self.episode = never(env.batch)
        self.rngs = [np.random.default_rng(0) for _ in range(env.batch)]

    def renew(self) -> np.ndarray:
        """Start the generators of slots whose episode began; return these, bool [B]."""
        begun = self.env.episode != self.episode
        for slot in slots_where(begun):
            seeds = [self.seed, int(self.env.seeds[slot]), 3]
            self.rngs[slot] = np.random.default_rng(seeds)
        self.episode = self.env.episode.copy()
        return begun

    def uniform(self, count: int) -> np.ndarray:
        """Draw numbers from 0 to 1, [count, B]."""
        return np.stack([rng.random(count) for rng in self.rngs], axis=1)

    def integers(self, n: int) -> np.ndarray:
        """Draw numbers from 0 to n - 1, int64 [B]."""
        return np.array([rng.integers(n) for rng in self.rngs])


class RandomExplorer(Explorer):
    """Draw uniform actions."""

    def __init__(self, env: BatchedEnv, seed: int):
        self.env = env
        self.random = SlotRandom(env, seed)

    def act(self) -> np.ndarray:
        """Return int64 [B] or float32 [B, A]."""
        self.random.renew()
        actions = self.env.actions
        if isinstance(actions, Discrete):
            return self.random.integers(actions.n)
        low, high = np.array(actions.low), np.array(actions.high)
        share = self.random.uniform(len(low)).T
        return (low + share * (high - low)).astype(np.float32)


class NoopExplorer(Explorer):
    """Choose action 0, or the continuous action nearest to zero."""

    def __init__(self, env: BatchedEnv):
        self.env = env

    def act(self) -> np.ndarray:
        """Return int64 [B] or float32 [B, A]."""
        actions = self.env.actions
        noop = zero_action(actions, self.env.batch)
        if isinstance(actions, Discrete):
            return noop
        low = np.array(actions.low, np.float32)
        high = np.array(actions.high, np.float32)
        return np.clip(noop, low, high)


class Mixture(Explorer):
    """Draw one of several explorers for every episode of every slot.

    `weights` maps explorer names to their odds. Raises ValueError for an empty or
    negative set of weights.
    """

    def __init__(self, env: BatchedEnv, weights: Mapping[str, float], seed: int):
        odds = np.array(list(weights.values()), np.float64)
        if len(odds) == 0 or odds.min() < 0 or odds.sum() <= 0:
            raise ValueError(
                "explorer weights must be positive numbers, at least one; "
                f"got {dict(weights)}"
            )
        self.env = env
        self.names = tuple(weights)
        self.odds = odds / odds.sum()
        self.parts = [env.explorer(name, seed) for name in self.names]
        self.rng = np.random.default_rng([seed, 2])
        self.choice = counts(env.batch)
        self.episode = never(env.batch)

    def act(self) -> np.ndarray:
        """Return each slot's action by the explorer drawn for its present episode."""
        begun = self.env.episode != self.episode
        count = int(begun.sum())
        self.choice[begun] = self.rng.choice(len(self.names), size=count, p=self.odds)
        self.episode = self.env.episode.copy()
        chosen = np.unique(self.choice)
        action = self._propose(chosen[0])
        for index in chosen[1:]:
            proposed = self._propose(index)
            mask = expand_mask(self.choice == index, action)
            action = np.where(mask, proposed, action)
        return action

    def _propose(self, index: int) -> np.ndarray:
        part = self.parts[index]
        part.active = self.choice == index
        return part.act()


def counts(batch: int) -> np.ndarray:
    """Return a count of 0 for every slot, int64 [B]."""
    return np.zeros(batch, np.int64)


def never(batch: int) -> np.ndarray:
    """Return -1 for every slot, int64 [B]: never, or unknown."""
    return np.full(batch, -1, np.int64)


def flags(batch: int) -> np.ndarray:
    """Return false for every slot, bool [B]."""
    return np.zeros(batch, bool)


def blank_frames(batch: int, side: int) -> np.ndarray:
    """Return black frames, uint8 [B, 3, side, side]."""
    return np.zeros((batch, 3, side, side), np.uint8)


def slots_where(mask: np.ndarray) -> list[int]:
    """Return the slots in which `mask`, bool [B], is true."""
    return np.flatnonzero(mask).tolist()


def zero_action(actions: Discrete | Box, batch: int) -> np.ndarray:
    """Return zeros, int64 [B] or float32 [B, A]."""
    if isinstance(actions, Discrete):
        return np.zeros(batch, np.int64)
    return np.zeros((batch, len(actions.low)), np.float32)


def expand_mask(mask: np.ndarray, action: Any) -> np.ndarray:
    """Return `mask` [B] in a shape that selects among actions [B, ...]."""
    return mask.reshape(-1, *[1] * (action.ndim - 1))


def unknown_explorer(owner: str, name: str, known: tuple[str, ...]) -> ValueError:
    """Return the error for an explorer that `owner` does not offer."""
    return ValueError(f"{owner} has no explorer {name!r}; it has {', '.join(known)}")
