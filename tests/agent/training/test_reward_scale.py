"""Training does not depend on the unit in which rewards are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import ActorCriticConfig
from lssvwm.agent.training import loop, stages
from lssvwm.envs import GymConfig

from tests.agent.training.conftest import metrics, short_run, training

FILE = Path(__file__).parents[2] / "envs" / "faulty_env.py"


def run_with(prize: float, folder: Path) -> Path:
    kwargs = {"prize": prize}
    env = GymConfig(factory=f"{FILE}:Faulty", size=66, kwargs=kwargs)
    walks = ActorCriticConfig(walks=1)
    return loop.train(training(short_run(env), actor_critic=walks), folder)


def test_training_is_the_same_for_rewards_of_any_scale(tmp_path):
    one = run_with(1.0, tmp_path / "one")
    assert checkpoint.load(one).heads.scales.tolist() == [1.0, 1.0]
    for power in (-20, 20):
        prize = 2.0**power
        run = run_with(prize, tmp_path / f"two{power}")
        assert checkpoint.load(run).heads.scales.tolist() == [prize, prize]
        for ours, theirs in zip(metrics(run), metrics(one)):
            theirs["actor_critic/return"] *= prize
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_resume_keeps_the_units_of_rewards(tmp_path):
    run = run_with(1e6, tmp_path / "run")
    stages.resume(run, ["train.steps=5", "trust=true"])
    assert checkpoint.load(run).heads.scales.tolist() == [1e6, 1e6]
