"""Record walks through mazes with a continuous pose, with their ground truth.

A walk is one file `SEED.npz`, or `SEED-back.npz` if the walker turns round on the way. Files depend on the environment
and on the seed, not on a model, so that all models are tested on the same walks. A stopped recording goes on with the
missing ones.

Shapes: T frames, K objects, n x n tiles.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent.benchmarks.maze_walks import NEVER
from lssvwm.agent.build import build_env
from lssvwm.agent.config.composition import to_dict
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import replacing
from lssvwm.agent.processes import Workers
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv, HasLayout
from torch import Tensor

NEAR = 0.5
"""Distance below which two positions are the same place, in tiles."""
AIMED = np.radians(20)
"""Difference below which two headings show the same view, in radians."""
WALKER, WALKER_SEED = "walk", 0
"""Explorer of the walks, and its seed; the seed of the episode varies."""
ARRAYS = ("frames", "action", "pose", "objects", "layout")


@dataclass(frozen=True)
class PoseWalk:
    """Hold one recorded walk.

    frames uint8 [T, 3, H, W]
    action int64 [T]: the action that led to the frame
    pose float32 [T, 3]: heading in radians clockwise from up, position up and right in tiles
    objects float32 [T, K, 2]: all objects from the agent, right and ahead, in tiles
    layout bool [n, n]: floor
    """

    frames: np.ndarray
    action: np.ndarray
    pose: np.ndarray
    objects: np.ndarray
    layout: np.ndarray


@dataclass(frozen=True)
class Job:
    """Say which walk to record.

    back: frames after which the walker turns round and follows its way back; None: never
    """

    config: Config
    seed: int
    file: Path
    frames: int
    back: int | None = None


@dataclass(frozen=True)
class Segment:
    """Hold N walks of the same length, of which a model observes `context` frames."""

    frames: Tensor
    action: Tensor
    pose: Tensor
    context: int

    @classmethod
    def of(
        cls, walks: Sequence[PoseWalk], context: int, begin: int, end: int
    ) -> Segment:
        """Stack the frames `begin` to `end` of walks."""

        def stack(name: str) -> Tensor:
            parts = [getattr(walk, name)[begin:end] for walk in walks]
            return torch.from_numpy(np.stack(parts))

        return cls(stack("frames"), stack("action"), stack("pose"), context)


def check_environment(env: BatchedEnv, kind: str) -> None:
    """Raise UserError for an environment without the ground truth that probes need."""
    if not isinstance(env, HasLayout) or env.pose() is None:
        raise UserError(
            f"benchmark memorymaze needs env=memorymaze, not env={kind}: "
            "the layout and all objects must be known"
        )


def jobs(
    config: Config,
    folder: Path,
    seeds: np.ndarray,
    frames: int,
    back: int | None = None,
) -> list[Job]:
    """List the walks of these seeds, whose files lie below `folder`."""
    about = {"env": to_dict(config)["env"], "frames": frames, "back": back}
    text = json.dumps(about, sort_keys=True)
    name = f"{config.env.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    ending = ".npz" if back is None else "-back.npz"
    return [
        Job(config, seed, folder / name / f"{seed}{ending}", frames, back)
        for seed in map(int, seeds)
    ]


def record_missing(todo: Sequence[Job], processes: int) -> None:
    """Record the walks whose files do not exist, in several processes."""
    missing = [job for job in todo if not job.file.exists()]
    done = len(todo) - len(missing)
    progress = Progress("record", len(todo), "walks", done)
    alone = min(processes, len(missing)) <= 1
    work = partial(record, tick=progress.refresh) if alone else record
    with Workers(work, 1 if alone else processes) as workers:
        for _ in workers.run(missing, progress.refresh):
            progress.update(progress.done + 1)
    progress.close()


def record(job: Job, tick: Callable[[], None] = lambda: None) -> None:
    """Record one walk; `tick` is called after every frame."""
    env = build_env(job.config.env, 1)
    try:
        check_environment(env, job.config.env.kind)
        walk = _walk(env, job, tick)
    finally:
        env.close()
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.file) as draft:
        np.savez_compressed(draft, **{name: getattr(walk, name) for name in ARRAYS})


def _walk(env: Any, job: Job, tick: Callable[[], None]) -> PoseWalk:
    env.reset(np.zeros(1, np.int64), np.array([job.seed]))
    explorer = env.explorer(WALKER, WALKER_SEED)
    noted: list[tuple[np.ndarray, ...]] = []
    for t in range(job.frames):
        now = env.frames()[0], env.last_action()[0], env.pose()[0], env.objects()[0]
        noted.append(tuple(np.array(value) for value in now))
        if t + 1 == job.back:
            places = np.stack([pose[1:] for _, _, pose, _ in noted])
            explorer = env.way_back(places[None])
        env.step(explorer.act())
        tick()
    frames, action, pose, objects = (np.stack(values) for values in zip(*noted))
    return PoseWalk(frames, action, pose, objects, env.layout()[0])


def read_walk(job: Job) -> PoseWalk:
    """Read a recorded walk; raises UserError if its file is damaged."""
    try:
        with np.load(job.file, allow_pickle=False) as saved:
            return PoseWalk(**{name: saved[name] for name in ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(
            f"{job.file} is damaged: delete it to record it again"
        ) from None


def visit_age(pose: np.ndarray, context: int) -> np.ndarray:
    """Return frames since each pose after the context was last visited in it, int64 [T - context].

    pose [T, 3]. NEVER: the context has no frame of about the same position and heading. Frames after the context do
    not count, because the model imagines them.
    """
    later, earlier = pose[context:, None], pose[None, :context]
    apart = np.hypot(*np.moveaxis(later[..., 1:] - earlier[..., 1:], -1, 0))
    turned = np.abs((later[..., 0] - earlier[..., 0] + np.pi) % (2 * np.pi) - np.pi)
    same = (apart < NEAR) & (turned < AIMED)
    last = context - 1 - same[:, ::-1].argmax(1)
    age = np.arange(context, len(pose)) - last
    return np.where(same.any(1), age, NEVER)
