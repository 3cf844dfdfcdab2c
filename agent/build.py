"""Build environments and agents from a configuration."""

from __future__ import annotations

import torch
from lssvwm.agent.checkpoint import check_fits
from lssvwm.agent.config.settings import Config, EnvConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent
from lssvwm.agent.objective import NO_DISTANCE, NO_SURPRISE
from lssvwm.envs import make as make_env
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.planners import Box
from lssvwm.worldmodel import WorldModel


def build_env(config: EnvConfig, batch: int) -> BatchedEnv:
    """Build `batch` environments; raises UserError if they cannot be built."""
    try:
        return make_env(config, batch)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(str(error)) from None


def action_count(env: BatchedEnv) -> int:
    """Return the number of discrete actions, or of dimensions of a continuous one."""
    actions = env.actions
    return actions.n if isinstance(actions, Discrete) else len(actions.low)


def build_agent(
    config: Config,
    model: WorldModel,
    env: BatchedEnv,
    generator: torch.Generator | None = None,
) -> Agent:
    """Build the planning agent of a configuration; the model keeps its train or eval mode.

    generator: defaults to one with seed `config.seed`
    Raises UserError if the model does not fit the environment or lacks a head that the objective needs.
    Raises UserError if the planner cannot plan for the environment's actions.
    """
    discrete = isinstance(env.actions, Discrete)
    check_fits(model, env.frame_shape, action_count(env), discrete)
    check_objective(config, model, env)
    if generator is None:
        generator = torch.Generator(model.device).manual_seed(config.seed)
    try:
        return Agent(
            model=model,
            planner=config.planner,
            objective=config.objective,
            mpc=config.mpc,
            bounds=action_bounds(env),
            generator=generator,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def check_objective(config: Config, model: WorldModel, env: BatchedEnv) -> None:
    """Raise UserError if the objective or the planner needs what does not exist."""
    if model.config.pose == "given":
        raise UserError(
            "an agent cannot plan with model.pose=given: imagined frames have no given poses; "
            "train with model.pose=integrated"
        )
    goal, novelty = config.objective.goal, config.objective.novelty
    if goal and env.goals() is None:
        raise UserError(
            f"objective.goal={goal:g}: this environment has no goal images; "
            f"or set objective.goal=0"
        )
    if goal and model.distance is None:
        raise UserError(
            f"objective.goal={goal:g}: {NO_DISTANCE}; or set objective.goal=0"
        )
    if novelty and not model.config.loss.surprise:
        raise UserError(
            f"objective.novelty={novelty:g}: {NO_SURPRISE}; or set objective.novelty=0"
        )


def action_bounds(env: BatchedEnv) -> Box | None:
    """Return the bounds of continuous actions, None for discrete ones."""
    if isinstance(env.actions, Discrete):
        return None
    low, high = env.actions.low, env.actions.high
    return Box(torch.as_tensor(low), torch.as_tensor(high))
