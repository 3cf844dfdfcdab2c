"""Copies of episodes: they continue like the original, or one line says why they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.video.episode import Episode
from lssvwm.envs import GymConfig, TMazeConfig

FAULTY = Path(__file__).parents[2] / "envs" / "faulty_env.py"


def walk(steady: bool) -> GymConfig:
    return GymConfig(factory=f"{FAULTY}:Walk", size=16, kwargs={"steady": steady})


def started(config, steps: int = 5) -> Episode:
    episode = Episode(config.build(1), seed=7, walk_seed=0)
    for step in range(steps):
        episode.act(np.array([step % 3]))
    return episode


@pytest.mark.parametrize("config", [walk(steady=True), TMazeConfig(length=8)])
def test_copied_episode_continues_like_the_original(config):
    episode = started(config)
    before = episode.now()
    with episode.copied() as copy:
        assert (copy.now().pixels == before.pixels).all()
        ahead = [copy.act(np.array([2])) for _ in range(3)]
    assert (episode.now().pixels == before.pixels).all()
    for moment in ahead:
        real = episode.act(np.array([2]))
        assert (real.pixels == moment.pixels).all()
        assert real.reward == moment.reward


def test_copied_episode_needs_an_environment_that_its_seed_decides():
    episode = started(walk(steady=False))
    with (
        pytest.raises(UserError, match=r"other frames or rewards.*use mode=plan"),
        episode.copied(),
    ):
        pass
