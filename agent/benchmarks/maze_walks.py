"""Walk through held-out mazes and note what was in view, for tests of memory.

Shapes: N walks, T = context + horizon frames, 9 tiles of the view.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from lssvwm.agent.build import build_env
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.envs.maze import rendering as picture
from lssvwm.envs.maze.layout import AHEAD, LEFT, RIGHT, STAY
from lssvwm.envs.maze.object_maze import ObjectMaze
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

TESTS = ("retrieval", "reasoning")
"""Continuations of a context: the exact way back, or onward."""
NEVER, HIDDEN = -1, -2
"""Ages of tiles never in view in the context, and of tiles hidden by walls."""
AGES = (1, 17, 49, 129, 513, 1 << 30)
"""Lower bounds of the ranges of ages.

Window attention to 16 frames in 3 layers reaches 45 frames back.
"""
PIECE = 128
"""Frames observed at once."""


@dataclass
class Walks:
    """Hold N walks through mazes.

    frames uint8 [N, T, 3, H, W]
    action int64 [N, T]: the action that led to the frame
    poses int64 [N, T, 3]: heading, row, column
    age int64 [N, horizon, 9]: frames since each tile of an imagined frame was in view
    tile int64 [N, horizon, 9]: number of the tile's picture
    floor bool [N, rows, columns]
    objects int64 [N, K, 2]: cells of the objects
    seen int64 [N, rows, columns]: last context frame in which a cell was in view
    context: frames that the model observes
    dark int64 [N, D]: actions of dark frames between the context and the rest, which are not among `frames`
    dark_poses int64 [N, D, 3]: poses in these frames
    """

    frames: Tensor
    action: Tensor
    poses: np.ndarray
    age: np.ndarray
    tile: np.ndarray
    floor: np.ndarray
    objects: np.ndarray
    seen: np.ndarray
    context: int
    dark: Tensor
    dark_poses: np.ndarray

    @property
    def pose(self) -> Tensor:
        """Poses as models take them, float32 [N, T, 3]."""
        return as_pose(self.poses)


class Recorded(Protocol):
    """List what imagination needs of N recorded walks; the model observes `context` frames."""

    @property
    def frames(self) -> Tensor: ...

    @property
    def action(self) -> Tensor: ...

    @property
    def pose(self) -> Tensor: ...

    @property
    def context(self) -> int: ...


class _Recorder:
    """Collect frames, poses and ages while the environment is stepped."""

    def __init__(self, env: ObjectMaze, context: int):
        self.env, self.context = env, context
        self.seen = np.full(env.tiles.size, NEVER)
        self.frames: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.poses: list[np.ndarray] = []
        self.ages: list[np.ndarray] = []
        self.tiles: list[np.ndarray] = []
        self.dark: list[np.ndarray] = []
        self.dark_poses: list[np.ndarray] = []

    def note(self) -> None:
        """Note the present frame."""
        env, t = self.env, len(self.frames)
        cells, lit = env.in_view()
        if t < self.context:
            self.seen[cells[lit]] = t
        else:
            last = self.seen[cells]
            age = np.where(last == NEVER, NEVER, t - last)
            self.ages.append(np.where(lit, age, HIDDEN))
            self.tiles.append(env.view())
        self.frames.append(env.frames().copy())
        self.actions.append(env.last_action())
        self.poses.append(self._pose())

    def note_dark(self) -> None:
        """Note a dark frame between the context and the rest."""
        self.dark.append(self.env.last_action())
        self.dark_poses.append(self._pose())

    def _pose(self) -> np.ndarray:
        return np.stack((self.env.heading, self.env.row, self.env.col), -1)

    def ways_back(self) -> list[list[int]]:
        """Return the actions of the way back, for each walk."""
        actions = np.array(self.actions)[1:]
        poses = np.array(self.poses)
        return [_way_back(actions[:, i], poses[:, i]) for i in range(self.env.batch)]

    def walks(self) -> Walks:
        """Return what was noted."""
        pad = picture.PAD
        none = np.zeros((0, self.env.batch, 3), np.int64)
        dark = np.array(self.dark) if self.dark else none[..., 0]
        dark_poses = np.array(self.dark_poses) if self.dark else none
        return Walks(
            frames=torch.from_numpy(np.stack(self.frames, 1)),
            action=torch.from_numpy(np.stack(self.actions, 1)),
            poses=np.stack(self.poses, 1),
            age=np.stack(self.ages, 1),
            tile=np.stack(self.tiles, 1),
            floor=self.env.floor.copy(),
            objects=self.env.objects.copy(),
            seen=self.seen.reshape(self.env.tiles.shape)[:, pad:-pad, pad:-pad],
            context=self.context,
            dark=torch.from_numpy(np.moveaxis(dark, 0, 1).copy()),
            dark_poses=np.moveaxis(dark_poses, 0, 1),
        )


def walk(
    config: Config,
    test: str,
    context: int,
    horizon: int,
    seeds: np.ndarray,
    dark: int = 0,
) -> Walks:
    """Walk through the mazes of these seeds, for one of TESTS.

    With `dark`, the guide takes so many steps after the context, of which only the actions are noted.

    Raises UserError for an environment without guided tours.
    """
    env = _touring_env(config, context + dark + horizon, len(seeds))
    env.reset(np.arange(env.batch), seeds)
    guide = env.guide(int(seeds[0]) % 2**31)
    recorder = _Recorder(env, context)
    back: list[list[int]] = []
    for t in range(context + horizon):
        if t == context:
            for _ in range(dark):
                recorder.note_dark()
                env.step(guide.act())
        recorder.note()
        if t == context - 1 and test == "retrieval":
            back = recorder.ways_back()
        if t < context - 1 or test == "reasoning":
            action = guide.act()
        else:
            ahead = t - context + 1
            action = np.array([w[ahead] if ahead < len(w) else STAY for w in back])
        env.step(action)
    return recorder.walks()


def _touring_env(config: Config, frames: int, batch: int) -> ObjectMaze:
    """Build the environment with a tour so long that the guide does not lead home."""
    if config.env.kind not in ("return", "recall"):
        raise UserError(
            "benchmark memory walks through mazes: "
            f"env=return or env=recall, not env={config.env.kind}"
        )
    longest = frames + 4 * config.env.n**2
    settings = dataclasses.replace(config.env, tour=longest)
    env = build_env(settings, batch)
    assert isinstance(env, ObjectMaze)
    return env


def _way_back(actions: np.ndarray, poses: np.ndarray) -> list[int]:
    """Return the actions that turn round and reverse every step and turn.

    Actions without effect are left out.
    """
    moved = (poses[1:] != poses[:-1]).any(1)
    undo = {LEFT: RIGHT, RIGHT: LEFT, AHEAD: AHEAD}
    return [
        LEFT,
        LEFT,
        *(undo[int(a)] for a, m in zip(actions[::-1], moved[::-1]) if m),
    ]


@torch.no_grad()
def remember(
    model: WorldModel,
    frames: Tensor,
    action: Tensor,
    pose: Tensor | None = None,
    *,
    memory: Memory | None = None,
) -> Memory:
    """Return the memory of episodes from their first frame on.

    With `memory`, the frames follow those that it holds.
    frames uint8 [B, T, 3, H, W], action int64 [B, T], pose float32 [B, T, 3] for models of given poses
    """
    first = torch.zeros_like(action, dtype=torch.bool)
    if memory is None:
        memory = model.initial(len(frames))
        first[:, 0] = True
    for start in range(0, action.shape[1], PIECE):
        some = slice(start, start + PIECE)
        given = None if pose is None else pose[:, some]
        inputs = (v[:, some] for v in (frames, action, first))
        memory, _ = model.observe(memory, *inputs, pose=given)
    return memory


def as_pose(poses: np.ndarray) -> Tensor:
    """Return heading, row and column [..., 3] as models take poses: radians, up, right."""
    heading, row, col = np.moveaxis(poses, -1, 0)
    pose = np.stack((heading * np.pi / 2, -row, col), -1)
    return torch.from_numpy(pose.astype(np.float32))
