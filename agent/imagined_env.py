"""The world model as a TorchRL model-based environment, and our planners as TorchRL planners.

    env = ImaginedEnv(model)
    start = env.start(memory)                      # as many as there are memories
    env.rollout(16, policy, auto_reset=False, tensordict=start, break_when_any_done=False)
    CEMPlanner(env, planning_horizon=16, optim_steps=3, num_candidates=256, top_k=16)(start)      # TorchRL's
    ImaginationPlanner(env, planners.CEMConfig(horizon=16, candidates=256))(start)                # ours, same interface

Every step carries its whole memory along, as that interface wants it: convenient, and slow beside `WorldModel.imagine`,
whose futures share what they have in common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lssvwm.agent.mpc import Agent
from lssvwm.worldmodel import Memory, WorldModel
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ModelBasedEnvBase
from torchrl.modules import MPCPlannerBase

from lssvwm import planners


class ImaginedEnv(ModelBasedEnvBase):
    """Imagines one frame a step, and remembers it. Any batch size.

    Keys: `memory` (see `worldmodel.Memory`); `value` float32 [..., 1] and `policy` float32 [..., A], what the heads
    answer to the imagined frame; `reward` [..., 1]; `terminated` and `done` bool [..., 1], where the model rather
    expects the end. `action` is int64 [...] (Categorical), or float32 [..., A] between `low` and `high` (Bounded). An
    expected end resets nothing: imagination goes on, and planners leave out what follows.
    """

    def __init__(self, model: WorldModel, low: Any = None, high: Any = None):
        super().__init__(model, device=model.place.device, batch_size=torch.Size([]))  # type: ignore[arg-type]
        self.model, self.low, self.high = model.eval(), low, high
        first, one = (
            self._answered(model.initial(1), torch.zeros(1, 2 + model.actions)),
            torch.Size([1]),
        )
        self.observation_spec = _spec(first)
        if model.discrete:
            self.action_spec = Categorical(
                model.actions, shape=torch.Size([]), dtype=torch.int64
            )
        else:
            low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (low, high))
            self.action_spec = Bounded(low, high, shape=low.shape, dtype=torch.float32)
        self.reward_spec = Unbounded(shape=one)
        flag = Binary(1, shape=one, dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone())

    def start(self, memory: Memory) -> TensorDictBase:
        """Where to imagine from: [B], one for each of B memories."""
        return self.reset(
            TensorDict({"memory": memory.to_tensordict()}, batch_size=memory.batch_size)
        )

    def maybe_reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Nothing: an end that is only imagined is no reason to start anew."""
        return tensordict

    def _reset(
        self, tensordict: TensorDictBase | None = None, **_: Any
    ) -> TensorDictBase:
        """From the memory in the TensorDict, or from an empty one."""
        given = tensordict is not None and "memory" in tensordict
        lead = tensordict.batch_size if tensordict is not None else torch.Size([])
        memory = (
            _memory(tensordict) if given else self.model.initial(max(1, lead.numel()))
        )
        return self._answered(
            memory, self.model.place.new_zeros(len(memory), 2 + self.model.actions)
        ).reshape(lead)

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        lead, memory = tensordict.batch_size, _memory(tensordict)
        action = tensordict["action"]
        readout, memory = self.model.advance(
            memory, action.reshape(len(memory), *action.shape[len(lead) :])
        )
        answers = torch.cat(
            (readout.reward[:, None], readout.value[:, None], readout.policy), -1
        )
        out = self._answered(memory, answers)
        out["reward"], out["terminated"] = answers[:, :1], readout.cont[:, None] < 0.5
        out["done"] = out["terminated"].clone()
        return out.reshape(lead)

    def _answered(self, memory: Memory, answers: Tensor) -> TensorDict:
        """What is observed: memory [M], and answers [M, 2 + A] of which the first, the reward, is left out."""
        keys = {
            "memory": memory.to_tensordict(),
            "value": answers[:, 1:2],
            "policy": answers[:, 2:],
        }
        return TensorDict(keys, batch_size=[len(memory)])


class ImaginationPlanner(MPCPlannerBase):
    """One of our planners (its configuration) as a TorchRL planner over an `ImaginedEnv`: the first action of a plan
    from the memory in the TensorDict. Equal seeds give equal plans."""

    def __init__(self, env: ImaginedEnv, config: planners.SearchConfig, seed: int = 0):
        super().__init__(env=env, action_key="action")
        self.agent = Agent(env.model, config, seed, env.low, env.high)

    def planning(self, tensordict: TensorDictBase) -> Tensor:
        """The actions [...] of a TensorDict [...] as `ImaginedEnv` gives it."""
        memory, lead = _memory(tensordict), tensordict.batch_size
        state = self.agent.initial(len(memory))
        policy = tensordict["policy"].reshape(len(memory), -1)
        action, _ = self.agent.act(replace(state, memory=memory, policy=policy))
        return action.reshape(*lead, *action.shape[1:])


def _memory(tensordict: TensorDictBase) -> Memory:
    """The memories of a TensorDict of any batch size, [M]."""
    saved = tensordict["memory"]
    assert isinstance(saved, TensorDictBase)
    return Memory.from_tensordict(saved.reshape(-1))


def _spec(example: TensorDictBase) -> Composite:
    """The specs of a TensorDict [1], without its batch dimension."""
    parts = {
        key: _spec(value)
        if isinstance(value, TensorDictBase)
        else Unbounded(value.shape[1:], dtype=value.dtype)
        for key, value in example.items()
    }
    return Composite(parts)
