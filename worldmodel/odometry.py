"""A first guess of how actions move the view, from frames alone: coarse visual odometry.

For every action, of all quarter turns and steps of up to one token, the one that best lays the tokens of a frame onto
the equal ones of the frame before. Where that is clear, it is kept as it is: sums over a thousand frames must be exact.
Training adds what stops the agent, and the motions that were not found.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldmodel.blocks import TiledScan

if TYPE_CHECKING:
    from worldmodel.model import Batch, WorldModel

FEW = 20  # fewer pairs of frames with an action are no evidence
CLEAR = 0.9  # how small the difference must be, relative to that without any motion
STILL = 0.01  # how small it must be where nothing moves, relative to that of unrelated frames


@torch.no_grad()
def calibrate(model: WorldModel, batch: Batch) -> dict[int, tuple[float, float, float]]:
    """Set the odometers of a model with discrete actions; returns turn (degrees) and step (ahead, right; in tokens)
    of every action whose motion is clear. Those that occur too seldom in the batch stay as they are, unclear ones
    start from no motion."""
    patches = model.patches.cut(batch.pixels).float()
    after, before = patches[:, 1:].flatten(0, 1), patches[:, :-1].flatten(0, 1)
    action = batch.action[:, 1:].masked_fill(batch.is_first[:, 1:], -1).flatten()
    motions = {}
    for a in range(model.actions):
        where = (action == a).nonzero()[:, 0]
        if len(where) >= FEW:
            motions[a] = _best(after[where], before[where], model.patches.grid)
    if motions:
        for scan in (block.scan for block in model.layers if isinstance(block.scan, TiledScan)):
            for a, motion in motions.items():
                scan.odometer.action.weight[:, a] = torch.tensor(motion or (0.0, 0.0, 0.0))
                scan.odometer.known[a] = motion is not None
    return {a: (round(math.degrees(m[0]), 1), m[1], m[2]) for a, m in motions.items() if m is not None}


def _best(after: Tensor, before: Tensor, grid: tuple[int, int]) -> tuple[float, float, float] | None:
    """The motion after which tokens differ least, compared with those of unrelated frames; None if that is unclear."""
    options = itertools.product((0, 1, 3, 2), (0, 1, -1), (0, 1, -1))
    scores = {}
    for quarter, ahead, right in options:
        here, there = _overlap(grid, quarter, ahead, right)
        if len(here) * 3 >= grid[0] * grid[1]:
            gap = (after[:, here] - before[:, there]).square().mean((0, 2))
            chance = (after[:, here] - before[:, there].roll(len(before) // 2, 0)).square().mean((0, 2))
            scores[quarter, ahead, right] = float(gap.sum() / (chance.sum() + 1e-6))
    quarter, ahead, right = min(scores, key=lambda motion: scores[motion])
    if min(scores.values()) > CLEAR * scores[0, 0, 0]:
        return (0.0, 0.0, 0.0) if scores[0, 0, 0] < STILL else None
    return (quarter if quarter < 3 else -1) * math.pi / 2, float(ahead), float(right)


def _overlap(grid: tuple[int, int], quarter: int, ahead: int, right: int) -> tuple[list[int], list[int]]:
    """Tokens after the motion and where the same places lay before it. The agent stands below the grid's middle."""
    rows, cols = grid
    here, there = [], []
    for row, col in itertools.product(range(rows), range(cols)):
        a, r = rows - 1 - row + ahead, col - (cols - 1) / 2 + right
        for _ in range(quarter):  # to the right: what is ahead now was on the right before
            a, r = -r, a
        at, to = rows - 1 - a, r + (cols - 1) / 2
        if at == int(at) and to == int(to) and 0 <= at < rows and 0 <= to < cols:
            here.append(row * cols + col)
            there.append(int(at) * cols + int(to))
    return here, there
