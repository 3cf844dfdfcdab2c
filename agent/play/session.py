"""Run one visitor's session: answer the messages of a page.

`Session.handle` takes one checked message and returns the replies. Nothing happens between messages.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.play import messages, views
from lssvwm.agent.play.history import BRANCHES
from lssvwm.agent.play.library import Library
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.planning import Budget, Pursuit
from lssvwm.agent.play.walk import Walk
from lssvwm.agent.play.world import World, controls, new_seed
from lssvwm.agent.video.counterfactuals import MemoryMap
from lssvwm.planners import PLANNER_CONFIGS
from lssvwm.worldmodel.mixers.path_integrator import rotate2d

Reply = dict[str, Any]


class Session:
    """Hold one visitor's walk and plans.

    stopped: returns true when the server stops; long work then ends early
    """

    def __init__(self, library: Library, stopped: Callable[[], bool] = lambda: False):
        self.library = library
        self.stopped = stopped
        self.handlers: dict[str, Callable[[Any], list[Reply]]] = {
            "start": self.start,
            "step": self.step,
            "guide": self.guide,
            "mode": self.set_mode,
            "compare": self.compare,
            "fork": self.fork,
            "branch": self.branch,
            "drop": self.drop,
            "rewind": self.rewind,
            "forget": self.forget,
            "save": self.save,
            "map": self.map,
            "goal": self.set_goal,
            "plan": self.plan,
            "follow": self.follow,
            "ask": self.ask,
            "move": self.move,
        }
        self.started = False

    def handle(self, message: Any) -> list[Reply]:
        """Carry out a message, or the bytes of a memory file; return the replies.

        A mistake of the visitor becomes a reply of type `error`, and changes nothing.
        """
        try:
            is_file = isinstance(message, bytes)
            if not self.started and (is_file or message.type != "start"):
                raise UserError("start an episode first")
            if is_file:
                return self.load(message)
            return self.handlers[message.type](message)
        except UserError as error:
            return [{"type": "error", "text": str(error)}]

    def close(self) -> None:
        """Free what the environment holds."""
        if self.started:
            self.walk.world.close()

    # Episode and steps

    def start(self, message: messages.Start) -> list[Reply]:
        """Begin an episode; branches and history end."""
        entry = self.library.entry(message.model)
        seed = new_seed() if message.seed is None else message.seed
        world = World(entry.config.env, seed, message.unlimited)
        pursuit = Pursuit(entry.config, entry.model, world.env)
        walk = Walk(pursuit.agent, world, entry.config.tasks.window)
        self.close()
        self.walk, self.pursuit = walk, pursuit
        self.controls = controls(world.env)
        self.drawn: tuple[MemoryMap, Mind] | None = None
        """Map that was sent last, and the mind that it shows."""
        self.started = True
        about = self._about(message)
        return [about, views.state(walk, "start"), views.branches(walk.history)]

    def _about(self, message: messages.Start) -> Reply:
        env = self.walk.world.env
        goals = env.goals()
        discrete = self.pursuit.model.discrete
        return {
            "type": "about",
            "model": self.library.card(message.model),
            "controls": [control.name for control in self.controls],
            "guide": bool(set(env.explorers) - {"random", "noop"}),
            "objects": list(self.walk.world.objects()),
            "map": self.walk.mind.up is not None,
            "goal_image": messages.frame(None if goals is None else goals[0]),
            "planners": [k for k in PLANNER_CONFIGS if discrete or k != "beam"],
            "planner": dataclasses.asdict(self.pursuit.budget),
            "replan": self.pursuit.due,
            "window": self.walk.window,
            "branches": BRANCHES,
            "unlimited": message.unlimited,
        }

    def step(self, message: messages.Step) -> list[Reply]:
        """Take the action of a control."""
        if message.control >= len(self.controls):
            raise UserError("there is no such control")
        control = self.controls[message.control]
        self.walk.advance(control.action)
        return self._changed(control.name)

    def guide(self, message: messages.Guide) -> list[Reply]:
        """Take the next step of a scripted walk, which needs the real world."""
        self.walk.guide()
        return self._changed("guide")

    def set_mode(self, message: messages.SetMode) -> list[Reply]:
        """Change the mode."""
        self.walk.set_mode(message.mode)
        return self._changed("mode")

    def compare(self, message: messages.Compare) -> list[Reply]:
        """Carry out the imagined actions in a copy of the real world."""
        return [views.comparison(*self.walk.carried_out(self.stopped))]

    def _changed(self, cause: str) -> list[Reply]:
        """Return the present state after a change, which ends the plan."""
        self.pursuit.clear()
        return [views.state(self.walk, cause)]

    # History and memory

    def fork(self, message: messages.Fork) -> list[Reply]:
        """Keep this moment as a branch."""
        self.walk.history.fork(self.walk.present())
        return [views.branches(self.walk.history)]

    def branch(self, message: messages.Branch) -> list[Reply]:
        """Return to a branch."""
        self.walk.restore(self.walk.history.branch(message.index))
        return self._changed("branch")

    def drop(self, message: messages.Branch) -> list[Reply]:
        """Drop a branch."""
        self.walk.history.drop(message.index)
        return [views.branches(self.walk.history)]

    def rewind(self, message: messages.Rewind) -> list[Reply]:
        """Go back some steps."""
        self.walk.restore(self.walk.history.rewind(message.steps))
        return self._changed("rewind")

    def forget(self, message: messages.Forget) -> list[Reply]:
        """Replace the memory by an empty one, another episode's, or that of the last frames."""
        walk = self.walk
        ways = {"erase": walk.erase, "swap": walk.swap, "window": walk.keep_window}
        ways[message.how](self.stopped)
        return self._changed(message.how)

    def save(self, message: messages.Save) -> list[Reply]:
        """Return the file of the memory."""
        return [views.memory_file(self.walk)]

    def load(self, data: bytes) -> list[Reply]:
        """Replace the memory by that of a file."""
        self.walk.load(data)
        return self._changed("load")

    # Plans

    def set_goal(self, message: messages.SetGoal) -> list[Reply]:
        """Choose the goal of the next plans."""
        goal: Any = None
        image = None
        if message.goal == "place":
            goal = ("place", self._place(message.x, message.y))
        elif message.goal == "image":
            image = self._shown_frame()
            goal = ("image", image)
        self.pursuit.aim(goal, self.pursuit.budget)
        return [{"type": "goal", "goal": message.goal, "image": messages.frame(image)}]

    def _shown_frame(self) -> np.ndarray:
        """Return the imagined frame in imagination, else the real one."""
        frame = self.walk.mind.frame
        if self.walk.imagines and frame is not None:
            return frame
        return self.walk.world.now().pixels

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of memory at shares of the map that was sent last."""
        if self.drawn is None:
            raise UserError("there is no map of the memory to choose a place on")
        drawn, mind = self.drawn
        height, width = drawn.picture.shape[1:]
        place = torch.tensor(drawn.place(y * height, x * width))
        assert mind.up is not None
        ahead, right = rotate2d(place, torch.tensor([mind.up])).tolist()
        return ahead, right

    def plan(self, message: messages.MakePlan) -> list[Reply]:
        """Plan for the goal. A plan that was just followed is continued."""
        started = time.perf_counter()
        given = dataclasses.asdict(message)
        budget = Budget(**{f.name: given[f.name] for f in dataclasses.fields(Budget)})
        if budget != self.pursuit.budget:
            self.pursuit.aim(self.pursuit.goal, budget)
        self.walk.mind = self.pursuit.plan(self.walk.mind)
        seconds = time.perf_counter() - started
        return [views.plans(self.pursuit.plans, seconds)]

    def follow(self, message: messages.Follow) -> list[Reply]:
        """Take the next action of a candidate."""
        self.walk.advance(self.pursuit.next_action(message.plan))
        self.pursuit.executed += 1
        return [views.state(self.walk, "plan") | {"arrived": self.pursuit.arrived}]

    # The real world, and maps

    def ask(self, message: messages.Change) -> list[Reply]:
        """Make an object of the real world the goal, which takes a step."""
        self.walk.ask(message.object)
        self.pursuit.aim(None, self.pursuit.budget)
        return self._changed("ask")

    def move(self, message: messages.Change) -> list[Reply]:
        """Move an object of the real world out of view."""
        self.walk.move(message.object, new_seed())
        return self._changed("move")

    def map(self, message: messages.ReadMap) -> list[Reply]:
        """Return the real map and the map in memory."""
        mind = self.walk.mind
        found = views.decoded_map(self.pursuit.agent, mind, self.pursuit.plans)
        self.drawn = None if found is None else (found.picture, mind)
        return [views.maps(self.walk.world.picture(), found)]
