"""An agent that observes into memory, plans in imagination, and acts in the TorchRL loop.

    agent = load("tmaze")
    state = agent.observe(agent.initial(1), frame, last_action, is_first)
    action, state = agent.act(state)

This is the only package that imports `envs`, `planners` and `worldmodel`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lssvwm.agent.mpc import Agent

__all__ = ["Agent", "load"]


def load(checkpoint: str | Path, *overrides: str) -> Agent:
    """Load the agent of a packaged model or of a run's folder, in evaluation mode.

    overrides: settings such as "planner.horizon=24" or "device=cuda"
    Raises UserError if there is no such checkpoint or a setting is wrong.
    Raises UserError if it names an environment that is not built in, without "trust=true".
    """
    # Imported here, so that importing a part of the package does not load PyTorch.
    from lssvwm.agent import checkpoint as checkpoints
    from lssvwm.agent.build import build_agent, build_env
    from lssvwm.agent.config.composition import from_checkpoint
    from lssvwm.agent.config.settings import SavedRunConfig

    saved = checkpoints.read_config(checkpoints.resolve(checkpoint))
    config = from_checkpoint(saved, overrides, SavedRunConfig)
    model = checkpoints.load(checkpoint, config.device, config.backend)
    return build_agent(config, model.eval(), build_env(config.env, 1))


def __getattr__(name: str) -> Any:
    if name != "Agent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lssvwm.agent.mpc import Agent

    return Agent
