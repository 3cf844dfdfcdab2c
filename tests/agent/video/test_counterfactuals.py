"""Counterfactuals: several plans from one memory, carried out in copies of the episode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lssvwm.agent.config.settings import RecordConfig, RecordRunConfig
from lssvwm.agent.mpc import Agent, MPCConfig
from lssvwm.agent.video.counterfactuals import (
    UNSEEN,
    Comparison,
    CounterfactualPainter,
    farthest,
)
from lssvwm.agent.video.episode import Episode
from lssvwm.agent.video.record import record_episode
from lssvwm.envs import TMazeConfig
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

from lssvwm import envs

SEED = 2**32


def compare(**settings) -> tuple[Episode, Comparison]:
    """Compare plans of a small untrained agent before the choice of a T-maze."""
    env = envs.make(TMazeConfig(length=5), 1)
    torch.manual_seed(0)
    model_config = ModelConfig(
        width=32,
        mixer=TiledSSDConfig(tiles=(3,), state=16, head_dim=16),
        attention_heads=2,
    )
    agent = Agent(
        WorldModel(model_config, env.frame_shape, 4),
        CEMConfig(candidates=8, horizon=6, iterations=1, elites=2, keep_elites=2),
        mpc=MPCConfig(proposals=2),
    )
    config = RecordRunConfig(
        env=TMazeConfig(length=5),
        record=RecordConfig(mode="counterfactuals", **settings),
    )
    episode = Episode(env, SEED, 0)
    comparison = record_episode(config, agent, episode).comparison
    assert comparison is not None
    return episode, comparison


def test_counterfactuals_leave_the_episode_unchanged():
    episode, comparison = compare(plans=4)
    start = comparison.start
    assert not start.guided
    assert len(comparison.plans) == 4
    assert episode.step == start.step
    assert (episode.now().pixels == start.pixels).all()
    plans = [plan.actions.tolist() for plan in comparison.plans]
    assert len({tuple(plan) for plan in plans}) == 4
    assert all(len(plan) == 6 for plan in plans)


def test_counterfactuals_execute_their_actions():
    _, comparison = compare()
    for plan in comparison.plans:
        again = Episode(envs.make(TMazeConfig(length=5), 1), SEED, 0)
        while again.env.in_context()[0]:
            again.act(again.guide.act())
        for action, moment in zip(plan.actions, plan.moments):
            real = again.act(action[None])
            assert (real.pixels == moment.pixels).all()
            assert real.reward == moment.reward
        assert again.outcome() == plan.outcome
        assert len(plan.moments) == 6 or again.ended


def test_farthest_chooses_distant_points():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [-3.0]])
    assert farthest(points, 3) == [0, 3, 4]
    assert farthest(points, 9)[0] == 0


def test_painter_draws_plans_step_by_step():
    _, comparison = compare()
    assert comparison.map is not None
    assert len(comparison.map.past) == comparison.start.step + 1
    painter = CounterfactualPainter(comparison, 2, "counterfactuals")
    plain = CounterfactualPainter(replace(comparison, map=None), 2, "counterfactuals")
    assert painter.size[0] > plain.size[0]
    pictures = list(painter.pictures())
    assert len(pictures) == painter.steps + 1
    assert all(p.shape == (painter.size[1], painter.size[0], 3) for p in pictures)
    assert painter.size[0] % 2 == painter.size[1] % 2 == 0
    assert (pictures[0] != pictures[-1]).any()
    assert plain.draw(0).shape == (plain.size[1], plain.size[0], 3)


def test_memory_map_brightens_seen_places():
    _, comparison = compare()
    drawn = comparison.map
    assert drawn is not None
    light = drawn.brightened()
    assert light.shape == (3, *drawn.seen.shape)
    assert drawn.seen.any() and not drawn.seen.all()
    assert (light[:, ~drawn.seen] == torch.tensor(UNSEEN)[:, None].numpy()).all()
    assert (light[:, drawn.seen] >= drawn.picture[:, drawn.seen]).all()


def test_record_mode_branches_names_its_new_value():
    from lssvwm.agent.config.composition import compose
    from lssvwm.agent.errors import UserError

    with pytest.raises(UserError, match="branches is now counterfactuals"):
        compose(["record.mode=branches"], RecordRunConfig)
