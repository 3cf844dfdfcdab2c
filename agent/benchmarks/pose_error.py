"""Measure how far the pose that a model estimates drifts: `lssvwm benchmark pose checkpoint=RUN`.

Explorers of `train.collect.mix` walk through held-out episodes, and the model observes them. After so many frames, the
estimated position is compared with the true one, both relative to the start and to its heading. Positions of models
that integrate motions of their own are in tokens. One factor for all walks turns these into tiles.

Shapes: N walks, T frames.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_env
from lssvwm.agent.config.composition import collecting
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.evaluation.origin import Origin, used_settings
from lssvwm.agent.evaluation.statistics import gain
from lssvwm.agent.progress import Progress
from lssvwm.agent.training.sources import OWN
from lssvwm.envs.base import BatchedEnv
from lssvwm.worldmodel import Memory, WorldModel, memory_map
from lssvwm.worldmodel.mixers.path_integrator import rotate2d
from torch import Tensor

RESULT = "pose.json"
USED = ("walks", "contexts")
"""Settings of section `benchmark` that results depend on."""
PIECE = 32
"""Frames observed at once."""
SHORTEST = 1.0
"""Tiles that an agent must have walked for its error to count."""

Row = dict[str, Any]


class Drift(NamedTuple):
    """Hold estimated and true poses after some frames."""

    estimated: Tensor
    """[N, 3], relative to the start"""

    true: Tensor
    """[N, 3], relative to the start"""

    walked: Tensor
    """Length of each walk, [N]"""

    std: Tensor | None
    """Standard deviations that the model reports, [N, 3]"""


def pose(config: BenchmarkRunConfig, output: Path) -> Path:
    """Measure the drift after every number of frames in `benchmark.contexts`; returns the JSON file.

    Raises UserError for an environment or a model without poses, and for episodes that are too short.
    """
    assert config.checkpoint is not None
    model = checkpoint.load(config.checkpoint, config.device, config.backend)
    if not memory_map.has_map(model) or model.config.pose == "given":
        raise UserError(
            "this model estimates no pose: train it with model.pose=learned"
        )
    drifts: dict[int, list[Drift]] = {n: [] for n in sorted(config.benchmark.contexts)}
    for env, name in _walkers(config):
        with closing(env):
            walkers = Walkers(config, env, name)
            for frames, drift in walkers.followed(model, tuple(drifts)):
                drifts[frames].append(drift)
    rows = [_row(n, parts, model) for n, parts in drifts.items()]
    found = {
        "format_version": results.FORMAT_VERSION,
        "command": f"lssvwm benchmark pose checkpoint={config.checkpoint}",
        "origin": dataclasses.asdict(Origin.of(config.checkpoint)),
        "settings": used_settings(config, USED),
        "rows": rows,
    }
    results.write_json(output / RESULT, found)
    tables.publish([tables.pose_grid(found)], output / "pose.md")
    return output / RESULT


def _walkers(config: BenchmarkRunConfig) -> Iterator[tuple[BatchedEnv, str]]:
    """Build environments for each explorer of the mix, in the proportions of the mix."""
    mix = collecting(config, begins=False).train.collect.mix
    for name, share in mix.items():
        count = round(config.benchmark.walks * share / sum(mix.values()))
        if name in OWN or not count:
            continue
        env = build_env(config.env, count)
        if env.pose() is None:
            env.close()
            raise UserError(f"env={config.env.kind} has no poses to compare with")
        yield env, name


class Walkers:
    """Walk as one explorer does, until episodes end."""

    def __init__(self, config: BenchmarkRunConfig, env: BatchedEnv, name: str):
        self.env = env
        self.name = name
        env.reset(np.arange(env.batch), task_seeds(config.tasks.seed, env.batch))
        self.explorer = env.explorer(name, config.seed)
        self.start = self.pose = self._true_pose()
        self.walked = torch.zeros(env.batch)
        """Tiles walked, [N]"""
        self.running = np.ones(env.batch, bool)

    def followed(
        self, model: WorldModel, counts: tuple[int, ...]
    ) -> Iterator[tuple[int, Drift]]:
        """Let a model observe; yield the drift after each number of frames.

        Only running episodes count.
        """
        memory = model.initial(self.env.batch)
        progress = Progress(f"walk: {self.name}", counts[-1], "frames")
        observed = 0
        while observed < counts[-1]:
            upto = min(observed + PIECE, *(n for n in counts if n > observed))
            memory = self._observe(model, memory, upto - observed, observed == 0)
            observed = upto
            progress.update(observed)
            if observed in counts and self.running.any():
                yield observed, self._drift(model, memory)
        progress.close()

    @torch.no_grad()
    def _observe(
        self, model: WorldModel, memory: Memory, count: int, begins: bool
    ) -> Memory:
        """Observe `count` further frames; the first of an episode follows no step."""
        frames, actions = [], []
        for number in range(count):
            if number or not begins:
                self._step()
            frames.append(np.array(self.env.frames()))
            actions.append(self.env.last_action())
        seen = (torch.from_numpy(np.stack(rows, 1)) for rows in (frames, actions))
        pixels, action = (v.to(model.device) for v in seen)
        first = torch.zeros(pixels.shape[:2], dtype=torch.bool, device=model.device)
        first[:, 0] = begins
        return model.observe(memory, pixels, action, first)[0]

    def _step(self) -> None:
        step = self.env.step(self.explorer.act())
        self.running &= ~(step.terminated | step.truncated)
        pose = self._true_pose()
        self.walked = self.walked + (pose - self.pose)[:, 1:].norm(dim=1)
        self.pose = pose

    def _true_pose(self) -> Tensor:
        pose = self.env.pose()
        assert pose is not None
        return torch.from_numpy(np.array(pose))

    def _drift(self, model: WorldModel, memory: Memory) -> Drift:
        std = memory_map.pose_std(model, memory)
        running = torch.from_numpy(self.running)
        return Drift(
            memory_map.agent_pose(model, memory).cpu()[running],
            _relative(self.pose, self.start)[running],
            self.walked[running],
            None if std is None else std.cpu()[running],
        )


def _relative(pose: Tensor, start: Tensor) -> Tensor:
    """Return poses [N, 3] as seen from others."""
    moved = pose - start
    return torch.cat((moved[:, :1], rotate2d(moved[:, 1:], -start[:, :1])), 1)


def _row(frames: int, parts: list[Drift], model: WorldModel) -> Row:
    """Summarise the drift after so many frames; raises UserError if no episode has as many."""
    if not parts:
        raise UserError(
            f"no episode has {frames} frames: lower benchmark.contexts, or lengthen "
            "episodes by a setting of env"
        )
    estimated, true, walked, *std = (
        torch.cat(values) for values in zip(*parts) if values[0] is not None
    )
    factor = 1.0
    if model.motion is None:  # in tokens
        size = estimated[:, 1:].square().sum().clamp_min(1e-9)
        factor = float((estimated[:, 1:] * true[:, 1:]).sum() / size)
    missed = (factor * estimated - true)[:, 1:].norm(dim=1)
    turned = torch.remainder(estimated - true + math.pi, 2 * math.pi)[:, 0] - math.pi
    counted = walked > SHORTEST
    share = missed[counted] / walked[counted]
    row: Row = {
        "frames": frames,
        "walks": len(walked),
        "tiles_walked": float(walked.mean()),
        "error": float(missed.mean()),
        "error_per_tile": gain(share.numpy(), np.zeros(len(share))),
        "heading_error": math.degrees(float(turned.abs().mean())),
        "factor": factor,
    }
    if std:
        row["expected_error"] = float(std[0][:, 1:].norm(dim=1).mean())
    return row
