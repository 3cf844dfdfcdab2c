"""Estimate from frames alone how actions move the view (coarse visual odometry), before training.

Discrete actions: all quarter turns and steps of up to one token are tried. The best one lays the tokens of a frame
onto the most similar tokens of the frame before. A clear result is kept as it is and not trained, because sums over a
thousand frames must be exact. Training adds walls, and the motions that were not found.

Continuous actions: steps proportional to the action that best explain how the frame shifts (Lucas and Kanade 1981, then
a search). They are used only if a large part of the frame moves.

Shapes: N pairs of successive frames, pixels [N, C, H, W] in [0, 1], actions [N, A] between them.
A shift [2, A] is the motion of the view per unit of action, right and down in pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.data import Batch
    from lssvwm.worldmodel.model import WorldModel

COARSE = 8
"""Side of the squares of pixels that are averaged before slopes are taken. Steps must be small relative to it."""
ROUNDS = 4
"""Repetitions of the estimate by slopes."""
SEARCH_STEPS = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Step sizes of the search that refines a shift, in pixels."""
SEARCH_PAIRS = 256
"""Pairs of frames that the search compares."""
MIN_VIEW = 0.1
"""Least fraction of the frame that must be a moving view."""
CHANGE = 0.2
"""Change of a pixel's brightness that counts as motion."""
CHANGE_RATE = 0.03
"""Least fraction of the frames in which a pixel of a moving view changes."""
MIN_PAIRS = 20
"""Least number of pairs with a discrete action."""
CLEAR = 0.9
"""Largest difference of a clear motion, relative to no motion (or, when continuous, to the opposite motion)."""
STILL = 0.01
"""Largest difference of frames without motion, relative to unrelated frames."""
MOST = 0.7
"""Fraction of the pairs of an action without motion that show no change."""


class Motion(NamedTuple):
    """Describe the motion of a discrete action."""

    turn: float
    """Radians to the right"""

    ahead: float
    """Tokens"""

    right: float
    """Tokens"""


class Pairs(NamedTuple):
    """Hold pairs of successive frames and the actions between them."""

    before: Tensor
    after: Tensor
    action: Tensor


@torch.no_grad()
def calibrate(
    model: WorldModel, batch: Batch, tick: Callable[[], None] = lambda: None
) -> dict[int, tuple[float, float, float]]:
    """Set the motions of the path integrators that are clear from frames.

    Does nothing unless poses are integrated. Returns turn (degrees) and step (ahead, right; in tokens) of each of these
    actions, or of each dimension of a continuous action. Actions that are rare in the batch keep their motion. Unclear
    ones start from no motion.
    tick: called again and again, to show progress
    """
    if model.config.pose != "integrated":
        return {}
    if model.discrete:
        return _calibrate_discrete(model, batch, tick)
    return _calibrate_continuous(model, batch)


def _calibrate_discrete(
    model: WorldModel, batch: Batch, tick: Callable[[], None]
) -> dict[int, tuple[float, float, float]]:
    patches = model.patches.patchify(batch.pixels).float()
    after = patches[:, 1:].flatten(0, 1)
    before = patches[:, :-1].flatten(0, 1)
    begins = batch.is_first[:, 1:]
    action = batch.action[:, 1:].masked_fill(begins, -1).flatten()
    grid = model.patches.grid
    motions = {}
    for a in range(model.actions):
        pairs = (action == a).nonzero()[:, 0]
        if len(pairs) >= MIN_PAIRS:
            later, earlier = after[pairs], before[pairs]
            motions[a] = _best_motion(later, earlier, grid, tick)
    for integrator in model.path_integrators:
        for a, motion in motions.items():
            integrator.set_motion(a, motion)
    return {
        a: (round(math.degrees(motion.turn), 1), motion.ahead, motion.right)
        for a, motion in motions.items()
        if motion is not None
    }


def _best_motion(
    after: Tensor, before: Tensor, grid: tuple[int, int], tick: Callable[[], None]
) -> Motion | None:
    """Return the motion after which tokens differ least; None if it is unclear.

    after, before: patches [N, S, P]. Differences are relative to those of unrelated frames.
    """
    unrelated = before.roll(len(before) // 2, 0)
    scores = {}
    for quarters, ahead, right in itertools.product(
        (0, 1, 3, 2), (0, 1, -1), (0, 1, -1)
    ):
        tick()
        here, there = _overlap(grid, quarters, ahead, right)
        if len(here) * 3 < grid[0] * grid[1]:
            continue
        seen = after[:, here]
        gap = (seen - before[:, there]).square().mean((0, 2))
        chance = (seen - unrelated[:, there]).square().mean((0, 2))
        relative = gap.sum() / (chance.sum() + 1e-6)
        scores[quarters, ahead, right] = float(relative)
    still = scores[0, 0, 0]
    best = min(scores, key=lambda motion: scores[motion])
    if scores[best] > CLEAR * still:
        return Motion(0.0, 0.0, 0.0) if _is_still(after, before, unrelated) else None
    quarters, ahead, right = best
    turns = quarters if quarters < 3 else -1
    return Motion(turns * math.pi / 2, float(ahead), float(right))


def _is_still(after: Tensor, before: Tensor, unrelated: Tensor) -> bool:
    """Return whether most pairs of frames [N, S, P] show no change.

    A few may: where a light goes on or off, an action that moves nothing changes everything.
    """
    gap = (after - before).square().mean((1, 2))
    chance = (after - unrelated).square().mean()
    still = gap <= STILL * chance
    return float(still.float().mean()) > MOST


def _overlap(
    grid: tuple[int, int], quarters: int, ahead: int, right: int
) -> tuple[list[int], list[int]]:
    """Return the tokens after a motion and the tokens of the same places before it.

    The agent stands at the middle of the last row of the grid. It turns right by so many quarters after the step.
    """
    rows, columns = grid
    middle = (columns - 1) / 2
    here, there = [], []
    for row, column in itertools.product(range(rows), range(columns)):
        place_ahead = rows - 1 - row + ahead
        place_right = column - middle + right
        for _ in range(quarters):  # what is ahead after a turn to the right was right
            place_ahead, place_right = -place_right, place_ahead
        old_row = rows - 1 - place_ahead
        old_column = place_right + middle
        whole = old_row == int(old_row) and old_column == int(old_column)
        inside = 0 <= old_row < rows and 0 <= old_column < columns
        if whole and inside:
            here.append(row * columns + column)
            there.append(int(old_row) * columns + int(old_column))
    return here, there


def _calibrate_continuous(
    model: WorldModel, batch: Batch
) -> dict[int, tuple[float, float, float]]:
    """Find the shift in after(p) = before(p + shift action), by slopes and then by a search.

    The search minimises the absolute error. So actions that walls blocked are outvoted, not averaged in.
    """
    pixels = batch.pixels.float() / 255
    continues = ~batch.is_first[:, 1:]
    pairs = Pairs(
        pixels[:, :-1][continues],
        pixels[:, 1:][continues],
        batch.action[:, 1:][continues],
    )
    view = moving_view(pairs.before, pairs.after)
    shift = _shift_by_slopes(pairs, view)
    if shift.any():
        every = max(1, len(pairs.action) // SEARCH_PAIRS)
        some = Pairs(*(values[::every] for values in pairs))
        shift = _search_shift(some, view, shift)
    in_tokens = (shift.T / model.patches.patch).tolist()
    motions = {
        i: Motion(0.0, -down, right) for i, (right, down) in enumerate(in_tokens)
    }
    for integrator in model.path_integrators:
        for i, motion in motions.items():
            integrator.set_motion(i, motion if any(motion) else None)
    if model.action_limits is not None and len(pairs.action):
        largest = pairs.action.abs().amax(0)
        model.action_limits.scale.copy_(largest.clamp(min=1e-6))
    return {
        i: (motion.turn, round(motion.ahead, 3), round(motion.right, 3))
        for i, motion in motions.items()
    }


def _shift_by_slopes(pairs: Pairs, view: Tensor) -> Tensor:
    """Estimate the shift from slopes of coarse frames (Lucas and Kanade 1981).

    The remaining difference is slope times missing shift. It is solved by least squares, repeatedly. Returns zero if
    too little of the frame is a moving view.
    """
    before, after, action = pairs
    shift = torch.zeros(2, action.shape[1], device=action.device)
    too_small = min(after.shape[-2:]) < COARSE * 4
    if too_small or float(view.mean()) < MIN_VIEW:
        return shift
    after = F.avg_pool2d(after, COARSE)
    before = F.avg_pool2d(before, COARSE)
    view = (F.avg_pool2d(view, COARSE) > 0.5).float().expand_as(after)
    for _ in range(ROUNDS):
        moved = action @ shift.T / COARSE
        inside = shift_frames(view, moved) > 0.99  # not the rim of the view
        weight = (view * inside).reshape(-1, 1)
        shifted = shift_frames(before, moved)
        mean = (after + shifted) / 2
        down, right = (torch.gradient(mean, dim=dim)[0] for dim in (-2, -1))
        slopes = torch.stack((right, down), -1).flatten(1, -2)  # [N, pixels, 2]
        features = torch.einsum("npd,na->npda", slopes, action)
        features = features.flatten(2).flatten(0, 1)  # [N pixels, 2 A]
        unknowns = torch.eye(features.shape[1], device=action.device)
        weighted = features * weight
        square = features.T @ weighted + 1e-6 * len(after) * unknowns
        remaining = (after - shifted).reshape(-1, 1) * weight
        missing = torch.linalg.solve(square, features.T @ remaining).view(2, -1)
        shift = shift + COARSE * missing
    return shift


def _search_shift(pairs: Pairs, view: Tensor, shift: Tensor) -> Tensor:
    """Search near a shift for the least absolute error, in ever smaller steps.

    An action whose shift explains the frames no better than the opposite shift has none.
    """
    least = _shift_error(pairs, view, shift)
    rows, actions = shift.shape
    for size in SEARCH_STEPS:
        for row, i, step in itertools.product(
            range(rows), range(actions), (size, -size)
        ):
            for _ in range(COARSE):
                tried = shift.clone()
                tried[row, i] += step
                error = _shift_error(pairs, view, tried)
                if error >= least:
                    break
                shift, least = tried, error
    for i in range(actions):
        opposite = shift.clone()
        opposite[:, i] = -shift[:, i]  # it blurs a frame as much
        if least >= CLEAR * _shift_error(pairs, view, opposite):
            shift = shift.clone()
            shift[:, i] = 0
            least = _shift_error(pairs, view, shift)
    return shift


def _shift_error(pairs: Pairs, view: Tensor, shift: Tensor) -> float:
    """Return the mean absolute error in the view after a shift.

    It is infinite if less than half of the view remains.
    """
    before, after, action = pairs
    view = view.expand_as(after)
    moved = action @ shift.T
    inside = shift_frames(view, moved, "zeros") > 0.99
    weight = view * inside
    if weight.sum() < view.sum() / 2:
        return float("inf")
    error = (after - shift_frames(before, moved)).abs() * weight
    return float(error.sum() / weight.sum())


def moving_view(before: Tensor, after: Tensor) -> Tensor:
    """Return 1 where pixels often change between successive frames, [1, C, H, W].

    That is the view. It is neither a border around it, nor a small object that passes before a background.
    """
    change = (after - before).abs().amax(1, keepdim=True)
    rate = (change > CHANGE).float().mean(0, keepdim=True)
    return (rate > CHANGE_RATE).float().expand(-1, after.shape[1], -1, -1)


def shift_frames(frames: Tensor, shift: Tensor, padding: str = "border") -> Tensor:
    """Return frames [N, C, H, W], read at `shift` [N, 2] (right and down, in pixels) from each pixel."""
    height, width = frames.shape[-2:]
    down, right = torch.meshgrid(
        torch.arange(height), torch.arange(width), indexing="ij"
    )
    pixel = torch.stack((right, down), -1).to(frames)
    at = pixel + shift[:, None, None]
    size = torch.tensor([width, height], device=frames.device)
    normalised = (2 * at + 1) / size - 1  # -1 and 1 are the outer edges of the frame
    return F.grid_sample(frames, normalised, padding_mode=padding, align_corners=False)
