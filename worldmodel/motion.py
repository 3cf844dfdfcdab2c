"""Estimate the agent's motion from actions and frames, and sum it up to a pose.

A step is (turn, ahead, right): radians to the right, then tokens or tiles, seen from the new heading. It is predicted
before its frame is seen, from recent actions, recent steps as frames showed them, and the view that the agent steps
into. The frame then corrects the prediction: its view is compared with the one before. Where a frame is not written,
only the prediction moves the agent. Both are normal distributions, which poses of the environment train. Their
variances add up to that of the pose, as if errors were independent and headings exact.

Shapes: B sequences, T frames, R copies of a frame, S tokens per frame, D width, A numbers of an action, V numbers of a
view, E numbers of an event (an action and what a frame showed of it).
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
"""Numbers that tell what a frame shows of a step."""
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
        seen_before = torch.cat((memory["seen"], writes[:, :-1]), 1) & ~reset
        scene = torch.cat((memory["view"][:, None], view[:, :-1]), 1)
        scene = scene * seen_before[..., None]
        shown = self._shown(scene, view, seen_before & writes)
        line = torch.cat((memory["events"], torch.cat((action, shown), -1)), 1)
        history = _recent(line, reset)
        predicted, corrected = self._steps(history, action, scene, shown)
        moved = Step(
            *(
                torch.where(writes[..., None], *pair)
                for pair in zip(corrected, predicted)
            )
        )
        began = reset[..., None]
        steps = moved.mean.masked_fill(began, 0.0)
        expected = predicted.mean.masked_fill(began, 0.0)
        pose, expected_pose = _sum(steps, expected, reset, memory["pose"])
        copies = [expected_pose] * (x.shape[2] - 1) + [pose]
        doubt = moved.variance.masked_fill(began, 0.0)
        last = {
            "pose": _wrapped(pose[:, -1]),
            "variance": _last_sum(doubt, reset, memory["variance"]),
            "events": _kept(line, reset),
            "view": view[:, -1] * writes[:, -1:],
            "seen": writes[:, -1:],
        }
        return Motion(predicted, corrected, torch.stack(copies, 2)), last

    def follow(
        self, x: Tensor, frames: RolloutInputs, memory: MixerMemory
    ) -> tuple[Tensor, MixerMemory]:
        """Follow successive imagined frames x [B, n, R, S, D] of n candidates with memories [B, n, ...].

        Returns the poses [B, n, R, 3] and, if the first frame is written, the memory after it.
        """
        poses = []
        for number, action in enumerate(at_least_float32(frames.action).unbind(2)):
            if frames.write and number == 0:
                pose, memory = self._advance(x[:, :, 0], action, memory)
            else:
                predicted, _ = self._steps(
                    memory["events"].flatten(-2), action, memory["view"], None
                )
                pose = _moved(memory["pose"], predicted.mean)
            poses.append(pose)
        return torch.stack(poses, 2), memory

    def first_step(self, action: Tensor) -> Tensor:
        """Return the steps [..., 3] expected of actions [..., A] of agents that stood still and saw nothing."""
        memory = self.initial(1, action)
        history = memory["events"].flatten(-2)
        return self._steps(history, action, memory["view"], None)[0].mean

    def _advance(
        self, x: Tensor, action: Tensor, memory: MixerMemory
    ) -> tuple[Tensor, MixerMemory]:
        """Move candidates to a frame x [B, n, S, D] that they remember; return poses and memory."""
        view = self._view(x)
        shown = self._shown(memory["view"], view, memory["seen"][..., 0])
        history = memory["events"].flatten(-2)
        _, corrected = self._steps(history, action, memory["view"], shown)
        pose = _moved(memory["pose"], corrected.mean)
        event = torch.cat((action, shown), -1).unsqueeze(-2)
        events = torch.cat((memory["events"][..., 1:, :], event), -2)
        seen = torch.ones_like(memory["seen"])
        return pose, {
            "pose": pose,
            "variance": memory["variance"] + corrected.variance,
            "events": events,
            "view": view,
            "seen": seen,
        }

    def _view(self, x: Tensor) -> Tensor:
        """Return what is compared of embedded frames [..., S, D], as [..., V]."""
        return self.view(at_least_float32(x)).flatten(-2)

    def _shown(self, before: Tensor, view: Tensor, both: Tensor) -> Tensor:
        """Compare views [..., V]; where not `both` [...] were seen, nothing is known."""
        shown = self.compare(torch.cat((before, view), -1))
        return torch.where(both[..., None], shown, self.unseen)

    def _steps(
        self, history: Tensor, action: Tensor, scene: Tensor, shown: Tensor | None
    ) -> tuple[Step, Step]:
        """Return steps before and after their frame. Without what it has shown, both are predicted."""
        hidden = self.history(history) + self.action(action) + self.scene(scene)
        predicted = _step(self.predict(hidden))
        if shown is None:
            return predicted, predicted
        change = _step(self.correct(hidden + self.shown(shown)))
        corrected = Step(predicted.mean + change.mean, change.log_std)
        return predicted, corrected


def loss(motion: Motion, pose: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihood of the motion between poses [B, T, 3], and the mean error of corrected steps.

    is_first [B, T] marks frames that no step led to. Errors are in tiles.
    """
    true = steps_between(pose)
    valid = ~is_first[:, 1:]
    total = pose.new_zeros(())
    for step in (motion.predicted, motion.corrected):
        error = (true - step.mean[:, 1:]) * valid[..., None]
        for span in SPANS:
            total = total + _cost(error, step.variance[:, 1:], valid, span)
    missed = (true - motion.corrected.mean[:, 1:]).detach()[..., 1:].norm(dim=-1)
    return total / len(SPANS), share_of_mean(missed, valid.float())


def _cost(error: Tensor, variance: Tensor, valid: Tensor, span: int) -> Tensor:
    """Return the negative log likelihood of sums of `span` successive steps, as if their errors were independent.

    Small errors that repeat count here: they bend the path. Costs are weighed by the expected error (Seitzer et al.
    2022, arXiv 2203.09168), otherwise steps that are easy to predict would outweigh all others.
    """
    if span > error.shape[1]:
        return error.new_zeros(())
    summed = _windows(error, span)
    expected = _windows(variance, span)
    known = _windows(valid[..., None].to(error), span)[..., 0] > span - 0.5
    cost = 0.5 * (summed.square() / expected + expected.log())
    cost = cost * expected.detach().sqrt()
    return share_of_mean(cost.sum(-1), known.float())


def _windows(x: Tensor, span: int) -> Tensor:
    """Return the sums of x [B, T, n] over windows of `span` frames, [B, T - span + 1, n]."""
    return x.unfold(1, span, 1).sum(-1)


def steps_between(pose: Tensor) -> Tensor:
    """Return the steps [B, T - 1, 3] between successive poses [B, T, 3]."""
    heading, position = split_pose(pose)
    turn = _wrapped(heading[:, 1:] - heading[:, :-1])
    step = rotate2d(position[:, 1:] - position[:, :-1], -heading[:, 1:])
    return torch.cat((turn, step), -1)


def _head() -> nn.Sequential:
    """Build the layers that give mean and logarithm of the standard deviation of a step."""
    last = nn.Linear(HIDDEN, 6)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), last)


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
    """Sum up steps [B, T, 3]; return the poses after them, and after the expected ones instead of the last."""
    turn, shift = split_pose(moved)
    first_heading, first_position = split_pose(start[:, None])
    before = sum_before(turn.unsqueeze(-2), reset, first_heading).squeeze(-2)
    heading = before + turn
    shift = rotate2d(shift, heading)
    position = sum_before(shift.unsqueeze(-2), reset, first_position).squeeze(-2)
    pose = torch.cat((heading, position + shift), -1)
    return pose, _moved(torch.cat((before, position), -1), expected)


def _last_sum(steps: Tensor, reset: Tensor, start: Tensor) -> Tensor:
    """Return the sum [B, 3] of the steps [B, T, 3] since the last reset, or of all and `start` [B, 3]."""
    before = sum_before(steps.unsqueeze(-2), reset, start[:, None])
    return before[:, -1, 0] + steps[:, -1]


def _wrapped(pose: Tensor) -> Tensor:
    """Bring the heading, the first of the last axis, to -pi ... pi."""
    heading, rest = split_pose(pose)
    heading = torch.remainder(heading + math.pi, 2 * math.pi) - math.pi
    return torch.cat((heading, rest), -1)


def _recent(line: Tensor, reset: Tensor) -> Tensor:
    """Return the last EVENTS events before each frame, [B, T, EVENTS E], those of other episodes as zeros.

    line: events [B, EVENTS + T, E], the first of which are remembered; reset [B, T]
    """
    length = reset.shape[1]
    episode = F.pad(reset.long().cumsum(1), (EVENTS, 0))
    current = episode[:, EVENTS:]
    recent = []
    for at in range(EVENTS):
        same = episode[:, at : at + length] == current
        recent.append(line[:, at : at + length] * same[..., None])
    return torch.cat(recent, -1)


def _kept(line: Tensor, reset: Tensor) -> Tensor:
    """Return the events [B, EVENTS, E] to remember after the last frame."""
    episode = F.pad(reset.long().cumsum(1), (EVENTS, 0))
    same = episode[:, -EVENTS:] == episode[:, -1:]
    return line[:, -EVENTS:] * same[..., None]
