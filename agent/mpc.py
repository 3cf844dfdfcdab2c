"""Model predictive control: observe frames into memory, plan from it in imagination, act, replan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import torch
from lssvwm.agent.config.options import SETTINGS
from lssvwm.agent.objective import Objective, ObjectiveConfig
from lssvwm.agent.policy_head import PolicyHead
from lssvwm.planners import (
    Box,
    Discrete,
    Plan,
    Proposals,
    SearchConfig,
    Simulation,
    Space,
)
from lssvwm.planners import build as build_planner
from lssvwm.planners.noise import Generators, integers
from lssvwm.worldmodel import Memory, WorldModel
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class AgentState:
    """Carry what B environments need from step to step.

    memory: frames observed so far
    policy: output of the policy head for the last frame, [B, A]
    plan: plans being followed; None before the first
    used: int64 [B], steps executed of each plan; `Agent.plan_steps` where there is none
    replanned: bool [B], environments whose plan is new
    seed: int64 [B], of the next random numbers of each environment; every use adds 1
    goal: goal images, uint8 [B, C, H, W]; None without goals
    """

    memory: Memory
    policy: Tensor
    plan: Plan | None
    used: Tensor
    replanned: Tensor
    seed: Tensor
    goal: Tensor | None = None

    def __len__(self) -> int:
        return len(self.used)


@dataclass(frozen=True, config=SETTINGS)
class MPCConfig:
    """Set how the agent follows and renews its plans."""

    replan: int = Field(default=4, ge=1, le=10**5)
    """Actions of a plan that are executed before the next plan, at most `planner.horizon`."""

    action_repeat: int = Field(default=1, ge=1, le=10**4)
    """Steps of the environment for which each planned action is repeated."""

    proposals: int = Field(default=32, ge=0, le=10**6)
    """Candidates of each plan that the policy head proposes, at most `planner.candidates`. 0: none."""

    def check(self, planner: SearchConfig) -> None:
        """Raise ValueError unless these settings fit those of the planner."""
        if self.replan > planner.horizon:
            raise ValueError(
                f"mpc.replan={self.replan} must be at most planner.horizon={planner.horizon}"
            )
        if self.proposals > planner.candidates:
            raise ValueError(
                f"mpc.proposals={self.proposals} must be at most "
                f"planner.candidates={planner.candidates}"
            )


class Agent:
    """Plan in imagination from memory and follow the plans, for any number of environments.

    Random numbers of an environment depend on its own seed, so its plans do not depend on the batch.

    bounds: of continuous actions
    generator: draws the seeds; None for a new one with seed 0
    Raises ValueError if planner and mpc settings do not fit together.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: SearchConfig,
        objective: ObjectiveConfig | None = None,
        mpc: MPCConfig | None = None,
        bounds: Box | None = None,
        generator: torch.Generator | None = None,
    ):
        self.model = model
        self.device = model.device
        self.config = MPCConfig() if mpc is None else mpc
        self.config.check(planner)
        self.generator = generator or torch.Generator(self.device).manual_seed(0)
        space = _action_space(model, bounds)
        self.planner = build_planner(planner, space)
        self.policy_head = PolicyHead(space)
        self.objective = Objective(
            config=ObjectiveConfig() if objective is None else objective,
            model=model,
            policy_head=self.policy_head,
            action_repeat=self.config.action_repeat,
        )

    @property
    def horizon(self) -> int:
        """Actions in each plan."""
        return self.planner.config.horizon

    @property
    def plan_steps(self) -> int:
        """Steps of the environment that a whole plan takes."""
        return self.horizon * self.config.action_repeat

    def initial(self, batch: int, seed: Tensor | None = None) -> AgentState:
        """Return empty memories and no plans.

        seed: of each environment's random numbers, int64 [B]; None: drawn by `generator`
        """
        if seed is None:
            seed = integers(0, 2**62, (batch,), self.generator)
        return AgentState(
            memory=self.model.initial(batch),
            policy=torch.zeros(batch, self.model.actions, device=self.device),
            plan=None,
            used=torch.full((batch,), self.plan_steps, device=self.device),
            replanned=torch.zeros(batch, dtype=torch.bool, device=self.device),
            seed=seed.to(self.device),
        )

    @torch.no_grad()
    def observe(
        self,
        state: AgentState,
        pixels: Tensor,
        last_action: Tensor,
        is_first: Tensor,
        goal: Tensor | None = None,
    ) -> AgentState:
        """Write frames into memory; a first frame clears memory and plan.

        pixels: uint8 [B, C, H, W]
        last_action: the action that led to each frame, int64 [B] or float32 [B, A]
        is_first: bool [B]
        goal: goal images, uint8 [B, C, H, W], which count if `objective.goal` is not 0
        """
        inputs = (pixels, last_action, is_first)
        pixels, last_action, first = (
            v.to(self.device, non_blocking=True) for v in inputs
        )
        memory, heads = self.model.observe(
            state.memory, pixels[:, None], last_action[:, None], first[:, None]
        )
        return replace(
            state,
            memory=memory,
            policy=heads.policy[:, -1],
            used=torch.where(first, self.plan_steps, state.used),
            goal=None if goal is None else goal.to(self.device, non_blocking=True),
        )

    @torch.no_grad()
    def act(
        self, state: AgentState, active: Tensor | None = None
    ) -> tuple[Tensor, AgentState]:
        """Return the next actions, int64 [B] or float32 [B, A], and the state.

        Environments replan if they have no plan or executed `mpc.replan` actions of it.
        active: bool [B], environments that will use their action; None for all.
            The others do not plan.
        """
        due = state.used >= self.config.replan * self.config.action_repeat
        if state.plan is None:
            due = torch.ones_like(due)
        if active is not None:
            due = due & active.to(self.device)
        plan = self._replan(state, due)
        if plan is None:  # no environment is active, and none ever planned
            return self._no_action(len(state)), replace(state, replanned=due)
        used = torch.where(due, 0, state.used)
        step = (used // self.config.action_repeat).clamp(max=self.horizon - 1)
        action = plan.actions[torch.arange(len(state), device=self.device), step]
        executed = 1 if active is None else active.to(used)
        return action, replace(
            state,
            plan=plan,
            used=used + executed,
            replanned=due,
            seed=state.seed + due,
        )

    @torch.no_grad()
    def sample(
        self, state: AgentState, active: Tensor | None = None
    ) -> tuple[Tensor, AgentState]:
        """Return actions by the policy head, without a plan; see `act`."""
        generators = self._generators(state.seed.tolist())
        action = self.policy_head.sample(state.policy, generators)
        drawn = 1 if active is None else active.to(state.seed)
        return action, replace(state, seed=state.seed + drawn)

    def _generators(self, seeds: Sequence[int]) -> list[torch.Generator]:
        """Return one generator for each seed."""
        return [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    def goal_images(self, state: AgentState, index: Tensor) -> Tensor | None:
        """Return the goal images of environments index [M], or None if goals do not count.

        Raises ValueError if goals count and there are no images.
        """
        if not self.objective.config.goal:
            return None
        if state.goal is None:
            raise ValueError(
                "objective.goal is set, but there is no goal image: set objective.goal=0"
            )
        return state.goal[index]

    def _no_action(self, batch: int) -> Tensor:
        if self.model.discrete:
            return torch.zeros(batch, dtype=torch.int64, device=self.device)
        return torch.zeros(batch, self.model.actions, device=self.device)

    def _replan(self, state: AgentState, due: Tensor) -> Plan | None:
        """Return the plans of all environments; those that are `due` [B] get new ones.

        The only place where planning waits for a GPU: which environments plan is read, and with which seeds.
        """
        is_due, seeds = torch.stack((due.long(), state.seed)).tolist()
        planning = [number for number, plans in enumerate(is_due) if plans]
        if not planning:
            return state.plan
        index = torch.tensor(planning).to(self.device, non_blocking=True)
        memory = state.memory[index]
        goal = self.goal_images(state, index)
        generators = self._generators([seeds[number] for number in planning])
        plan = self.planner.plan(
            lambda actions: self.objective.score(memory, actions, goal, generators),
            batch=len(index),
            generator=generators,
            warm=self._warm_start(state, index),
            proposals=self._proposals(memory, state.policy[index], generators, goal),
            simulation=self._simulation(memory, goal),
        )
        if state.plan is not None:
            return state.plan.put(index, plan)
        if len(index) == len(state):
            return plan
        # Environments that never planned get a copy of a plan, which they do not follow.
        source = torch.zeros(len(state), dtype=torch.int64, device=self.device)
        source[index] = torch.arange(len(index), device=self.device)
        return plan.select(source)

    def _warm_start(self, state: AgentState, index: Tensor) -> Plan | None:
        """Return the last plans without the actions executed since."""
        if state.plan is None:
            return None
        executed = state.used[index] // self.config.action_repeat
        return state.plan.select(index).shift(executed)

    def _proposals(
        self,
        memory: Memory,
        policy: Tensor,
        generators: Generators,
        goal: Tensor | None,
    ) -> Proposals | None:
        """Return rollouts of the policy head as candidates, with their scores if these are exact."""
        if not self.config.proposals:
            return None
        found = self.objective.propose(
            memory, policy, self.config.proposals, self.horizon, generators, goal
        )
        # With more denoising steps, other candidates are scored by samples. So must these.
        one_step = self.objective.config.denoising_steps == 1
        return found if one_step else Proposals(found.actions)

    def _simulation(self, memory: Memory, goal: Tensor | None) -> Simulation | None:
        """Return step and select functions for a planner that extends sequences."""
        branches = self.planner.branches
        if not branches or self.objective.config.denoising_steps > 1:
            return None
        return self.objective.simulation(memory, self.horizon, branches, goal)


def _action_space(model: WorldModel, bounds: Box | None) -> Space:
    if model.discrete:
        return Discrete(model.actions)
    if bounds is None:
        raise ValueError("an agent with continuous actions needs their bounds")
    return Box(bounds.low.to(model.device), bounds.high.to(model.device))
