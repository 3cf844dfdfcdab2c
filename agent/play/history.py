"""Keep earlier moments of a session, in bounded memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from lssvwm.agent.errors import UserError
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.world import World
from lssvwm.agent.video.episode import Moment

HISTORY_BYTES = 32 * 2**20
"""Bytes of the memories of one history."""
HISTORY_STEPS = 200
"""Moments of one history, at most."""
BRANCHES = 8
"""Branches of one session, at most."""
IMAGINED = 256
"""Imagined steps that can be compared with the real world."""


@dataclass
class Excursion:
    """Hold imagination that left the real world at `mind`: actions and frames since then."""

    mind: Mind
    actions: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def add(self, action: np.ndarray, frame: np.ndarray) -> None:
        """Add a step; those after the first `IMAGINED` are not kept."""
        if len(self.actions) < IMAGINED:
            self.actions.append(action)
            self.frames.append(frame)

    def copy(self) -> Excursion:
        """Return a copy that grows on its own."""
        return Excursion(self.mind, list(self.actions), list(self.frames))


@dataclass(frozen=True)
class Present:
    """Hold everything that a step changes; `world` is a copy for `World.resume`."""

    world: World
    moment: Moment
    mind: Mind
    mode: str
    away: Excursion | None
    recent: tuple[Moment, ...]


class History:
    """Keep the last moments, and up to BRANCHES that the visitor chose."""

    def __init__(self) -> None:
        self.past: deque[Present] = deque()
        self.branches: list[Present] = []

    def add(self, present: Present) -> None:
        """Add a moment; the oldest ones leave."""
        size = max(1, present.mind.memory.nbytes())
        limit = max(1, min(HISTORY_STEPS, HISTORY_BYTES // size))
        self.past.append(present)
        while len(self.past) > limit:
            self.past.popleft()

    def rewind(self, steps: int) -> Present:
        """Return the moment so many steps ago, or the oldest one; later ones are dropped.

        Raises UserError if there is none.
        """
        if not self.past:
            raise UserError("there is nothing to rewind")
        found = self.past[-1]
        for _ in range(min(steps, len(self.past))):
            found = self.past.pop()
        return found

    def fork(self, present: Present) -> None:
        """Add a branch. Raises UserError if there are BRANCHES already."""
        if len(self.branches) >= BRANCHES:
            raise UserError(f"there are {BRANCHES} branches already: drop one first")
        self.branches.append(present)

    def branch(self, index: int) -> Present:
        """Return a branch. Raises UserError if it does not exist."""
        if index >= len(self.branches):
            raise UserError("there is no such branch")
        return self.branches[index]

    def drop(self, index: int) -> None:
        """Drop a branch. Raises UserError if it does not exist."""
        self.branch(index)
        del self.branches[index]
