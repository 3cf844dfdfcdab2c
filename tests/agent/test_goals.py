"""Test that plans lead to goal images and, if they should, to what is new."""

import dataclasses

import pytest
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config.composition import compose
from lssvwm.agent.errors import UserError
from lssvwm.agent.policies import PlanPolicy
from lssvwm.agent.training.loop import train
from lssvwm.agent.training.run import build_model
from lssvwm.envs import make
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import LossWeights, ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

from lssvwm import planners


def build(**weights: float) -> WorldModel:
    """Return a small model for continuous actions in two dimensions."""
    torch.manual_seed(0)
    mixer = TiledSSDConfig(tiles=(1,), state=16, head_dim=16)
    config = ModelConfig(
        width=32, mixer=mixer, attention_heads=2, loss=LossWeights(**weights)
    )
    return WorldModel(config, (3, 64, 64), 2, discrete=False).eval()


def tworoom(*settings: str):
    """Compose the configuration of TwoRoom."""
    return compose(["experiment=tworoom", "threads=1", *settings])


def test_objective_weighs_rewards_and_steps_to_goals():
    config = tworoom("planner.horizon=4", "mpc.replan=2")
    env, model = make(config.env, 2), build(distance=1.0)
    goal, memory = torch.from_numpy(env.goals()), model.initial(2)
    g = torch.Generator().manual_seed(0)
    actions = torch.randn(2, 6, 4, 2, generator=g).clamp(-1, 1)
    scores = {}
    for reward, weight in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        objective = dataclasses.replace(config.objective, reward=reward, goal=weight)
        changed = dataclasses.replace(config, objective=objective)
        agent = build_agent(changed, model, env)
        image = goal if weight else None
        scores[reward, weight] = agent.objective.score(memory, actions, image)
    expected = 2 * scores[1.0, 0.0] + 0.5 * scores[0.0, 1.0]
    assert torch.allclose(scores[2.0, 0.5], expected, atol=1e-5)
    rollout = model.imagine(memory, actions, goal=goal)
    assert rollout.distance is not None
    assert torch.allclose(scores[0.0, 1.0], -rollout.distance.mean(2), atol=1e-5)
    frames = torch.from_numpy(env.frames())
    first = torch.ones(2, dtype=torch.bool)
    state = agent.observe(agent.initial(2), frames, torch.zeros(2, 2), first)
    with pytest.raises(ValueError, match="no goal image"):
        agent.act(state)


def test_objective_seeks_novelty():
    model = build(surprise=1.0)
    config = tworoom("objective.goal=0", "objective.novelty=2")
    agent = build_agent(config, model, make(config.env, 2))
    actions = torch.zeros(2, 1, 4, 2)
    rollout = model.imagine(model.initial(2), actions)
    expected = 2 * planners.discounted_return(
        rollout.surprise, rollout.cont, None, model.config.discount
    )
    found = agent.objective.score(model.initial(2), actions)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="no surprise head: train it"):
        build_agent(config, build(distance=1.0), make(config.env, 2))


@pytest.mark.slow
def test_training_saves_the_goal_distance_head(tmp_path):
    config = tworoom(
        "train.steps=2",
        "train.collect.frames=2000",
        "train.batch=2",
        "train.length=16",
        "train.min_length=16",
    )
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "export" / "weights.safetensors").is_file()
    assert build_model(config, make(config.env, 1)).distance is not None


def test_build_agent_names_missing_goals():
    config = tworoom()
    without_goal = dataclasses.replace(config.env, goal="none")
    message = r"objective\.goal=1: this environment has no goal images; or set"
    with pytest.raises(UserError, match=message):
        build_agent(config, build(distance=1.0), make(without_goal, 2))
    message = r"objective\.goal=1: this model has no distance head"
    with pytest.raises(UserError, match=message):
        build_agent(config, build(), make(config.env, 2))


def test_plan_policy_follows_goals():
    config = tworoom("planner.horizon=3", "mpc.replan=2", "planner.candidates=16")
    env = make(config.env, 2)
    policy = PlanPolicy(build_agent(config, build(distance=1.0), env))
    out = TorchRLEnv(env).rollout(4, policy, break_when_any_done=False)
    assert out["action"].shape == (2, 4, 2) and out["action"].abs().max() <= 1
