"""Run commands in child processes, inject faults into them, and look at how they end."""

from __future__ import annotations

import builtins
import errno
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

FORK = multiprocessing.get_context("fork")
PATIENCE = 300.0
"""Seconds after which a command hangs."""
GRACE = 10.0
"""Seconds in which helpers of a command end after it."""
OPERATIONS = ("replace", "mkdir", "unlink", "rmdir")
"""Functions of `os` that change a folder."""
RUN = """
env=tmaze env.length=5 model.width=16 model.mixer.state=16 model.mixer.head_dim=16
model.attention_heads=2 planner.horizon=4 planner.candidates=8 planner.elites=4
planner.keep_elites=2 planner.iterations=1 mpc.proposals=2 mpc.replan=2 train.batch=2
train.length=8 train.min_length=4 train.collect.envs=4 train.collect.frames=100
train.save_every=2 tasks.count=4 threads=1
"""
SMALL = tuple(RUN.split())
"""Settings of a run that takes about a second."""
PAGES = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ending:
    """Hold how a command ended.

    code: exit code, negative for a signal, None if it had to be ended
    left: processes that the command started and did not end
    """

    code: int | None
    text: str
    left: int = 0

    @property
    def line(self) -> str:
        """Return the last line of the terminal."""
        lines = self.text.strip().splitlines()
        return lines[-1].strip() if lines else ""

    def fault(self, refused: bool = True) -> str | None:
        """Return what is wrong with the ending of a command that failed; None if it is right.

        refused: it must fail; otherwise it may also succeed
        """
        if self.code is None:
            return "hang"
        if self.left:
            return f"{self.left} processes left"
        if self.code == -signal.SIGKILL:
            return None
        if PAGES in self.text or "unexpected error" in self.text:
            return "traceback"
        if self.code == 0:
            return "accepted" if refused else None
        return None if self.line.startswith("lssvwm: ") else "no line"


@dataclass(frozen=True)
class Case:
    """Hold one fault: its name, and what injects it and returns what is wrong, or None."""

    name: str
    inject: Callable[[Path], str | None]


def described(ending: Ending, refused: bool = True) -> str | None:
    """Return what is wrong with an ending, with its last line; None if nothing is."""
    fault = ending.fault(refused)
    return None if fault is None else f"{fault}: {ending.line[:200]}"


def run(
    arguments: list[str], hook: Hook | None = None, patience: float = PATIENCE
) -> Ending:
    """Run `lssvwm` with arguments in a forked child."""
    return Command(arguments, hook).ending(patience)


class Command:
    """Run `lssvwm` with arguments in a forked child, which leads a session of its own."""

    def __init__(self, arguments: list[str], hook: Hook | None = None):
        self.output = tempfile.TemporaryFile()  # noqa: SIM115
        self.child = FORK.Process(target=_main, args=(arguments, hook, self.output))
        self.child.start()

    def kill(self) -> None:
        """End the command as the system does when memory runs out; its helpers go on."""
        self.child.kill()

    def ending(self, patience: float = PATIENCE) -> Ending:
        """Wait until it ends, and end all that is left of it after some seconds more."""
        self.child.join(patience)
        hangs = self.child.exitcode is None
        if hangs:
            self.child.kill()
            self.child.join()
        left = _left(self.child.pid)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        return Ending(None if hangs else self.child.exitcode, text, len(left))


def _left(session: int | None) -> list[int]:
    """Return the processes of a session that go on for longer than `GRACE`."""
    end = time.monotonic() + GRACE
    while (pids := _members(session)) and time.monotonic() < end:
        time.sleep(0.1)
    return pids


def _members(session: int | None) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, _, member_of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(member_of) == session and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def _main(arguments: list[str], hook: Hook | None, output: IO[bytes]) -> None:
    from lssvwm.agent.cli.main import main

    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if hook is not None:
        hook.install()
    sys.exit(main(arguments))


@dataclass
class Hook:
    """Do something at operation number `at` on files below `folder`; 0: only count.

    action: `kill`, a signal, or an error number, which stays from then on
    """

    folder: Path
    at: int
    action: Callable[[], None]
    count: int = 0
    lasting: bool = False

    def install(self) -> None:
        """Patch the functions that change files, in this process."""
        for name in OPERATIONS:
            setattr(os, name, self._around(getattr(os, name)))
        opened = self._around(io.open, writes=True)
        io.open = builtins.open = opened  # type: ignore[assignment]

    def _around(self, function: Callable, writes: bool = False) -> Callable:
        def patched(path: Any, *arguments: Any, **settings: Any) -> Any:
            mode = settings.get("mode", arguments[0] if arguments else "r")
            counts = not writes or set(str(mode)) & set("wax+")
            inside = isinstance(path, (str, os.PathLike)) and str(path).startswith(
                str(self.folder)
            )
            if counts and inside:
                self.count += 1
                if self.count == self.at or (self.lasting and self.count > self.at):
                    self.action()
            return function(path, *arguments, **settings)

        return patched


def kill() -> None:
    """End this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def sends(number: int) -> Callable[[], None]:
    """Return an action that sends a signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def fails(number: int) -> Callable[[], None]:
    """Return an action that fails with an error number."""

    def action() -> None:
        raise OSError(number, os.strerror(number))

    return action


FULL, READ_ONLY = fails(errno.ENOSPC), fails(errno.EROFS)


def counted(arguments: list[str], folder: Path) -> tuple[Ending, int]:
    """Run a command; return how it ends and its number of operations on files of `folder`."""
    counter = FORK.Value("i", 0)

    def tick() -> None:
        counter.value += 1

    ending = run(arguments, Hook(folder, 0, tick, lasting=True))
    return ending, counter.value


def rows(run_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the log of a run, without times."""
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "time"} for row in found]


def arms(folder: Path) -> dict[str, Any]:
    """Return the results of an evaluation, without times."""
    found = json.loads((folder / "evaluation.json").read_text())["arms"]
    return {
        arm: {k: v for k, v in row.items() if k != "seconds_per_decision"}
        for arm, row in found.items()
    }
