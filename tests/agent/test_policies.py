"""TorchRL policies: aligned frames, memory kept by plain rollouts and collectors, guided contexts."""

import numpy as np
import pytest
import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.policies import GuidedPolicy, PlanPolicy, ScriptedPolicy
from lssvwm.envs import CountingConfig, TMazeConfig, make
from lssvwm.envs.base import Mixture
from lssvwm.envs.counting import decode
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import WorldModel
from tensordict import TensorDict
from torchrl.collectors import Collector

from tests.agent.conftest import MPC, PLANNER, TINY, random_model


class Witness(Agent):
    """An agent that notes what it observes."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.seen = []

    def observe(self, state, pixels, last_action, is_first, goal=None):
        frames = state.memory.frames.clone()
        self.seen.append(
            (pixels.clone(), last_action.clone(), is_first.clone(), frames)
        )
        return super().observe(state, pixels, last_action, is_first, goal)


def counting_policy(batch):
    env = make(CountingConfig(), batch)
    model = WorldModel(TINY, env.frame_shape, 5)
    return TorchRLEnv(env), PlanPolicy(Witness(model, PLANNER, mpc=MPC))


def test_plan_policy_sees_aligned_frames():
    env, policy = counting_policy(3)
    rollout = env.rollout(20, policy, break_when_any_done=False)
    pixels, action, first, frames = (
        torch.stack(x).numpy() for x in zip(*policy.agent.seen)
    )
    _, step, executed = decode(pixels)
    inside = ~first
    assert (step[first] == 0).all() and first.sum() >= 6
    assert (executed[inside] == action[inside]).all()
    chosen = rollout["action"].T.numpy()[:-1]
    assert (chosen[inside[1:]] == action[1:][inside[1:]]).all()
    assert (frames[inside] == step[inside]).all()  # memory counts observed frames


def expected_frames(is_first):
    """Frames in memory after each step [B, T], by the flags of first frames."""
    found = np.zeros(is_first.shape, np.int64)
    for t in range(is_first.shape[1]):
        before = found[:, t - 1] if t else 0
        found[:, t] = np.where(is_first[:, t], 1, before + 1)
    return found


@pytest.mark.parametrize("stops", [True, False])
def test_plain_rollout_keeps_memory(stops):
    """Explorers end episodes at different times: some slots are reset, others go on."""
    env = make(TMazeConfig(length=5), 4)
    agent = Agent(random_model(env.frame_shape), PLANNER, mpc=MPC)
    policy = PlanPolicy(agent)
    explorer = Mixture(env, {"oracle": 1, "noop": 1}, seed=0)

    def act(tensordict):
        return policy(tensordict).set("action", torch.from_numpy(explorer.act()))

    out = TorchRLEnv(env).rollout(40, act, break_when_any_done=stops)
    first = out["is_first"][..., 0].numpy()
    found = out["agent", "memory", "frames"].numpy()
    assert (found == expected_frames(first)).all() and found.max() > 3
    if not stops:
        assert len({tuple(row) for row in first}) > 1


@pytest.mark.parametrize("registers", [True, False, None])
def test_plain_collector_keeps_memory(registers):
    env, policy = counting_policy(3)
    collector = Collector(
        env,
        policy,
        frames_per_batch=30,
        total_frames=90,
        auto_register_policy_transforms=registers,
    )
    parts = list(collector)
    collector.shutdown()
    first = torch.cat([part["is_first"] for part in parts], 1)[..., 0].numpy()
    frames = torch.cat([part["agent", "memory", "frames"] for part in parts], 1)
    assert (frames.numpy() == expected_frames(first)).all() and frames.max() > 3


def test_lost_memory_is_an_error():
    env, policy = counting_policy(2)
    step = env.step(policy(env.reset()))
    with pytest.raises(RuntimeError, match=r"env\.step_mdp\(env\.step\(td\)\)"):
        policy(step["next"])
    policy(env.step_mdp(step))


@pytest.mark.parametrize("plans", [True, False])
def test_guided_policy_only_observes_in_context(plans):
    env = make(TMazeConfig(length=5), 3)
    agent = Agent(WorldModel(TINY, env.frame_shape, 4), PLANNER, mpc=MPC)
    policy = GuidedPolicy(agent, env, plans, seed=0)
    used = []

    def act(tensordict):
        tensordict = policy(tensordict)
        used.append(policy.state.used.clone())
        first = tensordict["is_first"][..., 0]
        assert (policy.state.memory.frames[first] == 1).all()
        return tensordict

    rollout = TorchRLEnv(env).rollout(20, act, break_when_any_done=False)
    context = rollout["truth", "in_context"]
    assert context[:, 0].all() and not context.all()
    way = [rollout["action"][0, t].item() for t in range(20) if context[0, t]]
    assert way == [2] * len(way)  # straight up the corridor
    planned = torch.stack(used, 1) < PLANNER.horizon
    assert not planned[context].any() and planned[~context].all() == plans


def test_scripted_policy_writes_actions():
    env = make(TMazeConfig(length=5), 2)
    policy = ScriptedPolicy(env.explorer("oracle", 0))
    first = torch.ones(2, 1, dtype=torch.bool)
    td = policy(TensorDict({"is_first": first}, batch_size=[2]))
    assert td["action"].shape == (2,)
