"""Trackers receive what a run logs, continue it after a resume, and never end it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.results import Outcome, summarise
from lssvwm.agent.training import trackers
from lssvwm.agent.training.logger import Logger
from lssvwm.agent.training.trackers import check, open_tracker, share
from lssvwm.agent.video.encoding import write_mp4

from tests.agent.training.conftest import metrics

FOUND = {
    "tasks": {"seed": 0, "count": 4, "hash": "abc"},
    "arms": {
        arm: row.to_dict()
        for arm, row in summarise({"retained": Outcome.empty(np.arange(4))}).items()
    },
}


def config(name: str) -> Config:
    plain = compose(["experiment=smoke"])
    return dataclasses.replace(
        plain, train=dataclasses.replace(plain.train, logger=name)
    )


def log(name: str, folder: Path, start: int, steps: list[int]) -> None:
    """Log a run from a checkpoint at step `start`."""
    logger = Logger(folder, start, tracker=open_tracker(config(name), folder, start))
    for step in steps:
        logger.write(step, {"loss/total": float(step)})
    logger.close()


def results(name: str, folder: Path) -> str | None:
    """Share a table and a video of the run; returns the failure."""
    video = folder / "video" / "plan-0.mp4"
    if not video.exists():
        video.parent.mkdir()
        write_mp4(video, np.zeros((4, 32, 64, 3), np.uint8), (64, 32), 6)
    return share(config(name), folder, FOUND, [video])


def test_tensorboard_continues_and_shows_results(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", tmp_path, 0, [2, 4, 6])
    log("tensorboard", tmp_path, 4, [8])
    assert results("tensorboard", tmp_path) is None
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/total")] == [2, 4, 8]
    (picture,) = board.Images("video/plan-0")
    assert picture.step == 8 and picture.encoded_image_string[:6] == b"GIF89a"
    (text,) = board.Tensors("evaluation/text_summary")
    assert b"retained" in text.tensor_proto.string_val[0]


def test_csv_continues(tmp_path: Path) -> None:
    log("csv", tmp_path, 0, [2, 4, 6])
    log("csv", tmp_path, 4, [8])
    assert results("csv", tmp_path) is None
    rows = (tmp_path / "csv/scalars/loss/total.csv").read_text().split()
    assert rows == ["2,2.0", "4,4.0", "8,8.0"]
    assert "retained" in (tmp_path / "csv/texts/evaluation-8.txt").read_text()


def test_csv_keeps_rows_of_a_run_that_goes_on(tmp_path: Path) -> None:
    log("csv", tmp_path, 0, [2, 4])
    file = tmp_path / "csv/scalars/loss/total.csv"
    with file.open("a") as training:
        assert results("csv", tmp_path) is None
        training.write("6,6.0\n\n")
    log("csv", tmp_path, 6, [8])
    assert file.read_text().split() == ["2,2.0", "4,4.0", "6,6.0", "8,8.0"]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_missing_package_is_named_before_work(name: str, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"pip install 'lssvwm\[{name}\]'"):
        check(name)


def test_run_is_not_built_without_its_tracker(tmp_path: Path, monkeypatch) -> None:
    from lssvwm.agent.training.run import build

    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"train\.logger=wandb needs"):
        build(config("wandb"), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Broken(trackers.Tracker):
    """Fail with every message."""

    def open(self, config: Config, step: int):
        return None

    def metrics(self, values, step: int) -> None:
        raise ConnectionError("the server is gone")


def test_failing_tracker_ends_no_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "csv", Broken)
    logger = Logger(tmp_path, 0, tracker=open_tracker(config("csv"), tmp_path, 0))
    for step in (2, 4):
        logger.add({"loss/total": torch.tensor(1.0), "psnr": torch.tensor(1.0)})
        logger.flush(step)
    logger.close()
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4]
    assert capsys.readouterr().out.count("the server is gone") == 1


def test_refused_run_gives_one_line(tmp_path: Path, monkeypatch) -> None:
    class Refusing(Broken):
        def open(self, config: Config, step: int):
            raise PermissionError("log in first\nTraceback")

    monkeypatch.setitem(trackers.TRACKERS, "csv", Refusing)
    with pytest.raises(UserError, match=r"^train\.logger=csv: log in first; or choose"):
        open_tracker(config("csv"), tmp_path, 0)
    log("tensorboard", tmp_path, 0, [2])
    assert share(config("csv"), tmp_path, FOUND) == (
        "not sent to csv: train.logger=csv: log in first; or choose train.logger=csv"
    )


def test_folder_without_log_is_not_tracked(tmp_path: Path) -> None:
    assert share(config("tensorboard"), tmp_path, FOUND) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wandb_continues_offline(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log("wandb", tmp_path, 0, [2, 4])
    log("wandb", tmp_path, 4, [6])
    assert results("wandb", tmp_path) is None
    identity = json.loads((tmp_path / "tracker.json").read_text())["wandb"]
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(runs) >= 1
    media = [file.suffix for run in runs for file in run.rglob("media/**/*.*")]
    assert {".mp4", ".json"} <= set(media)


@pytest.mark.slow
def test_mlflow_continues_in_a_file(tmp_path: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log("mlflow", tmp_path, 0, [2, 4])
    log("mlflow", tmp_path, 4, [6])
    assert results("mlflow", tmp_path) is None
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "lssvwm"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [metric.step for metric in history] == [2, 4, 6]
    assert run.data.params["env.length"] == "6"
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"videos", "evaluation-6.json"} <= paths
    assert "MLFLOW_RUN_ID" not in os.environ


@pytest.mark.slow
def test_trackio_continues(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    log("trackio", tmp_path, 0, [2, 4])
    log("trackio", tmp_path, 4, [6])
    assert results("trackio", tmp_path) is None
    assert list((tmp_path / "trackio").rglob("lssvwm*"))
    assert list((tmp_path / "trackio").rglob("*.mp4"))
