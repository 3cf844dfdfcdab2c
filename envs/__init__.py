"""Environments that need memory, and wrappers for MiniGrid, Gymnasium and others.

`make(config, batch)` builds one. `envs.torchrl_env.TorchRLEnv` puts it into a TorchRL
loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lssvwm.envs.base import BatchedEnv
from lssvwm.envs.counting import CountingConfig
from lssvwm.envs.gymnasium_env import GymConfig
from lssvwm.envs.maze.scavenge import ScavengeConfig
from lssvwm.envs.maze.tmaze import TMazeConfig
from lssvwm.envs.maze.tour_mazes import RecallConfig, ReturnConfig
from lssvwm.envs.memorygym.env import MemoryGymConfig
from lssvwm.envs.memorymaze.env import MemoryMazeConfig
from lssvwm.envs.minigrid.env import MiniGridConfig
from lssvwm.envs.point_maze.env import PointMazeConfig

ENV_CONFIGS: dict[str, type] = {
    "tmaze": TMazeConfig,
    "return": ReturnConfig,
    "recall": RecallConfig,
    "scavenge": ScavengeConfig,
    "pointmaze": PointMazeConfig,
    "minigrid": MiniGridConfig,
    "memorygym": MemoryGymConfig,
    "memorymaze": MemoryMazeConfig,
    "gym": GymConfig,
    "counting": CountingConfig,
}
"""Configuration class of every kind of environment."""


def make(config: Any, batch: int, seed: int = 0) -> BatchedEnv:
    """Build `batch` environments and start one episode in each.

    The seeds of the first episodes follow from `seed`. Raises TypeError unless `config`
    is of a class in `ENV_CONFIGS`, and ValueError for a batch below 1.
    """
    if not isinstance(config, tuple(ENV_CONFIGS.values())):
        raise TypeError(
            f"not an environment configuration: {config!r}; "
            f"use one of {', '.join(ENV_CONFIGS)}"
        )
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    env = config.build(batch)
    seeds = np.random.default_rng([seed, 1]).integers(2**31, size=batch)
    env.reset(np.arange(batch), seeds)
    return env
