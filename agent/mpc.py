"""The agent: it observes frames into its memory, plans in imagination from it, and acts.

`Agent` works on tensors and batches; `PlanPolicy` is the same as a TorchRL policy, its memory travelling in the
TensorDict, so that collectors and `rollout` drive it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lssvwm.agent.checkpoint import check_fits
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.planners import Plan
from lssvwm.worldmodel import Memory, Rollout, WorldModel
from lssvwm.worldmodel.heads import HeadOutputs
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Normal

from lssvwm import planners

NO_DISTANCE = (
    "this model cannot tell steps to a goal: train it with model.loss.distance > 0"
)
NO_SURPRISE = (
    "this model cannot tell what is new: train it with model.loss.surprise > 0"
)
SPREAD = 0.3  # of continuous actions drawn around the policy head's answer, in halves of their range
ROWS = (
    1024  # imagined futures advanced together: small enough for the processor's cache
)


@dataclass(frozen=True)
class AgentState:
    """What B agents carry from step to step.

    policy [B, A] is the policy head's answer to the last frame; plan the plans being followed (None before the
    first), used int64 [B] how many of their actions were executed, replanned bool [B] whose plan is new, goal uint8
    [B, C, H, W] the goal images (None: there are none).
    """

    memory: Memory
    policy: Tensor
    plan: Plan | None
    used: Tensor
    replanned: Tensor
    goal: Tensor | None = None

    def __len__(self) -> int:
        return len(self.used)


class Agent:
    """Plans with `model` by `planner` (a config of `planners.PLANNER_CONFIGS`); randomness comes from `seed`.

    `low` and `high` bound continuous actions.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: planners.SearchConfig,
        seed: int = 0,
        low=None,
        high=None,
    ):
        self.model, self.config = model.eval(), planner
        self.device = model.place.device
        space = (
            planners.Discrete(model.actions)
            if model.discrete
            else planners.Box(torch.as_tensor(low), torch.as_tensor(high))
        )
        self.space, self.planner = space, planners.build(planner, space)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def initial(self, batch: int) -> AgentState:
        """Empty memories and no plans."""
        zeros = torch.zeros(batch, dtype=torch.int64, device=self.device)
        policy = torch.zeros(batch, self.model.actions, device=self.device)
        return AgentState(self.model.initial(batch), policy, None, zeros, zeros.bool())

    @torch.no_grad()
    def observe(
        self,
        state: AgentState,
        pixels: Tensor,
        last_action: Tensor,
        is_first: Tensor,
        goal: Tensor | None = None,
    ) -> AgentState:
        """Write a frame uint8 [B, C, H, W], reached by `last_action` [B], into memory; a first frame clears it. Plans
        lead to `goal`, an image of the same shape, if `planner.goal` is set."""
        frame, action, begins = (
            v.to(self.device)[:, None] for v in (pixels, last_action, is_first)
        )
        memory, readout = self.model.observe(state.memory, frame, action, begins)
        first = is_first.to(self.device)
        used = torch.where(first, self.config.horizon * self.config.repeat, state.used)
        goal = None if goal is None else goal.to(self.device)
        return replace(
            state, memory=memory, policy=readout.policy[:, -1], used=used, goal=goal
        )

    @torch.no_grad()
    def act(
        self, state: AgentState, active: Tensor | None = None
    ) -> tuple[Tensor, AgentState]:
        """The next action of each agent, int64 [B] or float32 [B, A].

        An agent replans when it has none, or after `planner.replan` actions of it; `active` bool [B] says whose action
        will be used (None: all), the others do not plan.
        """
        spent = state.used >= self.config.replan * self.config.repeat
        due = spent | torch.full_like(spent, state.plan is None)
        due = due if active is None else due & active.to(self.device)
        plan = self._replan(state, due) if due.any() else state.plan
        used = torch.where(due, 0, state.used)
        if plan is None:  # nobody is active and nobody ever planned
            return self._no_action(len(state)), replace(state, replanned=due)
        rows = torch.arange(len(state), device=self.device)
        action = plan.actions[
            rows, (used // self.config.repeat).clamp(max=self.config.horizon - 1)
        ]
        moved = used + 1 if active is None else used + active.to(used)
        return action, replace(state, plan=plan, used=moved, replanned=due)

    def _no_action(self, batch: int) -> Tensor:
        if self.model.discrete:
            return torch.zeros(batch, dtype=torch.int64, device=self.device)
        return torch.zeros(batch, self.model.actions, device=self.device)

    def _replan(self, state: AgentState, due: Tensor) -> Plan:
        """Plans of all agents, those who are `due` having new ones."""
        where = due.nonzero()[:, 0]
        memory, policy, goal = (
            state.memory[where],
            state.policy[where],
            self.goal(state, where),
        )
        gone = state.used[where] // self.config.repeat
        warm = None if state.plan is None else state.plan.select(where).shift(gone)
        proposals, judged = (
            self.propose(memory, policy, goal)
            if self.config.proposals
            else (None, None)
        )
        judged = (
            judged if self.config.denoise == 1 else None
        )  # of one draw, or none: to be judged as the others are
        plan = self.planner.plan(
            lambda actions: self.score(memory, actions, goal),
            batch=len(where),
            generator=self.generator,
            warm=warm,
            proposals=proposals,
            judged=judged,
        )
        if state.plan is not None:
            return state.plan.put(where, plan)
        if len(where) == len(state):
            return plan
        spread = torch.zeros(len(state), dtype=torch.int64, device=self.device)
        spread[where] = torch.arange(len(where), device=self.device)
        return plan.select(spread)

    def goal(self, state: AgentState, where: Tensor) -> Tensor | None:
        """The goal images that count; raises ValueError where one is wanted and none was given."""
        if not self.config.goal:
            return None
        if state.goal is None:
            raise ValueError(
                "planner.goal is set, but there is no goal image to plan to: set planner.goal=0"
            )
        return state.goal[where]

    @torch.no_grad()
    def score(
        self, memory: Memory, actions: Tensor, goal: Tensor | None = None
    ) -> Tensor:
        """How good actions [B, N, H(, A)] are from B memories, [B, N], as `_judge` says of what is imagined."""
        c = self.config
        actions = self.unfold(actions).repeat_interleave(c.samples, 1)
        few = max(1, ROWS // actions.shape[1])
        scores = []
        for part in (slice(i, i + few) for i in range(0, len(actions), few)):
            there = None if goal is None else goal[part]
            future = self.model.imagine(
                memory[part],
                actions[part],
                c.denoise,
                generator=self.generator,
                goal=there,
            )
            scores.append(self._judge(future))
        drawn = torch.cat(scores).unflatten(1, (-1, c.samples))
        return (
            drawn.mean(2) - c.caution * drawn.std(2, correction=0)
            if c.samples > 1
            else drawn[..., 0]
        )

    def unfold(self, actions: Tensor) -> Tensor:
        """What is done when a plan's actions [B, N, H(, A)] are each taken `planner.repeat` times."""
        return actions.repeat_interleave(self.config.repeat, 2)

    @torch.no_grad()
    def propose(
        self,
        memory: Memory,
        policy: Tensor,
        goal: Tensor | None = None,
        n: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Action sequences [B, n, H(, A)] drawn from the policy prior, rolled out in imagination; their scores. There
        are `planner.proposals` of them, if nothing else is said."""
        n, repeat = self.config.proposals if n is None else n, self.config.repeat
        few = max(1, ROWS // n)
        actions, scores = [], []
        for part in (slice(i, i + few) for i in range(0, len(policy), few)):
            here = policy[part, None].expand(-1, n, -1)
            future = self.model.dream(
                memory[part],
                n,
                self.config.horizon * repeat,
                Choice(self, here),
                goal=None if goal is None else goal[part],
            )
            actions.append(future.actions[:, :, ::repeat])
            scores.append(self._judge(future))
        return torch.cat(actions), torch.cat(scores)

    def _judge(self, future: Rollout) -> Tensor:
        """Of what was imagined, [B, n]: discounted returns with a share of the value at the end, times `reward`; less
        the steps to the goal, averaged over the horizon, times `goal`; and the discounted sum of expected errors of the
        frames, times `novelty`."""
        c, total = (
            self.config,
            torch.zeros(future.actions.shape[:2], device=self.device),
        )
        if c.reward:
            end = c.bootstrap * future.value[:, :, -1]
            total = total + c.reward * planners.returns(
                future.reward, future.cont, end, c.discount
            )
        if c.goal and future.distance is not None:
            total = total - c.goal * future.distance.mean(2)
        if c.novelty:
            if future.surprise is None:
                raise ValueError(NO_SURPRISE)
            total = total + c.novelty * planners.returns(
                future.surprise, future.cont, None, c.discount
            )
        return total

    def sample(self, policy: Tensor) -> Tensor:
        """An action for each answer of the policy head [..., A]."""
        if isinstance(self.space, planners.Discrete):
            gumbel = (
                -torch.rand(policy.shape, generator=self.generator, device=self.device)
                .clamp(min=1e-20)
                .log()
            )
            return (policy - gumbel.log()).argmax(-1)
        noise = torch.randn(policy.shape, generator=self.generator, device=self.device)
        return (policy + self._spread(self.space) * noise).clamp(
            self.space.low, self.space.high
        )

    def anything(self, like: Tensor) -> Tensor:
        """Actions drawn evenly, for as many answers of the policy head [..., A]."""
        if isinstance(self.space, planners.Discrete):
            return self.sample(torch.zeros_like(like))
        drawn = torch.rand(like.shape, generator=self.generator, device=self.device)
        return self.space.low + drawn * (self.space.high - self.space.low)

    def chances(self, policy: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of actions [...] or [..., A] drawn by `sample`, and the entropy, for answers [..., A] of the
        policy head."""
        if isinstance(self.space, planners.Discrete):
            log = torch.log_softmax(policy.float(), -1)
            return log.gather(-1, action[..., None])[..., 0], -(log.exp() * log).sum(-1)
        drawn = Normal(policy, self._spread(self.space).expand_as(policy))
        return drawn.log_prob(action).sum(-1), drawn.entropy().sum(-1)

    def _spread(self, space: planners.Box) -> Tensor:
        return (SPREAD * (space.high - space.low) / 2).to(self.device)


class Choice:
    """Chooses imagined actions by the policy head, each taken `planner.repeat` times; `here` is its answer to now."""

    def __init__(self, agent: Agent, here: Tensor):
        self.agent, self.here = agent, here
        self.action: Tensor | None = None

    def __call__(self, h: int, out: HeadOutputs | None) -> Tensor:
        if self.action is None or h % self.agent.config.repeat == 0:
            self.action = self.agent.sample(out.policy if out else self.here)
        return self.action


def action_count(env: BatchedEnv) -> int:
    """How many discrete actions, or dimensions of a continuous one."""
    return env.actions.n if isinstance(env.actions, Discrete) else len(env.actions.low)


def build_agent(config: Config, model: WorldModel, env: BatchedEnv) -> Agent:
    """The planning agent of a configuration; raises UserError if the model does not fit the environment, or lacks what
    the planner's weights ask for."""
    bounds = (
        {}
        if isinstance(env.actions, Discrete)
        else {"low": env.actions.low, "high": env.actions.high}
    )
    check_fits(model, env.frame_shape, action_count(env))
    planner = config.planner
    if planner.goal and (env.goals() is None or model.distance is None):
        lacks = (
            "this environment has no goal images"
            if env.goals() is None
            else NO_DISTANCE
        )
        raise UserError(
            f"planner.goal={planner.goal:g}: {lacks}; or set planner.goal=0"
        )
    if planner.novelty and not model.config.loss.surprise:
        raise UserError(
            f"planner.novelty={planner.novelty:g}: {NO_SURPRISE}; or set planner.novelty=0"
        )
    try:
        return Agent(model, config.planner, config.seed, **bounds)
    except ValueError as error:
        raise UserError(f"{error}; choose another, e.g. planner=cem") from None


class PlanPolicy(TensorDictModuleBase):
    """An `Agent` as a TorchRL policy: reads pixels, last_action, is_first and its state, writes action and state.

    The state (memory, plan) travels in the TensorDict under `agent`; at `is_first` it starts anew. Use with
    `rollout(auto_reset=True)` or `Collector`.
    """

    def __init__(self, agent: Agent, batch: int):
        super().__init__()
        self.agent, self.batch = agent, batch
        self.in_keys = [
            "pixels",
            "last_action",
            "is_first",
            "agent",
        ]  # and goal, where the environment has one
        self.out_keys = ["action", ("next", "agent")]  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        saved = tensordict.get("agent", None)
        state = (
            self.agent.initial(self.batch)
            if saved is None
            else _unpack(saved, self.agent)
        )
        first = tensordict["is_first"][..., 0]
        seen = tensordict["pixels"], tensordict["last_action"], first
        state = self.agent.observe(state, *seen, tensordict.get("goal", None))
        action, state = self.agent.act(state)
        tensordict.set("action", action)
        tensordict.set(("next", "agent"), _pack(state))
        return tensordict

    def make_tensordict_primer(self):
        """The transform that puts an empty state at the start of a rollout."""
        from torchrl.data import Composite, Unbounded
        from torchrl.envs import TensorDictPrimer

        c, goal = (
            self.agent.config,
            torch.zeros(self.batch, *self.agent.model.frame_shape, dtype=torch.uint8),
        )
        _, state = self.agent.act(
            replace(self.agent.initial(self.batch), goal=goal.to(self.agent.device))
        )
        empty = _pack(
            replace(state, used=torch.full_like(state.used, c.horizon * c.repeat))
        )

        def spec(td: TensorDictBase) -> Composite:
            parts = {
                k: spec(v)
                if isinstance(v, TensorDictBase)
                else Unbounded(v.shape, dtype=v.dtype)
                for k, v in td.items()
            }
            return Composite(parts, shape=td.shape)

        primers = Composite(agent=spec(empty), shape=torch.Size([self.batch]))
        return TensorDictPrimer(primers=primers, expand_specs=False)


def _pack(state: AgentState) -> TensorDict:
    plan = {} if state.plan is None else dict(vars(state.plan))
    parts = {"memory": state.memory.to_tensordict(), "used": state.used, "plan": plan}
    return TensorDict(parts, batch_size=[len(state)])


def _unpack(td: TensorDictBase, agent: Agent) -> AgentState:
    memory, saved = td["memory"], td["plan"]
    assert isinstance(memory, TensorDictBase) and isinstance(saved, TensorDictBase)
    plan = Plan(**dict(saved.items()))
    policy = torch.zeros(len(td), agent.model.actions)
    return AgentState(
        Memory.from_tensordict(memory),
        policy,
        plan,
        td["used"],
        torch.zeros(len(td), dtype=torch.bool),
    )
