"""The memory of a process does not grow with the frames that it collects or observes."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.harness import SMALL, Command

GROWTH = 40.0
"""Growth in MB that is no leak: the plots at the end take 20."""
HOUR = 3600.0


def watched(arguments: list[str], seconds: float = 1.0) -> list[float]:
    """Run a command; return its own memory in MB, without mapped files, every few seconds."""
    command = Command(arguments)
    status = Path(f"/proc/{command.child.pid}/status")
    found = []
    while command.child.exitcode is None:
        with suppress(OSError, IndexError):  # it has just ended
            line = next(x for x in status.read_text().splitlines() if "RssAnon" in x)
            found.append(int(line.split()[1]) / 1024)
        time.sleep(seconds)
    ending = command.ending()
    assert ending.code == 0, ending.text
    return found


def growth(megabytes: list[float]) -> float:
    """Return by how much the second half exceeds the largest value of the first."""
    middle = len(megabytes) // 2
    return max(megabytes[middle:]) - max(megabytes[:middle])


@pytest.mark.slow
@pytest.mark.timeout(3 * HOUR)
def test_collection_for_an_hour_keeps_its_memory(tmp_path):
    rounds = ["train.steps=400", "train.collect.every=1", "train.collect.more=20000"]
    found = watched(["train", *SMALL, *rounds, f"output={tmp_path}/run"])
    assert growth(found) < GROWTH


@pytest.mark.slow
@pytest.mark.timeout(HOUR)
def test_evaluation_of_a_long_episode_keeps_its_memory(tmp_path):
    made = Command(["train", *SMALL, "train.steps=1", f"output={tmp_path}/run"])
    assert made.ending().code == 0
    chosen = ["tasks.count=1", "tasks.arms=[retained]", "threads=1"]
    long = ["env.length=100000", f"output={tmp_path}/evaluation"]
    found = watched(["evaluate", f"checkpoint={tmp_path}/run", *chosen, *long])
    assert growth(found) < GROWTH
