"""Faulty environments of a user stop a run with one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from lssvwm.agent.config.settings import ObjectiveConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.training import loop
from lssvwm.agent.training.run import build
from lssvwm.envs import GymConfig, TMazeConfig

from tests.agent.training.conftest import collecting, short_run, training

FILE = Path(__file__).parents[2] / "envs" / "faulty_env.py"


def test_environment_without_an_end_stops_the_collection(tmp_path, monkeypatch):
    monkeypatch.setattr("lssvwm.agent.training.streams.UNENDED_FRAMES", 200)
    config = short_run(GymConfig(factory=f"{FILE}:Endless", size=66))
    with pytest.raises(UserError, match=r"without an end.*env\.max_steps"):
        loop.train(config, tmp_path / "run")


def test_train_refuses_batches_beyond_the_memory(tmp_path):
    config = training(short_run(TMazeConfig(length=5)), batch=65_536, length=100_000)
    with pytest.raises(UserError, match=r"train\.batch=65536.* GB, this machine has"):
        build(config, tmp_path)


def test_train_checks_the_agent_before_it_collects(tmp_path):
    config = training(short_run(TMazeConfig(length=5)), evaluate_every=2)
    objective = ObjectiveConfig(novelty=1.0)
    config = collecting(config, mix={"random": 1.0, "plan": 1.0})
    config = type(config)(**(vars(config) | {"objective": objective}))
    with pytest.raises(UserError, match="no surprise head"):
        build(config, tmp_path)
