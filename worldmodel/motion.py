"""Estimate the agent's motion from actions and frames, and sum it up to a pose.

A step is (turn, ahead, right): radians to the right, then tokens or tiles, seen from the new heading. It is predicted
before its frame is seen, from recent actions, recent steps as frames showed them, and the view that the agent steps
into. The frame then corrects the prediction: its view is compared with the one before. Where a frame is not written,
only the prediction moves the agent. Both are normal distributions, which poses of the environment train. Their
variances add up to that of the pose, as if errors were independent and headings exact.

Shapes: B sequences, T frames, R copies of a frame, S tokens per frame, D width.
A, V, E: numbers of an action, of a view, of an event. An event is an action and what a frame showed of its step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from lssvwm.worldmodel.batch_part import share_of_mean
from lssvwm.worldmodel.fused_ops import at_least_float32
from lssvwm.worldmodel.mixers.path_integrator import (
    rotate2d,
    split_pose,
    sum_before,
)
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.mixers.base import (
        MixerMemory,
        RolloutInputs,
        SequenceInputs,
    )

VIEW = 32
"""Numbers of a token that are compared."""
HIDDEN = 128
SHOWN = 64
"""Numbers that describe what a frame shows of a step."""
EVENTS = 8
"""Past steps from which a step is predicted."""
SPANS = (1, 8, 32)
"""Successive steps whose sum is compared with the true one."""
LOG_STD = (-6.0, 1.0)
"""Range of the logarithm of a standard deviation."""


class Step(NamedTuple):
    """Hold the distribution of steps."""

    mean: Tensor
    """[..., 3]"""

    log_std: Tensor
    """[..., 3]"""

    @property
    def variance(self) -> Tensor:
        """Variance of turn and of both parts of the shift, [..., 3]."""
        return torch.exp(2 * self.log_std)


class Motion(NamedTuple):
    """Hold the steps of a sequence, and the poses that they lead to."""

    predicted: Step
    """Steps [B, T] before their frames are seen"""

    corrected: Step
    """Steps [B, T] after the frames that are written"""

    poses: Tensor
    """Poses of the copies, [B, T, R, 3]"""


class MotionModel(nn.Module):
    """Predict steps and correct them by what frames show.

    Memory: pose [B, 3] and its variance [B, 3], events [B, EVENTS, E], view [B, V] of the last frame and whether it was
    `seen` [B, 1].
    """

    def __init__(self, width: int, tokens: int, actions: int):
        super().__init__()
        view = tokens * VIEW
        self.view = nn.Linear(width, VIEW)
        self.compare = nn.Sequential(
            nn.Linear(2 * view, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, SHOWN)
        )
        self.unseen = nn.Parameter(torch.zeros(SHOWN))
        self.history = nn.Linear(EVENTS * (actions + SHOWN), HIDDEN)
        self.action = nn.Linear(actions, HIDDEN, bias=False)
        self.scene = nn.Linear(view, HIDDEN, bias=False)
        self.shown = nn.Linear(SHOWN, HIDDEN, bias=False)
        self.predict = _head()
        self.correct = _head()

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the memory of `batch` agents that have not moved."""
        event = self.history.in_features // EVENTS
        return {
            "pose": like.new_zeros(batch, 3),
            "variance": like.new_zeros(batch, 3),
            "events": like.new_zeros(batch, EVENTS, event),
            "view": like.new_zeros(batch, self.scene.in_features),
            "seen": torch.zeros(batch, 1, dtype=torch.bool, device=like.device),
        }

    def forward(
        self, x: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> tuple[Motion, MixerMemory]:
        """Follow sequences of embedded frames x [B, T, R, S, D], the last copy of which may be written.

        Returns the motion, and the memory after the last frame. Other copies stand where the prediction leads.
        """
        writes, reset = frames.writes, frames.reset
        action = at_least_float32(frames.action)
        view = self._view(x[:, :, -1])
        seen_before = _shifted(writes, memory["seen"][:, 0]) & ~reset
        scene = _shifted(view, memory["view"])
        scene = scene * seen_before[..., None]
        shown = self._shown(scene, view, seen_before & writes)
        events = torch.cat((action, shown), -1)
        line = torch.cat((memory["events"], events), 1)
        recent = _recent(line, reset)
        history = recent[:, :-1].flatten(-2)
        predicted, corrected = self._steps(history, action, scene, shown)
        written = writes[..., None]
        began = reset[..., None]
        moved = torch.where(written, corrected.mean, predicted.mean)
        moved = moved.masked_fill(began, 0.0)
        expected = predicted.mean.masked_fill(began, 0.0)
        pose, expected_pose = _sum(moved, expected, reset, memory["pose"])
        copies = [expected_pose] * (x.shape[2] - 1)
        poses = torch.stack([*copies, pose], 2)
        variance = torch.where(written, corrected.variance, predicted.variance)
        variance = variance.masked_fill(began, 0.0)
        last = {
            "pose": _wrapped(pose[:, -1]),
            "variance": _last_sum(variance, reset, memory["variance"]),
            "events": recent[:, -1],
            "view": view[:, -1] * writes[:, -1:],
            "seen": writes[:, -1:],
        }
        return Motion(predicted, corrected, poses), last

    def follow(
        self, x: Tensor, frames: RolloutInputs, memory: MixerMemory
    ) -> tuple[Tensor, MixerMemory]:
        """Follow successive imagined frames x [B, n, R, S, D] of n candidates with memories [B, n, ...].

        Returns the poses [B, n, R, 3] and, if the first frame is written, the memory after it.
        """
        poses = []
        actions = list(at_least_float32(frames.action).unbind(2))
        if frames.write:
            memory = self._advance(x[:, :, 0], actions.pop(0), memory)
            poses.append(memory["pose"])
        for action in actions:
            step = self.expected_step(action, memory)
            poses.append(_moved(memory["pose"], step))
        return torch.stack(poses, 2), memory

    def expected_step(self, action: Tensor, memory: MixerMemory) -> Tensor:
        """Return the steps [..., 3] that actions [..., A] should lead to."""
        history = memory["events"].flatten(-2)
        predicted, _ = self._steps(history, action, memory["view"], None)
        return predicted.mean

    def _advance(self, x: Tensor, action: Tensor, memory: MixerMemory) -> MixerMemory:
        """Move candidates to a frame x [B, n, S, D]; return their memory of it."""
        view = self._view(x)
        seen = memory["seen"][..., 0]
        shown = self._shown(memory["view"], view, seen)
        history = memory["events"].flatten(-2)
        _, corrected = self._steps(history, action, memory["view"], shown)
        event = torch.cat((action, shown), -1)
        later = memory["events"][..., 1:, :]
        return {
            "pose": _moved(memory["pose"], corrected.mean),
            "variance": memory["variance"] + corrected.variance,
            "events": torch.cat((later, event.unsqueeze(-2)), -2),
            "view": view,
            "seen": torch.ones_like(memory["seen"]),
        }

    def _view(self, x: Tensor) -> Tensor:
        """Return what is compared of embedded frames [..., S, D], as [..., V]."""
        x = at_least_float32(x)
        return self.view(x).flatten(-2)

    def _shown(self, before: Tensor, view: Tensor, both: Tensor) -> Tensor:
        """Compare views [..., V]; where not `both` [...] were seen, nothing is known."""
        pair = torch.cat((before, view), -1)
        shown = self.compare(pair)
        return torch.where(both[..., None], shown, self.unseen)

    def _steps(
        self, history: Tensor, action: Tensor, scene: Tensor, shown: Tensor | None
    ) -> tuple[Step, Step]:
        """Return steps before and after their frame. Without what it has shown, both are predicted."""
        hidden = self.history(history)
        hidden = hidden + self.action(action)
        hidden = hidden + self.scene(scene)
        predicted = _step(self.predict(hidden))
        if shown is None:
            return predicted, predicted
        hidden = hidden + self.shown(shown)
        change = _step(self.correct(hidden))
        mean = predicted.mean + change.mean
        return predicted, Step(mean, change.log_std)


def loss(motion: Motion, pose: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihood of poses [B, T, 3], and the mean error of steps.

    is_first [B, T] marks frames that no step led to. The error is that of corrected steps, in tiles.
    """
    true = steps_between(pose)
    valid = ~is_first[:, 1:]
    known = valid[..., None].to(pose)
    total = pose.new_zeros(())
    for step in (motion.predicted, motion.corrected):
        error = true - step.mean[:, 1:]
        variance = step.variance[:, 1:]
        for span in SPANS:
            total = total + _cost(error * known, variance, known, span)
    error = true - motion.corrected.mean[:, 1:]
    _, missed = split_pose(error.detach())
    distance = missed.norm(dim=-1)
    mean = share_of_mean(distance, known[..., 0])
    return total / len(SPANS), mean


def _cost(error: Tensor, variance: Tensor, known: Tensor, span: int) -> Tensor:
    """Return the negative log likelihood of sums of `span` successive steps.

    Their errors count as independent, so that small errors that repeat cost more: they bend the path. Costs are weighed
    by the expected error (Seitzer et al. 2022, arXiv 2203.09168). Otherwise steps that are easy to predict would
    outweigh all others.
    """
    if span > error.shape[1]:
        return error.new_zeros(())
    summed = _windows(error, span)
    expected = _windows(variance, span)
    whole = _windows(known, span)[..., 0] > span - 0.5
    cost = summed.square() / expected
    cost = 0.5 * (cost + expected.log())
    cost = cost * expected.detach().sqrt()
    return share_of_mean(cost.sum(-1), whole.float())


def _windows(x: Tensor, span: int) -> Tensor:
    """Return the sums of x [B, T, n] over windows of `span` frames, [B, T - span + 1, n]."""
    return x.unfold(1, span, 1).sum(-1)


def steps_between(pose: Tensor) -> Tensor:
    """Return the steps [B, T - 1, 3] between successive poses [B, T, 3]."""
    heading, position = split_pose(pose)
    turn = _wrapped(heading.diff(dim=1))
    step = rotate2d(position.diff(dim=1), -heading[:, 1:])
    return torch.cat((turn, step), -1)


def _head() -> nn.Sequential:
    """Build the layers that give mean and logarithm of the standard deviation of a step."""
    hidden = nn.Linear(HIDDEN, HIDDEN)
    last = nn.Linear(HIDDEN, 6)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.GELU(), hidden, nn.GELU(), last)


def _step(numbers: Tensor) -> Step:
    mean, log_std = numbers.chunk(2, -1)
    low, high = LOG_STD
    return Step(mean, low + (high - low) * torch.sigmoid(log_std))


def _moved(pose: Tensor, step: Tensor) -> Tensor:
    """Return poses [..., 3] after steps [..., 3]."""
    heading, position = split_pose(pose)
    turn, shift = split_pose(step)
    heading = heading + turn
    return torch.cat((heading, position + rotate2d(shift, heading)), -1)


def _sum(
    moved: Tensor, expected: Tensor, reset: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum up steps [B, T, 3].

    Returns the poses after them, and those after the expected step instead of the last one.
    """
    turn, shift = split_pose(moved)
    first_heading, first_position = split_pose(start[:, None])
    before = sum_before(turn.unsqueeze(-2), reset, first_heading).squeeze(-2)
    heading = before + turn
    shift = rotate2d(shift, heading)
    position = sum_before(shift.unsqueeze(-2), reset, first_position).squeeze(-2)
    pose = torch.cat((heading, position + shift), -1)
    return pose, _moved(torch.cat((before, position), -1), expected)


def _last_sum(steps: Tensor, reset: Tensor, start: Tensor) -> Tensor:
    """Return the sum [B, 3] of steps [B, T, 3] since the last reset.

    Without a reset, it is that of all steps and `start` [B, 3].
    """
    before = sum_before(steps.unsqueeze(-2), reset, start[:, None])
    return before[:, -1, 0] + steps[:, -1]


def _wrapped(pose: Tensor) -> Tensor:
    """Bring the heading, the first of the last axis, to -pi ... pi."""
    heading, rest = split_pose(pose)
    whole = 2 * math.pi
    turns = torch.remainder(heading + math.pi, whole)
    return torch.cat((turns - math.pi, rest), -1)


def _recent(line: Tensor, reset: Tensor) -> Tensor:
    """Return the last EVENTS events before each frame and after the last one, [B, T + 1, EVENTS, E].

    Events of other episodes are zeros.
    line: events [B, EVENTS + T, E], the first of which are remembered; reset [B, T]
    """
    windows = line.unfold(1, EVENTS, 1)
    windows = windows.transpose(-1, -2)
    episode = reset.long().cumsum(1)
    before = F.pad(episode, (EVENTS, 0))
    current = torch.cat((episode, episode[:, -1:]), 1)
    same = before.unfold(1, EVENTS, 1) == current[..., None]
    return windows * same[..., None]


def _shifted(x: Tensor, first: Tensor) -> Tensor:
    """Return what lies one frame before, x [B, T, ...] after `first` [B, ...]."""
    past = x[:, :-1]
    return torch.cat((first[:, None], past), 1)
