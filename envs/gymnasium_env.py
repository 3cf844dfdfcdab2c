"""Run any Gymnasium environment that gives an image, by its id or by a factory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Explorer,
    NoopExplorer,
    RandomExplorer,
    Step,
    blank_frames,
    counts,
    flags,
    never,
    slots_where,
    unknown_explorer,
    zero_action,
)
from lssvwm.envs.factories import load_factory
from lssvwm.envs.gymnasium_spaces import (
    MIN_SIDE,
    from_action,
    image_finder,
    rendered,
    to_actions,
    to_frame,
)
from lssvwm.envs.user_code import (
    EnvironmentFault,
    checked_reset,
    checked_step,
    guarded,
    succeeded,
)
from pydantic import Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import gymnasium


PARTS = ("observation_space", "action_space", "reset", "step", "close", "unwrapped")
"""Attributes that a Gymnasium environment has."""


@dataclass(frozen=True, config=STRICT)
class GymConfig:
    """Choose a Gymnasium environment: either `id` or `factory`."""

    kind: Literal["gym"] = "gym"
    """Name of this kind of environment."""
    id: str | None = None
    """Registered environment. "module:id" imports the module that registers it."""
    factory: str | None = None
    """Function that makes one: "package.module:callable" or "path/to/file.py:callable"."""
    size: int = Field(default=64, ge=MIN_SIDE, le=1024)
    """Side of the frame to which the image is resized, in pixels."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the environment or the factory."""
    max_steps: int | None = Field(default=None, ge=1, le=10**7)
    """Steps after which an episode is truncated; null: the environment's own limit."""
    render: bool = False
    """Observe the rendered picture; the environment gets `render_mode="rgb_array"`."""

    def build(self, batch: int) -> GymEnv:
        """Return `batch` of these environments.

        Raises ValueError for anything that cannot be made or has no image.
        """
        return GymEnv(self, batch)


class GymEnv(BatchedEnv):
    """Step B Gymnasium environments, one after the other.

    ## Description
    Any environment with an image. Mistakes in its code raise EnvironmentFault. All are
    closed by `close`, when this object is forgotten, or when Python ends. Success is
    `info["is_success"]` or `info["success"]` of the last step; without them, termination with a positive reward.

    ## Actions
    The environment's, if they are Discrete, MultiDiscrete, MultiBinary or a bounded
    float Box. Every combination of several choices is one discrete action, up to
    `MAX_COMBINATIONS`.

    ## Observation
    uint8 [B, 3, size, size]: the image as RGB. It is the observation itself, or an
    entry of a dictionary, or the rendered picture with `render`. An observation with 4
    channels is refused: it may be a stack of frames.

    ## Reward
    The environment's.

    ## Termination
    The environment's; truncated after `max_steps` too.
    """

    explorers = ("random", "noop")
    copyable = False

    def __init__(self, config: GymConfig, batch: int):
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.size, config.size)
        self.name = str(config.id or config.factory)
        make = _maker(config)
        self.envs: list[gymnasium.Env] = []
        self._finalizer = weakref.finalize(self, _close, self.envs)
        for _ in range(batch):
            env = make()
            if any(env.unwrapped is other.unwrapped for other in self.envs):
                raise EnvironmentFault(
                    f"{self.name} returned the same environment twice: "
                    f"it must make a new one at each call"
                )
            self.envs.append(env)
        first = self.envs[0]
        self._find_image = (
            rendered
            if config.render
            else image_finder(first.observation_space, self.name)
        )
        self.actions = to_actions(first, self.name)
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self._steps = counts(batch)
        self._terminated = flags(batch)
        self._truncated = flags(batch)
        self._success = flags(batch)
        self._frames = blank_frames(batch, config.size)
        self._action = zero_action(self.actions, batch)

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`.

        Gymnasium gets the seed modulo 2^31.
        """
        for slot, seed in zip(np.asarray(where).tolist(), np.asarray(seeds).tolist()):
            self._reset_one(slot, seed % 2**31)
            self.episode[slot] += 1
            self.seeds[slot] = seed
            self._steps[slot] = 0
            self._action[slot] = 0
            self._terminated[slot] = False
            self._truncated[slot] = False
            self._success[slot] = False

    def _reset_one(self, slot: int, seed: int) -> None:
        env = self.envs[slot]
        result = guarded(self.name, "reset()", lambda: env.reset(seed=seed))
        self._draw(slot, checked_reset(self.name, result), "reset()")

    def step(self, action: np.ndarray) -> Step:
        """Step every running slot by `action`, int64 [B] or float32 [B, A].

        Raises RuntimeError if a slot was never reset.
        """
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        reward = np.zeros(self.batch, np.float32)
        action = np.asarray(action)
        running = ~(self._terminated | self._truncated)
        for slot in slots_where(running):
            reward[slot] = self._step_one(slot, action[slot])
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def _step_one(self, slot: int, action: np.ndarray) -> float:
        env = self.envs[slot]
        native = from_action(action, self.actions, env.action_space)
        result = guarded(self.name, "step()", env.step, native)
        observation, reward, terminated, truncated, info = checked_step(
            self.name, result
        )
        self._draw(slot, observation, "step()")
        self._steps[slot] += 1
        self._action[slot] = action
        limit = self.config.max_steps
        out_of_time = limit is not None and self._steps[slot] >= limit
        ended = bool(terminated or truncated or out_of_time)
        rewarded_end = terminated and reward > 0
        won = info.get("is_success", info.get("success", rewarded_end))
        won = succeeded(self.name, won)
        self._terminated[slot] = terminated
        self._truncated[slot] = (truncated or out_of_time) and not terminated
        self._success[slot] = won and ended
        return reward

    def _draw(self, slot: int, observation: Any, call: str) -> None:
        env = self.envs[slot]
        find = self._find_image
        image = guarded(self.name, f"the image after {call}", find, observation, env)
        try:
            self._frames[slot] = to_frame(image, self.config.size)
        except (ValueError, TypeError) as error:
            raise EnvironmentFault(
                f"{self.name}: the image after {call} cannot be used: {error}"
            ) from error

    def frames(self) -> np.ndarray:
        """Return the images, uint8 [B, 3, size, size]."""
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the last executed action, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return false everywhere: no part of an episode is guided."""
        return flags(self.batch)

    def truth(self) -> dict[str, np.ndarray]:
        """Return success and outcome; distance, evidence and goal are unknown (-1)."""
        flags = [self._success, self._terminated, self._truncated]
        outcome = np.select(flags, [SUCCESS, WRONG, TIMEOUT], RUNNING)
        unknown = never(self.batch)
        return {
            "success": self._success.copy(),
            "goal_distance": unknown,
            "evidence_age": unknown.copy(),
            "outcome": outcome.astype(np.int64),
            "goal": unknown.copy(),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return "random" (uniform) or "noop" (action 0, or the one nearest to zero)."""
        match name:
            case "random":
                return RandomExplorer(self, seed)
            case "noop":
                return NoopExplorer(self)
        raise unknown_explorer(self.name, name, self.explorers)

    def renewed(self) -> GymEnv:
        """Return one new environment of this kind."""
        return self.config.build(1)

    def close(self) -> None:
        """Close all environments; later calls do nothing."""
        self._finalizer()


def _close(envs: list[gymnasium.Env]) -> None:
    """Close environments; one that fails to close does not keep the others open."""
    for env in envs:
        with suppress(Exception):
            env.close()


def _maker(config: GymConfig) -> Callable[[], gymnasium.Env]:
    """Return the function that makes one environment."""
    # Not checked in the configuration: the defaults name neither.
    if (config.id is None) == (config.factory is None):
        raise ValueError(
            "set either env.factory=FILE.py:FUNCTION or env.id=NAME, "
            f"got env.id={config.id} and env.factory={config.factory}"
        )
    kwargs = dict(config.kwargs)
    if config.render:
        kwargs["render_mode"] = "rgb_array"
    if config.id is not None:
        make = _from_id(config.id)
    else:
        make = load_factory(config.factory or "")

    name = str(config.id or config.factory)
    given = ", ".join(kwargs) or "no arguments"

    def make_one() -> gymnasium.Env:
        env = guarded(name, f"making it with {given}", lambda: make(**kwargs))
        missing = [part for part in PARTS if not hasattr(env, part)]
        if missing:
            raise EnvironmentFault(
                f"{name} makes {type(env).__name__}, no Gymnasium environment: "
                f"it has no {missing[0]}"
            )
        return env

    return make_one


def _from_id(name: str) -> Callable[..., gymnasium.Env]:
    import gymnasium

    def make(**kwargs: Any) -> gymnasium.Env:
        try:
            return gymnasium.make(name, disable_env_checker=True, **kwargs)
        except gymnasium.error.NamespaceNotFound as error:
            raise EnvironmentFault(
                f"unknown environment {name!r}: no package has registered it; install "
                f"its package and name that, e.g. env.id=ale_py:{name} for Atari"
            ) from error
        except gymnasium.error.UnregisteredEnv as error:
            near = get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
            nearest = f"nearest: {', '.join(near)}"
            hint = nearest if near else "is the package that registers it imported?"
            raise EnvironmentFault(f"unknown environment {name!r}; {hint}") from error

    return make
