"""TorchRL policies: the planning agent, the agent that collects data, and scripted explorers."""

from __future__ import annotations

import numpy as np
import torch
from lssvwm.agent.mpc import Agent, AgentState
from lssvwm.envs.base import BatchedEnv, Explorer, expand_mask
from lssvwm.planners import Plan
from lssvwm.worldmodel import Memory
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

STATE = "agent"
"""Key of the agent's memory and plan in a TensorDict."""
LOST = (
    f"the key {STATE!r}, which holds the agent's memory, is missing in a step that is not "
    "the first of an episode: carry it on with `td = env.step_mdp(env.step(td))`"
)


class PlanPolicy(TensorDictModuleBase):
    """Run an `Agent` as a TorchRL policy: `env.rollout(T, PlanPolicy(agent))` or a collector.

    It reads pixels, last_action, is_first and, where the environment has goal images, goal.
    It writes action and agent, which holds memory and plan.
    Rollouts and collectors carry that key from step to step; a first frame clears it.
    Raises RuntimeError if the key is missing in a step that is not a first one.
    """

    def __init__(self, agent: Agent):
        super().__init__()
        self.agent = agent
        self.in_keys = ["pixels", "last_action", "is_first"]
        self.out_keys = ["action", STATE]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Observe the frames and write the next actions."""
        state = _observe(self.agent, self._state(tensordict), tensordict)
        action, state = self.agent.act(state)
        tensordict.set("action", action)
        tensordict.set(STATE, to_tensordict(state))
        return tensordict

    def _state(self, tensordict: TensorDictBase) -> AgentState:
        """Return the state in a TensorDict, or an empty one if all episodes begin."""
        saved = tensordict.get(STATE, None)
        if saved is not None:
            return from_tensordict(saved, self.agent)
        if not bool(tensordict["is_first"].all()):
            raise RuntimeError(LOST)
        return self.agent.initial(tensordict.batch_size.numel())


class GuidedPolicy(TensorDictModuleBase):
    """Let an agent collect data, guided through the context.

    In the context a guide walks and the agent only observes.
    After it the agent plans, or acts by its policy head.
    Its memory stays here, because a collector would store it with every frame.

    plans: whether the agent plans
    seed: of the guide
    """

    def __init__(self, agent: Agent, env: BatchedEnv, plans: bool, seed: int):
        super().__init__()
        self.agent = agent
        self.env = env
        self.plans = plans
        self.guide = env.guide(seed)
        self.state = agent.initial(env.batch)
        self.in_keys = ["pixels", "last_action", "is_first"]
        self.out_keys = ["action"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Observe the frames and write the next actions."""
        self.state = _observe(self.agent, self.state, tensordict)
        in_context = np.array(self.env.in_context())
        decide = self.agent.act if self.plans else self.agent.sample
        chosen, self.state = decide(self.state, torch.from_numpy(~in_context))
        own = chosen.cpu().numpy()
        action = np.where(expand_mask(in_context, own), self.guide.act(), own)
        return tensordict.set("action", torch.from_numpy(action))


class ScriptedPolicy(TensorDictModuleBase):
    """Run a scripted explorer as a TorchRL policy; it reads the environment, not the observation."""

    def __init__(self, explorer: Explorer):
        super().__init__()
        self.explorer = explorer
        self.in_keys = ["is_first"]
        self.out_keys = ["action"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the explorer's actions."""
        action = np.array(self.explorer.act())
        return tensordict.set("action", torch.from_numpy(action))


def _observe(agent: Agent, state: AgentState, tensordict: TensorDictBase) -> AgentState:
    """Write the frames of a TensorDict into the agent's memory."""
    return agent.observe(
        state,
        pixels=tensordict["pixels"],
        last_action=tensordict["last_action"],
        is_first=tensordict["is_first"][..., 0],
        goal=tensordict.get("goal", None),
    )


def to_tensordict(state: AgentState) -> TensorDict:
    """Return memory and plan as a TensorDict [B]."""
    plan = {} if state.plan is None else dict(vars(state.plan))
    parts = {
        "memory": state.memory.to_tensordict(),
        "used": state.used,
        "seed": state.seed,
        "plan": plan,
    }
    return TensorDict(parts, batch_size=[len(state)])


def from_tensordict(saved: TensorDictBase, agent: Agent) -> AgentState:
    """Return the state that `to_tensordict` saved, on the agent's device."""
    saved = saved.to(agent.device)
    memory, plan = saved["memory"], saved["plan"]
    assert isinstance(memory, TensorDictBase) and isinstance(plan, TensorDictBase)
    empty = agent.initial(len(saved), saved["seed"])
    return AgentState(
        memory=Memory.from_tensordict(memory),
        policy=empty.policy,
        plan=Plan(**dict(plan.items())),
        used=saved["used"],
        replanned=empty.replanned,
        seed=empty.seed,
    )
