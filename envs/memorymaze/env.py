"""Run Memory Maze: fetch coloured targets in a 3-D maze, again and again."""

from __future__ import annotations

import weakref
from typing import Literal

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    STRICT,
    TIMEOUT,
    BatchedEnv,
    Discrete,
    Explorer,
    NoopExplorer,
    RandomExplorer,
    Step,
    blank_frames,
    counts,
    flags,
    slots_where,
    unknown_explorer,
)
from lssvwm.envs.memorymaze.explorers import MazeWalker, WayBack
from lssvwm.envs.memorymaze.map import draw_map
from lssvwm.envs.memorymaze.places import Floor, from_agent, to_cell
from lssvwm.envs.memorymaze.simulator import ROOMS, SIDE, Simulator
from pydantic import Field
from pydantic.dataclasses import dataclass

STEPS = {9: 1000, 11: 2000, 13: 3000, 15: 4000}
"""Steps of an episode by size, as published."""
NAMES = ("noop", "forward", "left", "right", "forward_left", "forward_right")
SPEED = 0.25
"""Full speed, in tiles per step."""
TOUCH = 0.387
"""Distance at which the ball touches a target, in tiles."""
HALF_VIEW = np.radians(40)
"""Angle between the view's axis and its edge."""


@dataclass(frozen=True, config=STRICT)
class MemoryMazeConfig:
    """Choose a size of Memory Maze."""

    kind: Literal["memorymaze"] = "memorymaze"
    """Name of this kind of environment."""
    size: Literal[9, 11, 13, 15] = 9
    """Side of the maze, in tiles. It has 3, 4, 5 or 6 targets."""
    steps: int | None = Field(default=None, ge=1, le=10**6)
    """Steps of an episode; null: as published, 1000 to 4000 by size."""

    def build(self, batch: int) -> MemoryMazeEnv:
        """Return `batch` mazes.

        Raises ImportError with the pip command without Memory Maze.
        """
        return MemoryMazeEnv(self, batch)


class MemoryMazeEnv(BatchedEnv):
    """Run B mazes of the package `memory-maze`, each in its own simulator.

    ## Description
    Touch the target of the cued colour; another colour is cued then, at random. Maze
    and targets stay where they are. No part of an episode is guided.

    ## Actions
    noop, forward, left, right, forward and left, forward and right, for a quarter of a
    second each. The agent is a ball that rolls on and slides along walls.

    ## Observation
    uint8 [B, 3, 64, 64]: the view ahead, with a border of the cued colour.

    ## Reward
    1 for the cued target.

    ## Termination
    Never; truncated after `steps`.
    """

    actions = Discrete(len(NAMES), NAMES)
    frame_shape = (3, SIDE, SIDE)
    explorers = ("random", "noop", "oracle", "noisy", "seek", "walk")
    copyable = False

    def __init__(self, config: MemoryMazeConfig, batch: int):
        self.config = config
        self.batch = batch
        self.limit = config.steps or STEPS[config.size]
        self.simulators = [Simulator(config.size) for _ in range(batch)]
        self._finalizer = weakref.finalize(self, _close, self.simulators)
        self._finalizer.atexit = False  # dm_control frees its contexts at exit
        count = ROOMS[config.size][0]
        size = config.size
        self.floors = [Floor(np.zeros((size, size), bool))] * batch
        self.poses = np.zeros((batch, 3))
        """Poses as `pose` gives them, float64 [B, 3]."""
        self.targets = np.zeros((batch, count, 2))
        """Positions (up, right) of all targets, in tiles, float64 [B, K, 2]."""
        self.target = counts(batch)
        """Number of the cued target, int64 [B]."""
        self.seen_at = np.full((batch, count), -1, np.int64)
        """Clock when each target was last in view, int64 [B, K]; -1: never."""
        self.clock = counts(batch)
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self.rewarded = flags(batch)
        self._action = counts(batch)
        self._frames = blank_frames(batch, SIDE)
        self._stale = flags(batch)
        """Slots whose frame is not rendered yet, bool [B]."""

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; the package gets the same seed.

        Raises ImportError with the remedy if there is no way to render.
        """
        for slot, seed in zip(np.asarray(where).tolist(), np.asarray(seeds).tolist()):
            simulator = self.simulators[slot]
            simulator.reset(seed)
            self.floors[slot] = Floor(simulator.floor)
            self.targets[slot] = simulator.targets
            self.seen_at[slot] = -1
            self.clock[slot] = 0
            self.episode[slot] += 1
            self.seeds[slot] = seed
            self.rewarded[slot] = False
            self._action[slot] = 0
            self._look(slot)

    def step(self, action: np.ndarray) -> Step:
        """Step every running slot by `action`, int64 [B].

        Raises RuntimeError if a slot was never reset.
        """
        if not self.episode.all():
            raise RuntimeError("reset every slot before the first step")
        reward = np.zeros(self.batch, np.float32)
        for slot in slots_where(self.clock < self.limit):
            reward[slot] = self.simulators[slot].step(int(action[slot]))
            self.clock[slot] += 1
            self._action[slot] = action[slot]
            self._look(slot)
        self.rewarded |= reward > 0
        return Step(reward, flags(self.batch), self.clock >= self.limit)

    def _look(self, slot: int) -> None:
        """Bring pose, cue and visible targets of `slot` up to date."""
        simulator = self.simulators[slot]
        self.poses[slot] = simulator.pose
        self.target[slot] = simulator.target
        self._stale[slot] = True
        self.seen_at[slot, self._in_view(slot)] = self.clock[slot]

    def _in_view(self, slot: int) -> np.ndarray:
        """Return bool [K], true for targets whose middle is in view."""
        pose = self.poses[slot]
        to_right, to_front = from_agent(pose, self.targets[slot]).T
        in_front = np.abs(np.arctan2(to_right, to_front)) < HALF_VIEW
        return in_front & self.floors[slot].is_clear(pose[1:], self.targets[slot])

    def frames(self) -> np.ndarray:
        """Return the frames, uint8 [B, 3, 64, 64]."""
        for slot in slots_where(self._stale):
            self._frames[slot] = self.simulators[slot].frame()
        self._stale[:] = False
        return self._frames.copy()

    def last_action(self) -> np.ndarray:
        """Return the last action, 0 after a reset."""
        return self._action.copy()

    def pose(self) -> np.ndarray:
        """Return the pose of each agent, float32 [B, 3].

        Heading in radians clockwise from up, then the position: up and right, in tiles
        from the lower left corner.
        """
        return self.poses.astype(np.float32)

    def layout(self) -> np.ndarray:
        """Return the floor of each maze, bool [B, n, n], row 0 at the bottom.

        This is the target of the published probe of walls (`maze_layout`).
        """
        return np.stack([floor.cells for floor in self.floors])

    def objects(self) -> np.ndarray:
        """Return all targets as seen from the agents, float32 [B, K, 2].

        Right and ahead, in tiles: the target of the published probe of objects
        (`targets_vec`).
        """
        return from_agent(self.poses, self.targets).astype(np.float32)

    def in_context(self) -> np.ndarray:
        """Return false everywhere: no part of an episode is guided."""
        return flags(self.batch)

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes.

        success: the agent touched a cued target in this episode
        goal_distance: steps along the middles of tiles at full speed, without turns
        evidence_age: frames since the middle of the cued target was in view
        goal: number of the cued target
        """
        slots = np.arange(self.batch)
        seen = self.seen_at[slots, self.target]
        ended = self.clock >= self.limit
        distance = [self._distance(slot) for slot in slots.tolist()]
        return {
            "success": self.rewarded.copy(),
            "goal_distance": np.array(distance, np.int64),
            "evidence_age": np.where(seen >= 0, self.clock - seen, -1),
            "outcome": np.where(ended, TIMEOUT, RUNNING),
            "goal": self.target.copy(),
        }

    def _distance(self, slot: int) -> int:
        goal = self.targets[slot, self.target[slot]]
        position = self.poses[slot, 1:]
        steps = self.floors[slot].steps_to(to_cell(goal))
        tiles = int(steps[to_cell(position)])
        away = tiles if tiles > 0 else np.hypot(*(goal - position))
        return max(0, int(np.ceil((away - TOUCH) / SPEED)))

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`, one of `explorers`."""
        if name not in self.explorers:
            raise unknown_explorer("memorymaze", name, self.explorers)
        match name:
            case "random":
                return RandomExplorer(self, seed)
            case "noop":
                return NoopExplorer(self)
        return MazeWalker(self, name, seed)

    def way_back(self, places: np.ndarray) -> Explorer:
        """Return an explorer that follows positions [B, T, 2], the last one first."""
        return WayBack(self, places)

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the map of `slot`, with a frame around the cued target, uint8 [3, S, S]."""
        simulator = self.simulators[slot]
        colours = [simulator.colour(k) for k in range(len(self.targets[slot]))]
        return draw_map(
            self.floors[slot].cells,
            self.targets[slot],
            np.array(colours),
            int(self.target[slot]),
            self.poses[slot],
        )

    def bearing(self, slot: int) -> float:
        """Return the heading on the map, in radians clockwise from up."""
        return float(self.poses[slot, 0])

    def renewed(self) -> MemoryMazeEnv:
        """Return one new environment of this kind."""
        return self.config.build(1)

    def close(self) -> None:
        """Free all simulators; later calls do nothing."""
        self._finalizer()


def _close(simulators: list[Simulator]) -> None:
    for simulator in simulators:
        simulator.close()
