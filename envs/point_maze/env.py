"""Move a point through rooms, to a goal image or to a remembered spot.

The task with a goal image is the published TwoRoom task; the one with spots needs
memory, as Return does. Lengths are in pixels of a frame that shows 64 x 64 of them; x
is the column, y the row. Shapes: B slots, M of them given by `slots`, K spots.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    SUCCESS,
    TIMEOUT,
    BatchedEnv,
    Box,
    Explorer,
    Step,
    counts,
    slots_where,
    unknown_explorer,
)
from lssvwm.envs.maze.rendering import SIDE
from lssvwm.envs.point_maze.explorers import PointExplorer
from lssvwm.envs.point_maze.geometry import RADIUS, WALL, Plan, Rooms
from lssvwm.envs.point_maze.rendering import AGENT, SPOT, SPOTS, WINDOW, Canvas
from pydantic import Field
from pydantic.dataclasses import dataclass

TILE = 16
"""Pixels of a tile, the unit of poses."""
NEAR = 4.5
"""Distance at which a goal counts as reached."""
FAR = 25
"""Least steps to the places of the walk that ends at a goal image, as published."""
APART = 2 * NEAR + SPOT
"""Least distance between two spots."""
WANDER = 3.0
"""Standard deviation of the noise of that walk, per action component, as published."""
WAY_HOME = 1.1, 8
"""Factor and steps by which the way home can exceed its distance, because of doors."""


@dataclass(frozen=True, config=STRICT)
class PointMazeConfig:
    """Set up the point maze: `rows` x `cols` rooms with doors between neighbours."""

    kind: Literal["pointmaze"] = "pointmaze"
    """Name of this kind of environment."""
    rows: int = Field(default=1, ge=1, le=1024)
    """Rows of rooms."""
    cols: int = Field(default=2, ge=1, le=1024)
    """Columns of rooms."""
    size: int = Field(default=64, ge=1, le=1024)
    """Side of the maze, in pixels."""
    door: float = Field(default=5.0, gt=RADIUS, le=1e6, allow_inf_nan=False)
    """Half width of a door, in pixels."""
    random: bool = False
    """Draw other walls and doors in every episode; half of the spare doors are shut."""
    speed: float = Field(default=2.0, gt=0, le=WALL, allow_inf_nan=False)
    """Longest move along x and along y in one step, in pixels."""
    goal: Literal["image", "spot", "none"] = "image"
    """image: the end of a noisy walk; spot: a coloured spot; none: walk about."""
    view: Literal["above", "around"] = "above"
    """above: all of the maze; around: the part around the agent."""
    offset: int = Field(default=50, ge=1, le=10**6)
    """Steps of the walk to a goal image; twice as many may be taken."""
    objects: int = Field(default=3, ge=2, le=len(SPOTS))
    """Spots, each of another colour (goal=spot)."""
    tour: int = Field(default=128, ge=1, le=10**6)
    """Frames of the tour back to the start (goal=spot)."""
    slack: float = Field(default=1.5, ge=0, le=1e6, allow_inf_nan=False)
    """Step budget after the tour, in shortest ways to the spot (goal=spot)."""
    steps: int = Field(default=100, ge=1, le=10**7)
    """Steps of an episode (goal=none)."""

    def __post_init__(self) -> None:
        self.plan().check()

    def plan(self) -> Plan:
        """Return the plan of the rooms."""
        return Plan(
            rows=self.rows,
            cols=self.cols,
            size=self.size,
            door=self.door,
            random=self.random,
            speed=self.speed,
        )

    def build(self, batch: int) -> PointMaze:
        """Return `batch` point mazes."""
        return PointMaze(self, batch)


class PointMaze(BatchedEnv):
    """Move points through rooms.

    ## Description
    - goal=image: go to the place shown in a picture.
    - goal=spot: after a guided tour back to the start, go to the spot of the cued
      colour, which is out of sight.
    - goal=none: no task.

    ## Actions
    Two numbers from -1 to 1, the move along x and y in units of `speed`. Walls stop
    the part of a move that leads into them. Near the end of a tour, the way home is
    forced.

    ## Observation
    uint8 [B, 3, 64, 64]: all of the maze (view=above), or the part around the agent
    with a border that shows the cued colour (view=around).

    ## Reward
    1 at the goal.

    ## Termination
    Within `NEAR` pixels of the goal; truncated when the step budget is spent.
    """

    actions = Box((-1.0, -1.0), (1.0, 1.0))
    frame_shape = (3, SIDE, SIDE)
    explorers = ("oracle", "guide", "walk", "seek", "momentum", "random", "noop")

    def __init__(self, config: PointMazeConfig, batch: int):
        self.config = config
        self.batch = batch
        self.slots = np.arange(batch)
        self.has_spots = config.goal == "spot"
        self.has_goal = config.goal != "none"
        self.context = config.tour if self.has_spots else 0
        """Frames of the guided part."""
        self.labels = self.answers = config.objects if self.has_spots else 1
        self.rooms = Rooms(config.plan(), batch)
        self.canvas = Canvas(batch, config.size, around=config.view == "around")
        self.position = np.zeros((batch, 2))
        self.start = np.zeros((batch, 2))
        self.goal = np.zeros((batch, 2))
        self.spots = np.zeros((batch, self.labels, 2))
        self.cue = counts(batch)
        self.clock = counts(batch)
        self.outcome = counts(batch)
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self.budget = counts(batch)
        self.seen_at = np.full((batch, self.labels), -1, np.int64)
        """Clock when a spot was last in view, int64 [B, K]; -1: never."""
        self._action = np.zeros((batch, 2), np.float32)
        self._goals: np.ndarray | None = None

    # The interface of every environment.

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; both int64 [M]."""
        where = np.asarray(where, np.int64)
        seeds = np.asarray(seeds, np.int64)
        self.clock[where] = 0
        self.outcome[where] = RUNNING
        self._action[where] = 0
        self.seen_at[where] = -1
        self.episode[where] += 1
        self.seeds[where] = seeds
        rngs = [np.random.default_rng([seed]) for seed in seeds.tolist()]
        for slot, rng in zip(where.tolist(), rngs):
            self.rooms.build(slot, rng)
            start = self.draw_position(slot, rng)
            self.start[slot] = start
            self.position[slot] = start
            self.goal[slot] = start
        self._set_goals(where, rngs)
        for slot in where.tolist():
            walls = self.rooms.walls[slot]
            self.canvas.draw_maze(slot, walls, self.spots_of(slot))
        if self.config.goal == "image":
            # A new array: images returned earlier stay as they are.
            no_border = np.zeros((self.batch, 3))
            self._goals = self.canvas.frames(self.goal, no_border)
        self._look()

    def _set_goals(self, slots: np.ndarray, rngs: list[np.random.Generator]) -> None:
        """Set goals and step budgets of the slots, int64 [M]."""
        config = self.config
        if config.goal == "image":
            self.goal[slots] = self._after_a_walk(slots, rngs)
            self.budget[slots] = 2 * config.offset
        elif config.goal == "spot":
            for slot, rng in zip(slots.tolist(), rngs):
                self._lay_spots(slot, rng)
            start, goal = self.start[slots], self.goal[slots]
            way = self.rooms.distance(start, goal, slots)
            longest = np.ceil(config.slack * way)
            self.budget[slots] = longest + 1
        else:
            self.budget[slots] = config.steps

    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, float [B, 2], clipped to the bounds.

        Raises ValueError for actions of another shape, and for infinite ones.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (self.batch, 2) or not np.isfinite(action).all():
            raise ValueError(
                f"actions must be {self.batch} pairs of finite numbers, got {action!r}"
            )
        running = self.outcome == RUNNING
        moves = running[:, None]
        executed = self._executed(action.clip(-1, 1))
        executed = np.where(moves, executed, 0)
        last_action = np.where(moves, executed, self._action)
        self._action = last_action.astype(np.float32)
        self.position = self.rooms.move(self.position, executed, self.slots)
        self.clock += running
        seeking = running & (self.clock > self.context)
        reached = seeking & self.reached(self.goal) & self.has_goal
        self.outcome[reached] = SUCCESS
        goes_on = running & (self.outcome == RUNNING)
        steps = self.clock - self.context
        spent = goes_on & (steps >= self.budget)
        self.outcome[spent] = TIMEOUT
        self._look()
        return Step(
            reward=reached.astype(np.float32),
            terminated=self.outcome == SUCCESS,
            truncated=self.outcome == TIMEOUT,
        )

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Lead agents to the start that would be late from the tour otherwise."""
        if not self.context or self.clock.min() >= self.context:
            return action
        left = self.context - self.clock
        ahead = self.rooms.move(self.position, action, self.slots)
        home = self.rooms.distance(ahead, self.start, self.slots)
        factor, more = WAY_HOME
        needed = factor * home + more
        late = (needed >= left) & (left > 0)
        homewards = self.steer(self.position, self.start, self.slots)
        return np.where(late[:, None], homewards, action)

    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, 3, 64, 64]."""
        cued = (self.clock >= self.context) & self.has_spots
        colours = SPOTS[self.cue]
        border = np.where(cued[:, None], colours, 0)
        return self.canvas.frames(self.position, border)

    def goals(self) -> np.ndarray | None:
        """Return the view at the goal, uint8 [B, 3, 64, 64]; None without goal images."""
        return self._goals

    def last_action(self) -> np.ndarray:
        """Return the last executed action, float32 [B, 2], zeros after a reset."""
        return self._action.copy()

    def pose(self) -> np.ndarray:
        """Return the pose of each agent, float32 [B, 3]. Points have no heading; 16 pixels count as a tile."""
        x, y = self.position.T / TILE
        return np.stack((np.zeros(self.batch), -y, x), -1).astype(np.float32)

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the tour."""
        return self.clock < self.context

    def answer(self) -> np.ndarray:
        """Return the cue of each episode, int64 [B]."""
        return self.cue.copy()

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes."""
        away = self.rooms.distance(self.position, self.goal, self.slots)
        away = np.where(self.reached(self.goal), 0, away)
        seen = self.seen_at[self.slots, self.cue]
        known = self.has_spots & (seen >= 0)
        return {
            "success": self.outcome == SUCCESS,
            "goal_distance": away if self.has_goal else np.full(self.batch, -1),
            "evidence_age": np.where(known, self.clock - seen, -1),
            "outcome": self.outcome.copy(),
            "goal": self.cue.copy(),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`; raises ValueError for an unknown one."""
        if name not in self.explorers:
            raise unknown_explorer("pointmaze", name, self.explorers)
        return PointExplorer(self, name, seed)

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the maze, its agent and a ring at the goal, uint8 [3, S, S]."""
        picture = self.canvas.picture[slot].copy()
        agent, goal = self.position[slot], self.goal[slot]
        self.canvas.draw_disc(picture, agent, AGENT, ring=False)
        if self.has_goal:
            self.canvas.draw_disc(picture, goal, SPOTS[0], ring=True)
        return picture

    def bearing(self, slot: int) -> None:
        """Return None: the frames are not views ahead of the agent."""

    # Read by explorers, with `position`, `goal` and `slots`.

    def spots_of(self, slot: int) -> list[np.ndarray]:
        """Return the positions of the spots, [2] each."""
        return list(self.spots[slot]) if self.has_spots else []

    def reached(self, target: np.ndarray) -> np.ndarray:
        """Return bool [B], true for agents near their `target` [B, 2]."""
        return _length(self.position - target) < NEAR

    def steer(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the actions that lead through doors towards `target`, [M, 2]."""
        return self.rooms.steer(position, target, slots)

    def draw_position(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a free position, [2]."""
        return self.rooms.draw_position(slot, rng)

    # Laying out an episode.

    def _lay_spots(self, slot: int, rng: np.random.Generator) -> None:
        """Lay spots apart and out of sight from the start; one is the goal.

        Raises ValueError if there is no room for them.
        """
        out_of_view = WINDOW / 2 + SPOT
        least = max(self.config.size / 4, out_of_view)
        start = self.start[slot]
        placed: list[np.ndarray] = []
        for _ in range(1000):
            at = self.draw_position(slot, rng)
            apart = all(_length(at - spot) > APART for spot in placed)
            if apart and _length(at - start) > least:
                placed.append(at)
            if len(placed) == self.labels:
                break
        else:
            raise ValueError(
                f"size={self.config.size} is too small for {self.labels} objects"
            )
        cue = rng.integers(self.labels)
        self.spots[slot] = placed
        self.cue[slot] = cue
        self.goal[slot] = placed[cue]

    def _after_a_walk(
        self, slots: np.ndarray, rngs: list[np.random.Generator]
    ) -> np.ndarray:
        """Return the ends of noisy walks of `offset` steps from the start, [M, 2].

        Each walk goes to places at least `FAR` steps away.
        """
        offset = self.config.offset
        position = self.start[slots]
        draws = [rng.normal(size=(offset, 2)) for rng in rngs]
        noise = WANDER * np.stack(draws)
        target = np.zeros_like(position)
        arrived = np.ones(len(slots), bool)
        for t in range(offset):
            for i in slots_where(arrived):
                target[i] = self._far(slots[i], position[i], rngs[i])
            way = self.steer(position, target, slots)
            action = (way + noise[:, t]).clip(-1, 1)
            position = self.rooms.move(position, action, slots)
            arrived = _length(position - target) < NEAR
        return position

    def _far(
        self, slot: int, position: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draw a place at least `FAR` steps from `position` [2], or the farthest."""
        draws = [self.draw_position(slot, rng) for _ in range(10)]
        places = np.stack(draws)
        here = np.broadcast_to(position, places.shape)
        slots = np.full(len(places), slot)
        steps = self.rooms.distance(here, places, slots)
        best = np.argmax(np.minimum(steps, FAR))
        return places[best]

    def _look(self) -> None:
        """Note the spots in view."""
        if not self.has_spots:
            return
        clock = self.clock[:, None]
        off = self.spots - self.position[:, None]
        away = np.abs(off).max(-1)
        is_near = away < (WINDOW + SPOT) / 2
        shown = is_near | (self.config.view == "above")
        self.seen_at = np.where(shown, clock, self.seen_at)


def _length(vector: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors [..., 2]."""
    return np.hypot(*vector.T)
