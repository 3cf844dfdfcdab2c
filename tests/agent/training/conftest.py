"""Short runs that the tests of training share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from lssvwm.agent.config.settings import (
    CollectConfig,
    Config,
    TasksConfig,
    TrainConfig,
)
from lssvwm.agent.training import loop

from tests.agent.conftest import MPC, PLANNER, TINY


@pytest.fixture(autouse=True)
def short_logs(monkeypatch):
    """Write a row of the log every second step: runs here are short."""
    monkeypatch.setattr(loop, "LOG_EVERY", 2)


def short_run(env: Any, **changes: Any) -> Config:
    """Return settings of a run of four steps with a tiny model."""
    collect = CollectConfig(envs=4, frames=400, mix={"random": 1.0})
    train = TrainConfig(
        steps=4, batch=2, length=16, min_length=8, save_every=2, collect=collect
    )
    tasks = TasksConfig(count=6, window=3)
    config = Config(
        env=env,
        model=TINY,
        planner=PLANNER,
        mpc=MPC,
        train=train,
        tasks=tasks,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def training(config: Config, **changes: Any) -> Config:
    """Return the configuration with other settings in `train`."""
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, **changes)
    )


def collecting(config: Config, **changes: Any) -> Config:
    """Return the configuration with other settings in `train.collect`."""
    collect = dataclasses.replace(config.train.collect, **changes)
    return training(config, collect=collect)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log without their times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]
