"""Train recurrent PPO of sb3-contrib in a `BatchedEnv`, for `lssvwm benchmark agents`.

Only this module imports sb3-contrib, which is an extra: `pip install 'lssvwm[baselines]'`.
All settings are the defaults of `RecurrentPPO` and `CnnLstmPolicy` in sb3-contrib 2.9:

    learning_rate=3e-4 n_steps=128 batch_size=128 n_epochs=10 gamma=0.99 gae_lambda=0.95
    clip_range=0.2 ent_coef=0 vf_coef=0.5 max_grad_norm=0.5 normalize_advantage=True
    policy: NatureCNN with 512 features, which actor and critic share; one LSTM of 256 units for each;
    no further hidden layers; Adam with eps=1e-5

The number of environments is no setting of the algorithm. It is that of RL Baselines3 Zoo for recurrent PPO on images.

In the guided part of an episode the environment executes the guide's actions. For PPO these are steps whose action has
no effect: the policy observes their frames, and its gradient there is zero on average.

Shapes: B environments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from lssvwm.agent.build import build_env
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.training.streams import TRAINING
from lssvwm.envs.base import BatchedEnv, Discrete, expand_mask, slots_where
from lssvwm.worldmodel import Memory

try:
    from sb3_contrib import RecurrentPPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.callbacks import (  # pyright: ignore[reportMissingImports]
        BaseCallback,
    )
    from stable_baselines3.common.logger import (  # pyright: ignore[reportMissingImports]
        Logger,
    )
    from stable_baselines3.common.vec_env import (  # pyright: ignore[reportMissingImports]
        VecEnv,
    )
except ImportError:
    raise UserError(
        "benchmark agents needs sb3-contrib: pip install 'lssvwm[baselines]' "
        "(in a checkout: pip install '.[baselines]')"
    ) from None

ENVIRONMENTS = 8
"""Environments stepped together in training."""
SMALLEST = 36
"""Least side of a frame that NatureCNN accepts, in pixels."""


class TaskVecEnv(VecEnv):
    """Offer a `BatchedEnv` as a VecEnv of Stable-Baselines3, whose episodes restart by themselves.

    Observations: uint8 [B, C, H, W]
    seed: of the episodes, which are never those of held-out tasks
    """

    def __init__(self, env: BatchedEnv, seed: int):
        self.env = env
        self.guide = env.guide(seed)
        self.seeds = np.random.default_rng([seed * 2 + TRAINING, 1])
        self.chosen = np.empty(0)
        shape = env.frame_shape
        pixels = spaces.Box(0, 255, shape, np.uint8)
        super().__init__(env.batch, pixels, _action_space(env))

    def reset(self) -> np.ndarray:
        """Start an episode in every environment; returns the first frames."""
        self._start(np.arange(self.env.batch))
        return self.env.frames().copy()

    def _start(self, slots: np.ndarray) -> None:
        self.env.reset(slots, self.seeds.integers(2**31, size=len(slots)))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self.chosen = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Return frames, rewards, ends and infos; an ended episode is followed by a new one."""
        step = self.env.step(self._executed())
        done = step.terminated | step.truncated
        frames = self.env.frames().copy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.env.batch)]
        for slot in slots_where(done):
            cut = step.truncated[slot] and not step.terminated[slot]
            infos[slot]["TimeLimit.truncated"] = bool(cut)
            infos[slot]["terminal_observation"] = frames[slot].copy()
        if done.any():
            self._start(np.flatnonzero(done))
            frames = self.env.frames().copy()
        return frames, step.reward.copy(), done, infos

    def _executed(self) -> np.ndarray:
        """Return the guide's actions in the context, and the policy's after it."""
        guided = expand_mask(self.env.in_context(), self.chosen)
        return np.where(guided, self.guide.act(), self.chosen)

    def close(self) -> None:
        """Free what the environments hold."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute once per environment; there is only `render_mode`."""
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None] * self.env.batch

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise AttributeError: the environments have no attributes to set."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Raise AttributeError: the environments have no methods to call."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return false for every environment."""
        return [False] * self.env.batch


def _action_space(env: BatchedEnv) -> spaces.Space:
    actions = env.actions
    if isinstance(actions, Discrete):
        return spaces.Discrete(actions.n)
    low = np.array(actions.low, np.float32)
    high = np.array(actions.high, np.float32)
    return spaces.Box(low, high)


class _Show(BaseCallback):
    """Call a function after every step of the environments."""

    def __init__(self, show: Callable[[], None]):
        super().__init__()
        self.show = show

    def _on_step(self) -> bool:
        self.show()
        return True


class RecurrentPPOLearner:
    """Train recurrent PPO; see `agents.Learner`."""

    def __init__(self, config: Config):
        env = build_env(config.env, ENVIRONMENTS)
        _check(env)
        self.env = TaskVecEnv(env, config.seed)
        self.model = RecurrentPPO(
            "CnnLstmPolicy", self.env, seed=config.seed, device=config.device
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))

    @property
    def frames(self) -> int:
        """Return the steps of all environments in training so far."""
        return self.model.num_timesteps

    def update(self, show: Callable[[], None]) -> None:
        """Collect one rollout and take its gradient steps; `show` is called throughout."""
        optimizer = self.model.policy.optimizer
        handle = optimizer.register_step_post_hook(lambda *_: show())
        steps = self.model.n_steps * ENVIRONMENTS
        try:
            self.model.learn(steps, _Show(show), reset_num_timesteps=False)
        finally:
            handle.remove()

    def player(self, batch: int) -> RecurrentPlayer:
        """Return a player of `batch` tasks with the present weights."""
        return RecurrentPlayer(self.model.policy, batch)

    def close(self) -> None:
        """Free what the environments hold."""
        self.env.close()


def _check(env: BatchedEnv) -> None:
    """Raise UserError for frames that the policy cannot read."""
    if env.goals() is not None:
        raise UserError("benchmark agents: tasks with goal images are not supported")
    if min(env.frame_shape[1:]) < SMALLEST:
        raise UserError(
            f"benchmark agents: recurrent PPO needs frames of at least "
            f"{SMALLEST} x {SMALLEST} pixels, these have {env.frame_shape[1:]}"
        )


class RecurrentPlayer:
    """Act by a recurrent policy of sb3-contrib; see `evaluate.Player`.

    It samples its actions, as the policy head of this package does and as PPO does in training.
    """

    memory_bytes = 0

    def __init__(self, policy: Any, batch: int):
        self.policy = policy
        self.state: tuple[np.ndarray, ...] | None = None
        self.first = np.ones(batch, bool)
        self.action = np.empty(0)

    @property
    def memories(self) -> list[Memory]:
        """Return none: the state of an LSTM is no memory of this package."""
        return []

    def observe(self, env: BatchedEnv, starts: np.ndarray, acting: np.ndarray) -> None:
        """Read the present frames and choose actions."""
        self.action, self.state = self.policy.predict(
            env.frames(), self.state, self.first
        )
        self.first = np.zeros_like(self.first)

    def act(self, chosen: np.ndarray) -> np.ndarray:
        """Return the chosen actions [B, ...]."""
        return self.action
