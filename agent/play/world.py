"""Play one real episode that a visitor may copy, rewind and change."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lssvwm.agent.build import build_env
from lssvwm.agent.errors import UserError
from lssvwm.agent.video.episode import FOLLOWED, OUTCOMES, Moment
from lssvwm.envs.base import BatchedEnv, Discrete, Explorer, HasMap, HasObjects

UNLIMITED: dict[str, dict[str, Any]] = {
    "return": {"tour": 10**6},
    "recall": {"tour": 10**6},
    "tmaze": {"steps": 10**7, "budget": 10**6},
    "scavenge": {"steps": 10**5},
    "pointmaze": {"tour": 10**6, "steps": 10**7},
}
"""Settings by kind of environment that let a visitor walk about for as long as he likes."""


@dataclass(frozen=True)
class Control:
    """Describe one button of the page.

    action: what the environment executes, an int or a list of numbers
    """

    name: str
    action: Any


def controls(env: BatchedEnv) -> list[Control]:
    """Return one control per discrete action, or two per dimension of a continuous one."""
    if isinstance(env.actions, Discrete):
        return [Control(name, k) for k, name in enumerate(env.actions.names)]
    low, high = env.actions.low, env.actions.high
    if len(low) == 2:
        names = [("left", "right"), ("up", "down")]
    else:
        names = [(f"{i} -", f"{i} +") for i in range(1, len(low) + 1)]
    found = []
    for i, pair in enumerate(names):
        for name, limit in zip(pair, (low[i], high[i])):
            action = np.zeros(len(low))
            action[i] = limit
            found.append(Control(name, action.tolist()))
    return found


def new_seed() -> int:
    """Return an episode seed, which training never draws."""
    return int(np.random.default_rng().integers(2**31, 2**32))


class World:
    """Play episode `seed` of one environment.

    With `unlimited`, the environments of `UNLIMITED` neither hurry nor end a walk.
    """

    def __init__(self, config: Any, seed: int, unlimited: bool = True):
        if unlimited and config.kind in UNLIMITED:
            config = replace(config, **UNLIMITED[config.kind])
        self.config = config
        self.env = build_env(config, 1)
        self.seed = seed
        self._begin()

    def another(self) -> World:
        """Return the beginning of another episode of the same kind."""
        return World(self.config, new_seed(), unlimited=False)

    def _begin(self) -> None:
        self.step = 0
        self.reward = 0.0
        self.ended = False
        self.actions: list[np.ndarray] = []
        """Actions so far, kept only where the environment cannot be copied."""
        self.env.reset(np.zeros(1, np.int64), np.array([self.seed]))
        walk_seed = self.seed % 2**31
        names = (*FOLLOWED[1:], *self.env.explorers)
        followed = next(name for name in names if name in self.env.explorers)
        self.guide: Explorer = self.env.guide(walk_seed)
        self.followed: Explorer = self.env.explorer(followed, walk_seed)

    def now(self) -> Moment:
        """Return the present moment, without a map."""
        env = self.env
        return Moment(
            step=self.step,
            pixels=env.frames()[0].copy(),
            action=env.last_action()[0],
            reward=self.reward,
            guided=bool(env.in_context()[0]),
            ended=self.ended,
            map=None,
            bearing=env.bearing(0) if isinstance(env, HasMap) else None,
        )

    def act(self, action: Any) -> Moment:
        """Execute an action and return the moment that it leads to.

        Raises UserError after the end of the episode.
        """
        if self.ended:
            raise UserError(
                "the episode has ended: rewind, imagine on, or start a new episode"
            )
        dtype = np.int64 if isinstance(self.env.actions, Discrete) else np.float32
        taken = np.asarray(action, dtype)[None]
        reward, terminated, truncated = self.env.step(taken)
        if not self.env.copyable:
            self.actions.append(taken)
        self.step += 1
        self.reward = float(reward[0])
        self.ended = bool(terminated[0] | truncated[0])
        return self.now()

    def scripted_action(self) -> np.ndarray:
        """Return the next action of a scripted walk."""
        guided = self.env.in_context()[0]
        return (self.guide if guided else self.followed).act()[0]

    def picture(self) -> np.ndarray | None:
        """Draw the map, uint8 [3, H, W]; None without one."""
        return self.env.top_view(0) if isinstance(self.env, HasMap) else None

    def evidence_age(self) -> int | None:
        """Return the frames since cue or goal was last visible; None: unknown."""
        age = int(self.env.truth()["evidence_age"][0])
        return age if age >= 0 else None

    def outcome(self) -> str:
        """Return running, success, wrong or timeout."""
        return OUTCOMES[int(self.env.truth()["outcome"][0])]

    def waiting(self) -> Any:
        """Return the action that changes least."""
        return self.env.explorer("noop", 0).act()[0]

    def objects(self) -> tuple[str, ...]:
        """Return the colours of objects that can be moved or made the goal."""
        return self.env.object_names() if isinstance(self.env, HasObjects) else ()

    def ask(self, k: int) -> None:
        """Make object k the goal. Raises UserError if there is no such object."""
        self._changeable(k).set_goal(0, k)

    def move(self, k: int, seed: int) -> None:
        """Move object k to a place out of view. Raises UserError if this cannot be done."""
        try:
            self._changeable(k).move_object(0, k, np.random.default_rng([seed]))
        except ValueError as error:
            raise UserError(str(error)) from None

    def _changeable(self, k: int) -> HasObjects:
        if k >= len(self.objects()):
            raise UserError("this environment has no such object")
        if self.ended:
            raise UserError("the episode has ended: rewind, or start a new one")
        assert isinstance(self.env, HasObjects)
        return self.env

    def copy(self) -> World:
        """Return a world for `resume`, which later steps of this one do not change."""
        if self.env.copyable:
            return deepcopy(self)
        return self._with(self.env, list(self.actions))

    def resume(self) -> World:
        """Return a world that goes on from here; this one can be resumed again.

        An environment that cannot be copied is built again and repeats its actions.
        """
        if self.env.copyable:
            return deepcopy(self)
        resumed = self._with(self.env.renewed(), [])
        resumed._begin()
        for action in self.actions:
            resumed.act(action[0])
        return resumed

    def _with(self, env: BatchedEnv, actions: list[np.ndarray]) -> World:
        """Return a shallow copy with another environment."""
        copy = object.__new__(World)
        copy.__dict__ = self.__dict__ | {"env": env, "actions": actions}
        return copy

    def close(self) -> None:
        """Free what the environment holds."""
        self.env.close()
