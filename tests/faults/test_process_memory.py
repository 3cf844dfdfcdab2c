"""The memory of a process does not grow with the frames that it collects or observes."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lssvwm.agent.cli.failures import INTERRUPTED

from tests.faults.harness import SMALL, Command

GROWTH = 40.0
"""Growth in MB that is no leak: the plots at the end take 20."""
HOUR = 3600.0


def watched(command: Command, seconds: float = math.inf) -> list[float]:
    """Return the memory of a command in MB, without mapped files, for each second until it ends.

    seconds: how long it may run until it is interrupted
    """
    status = Path(f"/proc/{command.child.pid}/status")
    end = time.monotonic() + seconds
    found = []
    while command.child.exitcode is None and time.monotonic() < end:
        with suppress(OSError, StopIteration):  # it has just ended
            line = next(x for x in status.read_text().splitlines() if "RssAnon" in x)
            found.append(int(line.split()[1]) / 1024)
        time.sleep(1.0)
    if command.child.exitcode is None:
        os.kill(command.child.pid, signal.SIGINT)
    return found


def growth(megabytes: list[float]) -> float:
    """Return by how much the second half exceeds the largest value of the first."""
    middle = len(megabytes) // 2
    first, second = max(megabytes[:middle]), max(megabytes[middle:])
    print(
        f"{len(megabytes)} s: {first:.1f} MB in the first half, {second:.1f} MB in the second"
    )
    return second - first


@pytest.mark.slow
@pytest.mark.timeout(2 * HOUR)
def test_collection_for_an_hour_keeps_its_memory(tmp_path):
    rounds = ["train.steps=100000", "train.collect.every=1", "train.collect.more=20000"]
    command = Command(["train", *SMALL, *rounds, f"output={tmp_path}/run"])
    found = watched(command, HOUR)
    assert len(found) > HOUR / 2
    assert command.ending().code == INTERRUPTED
    assert growth(found) < GROWTH


@pytest.mark.slow
@pytest.mark.timeout(HOUR)
def test_evaluation_of_a_long_episode_keeps_its_memory(tmp_path):
    made = Command(["train", *SMALL, "train.steps=1", f"output={tmp_path}/run"])
    assert made.ending().code == 0
    chosen = ["tasks.count=1", "tasks.arms=[retained]", "threads=1"]
    long = ["env.length=100000", f"output={tmp_path}/evaluation"]
    command = Command(["evaluate", f"checkpoint={tmp_path}/run", *chosen, *long])
    found = watched(command)
    assert command.ending().code == 0
    assert growth(found) < GROWTH
