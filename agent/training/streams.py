"""Let a policy act in a TorchRL collector, and write whole episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from lssvwm.agent.errors import UserError
from lssvwm.agent.progress import Progress
from lssvwm.agent.training.episodes import Episodes
from lssvwm.envs.base import BatchedEnv
from lssvwm.envs.torchrl_env import TorchRLEnv
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector

TRAINING, HELD_OUT = 0, 1
"""Disjoint streams of episode seeds."""
SHARD_FRAMES = 20_000
"""Frames written to disk at once."""
COLLECTOR_STEPS = 64
"""Steps of every environment between two looks at the finished episodes."""
UNENDED_FRAMES = 4_000
"""Frames in memory of an episode without an end, on average over the environments and beyond those wanted."""
Rows = Mapping[str, np.ndarray]
Write = Callable[[Rows], object]
"""Writes the rows of whole episodes as a shard."""


class Stream:
    """Let one policy act in its environment; unfinished episodes go on in the next call.

    seed: of the episodes
    waits: whether other streams have turns, too; a stream then holds no frames while it waits
    """

    def __init__(
        self,
        env: BatchedEnv,
        policy: TensorDictModuleBase,
        seed: int,
        waits: bool = False,
    ):
        world = TorchRLEnv(env)
        world.set_seed(seed * 2 + TRAINING)
        self.collector = Collector(
            world,
            policy,
            frames_per_batch=env.batch * COLLECTOR_STEPS,
            total_frames=-1,
            trust_policy=True,
            auto_register_policy_transforms=True,
            use_buffers=not waits,
        )
        self.seed = seed
        self.steps = iter(self.collector)
        self.episodes = Episodes(env.batch)
        self.ahead = 0
        """Frames written beyond those requested so far."""

    def collect(self, frames: int, write: Write, progress: Progress | None) -> int:
        """Write whole episodes of `frames` frames; return the number of frames.

        The last episodes may exceed `frames`. The next call collects fewer by that.
        """
        wanted = frames - self.ahead
        before = progress.done if progress else 0
        written = 0
        while written < wanted:
            self.episodes.add(next(self.steps))
            _check_ends(self.episodes, wanted)
            if progress:
                progress.update(before + written + self.episodes.frames)
            if self.episodes.frames >= min(SHARD_FRAMES, wanted - written):
                written += self.episodes.frames
                write(self.episodes.take())  # some, as `wanted` is positive
        self.ahead = written - wanted
        self.episodes.detach()
        return written

    def close(self) -> None:
        """End the collector; unfinished episodes are dropped."""
        self.collector.shutdown()


def _check_ends(episodes: Episodes, wanted: int) -> None:
    """Raise UserError if far more frames than wanted are in episodes that do not end."""
    count = len(episodes.open)
    unfinished = sum(len(rows) for rows in episodes.open)
    if unfinished > wanted + UNENDED_FRAMES * count:
        raise UserError(
            f"{unfinished:,} frames were played in {count} environments "
            f"without an end of their episodes: set env.max_steps, which ends them "
            f"(or lower train.collect.envs, if they are that long)"
        )
