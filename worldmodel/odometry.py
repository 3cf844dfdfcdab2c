"""A first guess of how actions move the view, from frames alone: coarse visual odometry.

For every action, of all quarter turns and steps of up to one token, the one that best lays the tokens of a frame onto
the equal ones of the frame before. Where that is clear, it is kept as it is: sums over a thousand frames must be exact.
Training adds what stops the agent, and the motions that were not found. Of continuous actions, the steps in proportion
to them that explain best how the picture shifts (Lucas and Kanade 1981), if more does than some small thing.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.blocks import TiledScan

if TYPE_CHECKING:
    from worldmodel.model import Batch, WorldModel

COARSE_TO_FINE = 4 * (8,) + 4 * (4,) + 4 * (2,)  # pixels averaged before slopes are taken: steps must be small to it
PART = 0.1  # of the picture changes, at least, where the view moves
CHANGES = 0.2  # spread of a pixel's brightness that shows the view moving, not some small thing before a background
FEW = 20  # fewer pairs of frames with an action are no evidence
CLEAR = 0.9  # how small the difference must be, relative to that without any motion
STILL = 0.01  # how small it must be where nothing moves, relative to that of unrelated frames


@torch.no_grad()
def calibrate(model: WorldModel, batch: Batch) -> dict[int, tuple[float, float, float]]:
    """Set the odometers of a model; returns turn (degrees) and step (ahead, right; in tokens) of every action whose
    motion is clear, or of each dimension of a continuous one. Those that occur too seldom in the batch stay as they
    are, unclear ones start from no motion."""
    if not model.discrete:
        return _calibrate_continuous(model, batch)
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


def _calibrate_continuous(model: WorldModel, batch: Batch) -> dict[int, tuple[float, float, float]]:
    """Steps in proportion to the actions. after(p) = before(p + shift action): what remains of the difference is slope
    times the missing shift, and so on, the pictures growing finer."""
    pixels, going = batch.pixels.float() / 255, ~batch.is_first[:, 1:]
    after, before, action = pixels[:, 1:][going], pixels[:, :-1][going], batch.action[:, 1:][going]
    shift = torch.zeros(2, model.actions, device=action.device)  # right and down, in pixels
    for size in (size for size in COARSE_TO_FINE if 4 * size <= min(pixels.shape[-2:])):
        a, b = F.avg_pool2d(after, size), F.avg_pool2d(before, size)
        changes = (a.std(0, keepdim=True).amax(1, keepdim=True) > CHANGES).float().expand(len(a), *a.shape[1:])
        moved = action @ shift.T / size
        if float(changes.mean()) < PART:
            break
        weight = (changes * (_shifted(changes, moved) > 0.99)).reshape(-1, 1)  # not the agent, not the rim
        b = _shifted(b, moved)
        down, right = (torch.gradient((a + b) / 2, dim=dim)[0] for dim in (-2, -1))
        slopes = torch.stack((right, down), -1).flatten(1, -2)  # [N, pixels, 2]
        features = torch.einsum("npd,na->npda", slopes, action).flatten(2).flatten(0, 1)
        square = features.T @ (features * weight) + 1e-6 * len(a) * torch.eye(features.shape[1], device=a.device)
        more = torch.linalg.solve(square, features.T @ ((a - b).reshape(-1, 1) * weight)).view(2, -1)
        shift = shift + size * more
    motions = {i: (0.0, -down, right) for i, (right, down) in enumerate((shift.T / model.patches.patch).tolist())}
    for scan in (block.scan for block in model.layers if isinstance(block.scan, TiledScan)):
        for i, motion in motions.items():
            scan.odometer.action.weight[:, i] = torch.tensor(motion)
            scan.odometer.known[i] = any(motion)
    return {i: (turn, round(ahead, 3), round(right, 3)) for i, (turn, ahead, right) in motions.items()}


def _shifted(frames: Tensor, shift: Tensor) -> Tensor:
    """frames [N, C, H, W] at places that lie by `shift` [N, 2], right and down in pixels, from each pixel."""
    h, w = frames.shape[-2:]
    down, right = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack((right, down), -1).to(frames) + shift[:, None, None]
    size = torch.tensor([w, h], device=frames.device)
    return F.grid_sample(frames, (2 * at + 1) / size - 1, padding_mode="border", align_corners=False)


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
