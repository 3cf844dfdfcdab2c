"""Predict how much of a continuous action walls let through, learned from frames alone.

A path integrator sums up how actions move the view. In training, the executed fraction of an action is measured. With
this fraction of its shift, the frame before resembles the frame after most. `ActionLimits` learns to predict it from
the frame before. So it is also known of actions that are only imagined.

Shapes: A dimensions of an action, S tokens of a frame, D their width, N pairs of frames. Limits [..., 2 A] are the
largest size of the next action, first in negative and then in positive direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lssvwm.worldmodel.batch_part import gather, own_index, pick
from lssvwm.worldmodel.config import HEAD_HIDDEN
from lssvwm.worldmodel.fused_ops import at_least_float32
from lssvwm.worldmodel.motion_calibration import moving_view, shift_frames
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.backbone import Backbone
    from lssvwm.worldmodel.data import Batch
    from lssvwm.worldmodel.model import WorldModel

PAIRS = 256
"""Pairs of frames that are measured in every segment of a training batch."""
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Executed fractions of an action that are tried."""
POOL = 2
"""Side of the squares of pixels that are averaged before frames are compared."""
CLEAR = 0.01
"""Difference in mean brightness that distinguishes one fraction from another."""


class ActionLimits(nn.Module):
    """Predict the limits of the next action from a frame."""

    def __init__(self, tokens: int, width: int, actions: int):
        super().__init__()
        last = nn.Linear(HEAD_HIDDEN, 2 * actions)
        self.layers = nn.Sequential(
            nn.Linear(tokens * width, HEAD_HIDDEN), nn.GELU(), last
        )
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(actions))  # size of actions
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 4.0)  # large until training finds walls

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the limits [..., 2 A] after embedded frames [..., S, D]."""
        raw = self.layers(tokens.flatten(-2))
        sizes = F.softplus(at_least_float32(raw))
        return sizes * self.scale.repeat(2)


def clipped(action: Tensor, limits: Tensor) -> Tensor:
    """Clip actions [..., A] to limits [..., 2 A]."""
    down, up = limits.chunk(2, -1)
    return torch.minimum(torch.maximum(action, -down), up)


def view_shift(model: Backbone) -> Tensor:
    """Return how the view shifts per unit of action, [2, A]: right and down, in pixels. Zero: unknown."""
    integrator = model.path_integrators[0]
    known = integrator.known[: model.actions]
    step = integrator.action.weight.detach()[1:, : model.actions]
    ahead, right = step * known
    return torch.stack((right, -ahead)) * model.patches.patch


def loss(
    model: WorldModel,
    tokens: Tensor,
    batch: Batch,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compare the predicted limits with the executed fraction of the next actions.

    Where an action was clipped, the limit must equal what was executed. Elsewhere, only limits below the action count.
    Embedded frames [B, T, S, D] receive a gradient, too.
    """
    shift = view_shift(model)
    continues = (~gather(batch.is_first)[:, 1:]).nonzero()
    if model.action_limits is None or not shift.any() or not len(continues):
        return tokens.new_zeros(())
    order = torch.randperm(len(continues), generator=generator, device=continues.device)
    row, at = continues[order[:PAIRS]].unbind(1)
    action = pick(batch.action, row, at + 1)
    before = pick(batch.pixels, row, at)
    after = pick(batch.pixels, row, at + 1)
    fraction, confident = executed_fraction(before, after, action, shift)
    index, is_own = own_index(row)
    down, up = model.action_limits(tokens[index, at]).chunk(2, -1)
    limit = torch.where(action > 0, up, down)
    size = action.abs()
    was_clipped = fraction < 1
    distance = (limit - fraction * size).abs()
    too_low = F.relu(size - limit)
    error = torch.where(was_clipped, distance, too_low)
    error = error / model.action_limits.scale
    total = (error * confident * is_own[:, None]).sum()
    return total / confident.sum().clamp(min=1)


@torch.no_grad()
def executed_fraction(
    before: Tensor, after: Tensor, action: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate the executed fraction of each action from image shift.

    Frames uint8 [N, C, H, W], action [N, A], shift [2, A] of the view per unit -> fraction, confident [N, A]
    `confident` is 1 where frames determine the fraction. They do not in dimensions without a shift. They do not at all
    if more than two dimensions have one, as the view moves in two directions only.
    """
    fraction = torch.ones_like(action)
    confident = torch.zeros_like(action)
    dimensions = shift.any(0).nonzero()[:, 0].tolist()
    if not 0 < len(dimensions) <= 2:
        return fraction, confident
    before = F.avg_pool2d(before.to(shift) / 255, POOL)
    after = F.avg_pool2d(after.to(shift) / 255, POOL)
    fractions = torch.tensor(FRACTIONS).to(action)
    options = _combinations(fractions, dimensions, action.shape[1])
    moved = [((action * option)[:, None] * shift).sum(-1) / POOL for option in options]
    error = _errors(before, after, moved)
    error = error.unflatten(0, (len(FRACTIONS),) * len(dimensions))
    for k, i in enumerate(dimensions):
        by_fraction = error if len(dimensions) == 1 else error.amin(1 - k)
        least, best = by_fraction.min(0)
        whole = by_fraction[-1]
        was_clipped = whole - least > CLEAR
        fraction[:, i] = torch.where(was_clipped, fractions[best], 1.0)
        contrast = (by_fraction - least).nan_to_num(0, 0)
        distinguishable = (contrast > CLEAR).any(0)
        confident[:, i] = (whole.isfinite() & distinguishable).to(action)
    return fraction, confident


def _combinations(fractions: Tensor, dimensions: list[int], actions: int) -> Tensor:
    """Return all combinations of fractions in some dimensions, and 1 in the others, [F^d, A]."""
    options = fractions.new_ones(len(fractions) ** len(dimensions), actions)
    product = torch.cartesian_prod(*[fractions] * len(dimensions))
    options[:, dimensions] = product.view(-1, len(dimensions))
    return options


def _errors(before: Tensor, after: Tensor, moved: list[Tensor]) -> Tensor:
    """Return the mean absolute error in the view after each of K shifts [N, 2].

    The result is [K, N]. It is infinite where less than half of the view remains inside the frame.
    """
    view = moving_view(before, after)[:, :1]
    views = view.expand(len(before), -1, -1, -1)
    pictures = torch.cat((before, views), 1)
    errors = []
    for shift in moved:
        shifted = shift_frames(pictures, shift, "zeros")
        inside = view * (shifted[:, -1:] > 0.99)
        gap = (after - shifted[:, :-1]).abs().mean(1, keepdim=True) * inside
        area = inside.sum((1, 2, 3))
        error = gap.sum((1, 2, 3)) / area.clamp(min=1)
        too_small = 2 * area < view.sum()
        errors.append(error.masked_fill(too_small, float("inf")))
    return torch.stack(errors)
