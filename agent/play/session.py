"""Run one visitor's session: the real episode, the agent's memory, and what was kept of both.

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
from lssvwm.agent.play import memory_file, messages, mind, planning, views
from lssvwm.agent.play.history import BRANCHES, Excursion, History, Present
from lssvwm.agent.play.library import Library, first_seed
from lssvwm.agent.play.mind import Mind
from lssvwm.agent.play.planning import Budget, Candidate, ReachImage, ReachPlace
from lssvwm.agent.play.world import World, controls
from lssvwm.agent.video.counterfactuals import MemoryMap
from lssvwm.agent.video.episode import Moment
from lssvwm.planners import PLANNER_CONFIGS
from lssvwm.worldmodel.mixers.path_integrator import rotate2d

OPEN, CLOSED, IMAGINE = "open", "closed", "imagine"
"""Modes: memory observes real frames; both worlds step, but memory only imagines; the real world stands still."""
OTHER_STEPS = 64
"""Frames of the other episode whose memory `swap` takes."""
Reply = dict[str, Any]


class Session:
    """Hold one visitor's world, mind and history.

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
            "ask": self.change,
            "move": self.change,
        }
        self.started = False

    def handle(self, message: Any) -> list[Reply]:
        """Carry out a message, or the bytes of a memory file; return the replies.

        A mistake of the visitor becomes a reply of type `error`, and changes nothing.
        """
        try:
            if isinstance(message, bytes):
                return self.load(message)
            if not self.started and message.type != "start":
                raise UserError("start an episode first")
            return self.handlers[message.type](message)
        except UserError as error:
            return [{"type": "error", "text": str(error)}]

    def close(self) -> None:
        """Free what the environment holds."""
        if self.started:
            self.world.close()

    # An episode

    def start(self, message: messages.Start) -> list[Reply]:
        """Begin an episode; branches and history end."""
        entry = self.library.entry(message.model)
        seed = first_seed() if message.seed is None else message.seed
        world = World(entry.config.env, seed, message.unlimited)
        budget = Budget.of(entry.config.planner)
        agent = planning.agent_with(entry.config, entry.model, world.env, budget)
        self.close()
        self.entry, self.world, self.agent, self.budget = entry, world, agent, budget
        self.unlimited = message.unlimited
        self.controls = controls(world.env)
        self.history = History()
        self.mode = OPEN
        self.away: Excursion | None = None
        self.recent: tuple[Moment, ...] = ()
        self.goal: Any = None
        self.reward = 0.0
        self._forget_plans()
        self._copy: World | None = None
        self._drawn: tuple[MemoryMap, Mind] | None = None
        self.mind = mind.empty(agent)
        self._observe(world.now())
        self.started = True
        return [self._about(message.model), self._state("start"), self._branches()]

    def _about(self, name: str) -> Reply:
        env = self.world.env
        planner = self.entry.config.planner
        return {
            "type": "about",
            "model": self.library.card(name),
            "controls": [control.name for control in self.controls],
            "guide": bool(set(env.explorers) - {"random", "noop"}),
            "objects": list(self.world.objects()),
            "map": self.mind.up is not None,
            "goal_image": messages.frame(
                None if env.goals() is None else env.goals()[0]
            ),
            "planners": self._planners(),
            "planner": dataclasses.asdict(Budget.of(planner)),
            "replan": self.agent.config.replan,
            "window": self.entry.config.tasks.window,
            "branches": BRANCHES,
            "unlimited": self.unlimited,
        }

    def _planners(self) -> list[str]:
        """Return the planners that can search the actions."""
        names = list(PLANNER_CONFIGS)
        if not self.agent.model.discrete:
            names.remove("beam")
        return names

    # Steps

    def step(self, message: messages.Step) -> list[Reply]:
        """Take the action of a control."""
        if message.control >= len(self.controls):
            raise UserError("there is no such control")
        self._forget_plans()
        control = self.controls[message.control]
        return self._advance(control.action, control.name)

    def guide(self, message: messages.Guide) -> list[Reply]:
        """Take the next step of a scripted walk, which needs the real world."""
        if self.mode == IMAGINE:
            raise UserError(
                "the guide walks in the real world: leave imagination first"
            )
        self._forget_plans()
        action = self.world.scripted_action()
        return self._advance(action, "guide")

    def follow(self, message: messages.Follow) -> list[Reply]:
        """Take the next action of a candidate."""
        if message.plan >= len(self.plans):
            raise UserError("there is no such plan: plan first")
        if message.plan != self.following:
            self.following, self.position = message.plan, 0
        plan = self.plans[message.plan]
        if self.position >= plan.steps:
            raise UserError("this plan ends here: plan again")
        replies = self._advance(plan.actions[self.position], "plan")
        self.position += 1
        replies[0]["arrived"] = self.position >= plan.steps
        state = self.mind.state
        used = torch.full_like(state.used, self.position)
        self.mind = dataclasses.replace(
            self.mind, state=dataclasses.replace(state, used=used)
        )
        return replies

    def _advance(self, action: Any, name: str) -> list[Reply]:
        """Take an action in the real world, in imagination, or in both."""
        before = self._present()
        dtype = torch.int64 if self.agent.model.discrete else torch.float32
        if self.mode == IMAGINE:
            taken = torch.as_tensor(action, dtype=dtype)[None]
            self.mind = mind.imagine(self.agent, self.mind, taken)
            assert self.away is not None and self.mind.frame is not None
            self.away.add(taken[0].numpy(), self.mind.frame)
        else:
            moment = self.world.act(action)
            self._copy = None
            self.reward = moment.reward
            if self.mode == OPEN:
                self._observe(moment)
            else:
                executed = torch.as_tensor(moment.action, dtype=dtype)[None]
                self.mind = mind.imagine(self.agent, self.mind, executed)
        self.history.add(before)
        return [self._state(name)]

    def _observe(self, moment: Moment) -> None:
        """Write a real frame into memory."""
        goals = self.world.env.goals()
        goal = None if goals is None else goals[0]
        self.mind = mind.observe(self.agent, self.mind, moment, goal)
        self.recent = (*self.recent, moment)[-self.entry.config.tasks.window :]

    def set_mode(self, message: messages.SetMode) -> list[Reply]:
        """Change the mode. Memory returns to what it was when imagination is left."""
        if message.mode == IMAGINE and self.mode != IMAGINE:
            self.away = Excursion(self.mind)
        if self.mode == IMAGINE and message.mode != IMAGINE:
            assert self.away is not None
            self.mind = self.away.mind
            self.away = None
        if message.mode != self.mode:
            self._forget_plans()
        self.mode = message.mode
        return [self._state("mode")]

    def compare(self, message: messages.Compare) -> list[Reply]:
        """Carry out the imagined actions in a copy of the real world."""
        if self.away is None or not self.away.actions:
            raise UserError("imagine some steps first, then compare them")
        world = self._present().world.resume()
        real: list[Moment] = []
        for action in self.away.actions:
            if world.ended or self.stopped():
                break
            real.append(world.act(action))
        if not real:
            raise UserError("the episode has ended: there is nothing to compare with")
        return [views.comparison(self.away.frames, real, world.ended)]

    # History

    def _present(self) -> Present:
        if self._copy is None:
            self._copy = self.world.copy()
        away = None if self.away is None else self.away.copy()
        return Present(self._copy, self.mind, self.mode, away, self.recent)

    def _restore(self, present: Present) -> None:
        self.world = present.world.resume()
        self._copy = present.world
        self.mind, self.mode, self.recent = present.mind, present.mode, present.recent
        self.away = None if present.away is None else present.away.copy()
        self.reward = self.world.reward
        self._forget_plans()

    def fork(self, message: messages.Fork) -> list[Reply]:
        """Keep this moment as a branch."""
        self.history.fork(self._present())
        return [self._branches()]

    def branch(self, message: messages.Branch) -> list[Reply]:
        """Return to a branch."""
        self._restore(self.history.branch(message.index))
        return [self._state("branch")]

    def drop(self, message: messages.Branch) -> list[Reply]:
        """Drop a branch."""
        self.history.drop(message.index)
        return [self._branches()]

    def rewind(self, message: messages.Rewind) -> list[Reply]:
        """Go back some steps."""
        self._restore(self.history.rewind(message.steps))
        return [self._state("rewind")]

    def _branches(self) -> Reply:
        return {"type": "branches", "branches": views.branches(self.history)}

    # Memory

    def forget(self, message: messages.Forget) -> list[Reply]:
        """Replace the memory by an empty one, that of another episode, or that of the last frames."""
        before = self._present()
        ways = {"erase": self._erased, "swap": self._swapped, "window": self._window}
        found = ways[message.how]()
        self.mind = dataclasses.replace(found, frame=self.mind.frame)
        self.history.add(before)
        self._forget_plans()
        return [self._state(message.how)]

    def _erased(self) -> Mind:
        return mind.with_memory(self.agent, self.mind, self.agent.model.initial(1))

    def _swapped(self) -> Mind:
        """Return the mind of an agent that walked through another episode."""
        world = World(self.entry.config.env, first_seed(), self.unlimited)
        other = mind.empty(self.agent)
        moment = world.now()
        for _ in range(OTHER_STEPS):
            other = mind.observe(self.agent, other, moment, predicts=False)
            if moment.ended or self.stopped():
                break
            moment = world.act(world.scripted_action())
        world.close()
        return other

    def _window(self) -> Mind:
        """Return the mind of an agent that saw only the last frames."""
        recent = mind.empty(self.agent)
        for moment in self.recent:
            recent = mind.observe(self.agent, recent, moment, predicts=False)
        return recent

    def save(self, message: messages.Save) -> list[Reply]:
        """Return the file of the memory."""
        data = memory_file.to_bytes(self.mind.memory)
        name = f"{self.entry.config.env.kind}-step{self.world.step}.memory.safetensors"
        return [{"type": "file", "name": name, "bytes": data}]

    def load(self, data: bytes) -> list[Reply]:
        """Replace the memory by that of a file."""
        if not self.started:
            raise UserError("start an episode first")
        memory = memory_file.from_bytes(data, self.agent.model)
        before = self._present()
        self.mind = mind.with_memory(self.agent, self.mind, memory)
        self.history.add(before)
        self._forget_plans()
        return [self._state("load")]

    # Plans

    def set_goal(self, message: messages.SetGoal) -> list[Reply]:
        """Choose the goal of the next plans."""
        goal: Any = None
        if message.goal == "place":
            goal = ("place", self._place(message.x, message.y))
        elif message.goal == "image":
            goal = ("image", self._shown_frame())
        self._aim(goal, self.budget)
        self._forget_plans()
        image = self._shown_frame() if message.goal == "image" else None
        return [{"type": "goal", "goal": message.goal, "image": messages.frame(image)}]

    def _shown_frame(self) -> np.ndarray:
        """Return the imagined frame in imagination, else the real one."""
        frame = self.mind.frame
        return (
            self.world.now().pixels if self.mode != IMAGINE or frame is None else frame
        )

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of memory at shares of the map that was sent last."""
        if self._drawn is None:
            raise UserError("there is no map of the memory to choose a place on")
        drawn, seen = self._drawn
        height, width = drawn.picture.shape[1:]
        place = torch.tensor(drawn.place(y * height, x * width))
        assert seen.up is not None
        ahead, right = rotate2d(place, torch.tensor([seen.up])).tolist()
        return ahead, right

    def _aim(self, goal: Any, budget: Budget) -> None:
        """Build the agent for a goal and a budget. Raises UserError if it cannot plan so."""
        entry = self.entry
        agent = planning.agent_with(
            entry.config, entry.model, self.world.env, budget, goal is None
        )
        if goal is not None:
            kind, value = goal
            objective = ReachPlace if kind == "place" else ReachImage
            agent.objective = objective(agent.objective, value)
        self.agent, self.goal, self.budget = agent, goal, budget

    def plan(self, message: messages.MakePlan) -> list[Reply]:
        """Plan for the goal. A plan that was just followed is continued."""
        budget = Budget(
            message.planner, message.candidates, message.iterations, message.horizon
        )
        if budget != self.budget:
            self._aim(self.goal, budget)
            self._forget_plans()
        started = time.perf_counter()
        state = self.mind.state
        follows = self.following == 0 and self.position >= self.agent.config.replan
        if not follows:
            self.mind = mind.without_plan(self.agent, self.mind)
            state = self.mind.state
        _, state = self.agent.act(state)
        self.mind = dataclasses.replace(self.mind, state=state)
        self.plans: list[Candidate] = planning.candidates(self.agent, self.mind)
        self.following, self.position = 0, 0
        return [views.plan_reply(self.plans, time.perf_counter() - started)]

    def _forget_plans(self) -> None:
        self.plans = []
        self.following = self.position = 0
        if self.started:
            self.mind = mind.without_plan(self.agent, self.mind)

    # The real world

    def change(self, message: messages.Change) -> list[Reply]:
        """Make an object the goal, which takes a step, or move it out of view."""
        if self.mode == IMAGINE:
            raise UserError("this changes the real world: leave imagination first")
        before = self._present()
        self._copy = None
        if message.type == "move":
            self.world.move(message.object, first_seed())
            self.history.add(before)
            return [self._state("move")]
        self.world.ask(message.object)
        self._aim(None, self.budget)
        self._forget_plans()
        still = [c for c in self.controls if c.name == "stay"]
        return self._advance(still[0].action, "ask")

    # What the page shows

    def map(self, message: messages.ReadMap) -> list[Reply]:
        """Return the real map and the map in memory."""
        real = self.world.picture()
        drawn, bearing = views.decoded_map(self.agent, self.mind, self.plans)
        self._drawn = None if drawn is None else (drawn, self.mind)
        reply: Reply = {
            "type": "map",
            "real": None if real is None else messages.picture(real),
            "memory": None if drawn is None else views.map_reply(drawn, bearing),
        }
        return [reply]

    def _state(self, cause: str) -> Reply:
        """Return what the page shows after every step."""
        world, present = self.world, self.mind
        moment = world.now()
        imagines = self.mode == IMAGINE
        shown = present.frame
        stale = cause in ("erase", "swap", "window", "load", "mode", "start")
        age = world.evidence_age()
        return {
            "type": "state",
            "cause": cause,
            "mode": self.mode,
            "step": world.step,
            "ahead": present.ahead,
            "real": messages.frame(moment.pixels),
            "imagined": messages.frame(shown),
            "error": None if imagines or stale else views.error(moment.pixels, shown),
            "predicted": None if stale else present.reward,
            "reward": None if imagines or stale else self.reward,
            "continues": present.cont,
            "age": None if age is None else age + (present.ahead if imagines else 0),
            "bytes": present.memory.nbytes(),
            "history": len(self.history.past),
            "ended": world.ended,
            "outcome": world.outcome() if world.ended else None,
            "guided": moment.guided,
        }
