"""Run any Gymnasium environment that gives an image, by its id or by a factory."""

from __future__ import annotations

from collections.abc import Callable
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
from pydantic import Field
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True, config=STRICT)
class GymConfig:
    """Choose a Gymnasium environment: either `id` or `factory`."""

    kind: Literal["gym"] = "gym"
    """Name of this kind of environment."""
    id: str | None = None
    """Registered environment. "module:id" imports the module that registers it."""
    factory: str | None = None
    """Function that makes one: "package.module:callable" or "path/to/file.py:callable"."""
    size: int = Field(default=64, ge=MIN_SIDE)
    """Side of the frame to which the image is resized, in pixels."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments for the environment or the factory."""
    max_steps: int | None = Field(default=None, ge=1)
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
    Any environment with an image. Success is `info["is_success"]` or `info["success"]`
    of the last step; without them, termination with a positive reward.

    ## Actions
    The environment's, if they are Discrete, MultiDiscrete, MultiBinary or a bounded
    float Box. Every combination of several choices is one discrete action, up to
    `MAX_COMBINATIONS`.

    ## Observation
    uint8 [B, 3, size, size]: the image as RGB. It is the observation itself, or an
    entry of a dictionary, or the rendered picture with `render`.

    ## Reward
    The environment's.

    ## Termination
    The environment's; truncated after `max_steps` too.
    """

    explorers = ("random", "noop")

    def __init__(self, config: GymConfig, batch: int):
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.size, config.size)
        make = _maker(config)
        self.envs = [make() for _ in range(batch)]
        self.name = config.id or config.factory
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
            observation, _ = self.envs[slot].reset(seed=seed % 2**31)
            self._draw(slot, observation)
            self.episode[slot] += 1
            self.seeds[slot] = seed
            self._steps[slot] = 0
            self._action[slot] = 0
            self._terminated[slot] = False
            self._truncated[slot] = False
            self._success[slot] = False

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
        observation, reward, terminated, truncated, info = env.step(native)
        self._draw(slot, observation)
        self._steps[slot] += 1
        self._action[slot] = action
        limit = self.config.max_steps
        out_of_time = limit is not None and self._steps[slot] >= limit
        ended = bool(terminated or truncated or out_of_time)
        rewarded_end = terminated and float(reward) > 0
        won = info.get("is_success", info.get("success", rewarded_end))
        self._terminated[slot] = terminated
        self._truncated[slot] = (truncated or out_of_time) and not terminated
        self._success[slot] = bool(won) and ended
        return float(reward)

    def _draw(self, slot: int, observation: Any) -> None:
        image = self._find_image(observation, self.envs[slot])
        self._frames[slot] = to_frame(image, self.config.size)

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
        raise unknown_explorer(str(self.name), name, self.explorers)


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

    def make_one() -> gymnasium.Env:
        try:
            return make(**kwargs)
        except TypeError as error:
            name = config.id or config.factory
            given = ", ".join(kwargs) or "no arguments"
            raise ValueError(f"cannot make {name} with {given}: {error}") from error

    return make_one


def _from_id(name: str) -> Callable[..., gymnasium.Env]:
    import gymnasium

    def make(**kwargs: Any) -> gymnasium.Env:
        try:
            return gymnasium.make(name, disable_env_checker=True, **kwargs)
        except gymnasium.error.UnregisteredEnv as error:
            near = get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
            nearest = f"nearest: {', '.join(near)}"
            hint = nearest if near else "is the package that registers it imported?"
            raise ValueError(f"unknown environment {name!r}; {hint}") from error
        except gymnasium.error.Error as error:
            raise ValueError(f"cannot make {name}: {error}") from error

    return make
