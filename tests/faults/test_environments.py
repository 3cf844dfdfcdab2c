"""Commands close the environments that they open, however they end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.campaign import FAULTY
from tests.faults.harness import SMALL, Hook, run, sends

SIMULATOR = ["env=gym", f"env.factory={FAULTY}:Simulator", "env.size=66"]
TINY = [*SIMULATOR, *(text for text in SMALL if not text.startswith("env"))]


def opened_and_closed(log: Path) -> tuple[list[int], list[int]]:
    """Return the processes that environments opened and closed; ends those that are left."""
    lines = [line.split() for line in log.read_text().splitlines()]
    opened = [int(pid) for what, pid in lines if what == "open"]
    closed = [int(pid) for what, pid in lines if what == "close"]
    for pid in {*opened} - {*closed}:
        os.kill(pid, signal.SIGKILL)
    log.write_text("")
    return opened, closed


@pytest.fixture
def log(tmp_path, monkeypatch):
    file = tmp_path / "log"
    monkeypatch.setenv("HELPER_LOG", str(file))
    return file


def test_commands_close_what_they_open(tmp_path, log):
    folder = tmp_path / "run"
    extra = ["train.steps=2", "train.collect.every=1", "train.evaluate_every=2"]
    train = run(["train", *TINY, *extra, f"output={folder}"])
    assert train.code == 0, train.text
    opened, closed = opened_and_closed(log)
    assert len(opened) > 60  # those of the validation too
    assert sorted(opened) == sorted(closed)
    chosen = [f"checkpoint={folder}", "trust=true", "tasks.count=6"]
    arms = "tasks.arms=[retained,random,noop]"
    evaluate = run(["evaluate", *chosen, arms, f"output={tmp_path}/results"])
    assert evaluate.code == 0, evaluate.text
    opened, closed = opened_and_closed(log)
    assert len(opened) == 6
    assert sorted(opened) == sorted(closed)


def test_terminated_command_closes_its_environments(tmp_path, log):
    folder = tmp_path / "run"
    hook = Hook(folder, 12, sends(signal.SIGTERM))
    ending = run(["train", *TINY, "train.steps=50", f"output={folder}"], hook)
    assert ending.code == 130, ending.text
    opened, closed = opened_and_closed(log)
    assert opened and sorted(opened) == sorted(closed)
