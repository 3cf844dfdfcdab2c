"""The world model as a TorchRL environment: its numbers, its rules, and planners in it."""

import pytest
import torch
from lssvwm.agent.imagined_env import ImaginationPlanner, ImaginedEnv
from lssvwm.agent.mpc import MPCConfig
from lssvwm.worldmodel import ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.attention import AttentionConfig
from lssvwm.worldmodel.mixers.gru import GRUConfig
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs
from torchrl.modules import CEMPlanner, MPPIPlanner, ValueOperator
from torchrl.objectives.value import TDLambdaEstimator

from lssvwm import planners

KINDS = {
    "lssvwm": {},
    "self_forcing": {"self_forcing_prob": 0.3},
    "mamba2": {
        "mixer": TiledSSDConfig(tiles=(3, 3), state=16, head_dim=16, rope_fraction=0.0),
        "attention_window": 0,
    },
    "window": {
        "mixer": AttentionConfig(layers=2, window=5, heads=2),
        "attention_window": 0,
    },
    "gru": {"mixer": GRUConfig(layers=2, state=30)},
}


def world(discrete=True, **changes) -> WorldModel:
    torch.manual_seed(0)
    fields = {
        "width": 32,
        "patch": 8,
        "mixer": TiledSSDConfig(tiles=(1, 3), state=16, head_dim=16),
        "attention_heads": 2,
    }
    model = (
        WorldModel(
            ModelConfig(**fields | changes),
            (3, 24, 24),
            3,
            discrete,
        )
        .double()
        .eval()
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.dim() > 1 else 0)
    return model


def remembered(model, batch=2, frames=7):
    g = torch.Generator().manual_seed(1)
    pixels = torch.randint(
        0, 256, (batch, frames, 3, 24, 24), dtype=torch.uint8, generator=g
    )
    action = torch.randint(0, 3, (batch, frames), generator=g)
    action = (
        action
        if model.discrete
        else torch.rand(batch, frames, 3, generator=g, dtype=model.dtype)
    )
    first = torch.zeros(batch, frames, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():
        return model.observe(model.initial(batch), pixels, action, first)[0]


def continuous(model) -> ImaginedEnv:
    return ImaginedEnv(model.float(), planners.Box(-torch.ones(3), torch.ones(3)))


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_imagined_env_steps_equal_imagination(changes):
    model = world(**changes)
    memory = remembered(model)
    actions = torch.randint(0, 3, (2, 5, 6), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model.imagine(memory, actions)
    env, before = ImaginedEnv(model), memory.clone()
    td = env.start(memory)[:, None].expand(2, 5).to_tensordict()
    for h in range(6):
        td = env.step(td.set("action", actions[:, :, h]))
        torch.testing.assert_close(
            td["next", "reward"][..., 0], whole.reward[:, :, h], rtol=0, atol=1e-9
        )
        torch.testing.assert_close(
            td["next", "value"][..., 0], whole.value[:, :, h], rtol=0, atol=1e-9
        )
        torch.testing.assert_close(
            td["next", "policy"], whole.policy[:, :, h], rtol=0, atol=1e-9
        )
        assert torch.equal(td["next", "terminated"][..., 0], whole.cont[:, :, h] < 0.5)
        td = td["next"].exclude("reward")
    assert memory.diff(before).max() == 0 and (td["memory", "frames"] == 13).all()


def test_imagined_env_passes_torchrl_checks():
    check_env_specs(ImaginedEnv(world().float()))
    check_env_specs(continuous(world(discrete=False)))


def test_imagined_termination_resets_nothing():
    model = world()
    with torch.no_grad():
        model.heads.out.bias[2 * 61] = -50.0  # the logit of going on
    env = ImaginedEnv(model)
    out = env.rollout(
        4, lambda td: td.set("action", torch.zeros(2, dtype=torch.int64)), auto_reset=False,
        tensordict=env.start(remembered(model)), break_when_any_done=False,
    )  # fmt: skip
    assert (
        out["next", "done"].all()
        and out["next", "memory", "frames"].tolist() == [[8, 9, 10, 11]] * 2
    )


def test_imagined_env_runs_planners_of_torchrl():
    env = continuous(world(discrete=False))
    start = env.start(remembered(env.model))
    cem = CEMPlanner(env, planning_horizon=3, optim_steps=2, num_candidates=8, top_k=3)
    value = ValueOperator(
        torch.nn.Linear(1, 1), in_keys=["value"], out_keys=["state_value"]
    )
    estimator = TDLambdaEstimator(gamma=0.99, lmbda=0.95, value_network=value)
    mppi = MPPIPlanner(
        env,
        estimator,
        1.0,
        planning_horizon=3,
        optim_steps=2,
        num_candidates=8,
        top_k=3,
    )
    for planner in (cem, mppi):
        action = planner(start.clone())["action"]
        assert (
            action.shape == (2, 3)
            and torch.isfinite(action).all()
            and action.abs().max() <= 1
        )


@pytest.mark.parametrize("discrete", [True, False])
def test_imagination_planner_is_a_torchrl_planner(discrete):
    model = world(discrete=discrete).float()
    env = ImaginedEnv(model) if discrete else continuous(model)
    config = planners.CEMConfig(horizon=4, candidates=16, elites=4, iterations=2)
    mpc = MPCConfig(proposals=4)
    planner = ImaginationPlanner(env, config, mpc=mpc, seed=3)
    start = env.start(model.initial(2))
    action = planner(start.clone())["action"]
    assert action.shape == ((2,) if discrete else (2, 3)) and isinstance(
        start, TensorDict
    )
    again = ImaginationPlanner(env, config, mpc=mpc, seed=3)(start.clone())["action"]
    assert torch.equal(action, again)
    out = env.rollout(
        3, planner, auto_reset=False, tensordict=start, break_when_any_done=False
    )
    assert out["action"].shape[:2] == (2, 3)
