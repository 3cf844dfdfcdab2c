"""Policy and value learn in imagination; nothing else does."""

import dataclasses

import pytest
import torch
from lssvwm.agent.config.settings import ActorCriticConfig, Config
from lssvwm.agent.mpc import Agent
from lssvwm.agent.training import loop as training
from lssvwm.agent.training.actor_critic import dream, returns
from lssvwm.envs import TMazeConfig
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import WorldModel

from tests.agent.training.test_loop import TINY, config, metrics


def agent(**changes) -> Agent:
    torch.manual_seed(0)
    model = WorldModel(dataclasses.replace(TINY, **changes), (3, 64, 64), 3)
    return Agent(model, CEMConfig())


def seen(agent, b=4, t=3):
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (b, t, 3, 64, 64), dtype=torch.uint8, generator=g)
    first = torch.zeros(b, t, dtype=torch.bool)
    first[:, 0] = True
    model = agent.model
    memory, told = model.observe(
        model.initial(b),
        frames,
        torch.zeros(b, t, dtype=torch.int64),
        first,
        learn=True,
    )
    return memory, told.last(), torch.zeros(b, dtype=torch.bool)


def test_returns_are_discounted_sums_that_end_in_the_last_value():
    reward, cont = torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 0.5, 1.0]]])
    value = torch.tensor([[[9.0, 9.0, 3.0]]])
    last = 2 + 0.9 * 3
    middle = 1 + 0.9 * 0.5 * last
    assert returns(reward, cont, value, 0.9, 1.0).flatten().tolist() == pytest.approx(
        [0.9 * middle, middle, last]
    )
    one_step = returns(reward, cont, value, 0.9, 0.0).flatten().tolist()
    assert one_step == pytest.approx([0.9 * 9, 1 + 0.9 * 0.5 * 9, last])


def test_only_the_heads_learn_from_dreams():
    one = agent()
    loss, told = dream(one, *seen(one), 3, 5, 0.01)
    loss.backward()
    moved = {
        name
        for name, p in one.model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert moved and all(name.startswith("heads.") for name in moved)
    assert all(torch.isfinite(value) for value in told.values())


def test_what_ended_does_not_count():
    one = agent()
    memory, now, ended = seen(one)
    loss, _ = dream(one, memory, now, ~ended, 3, 5, 0.01)
    assert float(loss.detach()) == 0


def test_the_policy_learns_to_take_the_action_that_is_imagined_to_pay(monkeypatch):
    """A world whose reward is 1 after action 2 and 0 after others."""
    one = agent()
    model, step = one.model, one.model.step

    def paying(fork, action, *args, **more):
        out, frame = step(fork, action, *args, **more)
        logits = torch.full_like(out.reward_logits.detach(), -20.0)
        place = torch.where(
            action == 2, (out.bins - 0.6931).abs().argmin(), out.bins.abs().argmin()
        )
        return dataclasses.replace(
            out, reward_logits=logits.scatter(-1, place[..., None], 20.0)
        ), frame

    monkeypatch.setattr(model, "step", paying)
    optimizer = torch.optim.Adam(model.heads.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = dream(one, *seen(one), 8, 6, 0.001)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        memory, now, _ = seen(one)
        ahead = model.imagine(memory, torch.zeros(4, 1, 3, dtype=torch.int64))
    for policy in (
        now.policy,
        ahead.policy[:, 0, -1],
    ):  # of frames that were seen, and of foreseen ones
        assert (policy.softmax(-1)[..., 2] > 0.8).all()


def test_a_run_tells_how_its_dreams_go(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    made: Config = config(TMazeConfig(length=5))
    heads = ActorCriticConfig(walks=2)
    folder = training.train(
        dataclasses.replace(
            made, train=dataclasses.replace(made.train, actor_critic=heads)
        ),
        tmp_path,
    )
    assert all({"dream/return", "dream/entropy"} <= set(row) for row in metrics(folder))
