"""Integrate the agent's motion into a pose, and map poses to phases.

A pose is (heading, ahead, right): radians to the right, then tokens, from where the episode began.

Shapes
    u [..., G, s, D]     tokens of a frame: G tiles of s tokens
    action [..., A]      action that led to the frame
    pose [..., G, 3]     pose of each tile
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from lssvwm.worldmodel.fused_ops import at_least_float32
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.mixers.base import (
        MixerContext,
        RolloutInputs,
        SequenceInputs,
    )


SLOWEST = 0.1
"""Least length of a wave vector, as a share of the largest, and least angle to an axis, as a share of 90 degrees."""


class PathIntegrator(nn.Module):
    """Sum up the agent's motion in a learned plane; return phases of places.

    A frame turns the heading and moves the position by a step, seen from the agent:
        heading  += turn(action)
        position += rotate2d(step(action), heading) * passable(frame)
    With `walls`, the frame says if a wall blocked the step. Otherwise `action_limits` corrects the action beforehand.

    A token lies at an offset from the agent (initially: its place in the token grid). Its phases are r plane waves:
        phase_k = waves (position + rotate2d(offset_k, heading))
    Keys of places made so resemble grid cells. They are also RoPE for an image that the agent carries along.

    Poses that frames come with are used as they are.

    Motions marked `known` are not trained. An error of 0.1 degrees adds up to a wrong heading over 1000 frames.
    """

    def __init__(self, context: MixerContext, side: int, phases: int):
        super().__init__()
        width, actions, walls = context.width, context.actions, context.walls
        self.action = nn.Linear(actions, 3, bias=False)  # turn, step ahead, step right
        self.known: Tensor
        self.register_buffer("known", torch.zeros(actions, dtype=torch.bool))
        self.frame = nn.Linear(width, 1) if walls else None
        nn.init.normal_(self.action.weight, std=0.1)
        with torch.no_grad():  # an episode's first frame has no motion in any layer
            self.action.weight[:, -1] = 0.0
            self.known[-1] = True
        if self.frame is not None:  # passable until training finds walls
            nn.init.zeros_(self.frame.weight)
            nn.init.constant_(self.frame.bias, 4.0)
        self.offset = nn.Parameter(_grid_offsets(side))
        self.waves = nn.Parameter(_plane_waves(phases))

    @torch.no_grad()
    def set_motion(
        self, action: int, motion: tuple[float, float, float] | None
    ) -> None:
        """Set turn and step of an action or action dimension; stop training it.

        None: no motion, until training finds one.
        """
        self.action.weight[:, action] = torch.tensor(motion or (0.0, 0.0, 0.0))
        self.known[action] = motion is not None

    def geometry(self) -> list[Tensor]:
        """Return the parameters of motions and places, which need a low learning rate."""
        return [self.action.weight, self.offset, self.waves]

    def motion(self, action: Tensor) -> Tensor:
        """Return turn and step [..., 3] of actions [..., A]."""
        weight = self.action.weight
        return F.linear(action, torch.where(self.known, weight.detach(), weight))

    def passable(self, u: Tensor) -> Tensor:
        """Return the fraction of a step [..., G, 1] that frames u [..., G, s, D] allow."""
        if self.frame is None:
            return self.action.weight.new_ones(*u.shape[:-2], 1)
        mean = at_least_float32(u.mean(-2))
        return torch.sigmoid(self.frame(mean))

    def move(self, u: Tensor, action: Tensor, pose: Tensor) -> Tensor:
        """Return the pose after a frame.

        u [..., G, s, D], action [..., A], pose [..., G, 3] before the frame -> [..., G, 3]
        """
        heading, position = split_pose(pose)
        motion = self.motion(action).unsqueeze(-2)
        turn, step = split_pose(motion)
        heading = heading + turn
        step = rotate2d(step, heading)
        position = position + step * self.passable(u)
        return torch.cat((heading, position), -1)

    def follow(self, u: Tensor, frames: RolloutInputs, pose: Tensor) -> Tensor:
        """Return the pose after each of R successive frames.

        u [B, n, R, G, s, D], pose [B, n, G, 3] before them -> [B, n, R, G, 3]
        """
        if frames.pose is not None:
            return _of_tiles(frames.pose, pose)
        poses = []
        for frame, moved in zip(u.unbind(2), frames.action.unbind(2)):
            pose = self.move(frame, moved, pose)
            poses.append(pose)
        return torch.stack(poses, 2)

    def phases(self, pose: Tensor) -> Tensor:
        """Return the phases [..., G, s, r] of the tokens of a frame at a pose [..., G, 3]."""
        heading, position = split_pose(pose.unsqueeze(-2))
        points = position + rotate2d(self.offset, heading)
        return points @ self.waves

    def forward(
        self, u: Tensor, frames: SequenceInputs, pose: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Integrate sequences of frames.

        u [B, T, R, G, s, D], pose [B, G, 3] -> poses of all copies [B, T, R, G, 3], last pose [B, G, 3]

        The written copy of a frame moves the agent; where none is written, the action alone does. Each copy reads
        from the pose that it would lead to itself.
        """
        if frames.pose is not None:
            poses = _of_tiles(frames.pose, pose)
            return poses, poses[:, -1, -1]
        reset = frames.reset
        first_heading, first_position = split_pose(pose)
        motion = self.motion(frames.action).unsqueeze(-2)
        turn, step = split_pose(motion)  # [B, T, 1, .]
        turned = sum_before(turn, reset, first_heading[:, :1])
        heading = turned + turn  # of all tiles
        step = rotate2d(step, heading)
        passable = self.passable(u)  # [B, T, R, G, 1]
        written = frames.writes[..., None, None]
        moved = torch.where(written, passable[:, :, -1], 1.0)
        kept = step * moved
        before = sum_before(kept, reset, first_position)
        steps = step[:, :, None] * passable
        positions = before[:, :, None] + steps
        headings = heading[:, :, None]
        headings = headings.expand(*positions.shape[:-1], 1)
        last_heading = torch.remainder(heading[:, -1], 2 * math.pi)
        last_heading = last_heading.expand_as(first_heading)
        last_position = (before + kept)[:, -1]
        poses = torch.cat((headings, positions), -1)
        return poses, torch.cat((last_heading, last_position), -1)


def split_pose(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Split [..., 3] into heading and position, or into turn and step."""
    return pose[..., :1], pose[..., 1:]


def rotate2d(v: Tensor, angle: Tensor) -> Tensor:
    """Rotate v [..., 2] by angle [..., 1], in radians."""
    x, y = v[..., :1], v[..., 1:]
    cos, sin = angle.cos(), angle.sin()
    rotated_x = cos * x - sin * y
    rotated_y = sin * x + cos * y
    return torch.cat((rotated_x, rotated_y), -1)


def _plane_waves(count: int) -> Tensor:
    """Draw wave vectors (ahead, right) [2, count], in radians per token.

    Their density is even within a circle. Those are left out whose phase hardly changes along an axis, where an agent
    may walk far. Such a wave would make the state of the delta rule grow with the distance.
    """
    least = SLOWEST**2
    area = torch.rand(count)
    area = least + (1 - least) * area
    length = math.pi * area.sqrt()
    quarter = torch.randint(4, (count,))
    share = torch.rand(count)
    within = SLOWEST + (1 - 2 * SLOWEST) * share
    direction = math.pi / 2 * (quarter + within)
    ahead = length * direction.cos()
    right = length * direction.sin()
    return torch.stack((ahead, right))


def _grid_offsets(side: int) -> Tensor:
    """Return the offsets [side^2, 2], ahead and right, of tokens from the agent.

    The agent stands at the middle of the last row of the grid.
    """
    rows, columns = torch.meshgrid(
        torch.arange(side), torch.arange(side), indexing="ij"
    )
    ahead = side - 1 - rows
    right = columns - (side - 1) / 2
    return torch.stack((ahead, right), -1).flatten(0, 1).float()


def sum_before(steps: Tensor, reset: Tensor, start: Tensor) -> Tensor:
    """Sum the steps before each frame.

    steps [B, T, G, n], reset [B, T], start [B, G, n] -> [B, T, G, n]
    The sum begins with `start`, and with zero at a reset.
    """
    before = start[:, None] + steps.cumsum(1) - steps
    number = torch.arange(1, reset.shape[1] + 1, device=steps.device)
    last_reset = (reset * number).cummax(1).values  # 1 + its index, or 0
    index = last_reset[..., None, None].expand_as(before)
    padded = F.pad(before, (0, 0, 0, 0, 1, 0))
    at_reset = padded.gather(1, index)
    return before - at_reset


def _of_tiles(pose: Tensor, like: Tensor) -> Tensor:
    """Give every tile of `like` [..., G, 3] the pose [..., 3] of its frame."""
    tiles = like.shape[-2]
    return pose.unsqueeze(-2).expand(*pose.shape[:-1], tiles, 3)
