"""Treat SIGTERM and SIGHUP like Ctrl-C, and hold interrupts back until a step is complete."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)
"""Signals that stop a command; SLURM and Docker send SIGTERM, a closed terminal SIGHUP."""
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Let `handler` handle the signals within the block.

    Signals that the process ignores, as under nohup, stay ignored. Threads other than the main one change nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = (signal.SIG_IGN, None)
    chosen = [number for number in SIGNALS if signal.getsignal(number) not in ignored]
    before = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


class Postponed:
    """Hold back the first interrupt until `check`; a second one is raised at once.

    complete: nothing has happened since the last `check`, so that the state may be saved
    """

    def __init__(self) -> None:
        self.pending = False
        self.complete = False
        self.holds = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.pending or not self.holds:
            raise KeyboardInterrupt
        self.pending = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was held back."""
        self.complete = True
        if self.pending:
            raise KeyboardInterrupt
        self.complete = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise interrupts at once within the block, which takes long."""
        self.holds = False
        try:
            if self.pending:
                raise KeyboardInterrupt
            yield
        finally:
            self.holds = True


@contextmanager
def postponed() -> Iterator[Postponed]:
    """Hold back interrupts within the block; see `Postponed`."""
    held = Postponed()
    with handled(held):
        yield held
