"""Measure what memory keeps while nothing new is seen, as part of `lssvwm benchmark memory`.

After a context, the model observes further frames in one of three ways:

    same_view        it stands and looks at the last frame of the context
    standing_dark    it stands, and frames are black
    walking_dark     it walks on with the guide, and frames are black

Then it imagines a walk through the places of the context. Tiles in view during the context should be recognised as
well as before, and the norm of the state should not change.

Shapes: N walks.
"""

from __future__ import annotations

import numpy as np
import torch
from lssvwm.agent.benchmarks.frame_comparison import ROWS, Row, compare_seen, imagine
from lssvwm.agent.benchmarks.maze_walks import PIECE, Walks, as_pose, remember, walk
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.envs.maze.layout import STAY
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

WAYS = ("same_view", "standing_dark", "walking_dark")


@torch.no_grad()
def observe_idle(
    model: WorldModel, memory: Memory, walks: Walks, frame: Tensor
) -> Memory:
    """Return the memory [N] after the idle frames of walks.

    These frames all look like `frame` [N, 3, H, W].
    """
    pieces = (v.split(PIECE, 1) for v in (walks.dark, as_pose(walks.dark_poses)))
    for action, pose in zip(*pieces):
        action, pose = action.to(model.device), pose.to(model.device)
        frames = frame[:, None].expand(-1, action.shape[1], -1, -1, -1)
        never = torch.zeros_like(action, dtype=torch.bool)
        memory, _ = model.observe(memory, frames, action, never, pose=pose)
    return memory


def state_norm(memory: Memory) -> Tensor:
    """Return the norm of all states of the mixers, [N], without poses."""
    states = [
        value.flatten(1)
        for name, value in memory.layers.flatten_keys().items()
        if ".mixer." in name and not name.endswith(("pose", "valid"))
    ]
    return torch.cat(states, 1).norm(dim=1)


def idle(config: BenchmarkRunConfig, way: str, frames: int, seeds: np.ndarray) -> Walks:
    """Return walks whose context is followed by idle frames.

    Actions and poses of these frames are `dark` and `dark_poses`.
    """
    settings = config.benchmark
    context, horizon = settings.contexts[0], settings.horizon
    if way == "walking_dark":
        return walk(config, "reasoning", context, horizon, seeds, frames)
    walks = walk(config, "retrieval", context, horizon, seeds)
    walks.dark = torch.full((len(seeds), frames), STAY)
    last = walks.poses[:, context - 1 : context]
    walks.dark_poses = np.repeat(last, frames, 1)
    return walks


def retention(config: BenchmarkRunConfig, model: WorldModel) -> list[Row]:
    """Measure all ways after each number of frames in `benchmark.idle`; nothing if there are none."""
    settings = config.benchmark
    seeds = task_seeds(config.tasks.seed, min(ROWS, settings.walks))
    rows = []
    for way in WAYS:
        for count in settings.idle:
            walks = idle(config, way, count, seeds)
            last = walks.frames[:, walks.context - 1].to(model.device)
            shown = last if way == "same_view" else torch.zeros_like(last)
            seen = (walks.frames, walks.action, walks.pose)
            context = (v[:, : walks.context].to(model.device) for v in seen)
            memory = remember(model, *context)
            before = state_norm(memory)
            memory = observe_idle(model, memory, walks, shown)
            about = {"test": way, "context": walks.context, "arm": "retained"}
            about |= {"by": "idle", "from": count, "to": count}
            imagined = imagine(model, walks, [memory])
            norm = float((state_norm(memory) / before).mean())
            rows.append(about | compare_seen(walks, imagined) | {"norm": norm})
    return rows
