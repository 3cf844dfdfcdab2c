"""Measure by linear probes which parts of a maze a memory holds.

The model observes walks through held-out mazes. Ridge regression predicts the targets from the memory after the last
frame. Targets are given in the frame of reference of the start of the walk, whose heading points up:

    walls     for every tile around the start, wall or floor
    objects   for every object, the tile on which it lies
    pose      the present position and heading of the agent

Accuracy is measured on other walks, by the frames since the tile or object was last in view (age).

Shapes: N walks, M features (all numbers of a memory), K targets, R x R tiles around the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lssvwm.agent.benchmarks.maze_walks import AGES, NEVER, Walks, remember, walk
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

MAX_FEATURES = 300_000
"""Memories with more numbers are not probed, such as the cache of full attention."""
BATCH = 32
"""Walks observed at once."""
PENALTIES = 10.0 ** np.arange(-4, 5)
"""Ridge penalties to choose from, relative to the mean eigenvalue of the kernel."""
EPSILON = 1e-12

Targets = dict[str, np.ndarray]
"""Arrays [N, ...] by name: see `targets`."""


@dataclass
class ProbeResult:
    """Hold the answers of one probe.

    correct bool [n]: correct answers
    age int64 [n]: frames since the evidence was last in view
    """

    correct: np.ndarray
    age: np.ndarray


def probes(config: BenchmarkRunConfig, model: WorldModel) -> list[dict[str, Any]]:
    """Measure the accuracy of every probe by age, after walks of `benchmark.contexts[0]` frames."""
    settings = config.benchmark
    feature_count = sum(v.numel() for v in features(model.initial(1)))
    if feature_count > MAX_FEATURES or not settings.probed:
        return []
    seeds = task_seeds(
        config.tasks.seed + 1, settings.probed + settings.walks
    )  # others than the imagined walks
    walks = walk(config, "reasoning", settings.contexts[0], 1, seeds)
    kernel = _kernel_of_walks(model, walks, settings.probed)
    truth = targets(walks)
    rows = []
    for arm, similarity in (("retained", kernel), ("erased", torch.zeros_like(kernel))):
        predicted = {
            name: _predict(similarity, target) for name, target in truth.items()
        }
        held_out = slice(settings.probed, None)
        for name, result in score_probes(walks, truth, predicted, held_out).items():
            about = {
                "test": "probe",
                "context": settings.contexts[0],
                "arm": arm,
                "by": name,
            }
            rows.extend(_rows_by_age(about, result))
    return rows


def _rows_by_age(about: dict[str, Any], result: ProbeResult) -> list[dict[str, Any]]:
    """Return one row for each range of ages that occurs."""
    rows = []
    for low, high in pairwise(AGES):
        in_range = (result.age >= low) & (result.age < high)
        if not in_range.any():
            continue
        accuracy = float(result.correct[in_range].mean())
        rows.append(
            about
            | {"from": low, "to": high - 1, "n": int(in_range.sum()), "right": accuracy}
        )
    return rows


def features(memory: Memory) -> list[Tensor]:
    """Return all numbers of a memory, one [B, m] for each of its tensors.

    Angles are given as cosine and sine.
    """
    found = []
    for key, value in sorted(memory.layers.flatten_keys().items()):
        if not value.numel() or not value.dtype.is_floating_point:
            continue
        if key.endswith("pose"):
            heading = value[..., :1]
            value = torch.cat((heading.cos(), heading.sin(), value[..., 1:]), -1)
        found.append(value.flatten(1))
    return found


def _observed(model: WorldModel, walks: Walks, begin: int) -> list[Tensor]:
    """Return the features of BATCH walks, one [B, m] for each tensor of the memory."""
    batch = slice(begin, begin + BATCH)
    seen = (walks.frames, walks.action, walks.pose)
    context = (v[batch, : walks.context].to(model.device) for v in seen)
    return [v.cpu() for v in features(remember(model, *context))]


def targets(walks: Walks) -> Targets:
    """Return the targets of the probes.

    walls float32 [N, R, R]: 1 wall, -1 floor, 0 never in view
    objects float32 [N, K, R, R]: 1 on the tile of an object that was in view
    position float32 [N, 2], heading float32 [N, 4]: relative to the start
    """
    count = len(walks.poses)
    size = 2 * walks.floor.shape[1] + 1
    last = walks.context - 1
    walls = np.zeros((count, size, size), np.float32)
    objects = np.zeros((count, walks.objects.shape[1], size, size), np.float32)
    position = np.zeros((count, 2), np.float32)
    heading = np.zeros((count, 4), np.float32)
    for i in range(count):
        start = walks.poses[i, 0]
        seen = walks.seen[i] != NEVER
        rows, cols = _cells_from_start(np.argwhere(seen), start, size)
        walls[i, rows, cols] = np.where(walks.floor[i][seen], -1, 1)
        for k, cell in enumerate(walks.objects[i]):
            if seen[tuple(cell)]:
                row, col = _cells_from_start(cell, start, size)
                objects[i, k, row, col] = 1
        position[i] = from_start(walks.poses[i, last, 1:], start)
        heading[i, (walks.poses[i, last, 0] - start[0]) % 4] = 1
    return {
        "walls": walls,
        "objects": objects,
        "position": position,
        "heading": heading,
    }


def from_start(cell: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Express cells [..., 2] (row, column) relative to a start pose.

    The pose is (heading, row, column). Seen from it, the heading points up.
    """
    offset = cell - start[1:]
    rows, cols = np.moveaxis(offset, -1, 0)
    turned = ((rows, cols), (-cols, rows), (-rows, -cols), (cols, -rows))
    return np.stack(turned[start[0]], -1)


def _cells_from_start(
    cells: np.ndarray, start: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of cells [..., 2] in a map centred on the start."""
    centred = from_start(cells, start) + size // 2
    return centred[..., 0], centred[..., 1]


def score_probes(
    walks: Walks, truth: Targets, predicted: Targets, held_out: slice
) -> dict[str, ProbeResult]:
    """Compare predictions with the truth on the held-out walks, for every probe."""
    indices = range(len(walks.poses))[held_out]
    position = np.rint(predicted["position"][held_out]) == truth["position"][held_out]
    heading = predicted["heading"][held_out].argmax(-1) == truth["heading"][
        held_out
    ].argmax(-1)
    walked = np.full(len(heading), walks.context)
    return {
        "walls": _collect(
            indices, lambda i: _score_walls(walks, predicted["walls"], i)
        ),
        "objects": _collect(
            indices, lambda i: _score_objects(walks, predicted["objects"], i)
        ),
        "position": ProbeResult(position.all(-1), walked),
        "heading": ProbeResult(heading, walked),
    }


def _collect(indices: range, score: Callable[[int], ProbeResult]) -> ProbeResult:
    """Concatenate the results of several walks."""
    results = [score(i) for i in indices]
    return ProbeResult(
        correct=np.concatenate([result.correct for result in results]).astype(bool),
        age=np.concatenate([result.age for result in results]),
    )


def _score_walls(walks: Walks, predicted: np.ndarray, i: int) -> ProbeResult:
    seen = walks.seen[i] != NEVER
    rows, cols = _cells_from_start(
        np.argwhere(seen), walks.poses[i, 0], predicted.shape[-1]
    )
    is_wall = predicted[i][rows, cols] > 0
    return ProbeResult(
        is_wall != walks.floor[i][seen], walks.context - walks.seen[i][seen]
    )


def _score_objects(walks: Walks, predicted: np.ndarray, i: int) -> ProbeResult:
    """Score the floor tile with the highest prediction for each object in view."""
    floor = (walks.seen[i] != NEVER) & walks.floor[i]
    cells = np.argwhere(floor)
    rows, cols = _cells_from_start(cells, walks.poses[i, 0], predicted.shape[-1])
    correct = []
    age = []
    for k, cell in enumerate(walks.objects[i]):
        if not floor[tuple(cell)]:
            continue
        best = cells[predicted[i, k, rows, cols].argmax()]
        correct.append((best == cell).all())
        age.append(walks.context - walks.seen[i][tuple(cell)])
    return ProbeResult(np.array(correct), np.array(age))


def _kernel_of_walks(model: WorldModel, walks: Walks, fitted: int) -> Tensor:
    """Sum the similarities [N, fitted] over the tensors of the memory."""
    batches = [
        _observed(model, walks, begin) for begin in range(0, len(walks.poses), BATCH)
    ]
    kernels = [_kernel(torch.cat(part), fitted) for part in zip(*batches)]
    return torch.stack(kernels).sum(0)


def _kernel(X: Tensor, fitted: int) -> Tensor:
    """Return the similarity [N, fitted] of walks by one tensor [N, m] of the memory.

    The scale gives all tensors the same weight, whatever their size.
    """
    X = X.double() - X[:fitted].double().mean(0)
    kernel = X @ X[:fitted].T
    scale = kernel[:fitted].diagonal().mean() + EPSILON
    return kernel / scale


def _predict(kernel: Tensor, target: np.ndarray) -> np.ndarray:
    """Return predictions of a target [N, ...], in its shape."""
    flat = target.reshape(len(target), -1)
    return _ridge(kernel, flat).reshape(target.shape)


def _ridge(kernel: Tensor, y: np.ndarray) -> np.ndarray:
    """Predict targets y [N, K] by ridge regression on the walks that `kernel` [N, fitted] compares with.

    The penalty with the smallest leave-one-out error is used. Without any similarity, the prediction is the mean.
    """
    fitted = kernel.shape[1]
    mean = torch.from_numpy(y[:fitted].mean(0)).double()
    goal = torch.from_numpy(y[:fitted]).double() - mean
    values, vectors = torch.linalg.eigh(kernel[:fitted])
    values = values.clamp(min=0)
    rotated = vectors.T @ goal
    best_error = float("inf")
    best_weight = torch.zeros_like(goal)
    for penalty in PENALTIES * (float(values.mean()) + EPSILON):
        inverse = 1 / (values + penalty)
        weight = vectors @ (inverse[:, None] * rotated)
        diagonal = vectors.square() @ inverse
        error = float((weight / diagonal[:, None]).square().mean())
        if error < best_error:
            best_error = error
            best_weight = weight
    return (kernel @ best_weight + mean).numpy()
