"""Record videos of imagined and real frames, with their data: `lssvwm record`.

- `open_loop`: the model observes the context, then imagines along the executed actions
- `plan`: the planner's imagined plans, and the frames that followed
- `counterfactuals`: several plans from one memory, each imagined and carried out in a copy
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.settings import RecordRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.evaluation.origin import Origin, used_settings
from lssvwm.agent.files import finite, locked, replacing
from lssvwm.agent.mpc import Agent
from lssvwm.agent.progress import Progress
from lssvwm.agent.video import encoding
from lssvwm.agent.video.counterfactuals import (
    Comparison,
    CounterfactualPainter,
    record_counterfactuals,
)
from lssvwm.agent.video.episode import (
    Episode,
    EpisodeRecorder,
    record_open_loop,
    record_plan,
)
from lssvwm.agent.video.rendering import CONTEXT, IMAGINED, Painter, Scene
from lssvwm.envs.base import Discrete

FORMAT_VERSION = 2
"""Format of the data file of a video. Format 1 has no `format_version`, and `branches`."""
GIF_SAMPLES = 12
"""Pictures from which the colours of a GIF are chosen."""


@dataclass(frozen=True)
class Recording:
    """Hold a recorded episode; `comparison` is that of mode `counterfactuals`."""

    episode: Episode
    scenes: list[Scene]
    decisions: list[dict[str, Any]]
    comparison: Comparison | None = None

    def painter(self, scale: int, title: str) -> Painter | CounterfactualPainter:
        """Return what draws the pictures."""
        if self.comparison is not None:
            return CounterfactualPainter(self.comparison, scale, title)
        return Painter(self.scenes, scale, title)


def record_episode(
    config: RecordRunConfig, agent: Agent, episode: Episode
) -> Recording:
    """Record one episode in `record.mode`."""
    mode = config.record.mode
    tracks_pose = mode == "counterfactuals"
    recorder = EpisodeRecorder(
        config.record, agent, episode, config.seed, tracks_pose=tracks_pose
    )
    comparison = None
    if mode == "open_loop":
        record_open_loop(recorder)
    elif mode == "plan":
        record_plan(recorder)
    else:
        comparison = record_counterfactuals(recorder)
    return Recording(episode, recorder.scenes, recorder.decisions, comparison)


def record(config: RecordRunConfig, output: Path) -> list[Path]:
    """Record held-out tasks into the folder `output`; return the files of all tasks.

    Each task has MP4, JSON, PNG and, with `record.gif`, GIF.
    Raises UserError for settings that cannot be recorded or a checkpoint that does not fit.
    Raises OSError if a file cannot be written completely; then it does not exist.
    """
    if config.checkpoint is None:
        raise UserError("record needs checkpoint=NAME_OR_FOLDER")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(config.checkpoint, config.device, config.backend)
    origin = Origin.of(config.checkpoint)
    env = build_env(config.env, 1)
    seeds = task_seeds(config.tasks.seed, config.record.episodes)
    walk_seed = int(seeds[0]) % 2**31
    _make_folder(output)
    progress = Progress("record", len(seeds), "videos")
    paths = []
    with locked(output):
        for index, seed in enumerate(seeds.tolist()):
            agent = build_agent(config, model, env)
            recording = record_episode(config, agent, Episode(env, seed, walk_seed))
            data = describe(config, recording, origin, index, seed)
            base = output / f"{config.record.mode}-{index}"
            paths += save(config, recording, data, base)
            progress.update(index + 1)
    progress.close()
    return paths


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{error.strerror}; choose another output="
        raise UserError(f"cannot write videos into {output}: {reason}") from None


def save(
    config: RecordRunConfig, recording: Recording, data: dict[str, Any], base: Path
) -> list[Path]:
    """Write video, data, still and GIF as `base` with their suffixes; return the files."""
    shown = config.record
    mode = shown.mode.replace("_", " ")
    title = f"{mode}   {config.env.kind}   task {data['task']['index']}"
    painter = recording.painter(shown.scale, title)
    video = base.with_name(f"{base.name}.mp4")
    encoding.write_mp4(video, painter.pictures(), painter.size, shown.fps)
    still = base.with_name(f"{base.name}.png")
    encoding.write_png(still, painter.draw(painter.still))
    text = base.with_name(f"{base.name}.json")
    with replacing(text) as part:
        part.write_text(
            json.dumps(finite(data), indent=1, default=str, allow_nan=False)
        )
    written = [video, text, still]
    if shown.gif:
        gif = base.with_name(f"{base.name}.gif")
        count = min(len(painter), GIF_SAMPLES)
        places = np.linspace(0, len(painter) - 1, count).astype(int)
        samples = [painter.draw(place) for place in places]
        encoding.write_gif(gif, painter.pictures(), shown.fps, samples)
        written.append(gif)
    return written


def describe(
    config: RecordRunConfig, recording: Recording, origin: Origin, index: int, seed: int
) -> dict[str, Any]:
    """Return the content of a video as plain data."""
    episode, scenes = recording.episode, recording.scenes
    actions = episode.env.actions
    plans = recording.comparison.plans if recording.comparison else []
    kinds = [scene.kind for scene in scenes]
    return {
        "format_version": FORMAT_VERSION,
        "mode": config.record.mode,
        "origin": dataclasses.asdict(origin),
        "settings": used_settings(config),
        "checkpoint": config.checkpoint,
        "environment": vars(config.env),
        "task": {"index": index, "seed": seed, "tasks_seed": config.tasks.seed},
        "action_names": list(actions.names) if isinstance(actions, Discrete) else None,
        "outcome": episode.outcome(),
        "success": bool(episode.env.truth()["success"][0]),
        "total_reward": sum(scene.reward for scene in scenes),
        "context_frames": kinds.count(CONTEXT),
        "imagined_frames": kinds.count(IMAGINED),
        "mean_psnr": {kind: mean_psnr(scenes, kind) for kind in (CONTEXT, IMAGINED)},
        "decisions": recording.decisions,
        "counterfactuals": [plan.describe(episode) for plan in plans],
        "frames": [_row(scene) for scene in scenes],
    }


def mean_psnr(scenes: Sequence[Scene], kind: str) -> float | None:
    """Return the mean PSNR in dB of predicted frames of one kind; None without any."""
    qualities = [scene.psnr for scene in scenes if scene.kind == kind]
    known = [quality for quality in qualities if quality is not None]
    return round(sum(known) / len(known), 3) if known else None


def _row(scene: Scene) -> dict[str, Any]:
    return {
        "step": scene.step,
        "kind": scene.kind,
        "action": scene.taken,
        "action_name": scene.action,
        "reward": scene.reward,
        "predicted_reward": _significant(scene.predicted),
        "predicted_continue": _rounded(scene.goes_on, 5),
        "psnr": _rounded(scene.psnr, 3),
        "predicted_from_step": scene.known_to,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _significant(value: float | None) -> float | None:
    """Return a reward with 6 significant digits, because it may have any scale."""
    return None if value is None else float(f"{value:.6g}")
