"""How much of a continuous action walls let through: told from the frame before it, learnt from frames alone.

An odometer sums up how actions move the view. In training, which part of an action was made is measured: the one by
which the frame before must be shifted to look most like the frame after. `ActionLimits` learns to tell it from the
frame before; so it is known of actions that are only imagined, too.

Shapes: A dimensions of an action, S tokens of a frame, D their width, N pairs of frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lssvwm.worldmodel.config import HEAD_HIDDEN
from lssvwm.worldmodel.fused_ops import at_least_float32
from lssvwm.worldmodel.motion_calibration import moving, shifted
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.backbone import Backbone
    from lssvwm.worldmodel.model import Batch, WorldModel

PAIRS = 256  # of frames, measured for every segment of a training batch
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an action, that may have been made
POOL = 2  # pixels along each side that count as one
CLEAR = 0.01  # by how much of the brightness one part must look better than another, to be told from it


class ActionLimits(nn.Module):
    """How far each dimension of an action can go, downwards and upwards, from where a frame was seen."""

    def __init__(self, tokens: int, width: int, actions: int):
        super().__init__()
        last = nn.Linear(HEAD_HIDDEN, 2 * actions)
        self.tell = nn.Sequential(
            nn.Linear(tokens * width, HEAD_HIDDEN), nn.GELU(), last
        )
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(actions))  # the size of actions
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 4.0)  # far, until training says otherwise

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        if not any(
            name.startswith(prefix) for name in state_dict
        ):  # weights from before: as if new
            state_dict |= {
                prefix + name: value for name, value in self.state_dict().items()
            }
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of frames, embedded [..., S, D]: the most that an action can be, downwards and upwards, [..., 2 A]"""
        return F.softplus(
            at_least_float32(self.tell(tokens.flatten(-2)))
        ) * self.scale.repeat(2)


def stopped(action: Tensor, reach: Tensor) -> Tensor:
    """What is made of actions [..., A] where so much can be, [..., 2 A]."""
    down, up = reach.chunk(2, -1)
    return torch.minimum(torch.maximum(action, -down), up)


def shift(model: Backbone) -> Tensor:
    """How the view shifts per unit of an action, [2, A]: to the right and down, in pixels; zero where unknown."""
    odometer, a = model.path_integrators[0], model.actions
    ahead, right = odometer.action.weight.detach()[1:, :a] * odometer.known[:a]
    return torch.stack((right, -ahead)) * model.patches.patch


def loss(
    model: WorldModel,
    tokens: Tensor,
    batch: Batch,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How wrongly action limits tell from embedded frames [B, T, S, D] what was made of the next actions: where
    something stopped them, how far they came; elsewhere, by how much too early it would have stopped them. What embeds
    the frames learns from it as well."""
    known = shift(model)
    going = (~batch.is_first[:, 1:]).nonzero()
    if model.action_limits is None or not known.any() or not len(going):
        return tokens.new_zeros(())
    some = going[
        torch.randperm(len(going), generator=generator, device=going.device)[:PAIRS]
    ]
    row, at = some.unbind(1)
    action = batch.action[row, at + 1]
    part, clear = made(batch.pixels[row, at], batch.pixels[row, at + 1], action, known)
    down, up = model.action_limits(tokens[row, at]).chunk(2, -1)
    told, meant = torch.where(action > 0, up, down), action.abs()
    wrong = (
        torch.where(part < 1, (told - part * meant).abs(), F.relu(meant - told))
        / model.action_limits.scale
    )
    return (wrong * clear).sum() / clear.sum().clamp(min=1)


@torch.no_grad()
def made(
    before: Tensor, after: Tensor, action: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Which part of actions [N, A], of which each shifts the view by `shift` [2, A], was made between frames uint8
    [N, C, H, W], and where the frames tell, [N, A] both. Of dimensions that shift nothing they do not, nor of more than
    two that do: the view has two directions to go."""
    part, clear, known = (
        torch.ones_like(action),
        torch.zeros_like(action),
        shift.any(0).nonzero()[:, 0].tolist(),
    )
    if not 0 < len(known) <= 2:
        return part, clear
    before, after = (F.avg_pool2d(v.to(shift) / 255, POOL) for v in (before, after))
    view, parts = moving(after, before)[:, :1], torch.tensor(PARTS).to(action)
    options = action.new_ones(len(PARTS) ** len(known), action.shape[1])
    options[:, known] = torch.cartesian_prod(*[parts] * len(known)).view(-1, len(known))
    pictures, errors = torch.cat((before, view.expand(len(before), -1, -1, -1)), 1), []
    for option in options:
        there = shifted(
            pictures, ((action * option)[:, None] * shift).sum(-1) / POOL, "zeros"
        )
        inside = view * (there[:, -1:] > 0.99)
        gap, area = (
            ((after - there[:, :-1]).abs().mean(1, keepdim=True) * inside).sum(
                (1, 2, 3)
            ),
            inside.sum((1, 2, 3)),
        )
        errors.append(
            (gap / area.clamp(min=1)).masked_fill(2 * area < view.sum(), float("inf"))
        )
    error = torch.stack(errors).unflatten(0, (len(PARTS),) * len(known))
    for k, i in enumerate(known):
        of_part = error if len(known) == 1 else error.amin(1 - k)
        least, best = of_part.min(0)
        part[:, i] = torch.where(
            of_part[-1] - least > CLEAR, parts[best], 1.0
        )  # all of it, unless that is refuted
        clear[:, i] = (
            of_part[-1].isfinite() & ((of_part - least).nan_to_num(0, 0) > CLEAR).any(0)
        ).to(action)
    return part, clear
