"""Share functions that play MiniGrid episodes, and MiniGrid's own environments."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from lssvwm.envs.base import BatchedEnv
from lssvwm.envs.minigrid.env import MiniGridConfig
from minigrid.wrappers import RGBImgPartialObsWrapper

Row = dict[str, np.ndarray]


def _run(env: BatchedEnv, name: str, limit: int = 200) -> list[Row]:
    explorer = env.explorer(name, 0)
    rows = []
    for _ in range(limit):
        rows.append(env.truth() | {"context": env.in_context()})
        step = env.step(explorer.act())
        if (step.terminated | step.truncated).all():
            break
    return [*rows, env.truth() | {"context": env.in_context()}]


def _twin(config: MiniGridConfig) -> gymnasium.Env:
    kwargs = dict(config.kwargs)
    if config.size is not None:
        kwargs["size"] = config.size
    env = gymnasium.make(
        config.id,
        agent_view_size=config.view,
        disable_env_checker=True,
        **kwargs,
    )
    return RGBImgPartialObsWrapper(env.unwrapped, tile_size=config.tile)


@pytest.fixture
def run():
    """Return `run(env, name, limit)`, which lets an explorer play one episode per slot.

    It returns the truth of every step, with `context`.
    """
    return _run


@pytest.fixture
def twin():
    """Return `twin(config)`, which makes an environment as MiniGrid alone draws it."""
    return _twin
