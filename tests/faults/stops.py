"""Stop commands at every operation on files, at random times, and start them twice at once.

Afterwards the command is repeated, or its run resumed. It must then give what it gives undisturbed.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import imageio.v3 as iio
from lssvwm.agent.shards import open_shards

from tests.faults import harness
from tests.faults.harness import (
    SMALL,
    Case,
    Command,
    Hook,
    arms,
    counted,
    described,
    rows,
    run,
)

DATA = [text for text in SMALL if text.startswith(("env", "train.collect", "threads"))]
STEPS = ["train.steps=4", "train.collect.every=2", "train.collect.more=40"]
PLAYED = ["tasks.arms=[retained,random]", "tasks.count=3", "threads=1"]
SWEEP = ["benchmark.sweep={env.length: [5, 6]}", "benchmark.processes=2"]
FILM = ["mode=plan", "record.episodes=1", "record.horizon=3", "threads=1"]
TIMED = ("second", "date", "crc32")
"""Starts of keys that hold times, or checksums of them."""
KILLS = 12
"""Kills of each command at random times."""


@dataclass(frozen=True)
class Undisturbed:
    """Hold the result of a command, its number of operations on files, and its time."""

    result: Any
    operations: int
    seconds: float


@dataclass
class Subject:
    """Hold a command that writes into a folder.

    arguments: the command, given its folder
    result: what it has written, without times; it raises if a file is not whole
    resumes: whether `resume` continues the command; otherwise it is repeated
    """

    name: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    resumes: bool = False
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp()) / "out"

    @cached_property
    def undisturbed(self) -> Undisturbed:
        """Run the command once, and watch it."""
        began = time.monotonic()
        ending, count = counted(self.arguments(self.folder), self.folder)
        assert ending.code == 0, ending.text
        seconds = time.monotonic() - began
        return Undisturbed(self.result(self.folder), count, seconds)

    def fault_after(self, folder: Path) -> str | None:
        """Continue a stopped command; return how its result differs, or None."""
        ending = run(["resume", str(folder)]) if self.resumes else None
        if ending is None or ending.code != 0:  # stopped before there was a run
            ending = run(self.arguments(folder))
        if ending.code != 0:
            return f"cannot continue: {ending.line[:200]}"
        return (
            None if self.result(folder) == self.undisturbed.result else "another result"
        )


def _frames(folder: Path) -> bool:
    """Return whether all shards are whole, no two hold the same episodes, and nothing lacks."""
    shards = open_shards(folder)
    seeds = [shard.provenance()["seed"] for shard in shards]
    return len({*seeds}) == len(seeds) and sum(map(len, shards)) >= 100


def _videos(folder: Path) -> Any:
    """Return the shapes of all videos and what is noted about them."""
    shapes = {file.name: iio.imread(file).shape for file in folder.glob("*.mp4")}
    notes = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return shapes, [_timeless(note) for note in notes]


def _table(folder: Path) -> Any:
    """Return the cases of a sweep, without times."""
    found = json.loads((folder / "planning.json").read_text())
    return _timeless(found["cases"])


def _timeless(plain: Any) -> Any:
    """Return plain data without times and what depends on them."""
    if isinstance(plain, dict):
        kept = {k: v for k, v in plain.items() if not k.startswith(TIMED)}
        return {key: _timeless(value) for key, value in kept.items()}
    return [_timeless(value) for value in plain] if isinstance(plain, list) else plain


def _plays(*command: str) -> Callable[[Path], list[str]]:
    """Return the arguments of a command that plays the agent of the undisturbed run."""

    def arguments(folder: Path) -> list[str]:
        trained = f"checkpoint={SUBJECTS['train'].folder}"
        assert SUBJECTS["train"].undisturbed
        return [*command, trained, f"output={folder}"]

    return arguments


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "train",
            lambda folder: ["train", *SMALL, *STEPS, f"output={folder}"],
            rows,
            resumes=True,
        ),
        Subject(
            "collect", lambda folder: ["collect", *DATA, f"output={folder}"], _frames
        ),
        Subject("evaluate", _plays("evaluate", *PLAYED), arms),
        Subject("record", _plays("record", *FILM), _videos),
        Subject("sweep", _plays("benchmark", "planning", *SWEEP, *PLAYED), _table),
    )
}


def stops() -> list[Case]:
    """List kills and signals at every operation on files of all commands."""
    actions = {
        "SIGKILL": harness.kill,
        "SIGTERM": harness.sends(signal.SIGTERM),
        "SIGHUP": harness.sends(signal.SIGHUP),
        "SIGINT": harness.sends(signal.SIGINT),
    }
    return [
        _hooked(subject, name, Hook(Path(), at, action))
        for subject in SUBJECTS.values()
        for name, action in actions.items()
        for at in range(
            1, subject.undisturbed.operations + 1, 1 if name == "SIGKILL" else 4
        )
    ]


def disks() -> list[Case]:
    """List disks that are full or read-only from every other operation on."""
    actions = {"full disk": harness.FULL, "read-only disk": harness.READ_ONLY}
    return [
        _hooked(subject, name, Hook(Path(), at, action, lasting=True))
        for subject in SUBJECTS.values()
        for name, action in actions.items()
        for at in range(1, subject.undisturbed.operations + 1, 2)
    ]


def _hooked(subject: Subject, name: str, hook: Hook) -> Case:
    def inject(folder: Path) -> str | None:
        out = folder / "out"
        disturbed = replace(hook, folder=folder)
        ending = run(subject.arguments(out), disturbed)
        return described(ending, refused=False) or subject.fault_after(out)

    return Case(f"{subject.name}, {name} at operation {hook.at}", inject)


def kills() -> list[Case]:
    """List kills of all commands at random times."""
    draw = random.Random(0)
    return [
        _killed(subject, draw.random())
        for subject in SUBJECTS.values()
        for _ in range(KILLS)
    ]


def _killed(subject: Subject, at: float) -> Case:
    def inject(folder: Path) -> str | None:
        out = folder / "out"
        command = Command(subject.arguments(out))
        time.sleep(at * subject.undisturbed.seconds)
        command.kill()
        return described(command.ending(), refused=False) or subject.fault_after(out)

    return Case(f"{subject.name}, killed after {at:.0%} of its time", inject)


def pairs() -> list[Case]:
    """List commands that are started twice with the same output."""
    return [_twice(subject) for subject in SUBJECTS.values() for _ in range(2)]


def _twice(subject: Subject) -> Case:
    def inject(folder: Path) -> str | None:
        out = folder / "out"
        commands = [Command(subject.arguments(out)) for _ in range(2)]
        endings = [command.ending() for command in commands]
        faults = [described(ending, refused=False) for ending in endings]
        if any(faults):
            return next(filter(None, faults))
        if all(ending.code for ending in endings):
            return f"both fail: {endings[0].line[:200]}"
        return (
            None
            if subject.result(out) == subject.undisturbed.result
            else "another result"
        )

    return Case(f"{subject.name}, twice at once", inject)
