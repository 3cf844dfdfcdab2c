"""A first guess of how actions move the view, from frames alone: coarse visual odometry.

For every action, of all quarter turns and steps of up to one token, the one that best lays the tokens of a frame onto
the equal ones of the frame before. Where that is clear, it is kept as it is: sums over a thousand frames must be exact.
Training adds what stops the agent, and the motions that were not found. Of continuous actions, the steps in proportion
to them that explain best how the picture shifts (at first by Lucas and Kanade 1981), if more of it does than some small
thing.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.model import Batch, WorldModel

COARSE, ROUNDS = (
    8,
    4,
)  # pixels averaged before slopes are taken: steps must be small to it
STEPS = (1.0, 0.5, 0.2, 0.1, 0.05)  # by which the shift is then searched, in pixels
PAIRS = 256  # of frames, for that
PART = 0.1  # of the picture changes, at least, where the view moves
CHANGES, OFTEN = (
    0.2,
    0.03,
)  # of its brightness: what a pixel of a moving view changes by, in such a share of the frames
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
    patches = model.patches.patchify(batch.pixels).float()
    after, before = patches[:, 1:].flatten(0, 1), patches[:, :-1].flatten(0, 1)
    action = batch.action[:, 1:].masked_fill(batch.is_first[:, 1:], -1).flatten()
    motions = {}
    for a in range(model.actions):
        where = (action == a).nonzero()[:, 0]
        if len(where) >= FEW:
            motions[a] = _best(after[where], before[where], model.patches.grid)
    if motions:
        for odometer in model.path_integrators:
            for a, motion in motions.items():
                odometer.action.weight[:, a] = torch.tensor(motion or (0.0, 0.0, 0.0))
                odometer.known[a] = motion is not None
    return {
        a: (round(math.degrees(m[0]), 1), m[1], m[2])
        for a, m in motions.items()
        if m is not None
    }


def _calibrate_continuous(
    model: WorldModel, batch: Batch
) -> dict[int, tuple[float, float, float]]:
    """Steps in proportion to the actions: after(p) = before(p + shift action). First coarsely, by slopes, then pixel by
    pixel, whatever lowers the absolute error: actions that walls stopped are outvoted there, not averaged in."""
    pixels, going = batch.pixels.float() / 255, ~batch.is_first[:, 1:]
    after, before, action = (
        pixels[:, 1:][going],
        pixels[:, :-1][going],
        batch.action[:, 1:][going],
    )
    view, few = moving(after, before), slice(None, None, max(1, len(after) // PAIRS))
    shift = _sloped(after, before, action, view)
    if shift.any():
        shift = _refined(after[few], before[few], action[few], view, shift)
    motions = {
        i: (0.0, -down, right)
        for i, (right, down) in enumerate((shift.T / model.patches.patch).tolist())
    }
    for odometer in model.path_integrators:
        for i, motion in motions.items():
            odometer.action.weight[:, i] = torch.tensor(motion)
            odometer.known[i] = any(motion)
    if model.action_limits is not None and len(action):
        model.action_limits.scale.copy_(action.abs().amax(0).clamp(min=1e-6))
    return {
        i: (turn, round(ahead, 3), round(right, 3))
        for i, (turn, ahead, right) in motions.items()
    }


def _sloped(after: Tensor, before: Tensor, action: Tensor, view: Tensor) -> Tensor:
    """The shift [2, A], right and down in pixels, that slopes of the coarse pictures tell: what remains of the
    difference is slope times the missing shift, again and again. Zero where too little of the picture is a moving view.
    """
    shift = torch.zeros(2, action.shape[1], device=action.device)
    if min(after.shape[-2:]) < COARSE * 4 or float(view.mean()) < PART:
        return shift
    a, b = F.avg_pool2d(after, COARSE), F.avg_pool2d(before, COARSE)
    view = (F.avg_pool2d(view, COARSE) > 0.5).float().expand_as(a)
    for _ in range(ROUNDS):
        moved = action @ shift.T / COARSE
        weight = (view * (shifted(view, moved) > 0.99)).reshape(
            -1, 1
        )  # not the agent, not the rim
        there = shifted(b, moved)
        down, right = (torch.gradient((a + there) / 2, dim=dim)[0] for dim in (-2, -1))
        slopes = torch.stack((right, down), -1).flatten(1, -2)  # [N, pixels, 2]
        features = torch.einsum("npd,na->npda", slopes, action).flatten(2).flatten(0, 1)
        square = features.T @ (features * weight) + 1e-6 * len(a) * torch.eye(
            features.shape[1], device=a.device
        )
        more = torch.linalg.solve(
            square, features.T @ ((a - there).reshape(-1, 1) * weight)
        ).view(2, -1)
        shift = shift + COARSE * more
    return shift


def _refined(
    after: Tensor, before: Tensor, action: Tensor, view: Tensor, shift: Tensor
) -> Tensor:
    """The shift near this one with the least absolute error, by a search along its entries in ever smaller steps. An
    action whose shift explains the picture no better than the opposite shift has none."""
    view = view.expand_as(after)

    def error(shift: Tensor) -> float:
        moved = action @ shift.T
        weight = view * (shifted(view, moved, "zeros") > 0.99)
        if weight.sum() < view.sum() / 2:
            return float("inf")
        return float(
            ((after - shifted(before, moved)).abs() * weight).sum() / weight.sum()
        )

    least = error(shift)
    for size in STEPS:
        for i in itertools.product(
            range(shift.shape[0]), range(shift.shape[1]), (size, -size)
        ):
            for _ in range(COARSE):
                tried = shift.clone()
                tried[i[:2]] += i[2]
                found = error(tried)
                if found >= least:
                    break
                shift, least = tried, found
    for i in range(shift.shape[1]):
        back, without = shift.clone(), shift.clone()
        back[:, i], without[:, i] = (
            -shift[:, i],
            0,
        )  # going back blurs a picture as much
        if least >= CLEAR * error(back):
            shift, least = without, error(without)
    return shift


def moving(after: Tensor, before: Tensor) -> Tensor:
    """1 where the picture often changes from one frame to the next, [1, C, H, W]: the view, not a frame around it, nor
    small things that pass before a background."""
    often = (
        ((after - before).abs().amax(1, keepdim=True) > CHANGES)
        .float()
        .mean(0, keepdim=True)
    )
    return (often > OFTEN).float().expand(-1, after.shape[1], -1, -1)


def shifted(frames: Tensor, shift: Tensor, beyond: str = "border") -> Tensor:
    """frames [N, C, H, W] at places that lie by `shift` [N, 2], right and down in pixels, from each pixel."""
    h, w = frames.shape[-2:]
    down, right = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack((right, down), -1).to(frames) + shift[:, None, None]
    size = torch.tensor([w, h], device=frames.device)
    return F.grid_sample(
        frames, (2 * at + 1) / size - 1, padding_mode=beyond, align_corners=False
    )


def _best(
    after: Tensor, before: Tensor, grid: tuple[int, int]
) -> tuple[float, float, float] | None:
    """The motion after which tokens differ least, compared with those of unrelated frames; None if that is unclear."""
    options = itertools.product((0, 1, 3, 2), (0, 1, -1), (0, 1, -1))
    scores = {}
    for quarter, ahead, right in options:
        here, there = _overlap(grid, quarter, ahead, right)
        if len(here) * 3 >= grid[0] * grid[1]:
            gap = (after[:, here] - before[:, there]).square().mean((0, 2))
            chance = (
                (after[:, here] - before[:, there].roll(len(before) // 2, 0))
                .square()
                .mean((0, 2))
            )
            scores[quarter, ahead, right] = float(gap.sum() / (chance.sum() + 1e-6))
    quarter, ahead, right = min(scores, key=lambda motion: scores[motion])
    if min(scores.values()) > CLEAR * scores[0, 0, 0]:
        return (0.0, 0.0, 0.0) if scores[0, 0, 0] < STILL else None
    return (quarter if quarter < 3 else -1) * math.pi / 2, float(ahead), float(right)


def _overlap(
    grid: tuple[int, int], quarter: int, ahead: int, right: int
) -> tuple[list[int], list[int]]:
    """Tokens after the motion and where the same places lay before it. The agent stands below the grid's middle."""
    rows, cols = grid
    here, there = [], []
    for row, col in itertools.product(range(rows), range(cols)):
        a, r = rows - 1 - row + ahead, col - (cols - 1) / 2 + right
        for _ in range(
            quarter
        ):  # to the right: what is ahead now was on the right before
            a, r = -r, a
        at, to = rows - 1 - a, r + (cols - 1) / 2
        if at == int(at) and to == int(to) and 0 <= at < rows and 0 <= to < cols:
            here.append(row * cols + col)
            there.append(int(at) * cols + int(to))
    return here, there
