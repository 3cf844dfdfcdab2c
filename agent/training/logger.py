"""Log metrics of a training run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.files import finite, read_json_lines, replacing
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class Logger:
    """Write means of metrics to metrics.jsonl and TensorBoard; a resumed run appends to both.

    step: the step that the run continues from; rows of later steps are removed
    values: metrics of the steps since the last row
    """

    def __init__(
        self, folder: Path, step: int, values: dict[str, list[Tensor]] | None = None
    ):
        self.file = folder / "metrics.jsonl"
        rows = read_json_lines(self.file) if self.file.exists() else []
        kept = [json.dumps(row) + "\n" for row in rows if row.get("step", step) <= step]
        with replacing(self.file) as draft:
            draft.write_text("".join(kept))  # empty for a run too short for a row
        board = str(folder / "tensorboard")
        self.board = SummaryWriter(board, purge_step=step + 1)
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
        return f"loss {means['loss/total']:.3f}  frame {means['psnr']:.1f} dB"

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row."""
        row = {"step": step, "time": round(time.time(), 1), **values}
        with self.file.open("a") as file:
            file.write(json.dumps(finite(row)) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self.board.close()


def _mean(values: list[Tensor]) -> float:
    on_cpu = [value.float().cpu() for value in values]
    return float(torch.stack(on_cpu).mean())
