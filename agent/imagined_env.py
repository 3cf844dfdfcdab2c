"""The world model as a TorchRL model-based environment, and this package's planners as TorchRL planners.

    env = ImaginedEnv(model)
    start = env.start(memory)
    env.rollout(16, policy, auto_reset=False, tensordict=start, break_when_any_done=False)
    CEMPlanner(env, 16, optim_steps=3, num_candidates=256, top_k=16)(start)             # of TorchRL
    ImaginationPlanner(env, planners.CEMConfig(horizon=16, candidates=256))(start)      # of this package

Every step carries its whole memory along, as the interface of TorchRL requires.
`WorldModel.imagine` is faster, because its rollouts share what they have in common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lssvwm.agent.mpc import Agent, MPCConfig
from lssvwm.agent.objective import ObjectiveConfig
from lssvwm.planners import Box, SearchConfig
from lssvwm.worldmodel import Memory, WorldModel, imagination
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ModelBasedEnvBase
from torchrl.modules import MPCPlannerBase


class ImaginedEnv(ModelBasedEnvBase):
    """Imagine one frame per step and remember it, for any batch size.

    bounds: of continuous actions; None for a model with discrete ones

    Keys:
        action: int64 [...] (Categorical) or float32 [..., A] (Bounded)
        memory: see `worldmodel.Memory`
        value: float32 [..., 1], value of the imagined frame
        policy: float32 [..., A], output of the policy head for it
        reward: [..., 1]
        terminated, done: bool [..., 1], whether termination is more likely than not

    An expected termination resets nothing; planners weight what follows by its probability.
    """

    def __init__(self, model: WorldModel, bounds: Box | None = None):
        device = model.device
        super().__init__(model, device=device, batch_size=torch.Size([]))  # type: ignore[arg-type]
        self.model = model
        self.bounds = bounds
        self._make_specs()

    def _make_specs(self) -> None:
        single = torch.Size([1])
        self.observation_spec = _spec(self._start(self.model.initial(1)))
        self.action_spec = self._action_spec()
        self.reward_spec = Unbounded(shape=single)
        flag = Binary(1, shape=single, dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone())

    def _action_spec(self) -> Categorical | Bounded:
        if self.bounds is None:
            shape = torch.Size([])
            return Categorical(self.model.actions, shape=shape, dtype=torch.int64)
        low, high = self.bounds.low.float(), self.bounds.high.float()
        return Bounded(low, high, shape=low.shape, dtype=torch.float32)

    def start(self, memory: Memory) -> TensorDictBase:
        """Return the TensorDict [B] from which to imagine, one entry for each of B memories."""
        batch = memory.batch_size
        return self.reset(
            TensorDict({"memory": memory.to_tensordict()}, batch_size=batch)
        )

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reset nothing: an imagined termination starts no episode."""
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None = None, **_: Any
    ) -> TensorDictBase:
        """Start from the memory in the TensorDict, or from an empty one."""
        if tensordict is None:
            return self._start(self.model.initial(1)).reshape(torch.Size([]))
        lead = tensordict.batch_size
        if "memory" in tensordict:
            memory = _memory(tensordict)
        else:
            memory = self.model.initial(max(1, lead.numel()))
        return self._start(memory).reshape(lead)

    def _start(self, memory: Memory) -> TensorDict:
        """Return memory [M] with zeros for the heads, which have seen no imagined frame."""
        zeros = self.model.embedding.pos_embed.new_zeros(
            len(memory), 1 + self.model.actions
        )
        return self._observation(memory, zeros[:, :1], zeros[:, 1:])

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        lead = tensordict.batch_size
        memory = _memory(tensordict)
        action = tensordict["action"]
        action = action.reshape(len(memory), *action.shape[len(lead) :])
        heads, memory, _ = imagination.imagine_one(self.model, memory, action)
        out = self._observation(memory, heads.value[:, None], heads.policy)
        out["reward"] = heads.reward[:, None]
        out["terminated"] = heads.cont[:, None] < 0.5
        out["done"] = out["terminated"].clone()
        return out.reshape(lead)

    def _observation(self, memory: Memory, value: Tensor, policy: Tensor) -> TensorDict:
        return TensorDict(
            {"memory": memory.to_tensordict(), "value": value, "policy": policy},
            batch_size=[len(memory)],
        )


class ImaginationPlanner(MPCPlannerBase):
    """Run a planner of this package as a TorchRL planner over an `ImaginedEnv`.

    It writes the first action of a plan made from the memory in the TensorDict.
    Equal seeds give equal plans.
    """

    def __init__(
        self,
        env: ImaginedEnv,
        planner: SearchConfig,
        objective: ObjectiveConfig | None = None,
        mpc: MPCConfig | None = None,
        seed: int = 0,
    ):
        super().__init__(env=env, action_key="action")
        generator = torch.Generator(env.model.device).manual_seed(seed)
        self.agent = Agent(env.model, planner, objective, mpc, env.bounds, generator)

    def planning(self, tensordict: TensorDictBase) -> Tensor:
        """Return actions [...] for a TensorDict [...] of an `ImaginedEnv`."""
        memory = _memory(tensordict)
        policy = tensordict["policy"].reshape(len(memory), -1)
        state = replace(self.agent.initial(len(memory)), memory=memory, policy=policy)
        action, _ = self.agent.act(state)
        return action.reshape(*tensordict.batch_size, *action.shape[1:])


def _memory(tensordict: TensorDictBase) -> Memory:
    """Return the memories [M] of a TensorDict of any batch size."""
    saved = tensordict["memory"]
    assert isinstance(saved, TensorDictBase)
    return Memory.from_tensordict(saved.reshape(-1))


def _spec(example: TensorDictBase) -> Composite:
    """Return the specs of a TensorDict [1], without its batch dimension."""
    parts = {}
    for key, value in example.items():
        if isinstance(value, TensorDictBase):
            parts[key] = _spec(value)
        else:
            parts[key] = Unbounded(value.shape[1:], dtype=value.dtype)
    return Composite(parts)
