"""Predict the number of steps from a frame to a goal image.

Half of the goals of a frame come later in the same episode, after a counted number of steps. The others are any frames
of the batch. Their distance is estimated by temporal differences: steps to a waypoint on the trajectory plus the
distance that the head predicts from there. This joins parts of different trajectories.

The behaviour need not have taken the shortest way. Expectile regression (Newey and Powell 1987) of log(1 + steps) to a
low expectile estimates the steps of the quicker trajectories. The temporal difference part follows HIQL (Park et al.
2023), with several steps and an upper limit in place of a discount.

Shapes: B sequences, T frames, S tokens per frame, D width, P pairs, W waypoints, K hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.worldmodel.batch_part import all_sum, gather, own, whole
from lssvwm.worldmodel.config import HEAD_HIDDEN
from lssvwm.worldmodel.heads import normalized_frame
from torch import Tensor, nn
from torch.nn import functional as F

PAIRS = 8
"""Goals of each kind that each frame is paired with in training."""
WAYPOINTS = 4
"""Waypoints per frame; the one with the shortest estimated way to the goal counts."""
NEAR = 8
"""Half of the later goals and waypoints are at most so many steps away."""
EXPECTILE = 0.1
"""Expectile of counted steps."""
JOIN_EXPECTILE = 0.2
"""Expectile of joined steps. A lower one shrinks the estimates, because each rests on others (HIQL uses 0.3)."""
MAX_STEPS = 300.0
"""Largest target of joined steps."""


class GoalDistance(nn.Module):
    """Predict steps from frames (tokens [..., S, D]) to goal images (embedded tokens [..., S, D])."""

    def __init__(
        self,
        tokens: int,
        width: int,
        hidden: int = HEAD_HIDDEN,
        expectile: float = EXPECTILE,
    ):
        super().__init__()
        self.expectile = expectile
        self.here = nn.Linear(tokens * width, hidden)
        self.there = nn.Linear(tokens * width, hidden)
        last = nn.Linear(hidden, 1)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)
        # at 0, the smallest output, there would be no gradient
        nn.init.ones_(last.bias)

    def embed_goal(self, goal: Tensor) -> Tensor:
        """Prepare goals [..., S, D] for `forward`. Returns [..., K]."""
        return self.there(normalized_frame(goal))

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """Predict steps [...] >= 0 from frames x [..., S, D] to goals of `embed_goal`."""
        here = self.here(normalized_frame(x))
        return torch.expm1(self.log_steps(here, goal).clamp(min=0))

    def log_steps(self, here: Tensor, goal: Tensor) -> Tensor:
        """Predict log(1 + steps) [...] from embedded frames and goals [..., K]."""
        return self.out(here + goal)[..., 0].float()


@dataclass(frozen=True)
class Trajectories:
    """Hold the observed frames of a batch, from which goals and waypoints are drawn."""

    observed: Tensor
    """Tokens of the observed frames after all blocks, [B, T, S, D]"""

    goals: Tensor
    """The same frames as goals (see `GoalDistance.embed_goal`), [B, T, K]"""

    is_first: Tensor
    """bool [B, T]"""


def loss(
    head: GoalDistance,
    x: Tensor,
    valid: Tensor,
    batch: Trajectories,
    generator: torch.Generator | None,
) -> Tensor:
    """Compute the error of predicted steps from frames x [B, T, S, D] where `valid` [B, T]."""
    here = head.here(normalized_frame(x))[:, :, None]
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    at = torch.arange(x.shape[1], device=x.device)[:, None]
    steps = later(batch.is_first, PAIRS, generator)
    waypoint_steps = later(batch.is_first, WAYPOINTS, generator)
    counted = torch.log1p(steps.float())
    counted_error = counted - head.log_steps(here, batch.goals[rows, at + steps])
    goal = _other_goals(batch.goals, generator)
    with torch.no_grad():
        observed = head.here(normalized_frame(batch.observed))
        waypoints = observed[rows, at + waypoint_steps][
            :, :, :, None
        ]  # [B, T, W, 1, K]
        log_rest = head.log_steps(waypoints, goal[:, :, None])
        rest = torch.expm1(log_rest.clamp(min=0))
        joined = (waypoint_steps[..., None] + rest).amin(2).clamp(max=MAX_STEPS)
        joined = torch.log1p(joined)
    joined_error = joined - head.log_steps(here, goal)
    error = _expectile_loss(counted_error, head.expectile)
    error = error + _expectile_loss(joined_error, JOIN_EXPECTILE)
    count = all_sum(valid.sum()).clamp(min=1)
    return (error * valid[..., None]).sum() / count / PAIRS


def _other_goals(goals: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw goals for pairs: half from the same sequence, half from any.

    goals [B, T, K] -> [B, T, P, K]
    """
    goals = gather(goals)
    batch, frames = goals.shape[:2]
    shape = (batch, frames, PAIRS)
    device = goals.device
    any_row = torch.randint(batch, shape, generator=generator, device=device)
    own_row = torch.arange(batch, device=device)[:, None, None]
    same = torch.arange(PAIRS, device=device) < PAIRS // 2
    row = torch.where(same, own_row, any_row)
    at = torch.randint(frames, shape, generator=generator, device=device)
    return goals[own(row), own(at)]


def _expectile_loss(gap: Tensor, expectile: float) -> Tensor:
    return torch.where(gap > 0, expectile, 1 - expectile) * gap.square()


def later(is_first: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw steps from each frame to n later frames of the same episode.

    is_first bool [B, T] -> int64 [B, T, n], 0 at the end of an episode
    """
    frames = is_first.shape[1]
    at = torch.arange(frames, device=is_first.device)
    begins = torch.where(is_first, at, frames)
    next_begins = F.pad(begins[:, 1:], (0, 1), value=frames)
    episode_end = next_begins.flip(1).cummin(1).values.flip(1)
    left = (episode_end - 1 - at)[..., None].expand(-1, -1, n)
    near = torch.arange(n, device=at.device) < n // 2
    furthest = torch.where(near, left.clamp(max=NEAR), left)
    shape = whole(len(is_first)), frames, n
    draw = own(torch.rand(shape, generator=generator, device=at.device))
    return (draw * (furthest + 1)).long().clamp(max=frames)
