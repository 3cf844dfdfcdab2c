"""A progress bar with rate and time left; plain lines when the output is not a terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """Progress of `label` towards `total` units; call `update(done, note)` as often as you like."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0):
        self.label, self.total, self.unit, self.first = label, total, unit, done
        self.begun = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.wait = 0.2 if self.terminal else 15.0
        self.shown = self.begun - (self.wait if self.terminal else 0)
        self.done, self.note = done, ""
        self.written = -1

    def update(self, done: int, note: str = "") -> None:
        self.done, self.note = min(done, self.total), note or self.note
        now = time.monotonic()
        if now - self.shown >= self.wait:
            self.shown = now
            self._show("\r" if self.terminal else "", "" if self.terminal else "\n")

    def close(self) -> None:
        """Show the last state, unless it was shown already, and end the line."""
        if self.terminal or self.written != self.done:
            self._show("\r" if self.terminal else "", "\n")

    def _show(self, before: str, after: str) -> None:
        self.written = self.done
        spent = time.monotonic() - self.begun
        rate = (self.done - self.first) / max(spent, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        bar = ""
        if self.terminal:
            full = int(20 * self.done / max(1, self.total))
            bar = f"[{'#' * full}{'.' * (20 - full)}] "
        ahead = f"{_clock(left)} left" if self.done < self.total else _clock(spent)
        text = f"{self.label} {bar}{self.done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {ahead}  {self.note}"
        sys.stderr.write(f"{before}{text[:158]:<110}{after}")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
