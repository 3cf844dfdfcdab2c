"""Show progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

BAR = 20
"""Characters of the bar."""
LINE = 158
"""Longest line, in characters."""


class Progress:
    """Show the progress of `label` towards `total` units, with rate and time left.

    done: units at the start, which do not count in the rate
    patience: seconds without a line; work that is done by then shows none
    """

    def __init__(
        self, label: str, total: int, unit: str, done: int = 0, patience: float = 0.0
    ):
        self.label = label
        self.total = total
        self.unit = unit
        self.first = done
        self.done = done
        self.note = ""
        self.written = -1
        """Units in the last line that was shown."""
        self.terminal = sys.stderr.isatty()
        self.interval = 0.2 if self.terminal else 8.0
        """Seconds between two lines."""
        self.started = time.monotonic()
        first = patience or (0.0 if self.terminal else self.interval)
        self.quiet = patience > 0
        """Show no last line if there was none before."""
        self.shown = self.started + first - self.interval

    def update(self, done: int, note: str = "") -> None:
        """Set units done and note; show them if the last line is old enough."""
        self.done = min(done, self.total)
        self.note = note or self.note
        now = time.monotonic()
        if now - self.shown >= self.interval:
            self.shown = now
            self._show(end="" if self.terminal else "\n")

    def refresh(self) -> None:
        """Show the present state again if the last line is old enough."""
        self.update(self.done)

    def close(self) -> None:
        """Show the last state, unless it was shown already, and end the line."""
        if self.quiet and self.written < 0:
            return
        if self.terminal or self.written != self.done:
            self._show(end="\n")

    def _show(self, end: str) -> None:
        self.written = self.done
        start = "\r" if self.terminal else ""
        line = f"{self._text()[:LINE]:<110}"  # padded to cover the line before
        sys.stderr.write(f"{start}{line}{end}")
        sys.stderr.flush()

    def _text(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.first) / max(elapsed, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        clock = f"{_clock(left)} left" if self.done < self.total else _clock(elapsed)
        count = f"{self.done:,}/{self.total:,} {self.unit}"
        return f"{self.label} {self._bar()}{count}, {rate:,.1f}/s, {clock}  {self.note}"

    def _bar(self) -> str:
        if not self.terminal:
            return ""
        full = int(BAR * self.done / max(1, self.total))
        return f"[{'#' * full}{'.' * (BAR - full)}] "


def announce(text: str) -> None:
    """Write a line to the terminal, over an unfinished line of progress."""
    start = "\r" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}{text:<110}\n")
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    if hour:
        return f"{hour}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"
