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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")
PATIENCE = 300.0
"""Seconds after which a command hangs."""
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
    """

    code: int | None
    text: str

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
        if PAGES in self.text or "unexpected error" in self.text:
            return "traceback"
        if self.code == 0:
            return "accepted" if refused else None
        return None if self.line.startswith("lssvwm: ") else "no line"


def run(
    arguments: list[str], hook: Hook | None = None, patience: float = PATIENCE
) -> Ending:
    """Run `lssvwm` with arguments in a forked child."""
    reader, writer = os.pipe()
    child = FORK.Process(target=_main, args=(arguments, hook, writer))
    child.start()
    os.close(writer)
    text = []
    with os.fdopen(reader, errors="replace") as pipe:
        ender = _Ender(child, patience)
        for chunk in iter(lambda: pipe.read(4096), ""):
            text.append(chunk)
        ender.stop()
    child.join()
    code = None if ender.ended else child.exitcode
    return Ending(code, "".join(text))


class _Ender:
    """Kill a child that takes too long."""

    def __init__(self, child: Any, patience: float):
        import threading

        self.ended = False
        self.child = child
        self.timer = threading.Timer(patience, self._end)
        self.timer.start()

    def _end(self) -> None:
        self.ended = True
        self.child.kill()

    def stop(self) -> None:
        self.timer.cancel()


def _main(arguments: list[str], hook: Hook | None, writer: int) -> None:
    from lssvwm.agent.cli.main import main

    os.dup2(writer, 1)
    os.dup2(writer, 2)
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


def operations(arguments: list[str], folder: Path) -> int:
    """Return how many operations on files a command does."""
    counter = FORK.Value("i", 0)

    def tick() -> None:
        counter.value += 1

    run(arguments, Hook(folder, 0, tick, lasting=True))
    return counter.value


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


@contextmanager
def clock() -> Iterator[list[float]]:
    """Yield a list that holds the seconds of the block afterwards."""
    seconds: list[float] = []
    began = time.monotonic()
    yield seconds
    seconds.append(time.monotonic() - began)
