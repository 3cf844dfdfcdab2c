"""The policy and value heads learn in imagination; nothing else does."""

import dataclasses

import pytest
import torch
from lssvwm.agent.config.settings import ActorCriticConfig
from lssvwm.agent.mpc import Agent
from lssvwm.agent.training import loop
from lssvwm.agent.training.actor_critic import Walks, imagined_loss, returns
from lssvwm.envs import TMazeConfig
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import WorldModel, imagination
from lssvwm.worldmodel.data import Trajectory

from tests.agent.conftest import TINY
from tests.agent.training.conftest import metrics, short_run, training


def new_agent() -> Agent:
    torch.manual_seed(0)
    return Agent(WorldModel(TINY, (3, 64, 64), 3), CEMConfig())


def observed(agent, batch=4, frames=3):
    """Return memories of random frames, the outputs for the last frame, and no ends."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, frames, 3, 64, 64)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    first = torch.zeros(batch, frames, dtype=torch.bool)
    first[:, 0] = True
    action = torch.zeros(batch, frames, dtype=torch.int64)
    model = agent.model
    trajectory = Trajectory(action, first, torch.ones_like(first))
    with torch.no_grad():
        memory, tokens = model.write(model.initial(batch), pixels, trajectory)
    outputs = model.heads(tokens)
    return memory, outputs.last(), torch.zeros(batch, dtype=torch.bool)


def test_returns_end_in_the_last_value():
    reward = torch.tensor([[[0.0, 1.0, 2.0]]])
    cont = torch.tensor([[[1.0, 0.5, 1.0]]])
    value = torch.tensor([[[9.0, 9.0, 3.0]]])
    last = 2 + 0.9 * 3
    middle = 1 + 0.9 * 0.5 * last
    whole = returns(reward, cont, value, 0.9, 1.0).flatten().tolist()
    assert whole == pytest.approx([0.9 * middle, middle, last])
    one_step = returns(reward, cont, value, 0.9, 0.0).flatten().tolist()
    assert one_step == pytest.approx([0.9 * 9, 1 + 0.9 * 0.5 * 9, last])


def test_imagined_loss_trains_only_the_heads():
    agent = new_agent()
    loss, found = imagined_loss(agent, *observed(agent), Walks(3, 5))
    loss.backward()
    moved = {
        name
        for name, p in agent.model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert moved and all(name.startswith("heads.") for name in moved)
    assert all(torch.isfinite(value) for value in found.values())


def test_imagined_loss_ignores_ended_episodes():
    agent = new_agent()
    memory, now, ended = observed(agent)
    loss, _ = imagined_loss(agent, memory, now, ~ended, Walks(3, 5))
    assert float(loss.detach()) == 0


def test_imagined_loss_teaches_the_rewarded_action(monkeypatch):
    """Train in a world whose reward is 1 after action 2 and 0 after others."""
    agent = new_agent()
    model, step = agent.model, imagination.step

    def paying(model, state, action, *args, **more):
        out, frame = step(model, state, action, *args, **more)
        logits = torch.full_like(out.reward_logits.detach(), -20.0)
        one = (out.bins - 0.6931).abs().argmin()
        zero = out.bins.abs().argmin()
        reward = torch.where(action == 2, one, zero)
        logits = logits.scatter(-1, reward[..., None], 20.0)
        return dataclasses.replace(out, reward_logits=logits), frame

    monkeypatch.setattr(imagination, "step", paying)
    optimizer = torch.optim.Adam(model.heads.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = imagined_loss(agent, *observed(agent), Walks(8, 6, 0.001))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        memory, now, _ = observed(agent)
        ahead = model.imagine(memory, torch.zeros(4, 1, 3, dtype=torch.int64))
    for policy in (now.policy, ahead.policy[:, 0, -1]):  # observed, and predicted
        assert (policy.softmax(-1)[..., 2] > 0.8).all()


def test_train_logs_imagined_walks(tmp_path):
    config = short_run(TMazeConfig(length=5))
    config = training(config, actor_critic=ActorCriticConfig(walks=2))
    folder = loop.train(config, tmp_path)
    names = {"actor_critic/return", "actor_critic/entropy"}
    assert all(names <= set(row) for row in metrics(folder))
