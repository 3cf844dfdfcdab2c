"""The agent in the TorchRL loop: the only package that imports envs, worldmodel and planners.

policy = agent.load("tmaze")
state = policy.observe(policy.initial(1), frame, last_action, is_first)
action, state = policy.act(state)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lssvwm.agent.mpc import Agent


def load(checkpoint: str | Path, *overrides: str) -> Agent:
    """The planning agent of a pretrained name or a run's folder; `overrides` are settings such as
    "planner.horizon=24" or "device=cuda".

    Raises `agent.config.UserError` if there is no such checkpoint, or if a setting is wrong.
    """
    from lssvwm.agent import checkpoint as saved
    from lssvwm.agent.config import composition as configuration
    from lssvwm.agent.mpc import build_agent
    from lssvwm.agent.training.collection import build_env

    config = configuration.from_checkpoint(
        saved.read_config(saved.resolve(checkpoint)), overrides
    )
    return build_agent(
        config,
        saved.load(checkpoint, config.device, config.backend),
        build_env(config, 1),
    )
