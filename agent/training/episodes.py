"""Turn the steps of a TorchRL collector into episodes of T + 1 rows.

Shapes: B environments, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lssvwm.agent.shards import KEYS, POSE
from tensordict import TensorDictBase

Row = dict[str, Any]
"""One frame, and how it was reached: arrays and numpy scalars by the keys of `replay.KEYS`."""


class Episodes:
    """Gather episodes of several environments, each with the frame that ends it.

    The collector returns a step with the frame before the action and the one after it.
    A row holds the frame before, and what the step before that one brought.
    """

    def __init__(self, environments: int):
        self.open: list[list[Row]] = [[] for _ in range(environments)]
        self.reward = np.zeros(environments, np.float32)
        """Reward of the latest step of each environment."""
        self.finished: list[list[Row]] = []
        self.frames = 0
        """Frames in finished episodes."""

    def add(self, steps: TensorDictBase) -> None:
        """Add steps [B, T] as a collector returns them."""
        here = _frames(steps)
        after = _frames(steps, "next")
        arrival = {
            key: _array(steps, "next", key)[..., 0]
            for key in ("reward", "terminated", "truncated")
        }
        arrival["reward"] = arrival["reward"].astype(np.float32)
        ends = arrival["terminated"] | arrival["truncated"]
        environments, length = ends.shape
        for b in range(environments):
            for t in range(length):
                self._append(b, _at(here, b, t) | {"reward": self.reward[b]})
                self.reward[b] = arrival["reward"][b, t]
                if ends[b, t]:
                    self._append(b, _at(after, b, t) | _at(arrival, b, t))
                    self._finish(b)

    def _append(self, environment: int, row: Row) -> None:
        rows = self.open[environment]
        first = not rows
        flags = {"terminated": np.bool_(False), "truncated": np.bool_(False)}
        row = flags | row | {"is_first": np.bool_(first)}
        if first:
            row["reward"] = np.float32(0.0)
        rows.append(row)

    def _finish(self, environment: int) -> None:
        rows = self.open[environment]
        self.finished.append(rows)
        self.frames += len(rows)
        self.open[environment] = []
        self.reward[environment] = 0.0

    def take(self) -> dict[str, np.ndarray]:
        """Return the finished episodes back to back, and forget them."""
        rows = [row for episode in self.finished for row in episode]
        self.finished = []
        self.frames = 0
        if not rows:
            return {}
        keys = [*KEYS, POSE] if POSE in rows[0] else KEYS
        return {key: np.stack([row[key] for row in rows]) for key in keys}

    def detach(self) -> None:
        """Copy the rows of unfinished episodes, so that the memory of their steps is freed."""
        self.open = [
            [{key: np.array(value) for key, value in row.items()} for row in rows]
            for rows in self.open
        ]


def _frames(steps: TensorDictBase, *prefix: str) -> dict[str, np.ndarray]:
    """Return frames [B, T, C, H, W], the actions before them [B, T(, A)], and poses [B, T, 3]."""
    found = {
        "pixels": _array(steps, *prefix, "pixels"),
        "action": _array(steps, *prefix, "last_action"),
    }
    if POSE in set(steps.keys()):
        found[POSE] = _array(steps, *prefix, POSE)
    return found


def _at(arrays: Mapping[str, np.ndarray], b: int, t: int) -> Row:
    return {key: array[b, t] for key, array in arrays.items()}


def _array(steps: TensorDictBase, *key: str) -> np.ndarray:
    value = steps[key]
    assert isinstance(value, torch.Tensor)
    return np.asarray(value)
