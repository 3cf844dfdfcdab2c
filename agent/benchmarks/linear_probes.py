"""Linear probes of a memory: can the map, the balls and the agent's own pose be read off it, and how long after?

Walks through mazes of held-out seeds are observed; from the memory after the last frame, ridge regression predicts, in
the frame of reference of the walk's start (its heading is up):
    walls     of every tile around the start, whether it is wall or floor
    objects   of every ball, on which tile it lies
    pose      where the agent stands now, and how it is turned
Accuracy on other walks, by how long ago the tile or ball was last in view (age; pose: by the frames walked).

N walks, M features (all numbers of a memory), K targets, R x R tiles around the start.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lssvwm.agent.benchmarks.maze_walks import AGES, NEVER, Walks, remember, walk
from lssvwm.agent.config.settings import Config
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

MOST = 300_000
"""Features beyond which a memory is not probed: full attention's cache."""
BATCH = 32
PENALTIES = 10.0 ** np.arange(-4, 5)


def probes(config: Config, model: WorldModel) -> list[dict[str, Any]]:
    """Accuracy of every probe by age, after walks of each of `benchmark.contexts[0]` frames."""
    c = config.benchmark
    size = sum(v.numel() for v in features(model.initial(1)))
    if size > MOST or not c.probed:
        return []
    seeds = task_seeds(
        config.tasks.seed + 1, c.probed + c.walks
    )  # not those of the walks that are imagined
    walks = walk(config, "reasoning", c.contexts[0], 1, seeds)
    parts = zip(*(_observed(model, walks, i) for i in range(0, len(seeds), BATCH)))
    kernel = torch.stack([_kernel(torch.cat(part), c.probed) for part in parts]).sum(0)
    truth, rows = targets(walks), []
    for arm, similar in (("retained", kernel), ("erased", torch.zeros_like(kernel))):
        predicted = {
            k: _ridge(similar, y.reshape(len(y), -1)).reshape(-1, *y.shape[1:])
            for k, y in truth.items()
        }
        for name, (right, age) in judge(
            walks, truth, predicted, slice(c.probed, None)
        ).items():
            for low, high in pairwise(AGES):
                where = (age >= low) & (age < high)
                if where.any():
                    row = {
                        "test": "probe",
                        "context": c.contexts[0],
                        "arm": arm,
                        "by": name,
                        "from": low,
                    }
                    rows.append(
                        row
                        | {
                            "to": high - 1,
                            "n": int(where.sum()),
                            "right": float(right[where].mean()),
                        }
                    )
    return rows


def features(memory: Memory) -> list[Tensor]:
    """All numbers of a memory [B], [B, m] each; of an angle, cosine and sine."""
    found = []
    for key, v in sorted(memory.layers.flatten_keys().items()):
        if v.numel() and v.dtype.is_floating_point:
            v = (
                torch.cat((v[..., :1].cos(), v[..., :1].sin(), v[..., 1:]), -1)
                if key.endswith("pose")
                else v
            )
            found.append(v.flatten(1))
    return found


def _observed(model: WorldModel, walks: Walks, begin: int) -> list[Tensor]:
    """What is remembered of walks `begin` to `begin + BATCH`, [B, m] each."""
    some, device = slice(begin, begin + BATCH), model.place.device
    frames, action = (
        x[some, : walks.context].to(device) for x in (walks.frames, walks.action)
    )
    return [v.cpu() for v in features(remember(model, frames, action))]


def targets(walks: Walks) -> dict[str, np.ndarray]:
    """What the probes predict, [N, ...]: walls (1 wall, -1 floor, 0 never in view), objects (1 where the ball lies, if
    it was in view), position (2 numbers), heading (one of four)."""
    n, size = len(walks.poses), 2 * walks.floor.shape[1] + 1
    walls = np.zeros((n, size, size), np.float32)
    objects = np.zeros((n, walks.objects.shape[1], size, size), np.float32)
    heading = np.zeros((n, 4), np.float32)
    last = walks.context - 1
    position = np.stack(
        [from_start(walks.poses[i, last, 1:], walks.poses[i, 0]) for i in range(n)]
    ).astype(np.float32)
    for i in range(n):
        start = walks.poses[i, 0]
        seen = walks.seen[i] != NEVER
        at = from_start(np.argwhere(seen), start) + size // 2
        walls[i, at[:, 0], at[:, 1]] = np.where(walks.floor[i][seen], -1, 1)
        for k, ball in enumerate(walks.objects[i]):
            if walks.seen[i][tuple(ball)] != NEVER:
                objects[i, k, *(from_start(ball, start) + size // 2)] = 1
        heading[i, (walks.poses[i, last, 0] - start[0]) % 4] = 1
    return {
        "walls": walls,
        "objects": objects,
        "position": position,
        "heading": heading,
    }


def from_start(cell: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Cells [..., 2] (row, column) as seen from a start (heading, row, column) that looks up: rows down, columns to the
    right."""
    rows, cols = np.moveaxis(cell - start[1:], -1, 0)
    turned = ((rows, cols), (-cols, rows), (-rows, -cols), (cols, -rows))[start[0]]
    return np.stack(turned, -1)


def judge(
    walks: Walks, truth, predicted, held: slice
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each probe what was right on the held-out walks, and the age of what it was asked, as flat arrays."""
    last, size = walks.context - 1, truth["walls"].shape[-1]
    right: dict[str, list[Any]] = {"walls": [], "objects": []}
    age: dict[str, list[Any]] = {"walls": [], "objects": []}
    for i in range(len(walks.poses))[held]:
        seen = walks.seen[i] != NEVER
        at = from_start(np.argwhere(seen), walks.poses[i, 0]) + size // 2
        wall = predicted["walls"][i][at[:, 0], at[:, 1]] > 0
        right["walls"].extend(wall != walks.floor[i][seen])
        age["walls"].extend(last - walks.seen[i][seen] + 1)
        floor = seen & walks.floor[i]
        cells = np.argwhere(floor)
        at = from_start(cells, walks.poses[i, 0]) + size // 2
        for k, ball in enumerate(walks.objects[i]):
            if floor[tuple(ball)]:
                best = cells[predicted["objects"][i, k, at[:, 0], at[:, 1]].argmax()]
                right["objects"].append((best == ball).all())
                age["objects"].append(last - walks.seen[i][tuple(ball)] + 1)
    there = (np.rint(predicted["position"][held]) == truth["position"][held]).all(-1)
    turned = predicted["heading"][held].argmax(-1) == truth["heading"][held].argmax(-1)
    found = {name: (np.array(right[name], bool), np.array(age[name])) for name in right}
    walked = np.full(len(there), walks.context)
    return found | {"position": (there, walked), "heading": (turned, walked)}


def _kernel(X: Tensor, fitted: int) -> Tensor:
    """Similarity [N, fitted] of all walks to those that are fitted, by one part of memory [N, m]; every part counts
    alike, whatever its size."""
    X = X.double() - X[:fitted].double().mean(0)
    kernel = X @ X[:fitted].T
    return kernel / (kernel[:fitted].diagonal().mean() + 1e-12)


def _ridge(kernel: Tensor, y: np.ndarray) -> np.ndarray:
    """Predictions [N, K] of targets y [N, K] by ridge regression on the walks that `kernel` [N, fitted] compares with;
    the penalty is chosen by leaving one out. Without similarities, the mean."""
    fitted = kernel.shape[1]
    mean = torch.from_numpy(y[:fitted].mean(0)).double()
    goal = torch.from_numpy(y[:fitted]).double() - mean
    values, vectors = torch.linalg.eigh(kernel[:fitted])
    turned = vectors.T @ goal
    best = None
    for penalty in PENALTIES * (float(values.clamp(min=0).mean()) + 1e-12):
        inverse = 1 / (values.clamp(min=0) + penalty)
        weight = vectors @ (inverse[:, None] * turned)
        left_out = weight / (vectors.square() @ inverse)[:, None]
        error = float(left_out.square().mean())
        if best is None or error < best[0]:
            best = error, weight
    assert best is not None
    return (kernel @ best[1] + mean).numpy()
