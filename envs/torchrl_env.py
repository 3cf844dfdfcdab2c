"""Offer any `BatchedEnv` as a native batched TorchRL environment."""

from __future__ import annotations

import numpy as np
import torch
from lssvwm.envs.base import BatchedEnv, Discrete
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


class TorchRLEnv(EnvBase):
    """Run B environments as one batch-locked TorchRL environment.

    Keys:

    - `pixels`: uint8 [B, C, H, W].
    - `goal`: as `pixels`, for environments whose goals are images.
    - `action`: int64 [B] (Categorical) or float32 [B, A] (Bounded).
    - `last_action`: as `action`.
    - `pose`: float32 [B, 3], for environments that have poses.
    - `is_first`: bool [B, 1].
    - `reward`: float32 [B, 1].
    - `done`, `terminated`, `truncated`: bool [B, 1].
    - `truth`: nested, bool and int64 [B], with `in_context`; never for a model.

    Episode seeds come from `set_seed`, in the order in which slots reset, or from
    `reset_tasks`.
    """

    def __init__(self, env: BatchedEnv, seed: int = 0):
        super().__init__(device="cpu", batch_size=torch.Size([env.batch]))
        self.env = env
        self._given: np.ndarray | None = None
        self._set_seed(seed)
        env.reset(np.arange(env.batch), self._draw_seeds(env.batch))
        self._make_specs()

    def reset_tasks(self, seeds: np.ndarray | torch.Tensor) -> TensorDictBase:
        """Start episode `seeds[i]` in slot i and return the first observations.

        seeds: int64 [B]; raises ValueError for another shape
        """
        given = np.asarray(seeds, np.int64)
        if given.shape != (self.env.batch,):
            raise ValueError(
                f"reset_tasks needs {self.env.batch} seeds, one per slot; "
                f"got {given.shape}"
            )
        self._given = given
        return self.reset()

    def _make_specs(self) -> None:
        shape = self.batch_size
        single = torch.Size([*shape, 1])
        pixels_shape = shape + torch.Size(self.env.frame_shape)
        truth = {key: _truth_spec(value) for key, value in self._truth().items()}
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=pixels_shape, dtype=torch.uint8),
            last_action=self._action_space(),
            is_first=Binary(1, shape=single, dtype=torch.bool),
            truth=Composite(truth, shape=shape),
            shape=shape,
        )
        if self.env.pose() is not None:
            pose_shape = torch.Size([*shape, 3])
            self.observation_spec["pose"] = Unbounded(pose_shape, dtype=torch.float32)
        if self.env.goals() is not None:
            self.observation_spec["goal"] = self.observation_spec["pixels"].clone()
        self.action_spec = self._action_space()
        self.reward_spec = Unbounded(shape=single, dtype=torch.float32)
        flag = Binary(1, shape=single, dtype=torch.bool)
        self.done_spec = Composite(
            done=flag,
            terminated=flag.clone(),
            truncated=flag.clone(),
            shape=shape,
        )

    def _action_space(self) -> Categorical | Bounded:
        actions = self.env.actions
        shape = self.batch_size
        if isinstance(actions, Discrete):
            return Categorical(actions.n, shape=shape, dtype=torch.int64)
        size = torch.Size([*shape, len(actions.low)])
        low = torch.tensor(actions.low).expand(size)
        high = torch.tensor(actions.high).expand(size)
        return Bounded(low, high, shape=size, dtype=torch.float32)

    def _truth(self) -> dict[str, torch.Tensor]:
        truth = self.env.truth() | {"in_context": self.env.in_context()}
        return {key: torch.from_numpy(np.array(value)) for key, value in truth.items()}

    def _observe(self, is_first: torch.Tensor) -> TensorDict:
        data = {
            "pixels": torch.from_numpy(self.env.frames().copy()),
            "last_action": torch.from_numpy(np.array(self.env.last_action())),
            "is_first": is_first,
            "truth": TensorDict(self._truth(), self.batch_size),
        }
        pose = self.env.pose()
        if pose is not None:
            data["pose"] = torch.from_numpy(pose)
        goals = self.env.goals()
        if goals is not None:
            data["goal"] = torch.from_numpy(goals)
        return TensorDict(data, self.batch_size)

    def _reset(
        self, tensordict: TensorDictBase | None = None, **_: object
    ) -> TensorDict:
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        if chosen is None:
            where = torch.ones(self.env.batch, dtype=torch.bool)
        else:
            where = chosen.reshape(-1)
        slots = where.nonzero().squeeze(-1).numpy()
        if self._given is None:
            seeds = self._draw_seeds(len(slots))
        else:
            seeds = self._given[slots]
        self._given = None
        self.env.reset(slots, seeds)
        return self._observe(where.unsqueeze(-1).clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        step = self.env.step(np.array(tensordict["action"]))
        out = self._observe(torch.zeros(self.env.batch, 1, dtype=torch.bool))
        out["reward"] = torch.from_numpy(step.reward).unsqueeze(-1)
        out["terminated"] = torch.from_numpy(step.terminated).unsqueeze(-1)
        out["truncated"] = torch.from_numpy(step.truncated).unsqueeze(-1)
        out["done"] = out["terminated"] | out["truncated"]
        return out

    def _set_seed(self, seed: int | None) -> None:
        self._seeds = np.random.default_rng([seed or 0, 1])

    def _draw_seeds(self, count: int) -> np.ndarray:
        return self._seeds.integers(2**31, size=count)


def _truth_spec(value: torch.Tensor) -> Binary | Unbounded:
    if value.dtype == torch.bool:
        return Binary(value.shape[-1], shape=value.shape, dtype=torch.bool)
    return Unbounded(shape=value.shape, dtype=value.dtype)
