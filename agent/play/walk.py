"""Hold what steps change: real world, mind, mode, and earlier moments of all three."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent
from lssvwm.agent.play import memory_file, mind
from lssvwm.agent.play.history import Excursion, History, Present
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.world import World
from lssvwm.agent.video.episode import Moment

OPEN, CLOSED, IMAGINE = "open", "closed", "imagine"
"""Modes: memory observes real frames; the world steps and memory imagines; the real world stands still."""
OTHER_STEPS = 64
"""Frames of the other episode whose memory `swap` takes."""


class Walk:
    """Step the real world, the mind, or both, by the mode.

    window: frames that `window` keeps
    """

    def __init__(self, agent: Agent, world: World, window: int):
        self.agent = agent
        self.world = world
        self.window = window
        self.history = History()
        self.mode = OPEN
        self.away: Excursion | None = None
        """Imagination since the real world was left; None outside the mode `imagine`."""
        self.recent: tuple[Moment, ...] = ()
        self._copy: World | None = None
        self.mind = mind.empty(agent)
        self._observe(world.now())

    @property
    def imagines(self) -> bool:
        """Return true if the real world stands still."""
        return self.mode == IMAGINE

    def advance(self, action: Any) -> None:
        """Take an action. Raises UserError in an episode that has ended."""
        before = self.present()
        if self.away is not None:
            taken = self._tensor(action)
            self.mind = mind.imagine(self.agent, self.mind, taken)
            assert self.mind.frame is not None
            self.away.add(taken[0].numpy(), self.mind.frame)
        else:
            moment = self.world.act(action)
            self._copy = None
            if self.mode == OPEN:
                self._observe(moment)
            else:
                executed = self._tensor(moment.action)
                self.mind = mind.imagine(self.agent, self.mind, executed)
        self.history.add(before)

    def _tensor(self, action: Any) -> torch.Tensor:
        dtype = torch.int64 if self.agent.model.discrete else torch.float32
        return torch.as_tensor(action, dtype=dtype)[None]

    def _observe(self, moment: Moment) -> None:
        """Write a real frame into memory."""
        goals = self.world.env.goals()
        goal = None if goals is None else goals[0]
        self.mind = mind.observe(self.agent, self.mind, moment, goal)
        self.recent = (*self.recent, moment)[-self.window :]

    def set_mode(self, mode: str) -> None:
        """Change the mode. Memory returns to what it was when imagination is left."""
        if mode == IMAGINE and self.away is None:
            self.away = Excursion(self.mind)
        if mode != IMAGINE and self.away is not None:
            self.mind = self.away.mind
            self.away = None
        self.mode = mode

    def carried_out(
        self, stopped: Callable[[], bool]
    ) -> tuple[list[np.ndarray], list[Moment]]:
        """Carry out the imagined actions in a copy of the real world.

        Returns the imagined frames, and the real moments until the episode ends.
        Raises UserError if there are none.
        """
        if self.away is None or not self.away.actions:
            raise UserError("imagine some steps first, then compare them")
        world = self.present().world.resume()
        real: list[Moment] = []
        for action in self.away.actions:
            if world.ended or stopped():
                break
            real.append(world.act(action))
        world.close()
        if not real:
            raise UserError("the episode has ended: there is nothing to compare with")
        return self.away.frames[: len(real)], real

    # Earlier moments

    def present(self) -> Present:
        """Return this moment; later steps do not change it."""
        if self._copy is None:
            self._copy = self.world.copy()
        away = None if self.away is None else self.away.copy()
        return Present(
            world=self._copy,
            moment=self.world.now(),
            mind=self.mind,
            mode=self.mode,
            away=away,
            recent=self.recent,
        )

    def restore(self, present: Present) -> None:
        """Return to a moment. Raises UserError if the environment cannot repeat its actions."""
        self.world.close()
        self.world = present.world.resume()
        if not np.array_equal(self.world.now().pixels, present.moment.pixels):
            raise UserError(
                "the environment brings other frames when the same actions are repeated: "
                "start a new episode"
            )
        self._copy = present.world
        self.mind, self.mode, self.recent = present.mind, present.mode, present.recent
        self.away = None if present.away is None else present.away.copy()

    # Memory

    def erase(self, stopped: Callable[[], bool]) -> None:
        """Empty the memory."""
        nothing = self.agent.model.initial(1)
        self._replace(mind.with_memory(self.agent, self.mind, nothing))

    def swap(self, stopped: Callable[[], bool]) -> None:
        """Take the memory of an agent that walked through another episode."""
        world = self.world.another()
        other = mind.empty(self.agent)
        moment = world.now()
        for _ in range(OTHER_STEPS):
            other = mind.observe(self.agent, other, moment, predicts=False)
            if moment.ended or stopped():
                break
            moment = world.act(world.scripted_action())
        world.close()
        self._replace(other)

    def keep_window(self, stopped: Callable[[], bool]) -> None:
        """Take the memory of an agent that saw only the last frames."""
        recent = mind.empty(self.agent)
        for moment in self.recent:
            recent = mind.observe(self.agent, recent, moment, predicts=False)
        self._replace(recent)

    def load(self, data: bytes) -> None:
        """Take the memory in a file. Raises UserError for a file that does not fit."""
        memory = memory_file.from_bytes(data, self.agent.model)
        self._replace(mind.with_memory(self.agent, self.mind, memory))

    def _replace(self, new: Mind) -> None:
        before = self.present()
        self.mind = dataclasses.replace(new, frame=self.mind.frame)
        self.history.add(before)

    # The real world

    def move(self, k: int, seed: int) -> None:
        """Move object k out of view. Raises UserError if this cannot be done."""
        self._in_reality()
        before = self.present()
        self._copy = None
        self.world.move(k, seed)
        self.history.add(before)

    def ask(self, k: int) -> None:
        """Make object k the goal, and wait for the next frame, which shows it."""
        self._in_reality()
        before = self.present()
        self._copy = None
        self.world.ask(k)
        self.advance(self.world.waiting())
        self.history.past[-1] = before

    def _in_reality(self) -> None:
        if self.imagines:
            raise UserError("this needs the real world: leave imagination first")

    def guide(self) -> None:
        """Take the next step of a scripted walk."""
        self._in_reality()
        self.advance(self.world.scripted_action())
