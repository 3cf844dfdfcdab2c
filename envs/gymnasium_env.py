"""Any Gymnasium environment that gives an image, by its id or by a function that makes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Box,
    Discrete,
    Explorer,
    Step,
)

if TYPE_CHECKING:
    import gymnasium

LEAST_SIDE = 8
"""An array with fewer rows or columns is no picture (MiniGrid's symbolic 7 x 7 view has the type of one)."""
COMBINATIONS = 256
"""So many combinations of several choices are numbered as one discrete action, at most."""


@dataclass(frozen=True)
class GymConfig:
    """Either `id`, a registered environment ("module:id" imports the module that registers it), or `factory`,
    "package.module:callable"; `kwargs` go to it.

    `size`: side of the frame that the image is resized to. `max_steps`: truncate after so many steps.
    `render`: take the rendered picture for the observation; `render_mode="rgb_array"` is passed on.
    """

    kind: str = "gym"
    id: str | None = None
    factory: str | None = None
    size: int = 64
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_steps: int | None = None
    render: bool = False

    def build(self, batch: int) -> GymEnv:
        """Return `batch` of these environments."""
        return GymEnv(self, batch)


class GymEnv(BatchedEnv):
    """B Gymnasium environments, stepped one after the other.

    Observation: the image, as RGB of `size` x `size`. Reward and termination are the environment's.
    Success is what `info["is_success"]` (or "success") says on the last step; without it, an episode that is
    terminated with a positive reward. Raises ValueError for an unknown id or factory, for an environment
    without an image, for actions that are neither Discrete, MultiDiscrete, MultiBinary nor a bounded Box. Every
    combination of several choices is one discrete action, of at most `COMBINATIONS`.
    """

    explorers = ("random", "noop")

    def __init__(self, config: GymConfig, batch: int):
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.size, config.size)
        make = _maker(config)
        self.envs = [make() for _ in range(batch)]
        self.name = config.id or config.factory
        self._find = (
            _rendered
            if config.render
            else _image_finder(self.envs[0].observation_space, self.name)
        )
        self.actions = _actions(self.envs[0], self.name)
        self.episode = np.zeros(batch, np.int64)
        self._steps = np.zeros(batch, np.int64)
        self._terminated, self._truncated, self._success = np.zeros((3, batch), bool)
        self._frames = np.zeros((batch, *self.frame_shape), np.uint8)
        self._action = self._no_action()

    def _no_action(self) -> np.ndarray:
        if isinstance(self.actions, Discrete):
            return np.zeros(self.batch, np.int64)
        return np.zeros((self.batch, len(self.actions.low)), np.float32)

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]` (Gymnasium gets the seed modulo 2^31)."""
        for slot, seed in zip(np.asarray(where).tolist(), np.asarray(seeds).tolist()):
            observation, _ = self.envs[slot].reset(seed=seed % 2**31)
            self._show(slot, observation)
            self.episode[slot] += 1
            self._steps[slot] = self._action[slot] = 0
            self._terminated[slot] = self._truncated[slot] = self._success[slot] = False

    def step(self, action: np.ndarray) -> Step:
        """Step every running slot by `action`, int64 [B] or float32 [B, A]."""
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        reward = np.zeros(self.batch, np.float32)
        action = np.asarray(action)
        for slot in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
            reward[slot] = self._step_one(slot, action[slot])
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def _step_one(self, slot: int, action: np.ndarray) -> float:
        space: Any = self.envs[slot].action_space
        choices = _choices(space)
        if choices is not None:
            chosen = np.array(
                np.unravel_index(int(action), choices), space.dtype
            ).reshape(space.shape)
            given = chosen + getattr(space, "start", space.dtype.type(0))
        elif isinstance(self.actions, Discrete):
            given = int(action) + int(space.start)
        else:
            bounded = np.clip(action, self.actions.low, self.actions.high)
            given = bounded.reshape(space.shape).astype(space.dtype)
        observation, reward, terminated, truncated, info = self.envs[slot].step(given)
        self._show(slot, observation)
        self._steps[slot] += 1
        self._action[slot] = action
        out_of_time = (
            self.config.max_steps is not None
            and self._steps[slot] >= self.config.max_steps
        )
        self._terminated[slot] = terminated
        self._truncated[slot] = (truncated or out_of_time) and not terminated
        won = info.get(
            "is_success", info.get("success", terminated and float(reward) > 0)
        )
        self._success[slot] = bool(won) and bool(terminated or truncated or out_of_time)
        return float(reward)

    def _show(self, slot: int, observation: Any) -> None:
        picture = self._find(observation, self.envs[slot])
        self._frames[slot] = _resized(_rgb(picture), self.config.size).transpose(
            2, 0, 1
        )

    def frames(self) -> np.ndarray:
        """Return the images, uint8 [B, 3, size, size]."""
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to the current frame, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return false everywhere: nothing is guided here."""
        return np.zeros(self.batch, bool)

    def truth(self) -> dict[str, np.ndarray]:
        """Return success and outcome; distance, evidence and goal are unknown (-1)."""
        flags = [self._success, self._terminated, self._truncated]
        unknown = np.full(self.batch, -1, np.int64)
        return {
            "success": self._success.copy(),
            "goal_distance": unknown,
            "evidence_age": unknown.copy(),
            "outcome": np.select(flags, [SUCCESS, WRONG, TIMEOUT], RUNNING).astype(
                np.int64
            ),
            "goal": unknown.copy(),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return "random" (uniform actions) or "noop" (action 0, or the one nearest to zero)."""
        if name not in self.explorers:
            raise ValueError(
                f"{self.name} has no explorer {name!r}; it has {', '.join(self.explorers)}"
            )
        return GymExplorer(self, seed, moves=name == "random")


class GymExplorer(Explorer):
    """Draws uniform actions, or gives action 0 (the one nearest to zero) when it does not move."""

    def __init__(self, env: GymEnv, seed: int, moves: bool):
        self.env = env
        self.moves = moves
        self.rng = np.random.default_rng([seed, 3])

    def act(self) -> np.ndarray:
        """Return int64 [B] or float32 [B, A]."""
        still, actions = self.env._no_action(), self.env.actions
        if isinstance(actions, Discrete):
            return (
                self.rng.integers(actions.n, size=self.env.batch)
                if self.moves
                else still
            )
        if self.moves:
            return self.rng.uniform(actions.low, actions.high, size=still.shape).astype(
                np.float32
            )
        return np.clip(
            still, np.array(actions.low, np.float32), np.array(actions.high, np.float32)
        )


def _maker(config: GymConfig) -> Callable[[], gymnasium.Env]:
    if (config.id is None) == (config.factory is None):
        raise ValueError(
            f"give either id or factory, got id={config.id!r} and factory={config.factory!r}"
        )
    if config.size < LEAST_SIDE:
        raise ValueError(f"size must be at least {LEAST_SIDE}, got size={config.size}")
    if config.max_steps is not None and config.max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {config.max_steps}")
    kwargs = dict(config.kwargs) | (
        {"render_mode": "rgb_array"} if config.render else {}
    )
    make = (
        _from_id(config.id)
        if config.id is not None
        else _from_factory(config.factory or "")
    )

    def make_one() -> gymnasium.Env:
        try:
            return make(**kwargs)
        except TypeError as error:
            given = ", ".join(kwargs) or "no arguments"
            raise ValueError(
                f"cannot make {config.id or config.factory} with {given}: {error}"
            ) from error

    return make_one


def _from_id(name: str) -> Callable[..., gymnasium.Env]:
    import gymnasium

    def make(**kwargs: Any) -> gymnasium.Env:
        try:
            return gymnasium.make(name, disable_env_checker=True, **kwargs)
        except gymnasium.error.UnregisteredEnv as error:
            near = get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
            hint = (
                f"nearest: {', '.join(near)}"
                if near
                else "is the package that registers it imported?"
            )
            raise ValueError(f"unknown environment {name!r}; {hint}") from error
        except gymnasium.error.Error as error:
            raise ValueError(f"cannot make {name}: {error}") from error

    return make


def _from_factory(factory: str) -> Callable[..., gymnasium.Env]:
    module, colon, name = factory.partition(":")
    if not (module and colon and name):
        raise ValueError(
            f'factory must read "package.module:callable", got {factory!r}'
        )
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"factory {factory!r}: {error}; is it on the Python path?"
        ) from error
    except AttributeError as error:
        near = get_close_matches(name, dir(import_module(module)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"factory {factory!r}: module {module} has no {name!r}{hint}"
        ) from error


def _rendered(observation: Any, env: gymnasium.Env) -> np.ndarray:
    picture = env.render()
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            f"{env} renders {type(picture).__name__}, not an array; render=True needs rgb_array"
        )
    return picture


def _image_finder(
    space: gymnasium.Space, name: str | None
) -> Callable[[Any, gymnasium.Env], np.ndarray]:
    """Return the function that takes the image out of an observation of `space`."""
    from gymnasium import spaces

    if _is_image(space):
        return lambda observation, env: observation
    images = []
    if isinstance(space, spaces.Dict):
        images = [key for key, entry in space.spaces.items() if _is_image(entry)]
        named = [key for key in ("pixels", "image") if key in images]
        images = named[:1] or images
    if len(images) == 1:
        return lambda observation, env: observation[images[0]]
    found = f"more than one image ({', '.join(images)})" if images else "no image"
    raise ValueError(
        f"{name} observes {space}: {found} (uint8, at least {LEAST_SIDE} x {LEAST_SIDE}; grey, RGB or RGBA); "
        "set render=True to take what it renders, or wrap it in a factory "
        "(gymnasium.wrappers.AddRenderObservation)"
    )


def _is_image(space: gymnasium.Space) -> bool:
    from gymnasium import spaces

    if (
        not isinstance(space, spaces.Box)
        or space.dtype != np.uint8
        or len(space.shape) not in (2, 3)
    ):
        return False
    sides = space.shape
    if len(sides) == 3:
        if sides[2] in (1, 3, 4):
            sides = sides[:2]
        elif sides[0] in (1, 3, 4):
            sides = sides[1:]
        else:
            return False
    return min(sides) >= LEAST_SIDE


def _rgb(picture: Any) -> np.ndarray:
    """Return uint8 [H, W, 3] of a picture [H, W], [H, W, 1|3|4] or [1|3|4, H, W]; alpha is dropped."""
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 [size, size, 3]: area average to shrink `pixels`, linear interpolation to grow."""
    from PIL import Image

    if pixels.shape[:2] == (size, size):
        return pixels
    shrinks = min(pixels.shape[:2]) >= size
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(pixels)).resize((size, size), method)
    )


def _actions(env: gymnasium.Env, name: str | None) -> Discrete | Box:
    from gymnasium import spaces

    space = env.action_space
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        meanings = getattr(env.unwrapped, "get_action_meanings", lambda: [])()
        names = meanings if len(meanings) == n else [f"action {i}" for i in range(n)]
        return Discrete(n, tuple(str(label) for label in names))
    choices = _choices(space)
    if choices is not None and math.prod(choices) <= COMBINATIONS:
        return Discrete(
            math.prod(choices),
            tuple(str(each) for each in itertools.product(*map(range, choices))),
        )
    if (
        isinstance(space, spaces.Box)
        and np.issubdtype(space.dtype, np.floating)
        and space.is_bounded()
    ):
        return Box(
            tuple(space.low.ravel().tolist()), tuple(space.high.ravel().tolist())
        )
    raise ValueError(
        f"{name} acts through {space}: only Discrete, MultiDiscrete and MultiBinary (up to {COMBINATIONS} "
        "combinations) and bounded float Box are supported; "
        "wrap it in a factory (gymnasium.wrappers.TransformAction, RescaleAction)"
    )


def _choices(space: gymnasium.Space) -> tuple[int, ...] | None:
    """The numbers of choices that an action combines; None where it is not several choices."""
    from gymnasium import spaces

    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    return (
        tuple(space.nvec.ravel().tolist())
        if isinstance(space, spaces.MultiDiscrete)
        else None
    )
