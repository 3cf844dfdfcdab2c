"""Walks through mazes of held-out seeds, with the truth about what was in view when: what memory is tested on.

Shapes: N walks, T = context + horizon frames, 9 tiles of the view.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.training.collection import build_env
from lssvwm.envs.maze import rendering as picture
from lssvwm.envs.maze.engine import AHEAD, LEFT, RIGHT, STAY
from lssvwm.envs.maze.tasks import ObjectMaze
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

TESTS = ("retrieval", "reasoning")
"""After the context: the exact way back, or on."""
NEVER, HIDDEN = -1, -2
"""Ages of tiles that were not in view in the context, and of those that walls hide."""
AGES = (1, 17, 49, 129, 513, 1 << 30)
"""Where ranges of ages begin. Window attention to 16 frames in 3 layers reaches 45 frames back."""
PIECE = 128
"""Frames observed at once."""


@dataclass
class Walks:
    """frames uint8 [N, T, 3, H, W], action int64 [N, T] (the one that led to the frame), poses int64 [N, T, 3]
    (heading, row, column); of the frames to be imagined, age int64 [N, horizon, 9] and tile (number of the picture)
    int64 [N, horizon, 9]; of the maze, floor bool [N, rows, columns], objects int64 [N, K, 2] (their cells), and seen
    int64 [N, rows, columns], the last frame of the context in which a cell was in view."""

    frames: Tensor
    action: Tensor
    poses: np.ndarray
    age: np.ndarray
    tile: np.ndarray
    floor: np.ndarray
    objects: np.ndarray
    seen: np.ndarray
    context: int


def walk(
    config: Config, test: str, context: int, horizon: int, seeds: np.ndarray
) -> Walks:
    """Walks through the mazes of these seeds; raises UserError for an environment without guided tours."""
    if config.env.kind not in ("return", "recall"):
        raise UserError(
            f"benchmark memory walks through mazes: env=return or env=recall, not env={config.env.kind}"
        )
    longest = context + horizon + 4 * config.env.n**2  # so that nobody is led home
    env = build_env(
        dataclasses.replace(config, env=dataclasses.replace(config.env, tour=longest)),
        len(seeds),
    )
    assert isinstance(env, ObjectMaze)
    env.reset(np.arange(env.batch), seeds)
    guide = env.guide(int(seeds[0]) % 2**31)
    seen = np.full(env.tiles.size, NEVER)
    frames, actions, ages, tiles, poses = [], [], [], [], []
    back: list[list[int]] = []
    for t in range(context + horizon):
        cells, lit = env.in_view()
        if t < context:
            seen[cells[lit]] = t
        else:
            age = np.where(seen[cells] == NEVER, NEVER, t - seen[cells])
            ages.append(np.where(lit, age, HIDDEN))
            tiles.append(env.view())
        frames.append(env.frames().copy())
        actions.append(env.last_action())
        poses.append(np.stack((env.heading, env.row, env.col), -1))
        if t == context - 1 and test == "retrieval":
            back = [
                _way_back(np.array(actions)[1:, i], np.array(poses)[:, i])
                for i in range(env.batch)
            ]
        if t < context - 1 or test == "reasoning":
            action = guide.act()
        else:
            action = np.array(
                [
                    way[t - context + 1] if t - context + 1 < len(way) else STAY
                    for way in back
                ]
            )
        env.step(action)
    pad = picture.PAD
    return Walks(
        torch.from_numpy(np.stack(frames, 1)),
        torch.from_numpy(np.stack(actions, 1)),
        np.stack(poses, 1),
        np.stack(ages, 1),
        np.stack(tiles, 1),
        env.floor.copy(),
        env.objects.copy(),
        seen.reshape(env.tiles.shape)[:, pad:-pad, pad:-pad],
        context,
    )


def _way_back(actions: np.ndarray, poses: np.ndarray) -> list[int]:
    """Turn round, then every step and turn in reverse; what led nowhere is left out."""
    moved = (poses[1:] != poses[:-1]).any(1)
    undo = {LEFT: RIGHT, RIGHT: LEFT, AHEAD: AHEAD}
    return [
        LEFT,
        LEFT,
        *(undo[int(a)] for a, m in zip(actions[::-1], moved[::-1]) if m),
    ]


@torch.no_grad()
def remember(model: WorldModel, frames: Tensor, action: Tensor) -> Memory:
    """What a model remembers of frames uint8 [B, T, 3, H, W] and actions int64 [B, T], from an episode's first on."""
    memory = model.initial(len(frames))
    first = torch.zeros_like(action, dtype=torch.bool)
    first[:, 0] = True
    for x, a, f in zip(*(v.split(PIECE, 1) for v in (frames, action, first))):
        memory, _ = model.observe(memory, x, a, f)
    return memory
