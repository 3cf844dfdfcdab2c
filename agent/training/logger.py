"""Log metrics of a training run: into metrics.jsonl, and to a tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.files import finite, read_json_lines, replacing
from lssvwm.agent.training.trackers import Tracker, guarded
from torch import Tensor


class Logger:
    """Write means of metrics to metrics.jsonl and a tracker; a resumed run appends to both.

    step: the step that the run continues from; rows of later steps are removed
    values: metrics of the steps since the last row
    tracker: None for metrics.jsonl alone
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        values: dict[str, list[Tensor]] | None = None,
        tracker: Tracker | None = None,
    ):
        self.file = folder / "metrics.jsonl"
        rows = read_json_lines(self.file) if self.file.exists() else []
        kept = [json.dumps(row) + "\n" for row in rows if row.get("step", step) <= step]
        with replacing(self.file) as draft:
            draft.write_text("".join(kept))  # empty for a run too short for a row
        self.tracker = tracker
        self.values = {} if values is None else values

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Keep the metrics of one step for the next mean."""
        for key, value in metrics.items():
            self.values.setdefault(key, []).append(value)

    def flush(self, step: int) -> str:
        """Write the means since the last call; returns a short text for the progress bar."""
        means = {key: _mean(values) for key, values in self.values.items()}
        self.values.clear()
        self.write(step, means)
        if "loss/total" not in means:
            return ""
        return f"loss {means['loss/total']:.3f}  frame {means['psnr']:.1f} dB"

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row."""
        row = {"step": step, "time": round(time.time(), 1), **values}
        with self.file.open("a") as file:
            file.write(json.dumps(finite(row)) + "\n")
        self._track(lambda tracker: tracker.metrics(values, step))

    def close(self) -> None:
        """Close the tracker."""
        self._track(lambda tracker: tracker.close())

    def _track(self, send: Callable[[Tracker], None]) -> None:
        """Send something to the tracker; a tracker that fails is not used again."""
        tracker = self.tracker
        if tracker is None:
            return
        if failure := guarded("the tracker", lambda: send(tracker)):
            print(f"\n{failure}; metrics.jsonl has everything")
            self.tracker = None


def _mean(values: list[Tensor]) -> float:
    on_cpu = [value.float().cpu() for value in values]
    return float(torch.stack(on_cpu).mean())
