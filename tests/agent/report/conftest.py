"""Folders of runs with made-up results."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import CheckpointConfig
from lssvwm.agent.evaluation import results
from lssvwm.agent.evaluation.origin import Origin, used_settings
from lssvwm.agent.evaluation.results import Evaluation, Outcome, TaskList
from lssvwm.envs.base import TIMEOUT

WEIGHTS = "0123456789abcdef"
MakeRun = Callable[..., Path]


composed = functools.cache(lambda *settings: composition.compose(settings))


def outcome(rate: float, tasks: int = 40) -> Outcome:
    """Return tasks of which a share is solved, at four distances and ages."""
    done = Outcome.empty(np.arange(tasks))
    done.success[: round(rate * tasks)] = True
    done.outcome[~done.success] = TIMEOUT
    done.total_reward[:] = done.success
    done.goal_distance[:] = 3 + np.arange(tasks) % 4
    done.evidence_age[:] = 10 * (1 + np.arange(tasks) % 4)
    return done


def write_evaluation(folder: Path, checkpoint: Path, *settings: str) -> None:
    """Write the evaluation of a run whose memory matters."""
    saved = composition.read(checkpoint / "config.yaml")
    chosen = [f"checkpoint={checkpoint}", *settings]
    config = composition.from_checkpoint(saved, chosen, CheckpointConfig)
    outcomes = {"retained": outcome(0.9), "erased": outcome(0.3)}
    origin = Origin("0.2.0", "2026-11-28T00:00:00+00:00", str(checkpoint), WEIGHTS)
    found = Evaluation(
        TaskList(0, 40, "abc"),
        results.summarise(outcomes),
        used_settings(config),
        origin,
    )
    results.write(found, outcomes, folder)


def write_log(folder: Path, steps: int = 400) -> None:
    """Write the log of a run, one row each 10 steps."""
    rows = [
        {
            "step": step,
            "time": step / 2,
            "loss/total": 5 / step,
            "psnr": 20.0,
            "late": 1.0,
        }
        for step in range(10, steps + 1, 10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that makes the folder of a run: settings, log, evaluation and a video."""

    def make(name: str, *settings: str) -> Path:
        folder = tmp_path / name
        (folder / "evaluation").mkdir(parents=True)
        config = composed("experiment=smoke", *settings)
        composition.save(config, folder / "config.yaml")
        write_log(folder)
        write_evaluation(folder / "evaluation", folder)
        (folder / "video").mkdir()
        (folder / "video" / "plan-0.mp4").write_bytes(bytes(3000))
        about = {"mode": "plan", "success": True, "mean_psnr": {"imagined": 13.25}}
        (folder / "video" / "plan-0.json").write_text(json.dumps(about))
        return folder

    return make
