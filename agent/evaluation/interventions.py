"""Arms of an evaluation: interventions on the agent's memory, and plain labels.

Each class of `ARMS` decides what the agent remembers when it starts to plan. Another
attempt after a failure within a task counts as a start, too.
Every other arm is a scripted explorer of the environment.
Shapes: N tasks, k of them selected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

SCRIPTED = ("random", "noop", "seek", "wall", "forage", "oracle")
"""Scripted arms that are skipped where the environment has no such explorer."""

LABELS = {
    "retained": "with its memory",
    "erased": "memory erased at planning start",
    "swapped": "memory of another task",
    "window": "last {window} frames only",
    "always_window": "never more than {window} frames",
    "policy": "policy head, no planning",
    "random": "random actions",
    "noop": "no movement",
    "seek": "searches without knowing the answer",
    "wall": "follows the wall",
    "forage": "follows the wall until the goal is in view",
    "guess": "knows the rules, forgets what it was shown",
    "look": "goes to the cue, then to the goal",
    "oracle": "shortest path",
}
"""Plain words for each arm, used by tables and plots."""


def describe_arm(arm: str, window: int | None = None) -> str:
    """Return the plain words for an arm.

    `window` is the number of frames that windowed arms observe.
    """
    words = LABELS.get(arm, arm)
    return words.format(window="few" if window is None else window)


def label_arm(arm: str, window: int | None = None) -> str:
    """Return the plain words for an arm, followed by its name."""
    return f"{describe_arm(arm, window)} ({arm})" if arm in LABELS else arm


Seen = tuple[Tensor, Tensor, Tensor]
"""A frame of N tasks: pixels, the action before it, and whether an episode begins."""


@torch.no_grad()
def write_frames(model: WorldModel, memory: Memory, frames: Sequence[Seen]) -> Memory:
    """Write successive frames into the memories [N] of all tasks at once."""
    if not frames:
        return memory
    device = memory.frames.device
    inputs = (torch.stack(parts, 1).to(device) for parts in zip(*frames))
    return model.observe(memory, *inputs)[0]


class RecentFrames:
    """Keep the last `count` frames of N tasks, with the actions before them."""

    def __init__(self, count: int):
        self.frames: deque[Seen] = deque(maxlen=count)

    def append(self, seen: Seen) -> None:
        """Add a frame of every task; the oldest one leaves."""
        self.frames.append(seen)

    def remember(self, model: WorldModel, where: Tensor) -> Memory:
        """Return what a new memory holds after these frames, for the tasks `where` [k]."""
        chosen = [(p[where], a[where], first[where]) for p, a, first in self.frames]
        return write_frames(model, model.initial(len(where)), chosen)


@dataclass(frozen=True)
class Moment:
    """Describe N tasks just before the agent observes a frame.

    `starts` bool [N] marks the tasks whose planning, or whose next attempt, starts with this frame.
    `others` [N] are memories of other tasks, for the arm that needs them.
    """

    model: WorldModel
    memory: Memory
    starts: Tensor
    recent: RecentFrames
    others: Memory | None = None

    @property
    def starting(self) -> Tensor:
        """Indices [k] of the tasks whose planning starts."""
        return self.starts.nonzero()[:, 0]

    def replaced(self, new: Memory) -> Memory:
        """Return the memory [N] with `new` [k] in the tasks whose planning starts."""
        memory = self.memory.clone()
        memory[self.starting] = new
        return memory


class Arm:
    """Define what the agent remembers, and how it acts.

    The defaults are those of an agent that keeps its memory and plans.
    """

    observes_context = True
    """Observe every frame; otherwise observing begins when planning starts."""
    plans = True
    """Act by planning; otherwise by the policy head."""
    needs_others = False
    """Plan with memories that the arm `retained` had at planning start."""
    keeps_memories = False
    """Save the memories at planning start, for other arms."""

    def intervene(self, moment: Moment) -> Memory:
        """Return the memory [N] into which the present frame is written."""
        return moment.memory


class Retained(Arm):
    """Plan with the memory of everything observed."""

    keeps_memories = True


class Policy(Arm):
    """Act by the policy head, with the memory of everything observed."""

    plans = False


class Erased(Arm):
    """Reset the memory when planning starts."""

    observes_context = False

    def intervene(self, moment: Moment) -> Memory:
        """Empty the memories of tasks whose planning starts."""
        if not moment.starts.any():
            return moment.memory
        return moment.replaced(moment.model.initial(len(moment.starting)))


class Swapped(Arm):
    """Plan with the memory of another task."""

    observes_context = False
    needs_others = True

    def intervene(self, moment: Moment) -> Memory:
        """Exchange the memories of tasks whose planning starts."""
        if not moment.starts.any():
            return moment.memory
        assert moment.others is not None
        return moment.replaced(moment.others[moment.starting])


class Window(Arm):
    """Remember only the last frames when planning starts."""

    observes_context = False

    def intervene(self, moment: Moment) -> Memory:
        """Rebuild the memories of tasks whose planning starts from the last frames."""
        if not moment.starts.any():
            return moment.memory
        recent = moment.recent.remember(moment.model, moment.starting)
        return moment.replaced(recent)


class AlwaysWindow(Arm):
    """Remember only the last frames at every step, also while planning."""

    observes_context = False

    def intervene(self, moment: Moment) -> Memory:
        """Rebuild every memory from the last frames."""
        everywhere = torch.arange(len(moment.starts))
        return moment.recent.remember(moment.model, everywhere)


ARMS: dict[str, Arm] = {
    "retained": Retained(),
    "erased": Erased(),
    "swapped": Swapped(),
    "window": Window(),
    "always_window": AlwaysWindow(),
    "policy": Policy(),
}
"""Arms that the agent plays, by name."""
