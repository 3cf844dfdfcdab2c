"""Count episodes and steps in the pixels of frames, so that tests can prove alignment."""

from __future__ import annotations

from typing import Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    SUCCESS,
    TIMEOUT,
    BatchedEnv,
    Discrete,
    Explorer,
    NoopExplorer,
    RandomExplorer,
    Step,
    counts,
    flags,
    unknown_explorer,
)
from pydantic import Field
from pydantic.dataclasses import dataclass

LARGEST = 0xFFFF
"""Largest number that a frame holds."""


def encode(
    episode: np.ndarray, step: np.ndarray, action: np.ndarray, size: int
) -> np.ndarray:
    """Return frames uint8 [B, 3, size, size] that `decode` reads back exactly.

    Red holds the episode, green the step, blue the action, int64 [B] each. The upper
    half of a frame is filled with the low byte, the lower half with the high byte.
    Raises ValueError for a number outside 0..65535.
    """
    numbers = np.stack([episode, step, action], axis=1)
    if numbers.min() < 0 or numbers.max() > LARGEST:
        raise ValueError(
            f"a counting frame holds 0 to {LARGEST}, "
            f"got {numbers.min()} to {numbers.max()}"
        )
    half = size // 2
    frames = np.empty((len(numbers), 3, size, size), np.uint8)
    frames[:, :, :half] = (numbers & 0xFF)[:, :, None, None]
    frames[:, :, half:] = (numbers >> 8)[:, :, None, None]
    return frames


def decode(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (episode, step, action), int64 [...], of frames uint8 [..., 3, H, W].

    Accepts CPU tensors too. Raises ValueError for an altered frame, in which a half of
    a channel is not of one value.
    """
    pixels = np.asarray(frames)
    half = pixels.shape[-2] // 2
    low = pixels[..., 0, 0].astype(np.int64)
    high = pixels[..., -1, 0].astype(np.int64)
    upper_differs = pixels[..., :half, :] != low[..., None, None]
    lower_differs = pixels[..., half:, :] != high[..., None, None]
    if upper_differs.any() or lower_differs.any():
        raise ValueError("not a counting frame: the pixels of a block differ")
    number = low + 256 * high
    return number[..., 0], number[..., 1], number[..., 2]


@dataclass(frozen=True, config=STRICT)
class CountingConfig:
    """Set up the counting environment."""

    kind: Literal["counting"] = "counting"
    """Name of this kind of environment."""
    size: int = Field(default=64, ge=2, le=LARGEST)
    """Side of a frame, in pixels."""
    episode_length: int = Field(default=7, ge=1, le=LARGEST)
    """Steps per episode."""
    actions: int = Field(default=5, ge=1, le=LARGEST)
    """Number of actions."""

    def build(self, batch: int) -> CountingEnv:
        """Return `batch` counting environments."""
        return CountingEnv(self, batch)


class CountingEnv(BatchedEnv):
    """Count episodes and steps in the pixels.

    ## Description
    A test environment without a task. Its seeds change no frame: the number of episodes
    begun in a slot decides.

    ## Actions
    `actions` numbers without effect, named `action 0`, `action 1` and so on.

    ## Observation
    uint8 [B, 3, size, size]: the episode (1 is a slot's first), the step (0 after a
    reset) and the last executed action, see `encode`.

    ## Reward
    0.01 times the step reached.

    ## Termination
    After `episode_length` steps an even episode is terminated, an odd one truncated.
    """

    actions: Discrete
    explorers = ("random", "noop")

    def __init__(self, config: CountingConfig, batch: int):
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.size, config.size)
        names = tuple(f"action {i}" for i in range(config.actions))
        self.actions = Discrete(config.actions, names)
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self._step = counts(batch)
        self._action = counts(batch)

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start the next episode of the slots `where`; `seeds` change nothing but random walks."""
        self.episode[where] += 1
        self.seeds[where] = seeds
        self._step[where] = 0
        self._action[where] = 0

    def step(self, action: np.ndarray) -> Step:
        """Count one step in every running slot."""
        running = self._step < self.config.episode_length
        self._step[running] += 1
        self._action[running] = np.asarray(action)[running]
        reward = np.where(running, 0.01 * self._step, 0).astype(np.float32)
        terminated, truncated = self._ended()
        return Step(reward, terminated, truncated)

    def _ended(self) -> tuple[np.ndarray, np.ndarray]:
        done = self._step >= self.config.episode_length
        even = self.episode % 2 == 0
        return done & even, done & ~even

    def frames(self) -> np.ndarray:
        """Return the frames that hold the counts."""
        return encode(self.episode, self._step, self._action, self.config.size)

    def last_action(self) -> np.ndarray:
        """Return the last executed action, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return false everywhere: no part of an episode is guided."""
        return flags(self.batch)

    def truth(self) -> dict[str, np.ndarray]:
        """Count the end of an even episode as success, of an odd one as time-out."""
        terminated, truncated = self._ended()
        even = self.episode % 2 == 0
        left = self.config.episode_length - self._step
        outcome = np.select([terminated, truncated], [SUCCESS, TIMEOUT], RUNNING)
        return {
            "success": terminated,
            "goal_distance": np.where(even, left, -1),
            "evidence_age": self._step.copy(),
            "outcome": outcome.astype(np.int64),
            "goal": self.episode % 2,
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return "random" (uniform actions) or "noop" (always action 0)."""
        match name:
            case "random":
                return RandomExplorer(self, seed)
            case "noop":
                return NoopExplorer(self)
        raise unknown_explorer("counting", name, self.explorers)
