"""Run MiniGrid and BabyAI environments as RGB pictures of the agent's view."""

from __future__ import annotations

import math
from difflib import get_close_matches
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Discrete,
    Explorer,
    Step,
    counts,
    flags,
    never,
    unknown_explorer,
)
from lssvwm.envs.maze.layout import FAR
from lssvwm.envs.minigrid.explorers import MiniGridExplorer, Momentum
from lssvwm.envs.minigrid.places import (
    AHEAD,
    Cell,
    Places,
    cached_field,
    default_budget,
    find_places,
    floor_of,
    is_fixed,
)
from lssvwm.envs.user_code import guarded
from pydantic import Field
from pydantic.dataclasses import dataclass

PLACE_TRIES = 10_000
"""Places that are tried for an object before its maze counts as full."""

if TYPE_CHECKING:
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


@dataclass(frozen=True, config=STRICT)
class MiniGridConfig:
    """Choose a MiniGrid or BabyAI environment and its view."""

    kind: Literal["minigrid"] = "minigrid"
    """Name of this kind of environment."""
    id: str = "MiniGrid-MemoryS7-v0"
    """Registered MiniGrid or BabyAI id."""
    size: int | None = Field(default=None, ge=1, le=1025)
    """Side of the map, in tiles; null: the id's own. Odd and at least 7 for Memory."""
    tile: int = Field(default=9, ge=1, le=64)
    """Side of a tile, in pixels."""
    view: Literal[3, 5, 7, 9] = 7
    """Side of the view, in tiles."""
    frame: int = Field(default=64, ge=3, le=1024)
    """Side of a frame, in pixels: the view, and black to the right and below."""
    max_steps: int | None = Field(default=None, ge=1, le=10**7)
    """Steps after which an episode is truncated; null: the id's own limit."""
    budget: int | None = Field(default=None, ge=1, le=10**7)
    """Steps for Memory's decision; null: up to 12, too few to look back at the cue."""
    actions: int = Field(default=3, ge=1, le=len(NAMES))
    """Number of actions: left, right, forward, pickup, drop, toggle, done."""
    binary_reward: bool = True
    """Reward success with 1; false: with 1 - 0.9 * steps / max_steps."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for the id."""

    def __post_init__(self) -> None:
        if self.view * self.tile > self.frame:
            raise ValueError(
                f"{self.view} tiles of {self.tile} pixels do not fit a frame of "
                f"{self.frame}: lower tile or raise frame"
            )
        if "Memory" not in self.id or self.size is None:
            return
        if self.size % 2 == 0 or self.size < 7:
            raise ValueError(
                "size of a Memory maze must be odd and at least 7, "
                f"got size={self.size}"
            )

    def build(self, batch: int) -> MiniGridEnv:
        """Return `batch` of these environments.

        Raises ValueError for an unknown id, for arguments that it does not take, and
        for a `budget` without a decision.
        """
        return MiniGridEnv(self, batch)


class MiniGridEnv(BatchedEnv):
    """Run B environments of one MiniGrid id; MiniGrid makes the episodes and the moves.

    ## Description
    The id's. In Memory, the context lasts until the agent has seen the cue and faces
    the fork at the end of the hallway.

    ## Actions
    The first `actions` of left, right, forward, pickup, drop, toggle, done.

    ## Observation
    uint8 [B, 3, frame, frame]: MiniGrid's egocentric partial view, bit for bit as its
    `RGBImgPartialObsWrapper` gives it, without the text of the mission.

    ## Reward
    1 for success with `binary_reward`, else MiniGrid's reward.

    ## Termination
    MiniGrid's; in Memory, truncated `budget` steps after the context too.
    """

    actions: Discrete

    def __init__(self, config: MiniGridConfig, batch: int):
        # Imported here, so that the package can be used without MiniGrid.
        from lssvwm.envs.minigrid.view import TileView

        self.config = config
        self.batch = batch
        self.frame_shape = (3, config.frame, config.frame)
        self.actions = Discrete(config.actions, NAMES[: config.actions])
        self.envs = [_make(config) for _ in range(batch)]
        first = self.envs[0]
        self._view = TileView(
            batch, first.width, first.height, config.view, config.tile
        )
        see_through = np.array([env.see_through_walls for env in self.envs])
        self._see_through = see_through[:, None, None]
        self._start_blank()
        self._probe()

    def _start_blank(self) -> None:
        batch = self.batch
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self.x = counts(batch)
        self.y = counts(batch)
        self.heading = counts(batch)
        self.steps = counts(batch)
        self._action = counts(batch)
        self._age = never(batch)
        """Frames since the evidence was in view, int64 [B]; -1: never."""
        self._forked_at = never(batch)
        """Steps at the end of the context, int64 [B]; -1: it lasts, or there is none."""
        self._budget = np.full(batch, self.config.budget or 0)
        self._terminated = flags(batch)
        self._truncated = flags(batch)
        self._success = flags(batch)
        self._context = flags(batch)
        self._fixed = flags(batch)
        """Slots in which nothing but the agent can change, bool [B]."""
        self._codes = self._visible = self._frames = None
        self.places = [Places()] * batch
        self._fork = np.full((2, batch), -FAR)
        self._evidence = np.full((2, batch), -FAR)
        self._floor: list[bytes] = [b""] * batch

    def _probe(self) -> None:
        """Play the start of one episode to learn which explorers this id allows."""
        self._begin(0, 0)
        places = self.places[0]
        if self.config.budget is not None and places.fork is None:
            raise ValueError(
                f"budget is for Memory ids only; give {self.config.id} max_steps instead"
            )
        self.explorers = ("random", "noop", "momentum")
        if places.fork is not None:
            self.answers = 4
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
        guarded(self.config.id, "reset()", lambda: env.reset(seed=seed))
        self._view.load(slot, env.grid)
        self._fixed[slot] = is_fixed(env, self._view.kinds(slot))
        kinds = self._view.atlas.kinds
        self._settle(slot, find_places(env, self._view.maps[slot], kinds))
        self.episode[slot] += 1
        self.seeds[slot] = seed
        self.steps[slot] = 0
        self._action[slot] = 0
        self._age[slot] = -1
        self._forked_at[slot] = -1
        self._terminated[slot] = False
        self._truncated[slot] = False
        self._success[slot] = False
        self.x[slot], self.y[slot] = env.agent_pos
        self.heading[slot] = env.agent_dir

    def _settle(self, slot: int, places: Places) -> None:
        """Note the places of an episode and what follows from them."""
        walkable = self._view.atlas.walkable[self._view.maps[slot]]
        self.places[slot] = places
        self._floor[slot] = floor_of(walkable, places).tobytes()
        self._evidence[:, slot] = places.evidence or -FAR
        self._fork[:, slot] = places.fork or -FAR
        self._context[slot] = places.fork is not None
        if self.config.budget is None and places.fork is not None:
            self._budget[slot] = default_budget(places.fork, self.config.view)

    def step(self, action: np.ndarray) -> Step:
        """Let MiniGrid move every running slot by `action`, int64 [B].

        Raises RuntimeError if a slot was never reset, ValueError for unknown actions.
        """
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        running = np.flatnonzero(~(self._terminated | self._truncated))
        action = np.asarray(action)[running]
        last = self.config.actions - 1
        if len(action) and not 0 <= action.min() <= action.max() <= last:
            raise ValueError(f"actions must be from 0 to {last}, got {action.tolist()}")
        reward = np.zeros(self.batch, np.float32)
        if len(running):
            reward[running] = self._move(running, action)
            self.steps[running] += 1
            self._action[running] = action
            seen = running[self._age[running] >= 0]
            self._age[seen] += 1
            self._look()
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def _move(self, running: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Step MiniGrid in the slots `running`, int64 [M]; return rewards [M]."""
        envs = [self.envs[slot] for slot in running]
        results = [env.step(chosen)[1:4] for env, chosen in zip(envs, action.tolist())]
        poses = [(*env.agent_pos, env.agent_dir) for env in envs]
        for slot in running[~self._fixed[running]]:
            self._view.load(slot, self.envs[slot].grid)
        x, y, heading = np.array(poses, np.int64).T
        self.x[running] = x
        self.y[running] = y
        self.heading[running] = heading
        reward, terminated, truncated = (np.array(column) for column in zip(*results))
        success = terminated & (reward > 0)
        self._terminated[running] = terminated
        self._truncated[running] = truncated & ~terminated
        self._success[running] = success
        return np.where(success & self.config.binary_reward, 1, reward)

    def _look(self) -> None:
        """Bring view, evidence, context and budget up to date with the poses."""
        self._codes = self._view.look(self.x, self.y, self.heading)
        self._visible = self._view.visible(self._codes) | self._see_through
        self._frames = None
        self._age[self._evidence_in_view()] = 0
        fork_x, fork_y = self._fork
        at_fork = (fork_x == self.x) & (fork_y == self.y) & (self.heading == 0)
        arrived = self._context & at_fork & (self._age >= 0)
        self._context[arrived] = False
        self._forked_at[arrived] = self.steps[arrived]
        deciding = self._forked_at >= 0
        spent = deciding & (self.steps - self._forked_at >= self._budget)
        self._truncated |= spent & ~self._terminated

    def _evidence_in_view(self) -> np.ndarray:
        """Return bool [B], true where the agent sees the evidence."""
        assert self._visible is not None
        view = self.config.view
        half = view // 2
        dx, dy = self._evidence - (self.x, self.y)
        ux, uy = np.array(AHEAD)[self.heading].T
        ahead = dx * ux + dy * uy
        aside = dy * ux - dx * uy
        inside = (ahead >= 0) & (ahead < view) & (abs(aside) <= half)
        slots = np.flatnonzero(inside)
        sees = flags(self.batch)
        sees[slots] = self._visible[slots, -1 - ahead[slots], half + aside[slots]]
        return sees

    def frames(self) -> np.ndarray:
        """Return the agents' views, uint8 [B, 3, frame, frame]."""
        if self._frames is None:
            if self._codes is None or self._visible is None:
                raise RuntimeError("reset the environment before asking for frames")
            code = self._view.atlas.code
            carried = np.array([code(env.carrying) for env in self.envs])
            self._frames = self._view.draw(
                self._codes, self._visible, carried, self.config.frame
            )
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the last executed action, zeros after a reset."""
        return self._action.copy()

    def in_context(self) -> np.ndarray:
        """Return bool [B], true in Memory until the agent decides at the fork."""
        return self._context.copy()

    def sees_evidence(self, slot: int) -> bool:
        """Return whether the cue, or without one the goal, is in the current frame."""
        return bool(self._age[slot] == 0)

    def field(self, slot: int, target: Cell) -> np.ndarray | None:
        """Return least steps to `target` by heading, y, x; None if things can change.

        int32 [4, H, W]. Lava, objects and the other choice count as walls. Heading 0 is
        up, as in `distance_field`.
        """
        if not self._fixed[slot]:
            return None
        env = self.envs[slot]
        return cached_field(self._floor[slot], (env.height, env.width), target)

    def distance(self, slot: int, target: Cell) -> int:
        """Return least steps to `target`, turns included; -1: unknown or no path."""
        table = self.field(slot, target)
        if table is None:
            return -1
        heading = (self.heading[slot] + 1) % 4
        steps = int(table[heading, self.y[slot], self.x[slot]])
        return steps if steps < FAR else -1

    def pose(self) -> np.ndarray:
        """Return heading and position of each agent, float32 [B, 3]."""
        angle = (self.heading + 1) * np.pi / 2  # MiniGrid's heading 0 is right
        return np.stack((angle, -self.y, self.x), -1).astype(np.float32)

    def answer(self) -> np.ndarray:
        """Return 2 * cue, plus 1 if the goal lies above the hallway, int64 [B]."""
        return np.array([places.answer for places in self.places], np.int64)

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes.

        `goal` is Memory's cue: 0 ball, 1 key.
        """
        lost = self._terminated & ~self._success
        flags = [self._success, lost, self._truncated]
        outcome = np.select(flags, [SUCCESS, WRONG, TIMEOUT], RUNNING)
        distance = [
            -1 if places.goal is None else self.distance(slot, places.goal)
            for slot, places in enumerate(self.places)
        ]
        labels = [places.label for places in self.places]
        return {
            "success": self._success.copy(),
            "goal_distance": np.array(distance, np.int64),
            "evidence_age": self._age.copy(),
            "outcome": outcome.astype(np.int64),
            "goal": np.array(labels, np.int64),
        }

    def top_view(self, slot: int, tile: int = 16) -> np.ndarray:
        """Return MiniGrid's picture of the whole map, uint8 [3, H * tile, W * tile]."""
        picture = self.envs[slot].get_full_render(highlight=True, tile_size=tile)
        return picture.transpose(2, 0, 1).copy()

    def bearing(self, slot: int) -> float:
        """Return the heading on the map, in radians clockwise from up."""
        return (int(self.heading[slot]) + 1) * np.pi / 2

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`, one of `explorers`."""
        if name not in self.explorers:
            raise unknown_explorer(self.config.id, name, self.explorers)
        if name == "momentum":
            return Momentum(self, seed)
        return MiniGridExplorer(self, name, seed)


def _make(config: MiniGridConfig) -> OneMiniGrid:
    import gymnasium
    import minigrid  # noqa: F401  registers its ids
    from minigrid.minigrid_env import MiniGridEnv as OneMiniGrid

    if config.id not in gymnasium.registry:
        raise ValueError(_unknown_id(config.id, list(gymnasium.registry)))
    kwargs: dict[str, Any] = {}
    if config.size is not None:
        kwargs["size"] = config.size
    if config.max_steps is not None:
        kwargs["max_steps"] = config.max_steps
    kwargs |= config.kwargs
    try:
        made = gymnasium.make(
            config.id,
            disable_env_checker=True,
            agent_view_size=config.view,
            **kwargs,
        )
    except (TypeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error) or "its settings do not fit, such as env.size"
        raise ValueError(f"cannot make {config.id}: {reason}") from error
    env = made.unwrapped
    is_grid = isinstance(env, OneMiniGrid)
    if not is_grid or type(env).get_pov_render is not OneMiniGrid.get_pov_render:
        raise ValueError(
            f"{config.id} has no egocentric view of MiniGrid's; "
            "use env=gym with render=True"
        )
    env.place_obj = MethodType(place_obj, env)  # type: ignore[method-assign]
    # The symbolic view is never used, and costs more than the move itself.
    env.gen_obs = dict  # type: ignore[method-assign]
    return env


def place_obj(
    env: OneMiniGrid, *given: Any, max_tries: float = math.inf, **more: Any
) -> Any:
    """Place an object as MiniGrid does, but raise RecursionError after PLACE_TRIES places in vain."""
    limit = min(max_tries, PLACE_TRIES)
    return type(env).place_obj(env, *given, max_tries=limit, **more)


def _unknown_id(name: str, registered: list[str]) -> str:
    ours = [known for known in registered if known.startswith(("MiniGrid-", "BabyAI-"))]
    near = get_close_matches(name, ours, n=3, cutoff=0.3)
    return f"unknown MiniGrid id {name!r}; nearest: {', '.join(near) or 'none'}"
