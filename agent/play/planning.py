"""Plan for the goal that a visitor chose, and show the best candidates.

The task's own goal is scored by the agent's objective. A place or an image is scored by the step of the imagined
route that comes nearest to it. Every planner of the package can search for either.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent
from lssvwm.agent.objective import Objective
from lssvwm.agent.play.mind import Mind, without_plan
from lssvwm.agent.video.counterfactuals import farthest
from lssvwm.envs.base import BatchedEnv
from lssvwm.planners import PLANNER_CONFIGS, SearchConfig, Simulation
from lssvwm.planners.base import pick
from lssvwm.planners.noise import Generators
from lssvwm.worldmodel import Memory, RolloutState, WorldModel, imagination, memory_map
from lssvwm.worldmodel.imagination import StepOptions
from lssvwm.worldmodel.memory_map import QUARTER
from torch import Tensor

ELITES = 8
"""Best candidates among which those shown are chosen."""
SHOWN = 4
"""Candidates shown, at most."""
STEP_COST = 0.01
"""Share of the scale of a goal by which a later arrival scores lower, per step."""
ARRIVED = 0.5
"""Probability of an end, or distance in tokens, from which on a plan has arrived."""


@dataclass(frozen=True)
class Budget:
    """Set how a planner searches; see `planners.SearchConfig`."""

    planner: str
    candidates: int
    iterations: int
    horizon: int

    @classmethod
    def of(cls, config: SearchConfig) -> Budget:
        """Return the budget of a planner's settings."""
        return cls(config.kind, config.candidates, config.iterations, config.horizon)


def agent_with(
    config: Config,
    model: WorldModel,
    env: BatchedEnv,
    budget: Budget,
    from_policy: bool = True,
) -> Agent:
    """Build the agent of a checkpoint with another budget.

    from_policy: the policy head proposes candidates, which suits the goal of the task
    Raises UserError if the planner cannot search the environment's actions.
    """
    old = dataclasses.asdict(config.planner)
    kind = PLANNER_CONFIGS[budget.planner]
    names = {field.name for field in dataclasses.fields(kind)} - {"kind"}
    settings: dict[str, Any] = {k: v for k, v in old.items() if k in names}
    settings |= {
        "candidates": budget.candidates,
        "iterations": budget.iterations,
        "horizon": budget.horizon,
        "elites": min(config.planner.elites, budget.candidates),
    }
    if "width" in names:
        settings["width"] = max(1, budget.candidates // 2)
        settings["elites"] = min(ELITES, budget.candidates)  # only reported
    settings["keep_elites"] = min(config.planner.keep_elites, settings["elites"])
    mpc = replace(
        config.mpc,
        replan=min(config.mpc.replan, budget.horizon),
        proposals=min(config.mpc.proposals, budget.candidates),
    )
    if not from_policy:
        mpc = replace(mpc, proposals=0)
    try:
        searched = replace(config, planner=kind(**settings), mpc=mpc)
    except ValueError as error:
        raise UserError(str(error)) from None
    return build_agent(searched, model, env)


class Pursuit:
    """Plan for a goal, and say what to do next.

    goal: None for that of the task, ("place", (ahead, right)), or ("image", uint8 [C, H, W])
    plans: candidates of the last plan, the best one first
    """

    def __init__(self, config: Config, model: WorldModel, env: BatchedEnv):
        self.config = config
        self.model = model
        self.env = env
        self.clear()
        self.aim(None, Budget.of(config.planner))

    def aim(self, goal: Any, budget: Budget) -> None:
        """Change goal and budget, which ends the plan.

        Raises UserError if the planner cannot plan so; then nothing changes.
        """
        agent = agent_with(self.config, self.model, self.env, budget, goal is None)
        if goal is not None:
            kind, value = goal
            objective = ReachPlace if kind == "place" else ReachImage
            agent.objective = objective(agent.objective, value)
        self.agent, self.goal, self.budget = agent, goal, budget
        self.clear()

    @property
    def due(self) -> int:
        """Actions after which an agent replans."""
        return self.agent.config.replan * self.agent.config.action_repeat

    def clear(self) -> None:
        """Forget the plan."""
        self.plans: list[Candidate] = []
        self.followed = 0
        """Number of the candidate that is followed."""
        self.executed = 0
        """Actions of it that were executed."""

    def plan(self, mind: Mind) -> Mind:
        """Plan from a mind; return the mind with the plan.

        A plan that was followed until it is due for the next one is continued.
        """
        if self.followed == 0 and self.executed >= self.due:
            used = torch.full_like(mind.state.used, self.executed)
            state = replace(mind.state, used=used)
        else:
            state = without_plan(self.agent, mind).state
        _, state = self.agent.act(state)
        mind = replace(mind, state=state)
        self.clear()
        self.plans = candidates(self.agent, mind)
        return mind

    def next_action(self, number: int) -> np.ndarray:
        """Return the next action of a candidate. Raises UserError if there is none."""
        if number >= len(self.plans):
            raise UserError("there is no such plan: plan first")
        if number != self.followed:
            self.followed, self.executed = number, 0
        plan = self.plans[number]
        if self.executed >= plan.steps:
            raise UserError("this plan ends here: plan again")
        return plan.actions[self.executed]

    @property
    def arrived(self) -> bool:
        """Return true if the candidate that is followed has no further action."""
        return self.executed >= self.plans[self.followed].steps


class NearestStep(Objective):
    """Score each candidate by its step that comes nearest to a goal.

    A subclass measures how far a step is from the goal.
    """

    def __init__(self, base: Objective):
        super().__init__(base.config, base.model, base.policy_head, base.action_repeat)

    def gap(self, state: RolloutState, action: Tensor) -> Tensor:
        """Imagine actions [B, n] or [B, n, A]; return the distances to the goal, [B, n]."""
        raise NotImplementedError

    @torch.no_grad()
    def score(
        self,
        memory: Memory,
        actions: Tensor,
        goal: Tensor | None = None,
        generators: Generators | None = None,
    ) -> Tensor:
        """Score candidates [B, N, H(, A)]; return [B, N]."""
        executed = self.repeat_actions(actions)
        n, horizon = executed.shape[1:3]
        state = imagination.start(self.model, memory, n, horizon)
        gaps = [
            self.gap(state, executed[:, :, h]) + STEP_COST * h for h in range(horizon)
        ]
        return -torch.stack(gaps).amin(0)

    def simulation(
        self, memory: Memory, horizon: int, branches: int, goal: Tensor | None = None
    ) -> Simulation:
        """Return functions by which a tree search extends sequences step by step."""
        steps = horizon * self.action_repeat
        state = imagination.start(self.model, memory, 1, steps)
        nearest = torch.full((len(memory), 1), torch.inf, device=memory.frames.device)
        return Simulation((state, nearest, 0), self._extend, self._keep)

    @torch.no_grad()
    def _extend(self, root: Any, action: Tensor) -> tuple[Tensor, Any]:
        state, nearest, step = root
        for _ in range(self.action_repeat):
            gap = self.gap(state, action) + STEP_COST * step
            nearest = torch.minimum(nearest, gap)
            step += 1
        return -nearest, (state, nearest, step)

    def _keep(self, root: Any, index: Tensor) -> Any:
        state, nearest, step = root
        imagination.select(state, index)
        return state, pick(nearest, index), step


class ReachPlace(NearestStep):
    """Score routes by their distance in tokens from a place (ahead, right) of memory.

    A tree search extends only one route to each pose, so that it looks behind corners.
    """

    def __init__(self, base: Objective, place: tuple[float, float]):
        super().__init__(base)
        self.place = torch.tensor(place, device=base.model.device)
        self.visited: set[tuple[int, ...]] = set()

    def gap(self, state: RolloutState, action: Tensor) -> Tensor:
        """Return the distance of the next poses from the place, [B, n]."""
        self.pose = memory_map.advance_pose(self.model, state, action)
        return (self.pose[..., 1:] - self.place).norm(dim=-1)

    def steps(self, route: Tensor) -> int:
        """Return the actions until a route, poses [H, 3], is nearest to the place."""
        return _nearest((route[:, 1:] - self.place.cpu()).norm(dim=-1))

    def simulation(
        self, memory: Memory, horizon: int, branches: int, goal: Tensor | None = None
    ) -> Simulation:
        """Return functions of a tree search that has visited no pose."""
        self.visited = set()
        return super().simulation(memory, horizon, branches, goal)

    @torch.no_grad()
    def _extend(self, root: Any, action: Tensor) -> tuple[Tensor, Any]:
        if root[1].min() < ARRIVED and root[2]:  # the rest of the horizon is not needed
            return -root[1], root
        scores, root = super()._extend(root, action)
        heading = (self.pose[0, :, :1] / QUARTER).round() % 4
        poses = torch.cat((heading, self.pose[0, :, 1:].round()), -1)
        for i, pose in enumerate(poses.long().tolist()):
            known = tuple(pose) in self.visited
            if known and scores[0, i] < -ARRIVED:
                scores[0, i] = -torch.inf
            self.visited.add(tuple(pose))
        return scores, root


class ReachImage(NearestStep):
    """Score rollouts by the error of their frames against a goal image, in per cent."""

    def __init__(self, base: Objective, image: np.ndarray):
        super().__init__(base)
        self.image = torch.from_numpy(image).to(base.model.device).float()

    def gap(self, state: RolloutState, action: Tensor) -> Tensor:
        """Return the mean absolute error of the next frames, [B, n]."""
        decoded = StepOptions(decode=True)
        _, frames = imagination.step(self.model, state, action, decoded)
        assert frames is not None
        return (frames.float() - self.image).abs().mean((2, 3, 4)) / 2.55

    def steps(self, frames: Tensor) -> int:
        """Return the actions until a frame, uint8 [H, C, H', W'], is nearest to the image."""
        gaps = (frames.float() - self.image.cpu()).abs().mean((1, 2, 3))
        return _nearest(gaps / 2.55)


@dataclass(frozen=True)
class Candidate:
    """Hold one plan as the page shows it.

    actions: [H, ...] as executed
    frames: imagined, uint8 [H, C, H', W']
    reward: expected, summed over the steps
    route: poses [H, 3]; None for a model without poses
    steps: actions until the plan arrives
    """

    actions: np.ndarray
    score: float
    reward: float
    frames: np.ndarray
    route: Tensor | None
    steps: int


@torch.no_grad()
def candidates(agent: Agent, mind: Mind) -> list[Candidate]:
    """Imagine the best candidates of the plan of a mind; the best one comes first.

    The others are those whose imagined ends differ most.
    """
    plan = mind.state.plan
    assert plan is not None
    actions = agent.objective.repeat_actions(plan.elites[:, :ELITES])
    routes = None
    if memory_map.has_map(agent.model):
        found = memory_map.predicted_routes(agent.model, mind.memory, actions)
        routes = found[0].cpu()
    if routes is not None and isinstance(agent.objective, ReachPlace):
        arrivals = [agent.objective.steps(route) for route in routes]
        actions = actions[:, :, : max(arrivals)]  # later frames are not shown
        routes = routes[:, : max(arrivals)]
    rollout = agent.model.imagine(mind.memory, actions, decode=True)
    assert rollout.frames is not None
    shown: list[Candidate] = []
    for index, score in enumerate(plan.elite_scores[0, :ELITES].tolist()):
        route = None if routes is None else routes[index]
        frames = rollout.frames[0, index].cpu().numpy()
        cont = rollout.cont[0, index].cpu()
        steps = _steps(agent.objective, route, frames, cont)
        running = torch.cat((torch.ones(1), cont[:-1].cumprod(0)))
        reward = rollout.reward[0, index].cpu() * running
        shown.append(
            Candidate(
                actions=actions[0, index].cpu().numpy(),
                score=score,
                reward=float(reward[:steps].sum()),
                frames=frames,
                route=route,
                steps=steps,
            )
        )
    return _different(shown)


def _different(found: list[Candidate]) -> list[Candidate]:
    """Return the first candidate and others that do something else before they arrive."""
    own = {c.actions[: c.steps].tobytes(): c for c in reversed(found)}
    distinct = [c for c in found if own[c.actions[: c.steps].tobytes()] is c]
    ends = [torch.from_numpy(c.frames[c.steps - 1]).flatten() for c in distinct]
    chosen = farthest(torch.stack(ends).float(), SHOWN)
    return [distinct[i] for i in sorted(set(chosen))]


def _steps(
    objective: Objective, route: Tensor | None, frames: np.ndarray, cont: Tensor
) -> int:
    """Return the actions until a candidate arrives at its goal, or all of them."""
    if isinstance(objective, ReachPlace):
        assert route is not None
        return objective.steps(route)
    if isinstance(objective, ReachImage):
        return objective.steps(torch.from_numpy(frames))
    ends = (cont < ARRIVED).nonzero()
    return int(ends[0]) + 1 if len(ends) else len(frames)


def _nearest(gaps: Tensor) -> int:
    """Return the actions until the step with the least distance [H]."""
    late = STEP_COST * torch.arange(len(gaps))
    return int((gaps + late).argmin()) + 1
