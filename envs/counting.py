"""An environment whose frames say when they were taken: with it, tests prove that nothing is out of line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    SUCCESS,
    TIMEOUT,
    BatchedEnv,
    Discrete,
    Explorer,
    Step,
)


@dataclass(frozen=True)
class CountingConfig:
    """`size`: side of a frame in pixels; `episode_length`: steps per episode; `actions`: their number."""

    kind: str = "counting"
    size: int = 64
    episode_length: int = 7
    actions: int = 5

    def build(self, batch: int) -> CountingEnv:
        """Return `batch` counting environments."""
        return CountingEnv(self, batch)


def encode(
    episode: np.ndarray, step: np.ndarray, action: np.ndarray, size: int
) -> np.ndarray:
    """Return frames uint8 [B, 3, size, size] that `decode` reads back exactly; inputs are int64 [B].

    Red holds the episode, green the step, blue the action, each as two bytes: the upper half of the frame is
    filled with the low byte, the lower half with the high byte. Raises ValueError for a number outside
    0..65535.
    """
    numbers = np.stack([episode, step, action], axis=1)
    if numbers.min() < 0 or numbers.max() > 0xFFFF:
        raise ValueError(
            f"a counting frame holds 0 to 65535, got {numbers.min()} to {numbers.max()}"
        )
    frames = np.empty((len(numbers), 3, size, size), np.uint8)
    frames[:, :, : size // 2] = (numbers & 0xFF)[:, :, None, None]
    frames[:, :, size // 2 :] = (numbers >> 8)[:, :, None, None]
    return frames


def decode(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (episode, step, action), int64 [...], of frames uint8 [..., 3, H, W] (CPU tensors too).

    Raises ValueError when a half of a channel is not of one value, that is, when the frame was altered.
    """
    pixels = np.asarray(frames)
    half = pixels.shape[-2] // 2
    low, high = pixels[..., 0, 0].astype(np.int64), pixels[..., -1, 0].astype(np.int64)
    upper, lower = pixels[..., :half, :], pixels[..., half:, :]
    if (upper != low[..., None, None]).any() or (lower != high[..., None, None]).any():
        raise ValueError("not a counting frame: the pixels of a block differ")
    number = low + 256 * high
    return number[..., 0], number[..., 1], number[..., 2]


class CountingEnv(BatchedEnv):
    """Counts episodes and steps in its pixels.

    Observation: the episode (1 is a slot's first), the step (0 after a reset) and the last executed action,
    see `encode`. Reward: 0.01 times the step reached. Termination: after `episode_length` steps an even
    episode is terminated, an odd one truncated. The seed changes nothing: the count of episodes decides.
    Raises ValueError for a configuration that a frame cannot hold.
    """

    actions: Discrete
    explorers = ("random", "noop")

    def __init__(self, config: CountingConfig, batch: int):
        for name, value, least in (
            ("size", config.size, 2),
            ("episode_length", config.episode_length, 1),
            ("actions", config.actions, 1),
        ):
            if not least <= value <= 0xFFFF:
                raise ValueError(
                    f"counting environment: {name} must be from {least} to 65535, got {value}"
                )
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.size, config.size)
        self.actions = Discrete(
            config.actions, tuple(f"action {i}" for i in range(config.actions))
        )
        self.episode = np.zeros(batch, np.int64)
        self._step = np.zeros(batch, np.int64)
        self._action = np.zeros(batch, np.int64)

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start the next episode of the slots `where`; `seeds` is ignored."""
        self.episode[where] += 1
        self._step[where] = 0
        self._action[where] = 0

    def step(self, action: np.ndarray) -> Step:
        """Count one step in every running slot."""
        running = self._step < self.config.episode_length
        self._step[running] += 1
        self._action[running] = np.asarray(action)[running]
        reward = np.where(running, 0.01 * self._step, 0).astype(np.float32)
        return Step(reward, *self._ended())

    def _ended(self) -> tuple[np.ndarray, np.ndarray]:
        done = self._step >= self.config.episode_length
        even = self.episode % 2 == 0
        return done & even, done & ~even

    def frames(self) -> np.ndarray:
        """Return the frames that hold the counts."""
        return encode(self.episode, self._step, self._action, self.config.size)

    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to the current frame, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return false everywhere: nothing is guided here."""
        return np.zeros(self.batch, bool)

    def truth(self) -> dict[str, np.ndarray]:
        """Count the end of an even episode as success, the end of an odd one as time-out."""
        terminated, truncated = self._ended()
        left = self.config.episode_length - self._step
        return {
            "success": terminated,
            "goal_distance": np.where(self.episode % 2 == 0, left, -1),
            "evidence_age": self._step.copy(),
            "outcome": np.select(
                [terminated, truncated], [SUCCESS, TIMEOUT], RUNNING
            ).astype(np.int64),
            "goal": self.episode % 2,
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return "random" (uniform actions) or "noop" (always action 0)."""
        if name not in self.explorers:
            raise ValueError(
                f"counting has no explorer {name!r}; it has {', '.join(self.explorers)}"
            )
        return CountingExplorer(self, seed, moves=name == "random")


class CountingExplorer(Explorer):
    """Draws uniform actions, or gives action 0 when it does not move."""

    def __init__(self, env: CountingEnv, seed: int, moves: bool):
        self.env = env
        self.moves = moves
        self.rng = np.random.default_rng([seed, 3])

    def act(self) -> np.ndarray:
        """Return int64 [B]."""
        if not self.moves:
            return np.zeros(self.env.batch, np.int64)
        return self.rng.integers(self.env.actions.n, size=self.env.batch)
