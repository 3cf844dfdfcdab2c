"""MiniGrid and BabyAI environments as RGB pictures of what the agent sees, many at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Discrete,
    Explorer,
    Step,
)
from lssvwm.envs.maze.layout import FAR, distance_field

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

Cell = tuple[int, int]
NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
LEFT, RIGHT, FORWARD = 0, 1, 2
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Change of (x, y) of one step forward, by MiniGrid's heading."""
DECISION = 3
"""Steps from the end of a Memory hallway to either object: forward, turn, forward."""


@dataclass(frozen=True)
class MiniGridConfig:
    """`id`: a registered MiniGrid or BabyAI id; `size`, `max_steps`, `kwargs`: passed on to it when given.

    `view` x `view` tiles of `tile` pixels make a frame of `frame` x `frame`, black to the right and below.
    `budget` (Memory only): steps from the end of the guided part until time is up; by default at most 12 and
    too few to go back, look at the cue and return. `actions`: how many of MiniGrid's seven (left, right,
    forward, pickup, drop, toggle, done). `binary_reward`: success gives 1, not 1 - 0.9 * steps / max_steps.
    """

    kind: str = "minigrid"
    id: str = "MiniGrid-MemoryS7-v0"
    size: int | None = None
    tile: int = 9
    view: int = 7
    frame: int = 64
    max_steps: int | None = None
    budget: int | None = None
    actions: int = 3
    binary_reward: bool = True
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, batch: int) -> MiniGridEnv:
        """Return `batch` of these environments."""
        return MiniGridEnv(self, batch)


@dataclass(frozen=True)
class Places:
    """The cells (x, y) of an episode that matter: what the ground truth and the explorers need to know.

    `goal`: success; `wrong`: the wrong choice; `evidence`: what the choice depends on (Memory's cue, else the
    goal); `lookout`: a cell beside the cue; `fork`: the last cell before the choice; `label`: which cue (ball
    0, key 1). None, or -1 for `label`, where the environment has no such thing or it cannot be known.
    """

    goal: Cell | None = None
    wrong: Cell | None = None
    evidence: Cell | None = None
    lookout: Cell | None = None
    fork: Cell | None = None
    label: int = -1


class MiniGridEnv(BatchedEnv):
    """B environments of one MiniGrid id; MiniGrid makes the episodes and the moves.

    Observation: MiniGrid's egocentric partial view, bit for bit as its `RGBImgPartialObsWrapper` gives it,
    without the mission's text. Termination and truncation are MiniGrid's. In Memory environments the context
    lasts until the agent, having seen the cue, stands at the end of the hallway and faces the fork; `budget`
    steps later the episode is truncated.
    Raises ValueError for an unknown id, for an argument that the id does not take, for an impossible view.
    """

    actions: Discrete

    def __init__(self, config: MiniGridConfig, batch: int):
        from lssvwm.envs.minigrid.view import TileView

        _check(config)
        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.frame, config.frame)
        self.actions = Discrete(config.actions, NAMES[: config.actions])
        self.envs = [_make(config) for _ in range(batch)]
        self._view = TileView(
            batch, self.envs[0].width, self.envs[0].height, config.view, config.tile
        )
        self._see_through = np.array([env.see_through_walls for env in self.envs])[
            :, None, None
        ]
        self._start_blank()
        self._probe()

    def _start_blank(self) -> None:
        self.episode = np.zeros(self.batch, np.int64)
        self.x, self.y, self.heading, self.steps, self._action = np.zeros(
            (5, self.batch), np.int64
        )
        self._age, self._forked_at = np.full((2, self.batch), -1, np.int64)
        self._budget = np.full(self.batch, self.config.budget or 0)
        self._terminated, self._truncated, self._success, self._context = np.zeros(
            (4, self.batch), bool
        )
        self._fixed = np.zeros(self.batch, bool)
        self._codes = self._visible = self._frames = None
        self.places = [Places()] * self.batch
        self._fork, self._evidence = np.full((2, 2, self.batch), -FAR)
        self._floor: list[bytes] = [b""] * self.batch

    def _probe(self) -> None:
        """Play the start of one episode to learn what this id has: a fork, a goal that can be walked to."""
        self._begin(0, 0)
        places = self.places[0]
        if self.config.budget is not None and places.fork is None:
            raise ValueError(
                f"budget is for Memory ids only; give {self.config.id} max_steps instead"
            )
        self.explorers = ("random", "noop", "momentum")
        if places.fork is not None:
            self.explorers += ("guide", "oracle", "seek", "cells", "stumble")
        elif places.goal is not None and self.field(0, places.goal) is not None:
            self.explorers += ("oracle",)
        self._start_blank()

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`."""
        for slot, seed in zip(np.asarray(where).tolist(), np.asarray(seeds).tolist()):
            self._begin(slot, seed)
        self._look()

    def _begin(self, slot: int, seed: int) -> None:
        env = self.envs[slot]
        env.reset(seed=seed)
        self._view.load(slot, env.grid)
        self._fixed[slot] = _is_fixed(env, self._view.kinds(slot))
        self._settle(slot, _places(env, self._view.maps[slot], self._view.atlas.kinds))
        self.episode[slot] += 1
        self.steps[slot] = self._action[slot] = 0
        self._age[slot] = self._forked_at[slot] = -1
        self._terminated[slot] = self._truncated[slot] = self._success[slot] = False
        self.x[slot], self.y[slot], self.heading[slot] = *env.agent_pos, env.agent_dir

    def _settle(self, slot: int, places: Places) -> None:
        self.places[slot] = places
        self._floor[slot] = _floor(
            self._view.atlas.walkable[self._view.maps[slot]], places
        ).tobytes()
        self._evidence[:, slot] = places.evidence or -FAR
        self._fork[:, slot] = places.fork or -FAR
        self._context[slot] = places.fork is not None
        if self.config.budget is None and places.fork is not None:
            self._budget[slot] = _default_budget(places.fork, self.config.view)

    def step(self, action: np.ndarray) -> Step:
        """Let MiniGrid move every running slot by `action`, int64 [B]."""
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        running = np.flatnonzero(~(self._terminated | self._truncated))
        action = np.asarray(action)[running]
        if len(action) and not 0 <= action.min() <= action.max() < self.config.actions:
            raise ValueError(
                f"actions must be from 0 to {self.config.actions - 1}, got {action.tolist()}"
            )
        reward = np.zeros(self.batch, np.float32)
        if len(running):
            reward[running] = self._move(running, action)
            self.steps[running] += 1
            self._action[running] = action
            self._age[running[self._age[running] >= 0]] += 1
            self._look()
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def _move(self, running: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Step MiniGrid in the slots `running`, read what came of it and return the rewards, float32."""
        envs = [self.envs[slot] for slot in running]
        results = [env.step(chosen)[1:4] for env, chosen in zip(envs, action.tolist())]
        poses = [(*env.agent_pos, env.agent_dir) for env in envs]
        for slot in running[~self._fixed[running]]:
            self._view.load(slot, self.envs[slot].grid)
        self.x[running], self.y[running], self.heading[running] = np.array(
            poses, np.int64
        ).T
        reward, terminated, truncated = (np.array(column) for column in zip(*results))
        self._terminated[running] = terminated
        self._truncated[running] = truncated & ~terminated
        self._success[running] = success = terminated & (reward > 0)
        return np.where(success & self.config.binary_reward, 1, reward)

    def _look(self) -> None:
        """Renew what follows from the poses: view, age of the evidence, end of the context, budget."""
        self._codes = self._view.look(self.x, self.y, self.heading)
        self._visible = self._view.visible(self._codes) | self._see_through
        self._frames = None
        self._age[self._sees_evidence()] = 0
        at_fork = (
            (self._fork[0] == self.x) & (self._fork[1] == self.y) & (self.heading == 0)
        )
        arrived = self._context & at_fork & (self._age >= 0)
        self._context[arrived] = False
        self._forked_at[arrived] = self.steps[arrived]
        spent = (self._forked_at >= 0) & (self.steps - self._forked_at >= self._budget)
        self._truncated |= spent & ~self._terminated

    def _sees_evidence(self) -> np.ndarray:
        assert self._visible is not None
        dx, dy = self._evidence - (self.x, self.y)
        ux, uy = np.array(AHEAD)[self.heading].T
        ahead, aside = dx * ux + dy * uy, dy * ux - dx * uy
        half = self.config.view // 2
        inside = np.flatnonzero(
            (ahead >= 0) & (ahead < self.config.view) & (abs(aside) <= half)
        )
        sees = np.zeros(self.batch, bool)
        sees[inside] = self._visible[inside, -1 - ahead[inside], half + aside[inside]]
        return sees

    def frames(self) -> np.ndarray:
        """Return what each agent sees, uint8 [B, 3, frame, frame]."""
        if self._frames is None:
            if self._codes is None or self._visible is None:
                raise RuntimeError("reset the environment before asking for frames")
            carried = np.array(
                [self._view.atlas.code(env.carrying) for env in self.envs]
            )
            self._frames = self._view.draw(
                self._codes, self._visible, carried, self.config.frame
            )
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to the current frame, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return bool [B], true in Memory ids until the agent has seen the cue and stands at the fork."""
        return self._context.copy()

    def sees_evidence(self, slot: int) -> bool:
        """Return whether the cue (or the goal, where there is no cue) is in the current frame of `slot`."""
        return bool(self._age[slot] == 0)

    def field(self, slot: int, target: Cell) -> np.ndarray | None:
        """Return least steps to cell `target` by heading, y, x, int16 [4, H, W]; None if things can change.

        Lava, objects and the other choice count as walls; heading 0 is up, as in `distance_field`.
        """
        if not self._fixed[slot]:
            return None
        env = self.envs[slot]
        return _cached_field(self._floor[slot], (env.height, env.width), target)

    def distance(self, slot: int, target: Cell) -> int:
        """Return least steps (turns included) from the present pose to `target`; -1: unknown or no way."""
        table = self.field(slot, target)
        if table is None:
            return -1
        steps = int(table[(self.heading[slot] + 1) % 4, self.y[slot], self.x[slot]])
        return steps if steps < FAR else -1

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes; `goal` tells the cue (ball 0, key 1)."""
        lost = self._terminated & ~self._success
        flags = [self._success, lost, self._truncated]
        goals = [places.goal for places in self.places]
        distance = [
            -1 if goal is None else self.distance(slot, goal)
            for slot, goal in enumerate(goals)
        ]
        return {
            "success": self._success.copy(),
            "goal_distance": np.array(distance, np.int64),
            "evidence_age": self._age.copy(),
            "outcome": np.select(flags, [SUCCESS, WRONG, TIMEOUT], RUNNING).astype(
                np.int64
            ),
            "goal": np.array([places.label for places in self.places], np.int64),
        }

    def top_view(self, slot: int, tile: int = 16) -> np.ndarray:
        """Return MiniGrid's picture of the whole map with the agent, uint8 [3, H * tile, W * tile]."""
        return (
            self.envs[slot]
            .get_full_render(highlight=True, tile_size=tile)
            .transpose(2, 0, 1)
            .copy()
        )

    def bearing(self, slot: int) -> float:
        """Return which way the agent of `slot` faces on its map, in radians clockwise from up."""
        return (int(self.heading[slot]) + 1) * np.pi / 2

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`, one of `explorers`."""
        from lssvwm.envs.minigrid.explorers import MiniGridExplorer, Momentum

        if name not in self.explorers:
            raise ValueError(
                f"{self.config.id} has no explorer {name!r}; it has {', '.join(self.explorers)}"
            )
        return (
            Momentum(self, seed)
            if name == "momentum"
            else MiniGridExplorer(self, name, seed)
        )


def _check(config: MiniGridConfig) -> None:
    if config.view % 2 == 0 or not 3 <= config.view <= 9:
        raise ValueError(f"view must be 3, 5, 7 or 9 tiles, got view={config.view}")
    if config.tile < 1 or config.view * config.tile > config.frame:
        pixels = f"{config.view} tiles of {config.tile} pixels"
        raise ValueError(
            f"{pixels} do not fit a frame of {config.frame}: lower tile or raise frame"
        )
    if not 1 <= config.actions <= len(NAMES):
        raise ValueError(
            f"actions must be from 1 to {len(NAMES)}, got {config.actions}"
        )
    if config.budget is not None and config.budget < 1:
        raise ValueError(f"budget must be at least 1, got {config.budget}")
    if (
        "Memory" in config.id
        and config.size is not None
        and (config.size % 2 == 0 or config.size < 7)
    ):
        raise ValueError(
            f"size of a Memory maze must be odd and at least 7, got size={config.size}"
        )


def _make(config: MiniGridConfig) -> OneMiniGrid:
    import gymnasium
    import minigrid  # noqa: F401  registers its ids
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

    if config.id not in gymnasium.registry:
        ours = [
            name
            for name in gymnasium.registry
            if name.startswith(("MiniGrid-", "BabyAI-"))
        ]
        near = get_close_matches(config.id, ours, n=3, cutoff=0.3)
        raise ValueError(
            f"unknown MiniGrid id {config.id!r}; nearest: {', '.join(near) or 'none'}"
        )
    given = {"size": config.size, "max_steps": config.max_steps}
    kwargs = {name: value for name, value in given.items() if value is not None} | dict(
        config.kwargs
    )
    try:
        made = gymnasium.make(
            config.id, disable_env_checker=True, agent_view_size=config.view, **kwargs
        )
    except TypeError as error:
        raise ValueError(f"cannot make {config.id}: {error}") from error
    env = made.unwrapped
    if (
        not isinstance(env, OneMiniGrid)
        or type(env).get_pov_render is not OneMiniGrid.get_pov_render
    ):
        raise ValueError(
            f"{config.id} has no egocentric view of MiniGrid's; use env=gym with render=True"
        )
    env.gen_obs = dict  # type: ignore[method-assign]  # the symbolic view costs more than the move itself
    return env


def _default_budget(fork: Cell, view: int) -> int:
    """Return 12 decision steps, or one fewer than a look back at the cue and then the choice would take."""
    turns = (
        1 if fork[0] - 1 <= view // 2 else 2
    )  # close by, the cue at x = 1 shows at the side of the view
    there_and_back = 2 * turns + 2 * max(0, fork[0] - view)
    return min(12, there_and_back + DECISION - 1)


def _is_fixed(env: OneMiniGrid, kinds: set[str]) -> bool:
    """Return whether only the agent can change: no doors, nothing to carry, no moving obstacles."""
    from minigrid.envs.memory import MemoryEnv
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

    if type(env).step is MemoryEnv.step:
        return True
    return type(env).step is OneMiniGrid.step and kinds <= {
        "empty",
        "wall",
        "floor",
        "goal",
        "lava",
    }


def _places(env: OneMiniGrid, codes: np.ndarray, kinds: list[str]) -> Places:
    from minigrid.envs.memory import MemoryEnv

    if isinstance(env, MemoryEnv):
        middle = env.height // 2
        goal, wrong = _cell(env.success_pos), _cell(env.failure_pos)
        label = ("ball", "key").index(kinds[codes[middle - 1, 1]])
        return Places(
            goal, wrong, (1, middle - 1), (2, middle), (goal[0] - 1, middle), label
        )
    y, x = np.nonzero(np.array(kinds)[codes] == "goal")
    if len(x) != 1:
        return Places()
    goal = (int(x[0]), int(y[0]))
    return Places(goal=goal, evidence=goal)


def _cell(position: Any) -> Cell:
    return int(position[0]), int(position[1])


def _floor(walkable: np.ndarray, places: Places) -> np.ndarray:
    """Return bool [H, W], where one may walk without the episode ending; the edge never."""
    floor = walkable.copy()
    floor[[0, -1]] = floor[:, [0, -1]] = False
    for x, y in filter(None, (places.goal, places.wrong)):
        floor[y, x] = False
    return floor


@lru_cache(maxsize=512)
def _cached_field(floor: bytes, shape: tuple[int, int], target: Cell) -> np.ndarray:
    return distance_field(
        np.frombuffer(floor, bool).reshape(shape), (target[1], target[0])
    )
