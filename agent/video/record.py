"""Videos of imagination beside reality (`lssvwm record`), and everything in them as data.

    open_loop   the model observes the context, then follows the real actions in imagination alone
    plan        what the planner imagined of each plan it chose, beside what happened when it was followed
    branches    several plans imagined from one memory, each beside what happens when it is followed in a copy

The way of an episode: `Stage` (what happens) -> `Director` (what the model makes of it) -> scenes -> `film`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.settings import RecordConfig, RecordRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.mpc import Agent
from lssvwm.agent.progress import Progress
from lssvwm.agent.video import rendering as film
from lssvwm.agent.video.counterfactuals import (
    Branch,
    BranchPainter,
    Sketch,
    branches,
    sketch,
)
from lssvwm.agent.video.rendering import CONTEXT, IMAGINED, Painter, Scene, Strip
from lssvwm.envs.base import BatchedEnv, Discrete, HasMap
from lssvwm.worldmodel import Rollout
from lssvwm.worldmodel import memory_map as belief
from torch import Tensor

OUTCOMES = (
    "running",
    "success",
    "wrong",
    "timeout",
)  # by the number that `truth()["outcome"]` gives
FOLLOWED = (
    "oracle",
    "cells",
    "momentum",
    "random",
)  # whose actions open loop follows: the first offered
LIMIT = 1000  # frames filmed where an environment has neither context phase nor end


@dataclass(frozen=True)
class Moment:
    """A frame [C, H, W] of an episode and how it came about; `action` is the executed one."""

    step: int
    pixels: np.ndarray
    action: np.ndarray
    reward: float
    guided: bool
    ended: bool
    map: np.ndarray | None
    bearing: float | None = None  # which way the agent faces on the map


class Stage:
    """Episode `seed` of `env`, which has a batch of one; `walk_seed` is that of its scripted explorers."""

    def __init__(self, env: BatchedEnv, seed: int, walk_seed: int):
        self.env, self.step, self.reward, self.ended = env, 0, 0.0, False
        env.reset(np.zeros(1, np.int64), np.array([seed]))
        followed = next(
            name for name in (*FOLLOWED, *env.explorers) if name in env.explorers
        )
        self.guide, self.followed = (
            env.guide(walk_seed),
            env.explorer(followed, walk_seed),
        )

    def now(self) -> Moment:
        """The present moment."""
        env = self.env
        has_map = isinstance(env, HasMap)
        pixels, action, guided = (
            env.frames()[0].copy(),
            env.last_action()[0],
            bool(env.in_context()[0]),
        )
        drawn = env.top_view(0) if has_map else None
        bearing = env.bearing(0) if has_map else None
        return Moment(
            self.step,
            pixels,
            action,
            self.reward,
            guided,
            self.ended,
            drawn,
            bearing,
        )

    def scripted(self) -> np.ndarray:
        """What the guide does in the context, and the followed explorer after it: actions [1, ...]."""
        return (self.guide if self.env.in_context()[0] else self.followed).act()

    def act(self, action: np.ndarray) -> Moment:
        """Do `action` [1, ...] and return the moment it leads to."""
        reward, terminated, truncated = self.env.step(action)
        self.step, self.reward = self.step + 1, float(reward[0])
        self.ended = bool(terminated[0] | truncated[0])
        return self.now()

    def name(self, action: Any) -> str:
        """An action in words."""
        if isinstance(self.env.actions, Discrete):
            return self.env.actions.names[int(action)]
        return " ".join(f"{x:+.2f}" for x in np.ravel(action))

    def outcome(self) -> str:
        """How the episode stands, one of OUTCOMES."""
        return OUTCOMES[int(self.env.truth()["outcome"][0])]


@dataclass(frozen=True)
class Prediction:
    """Rollout frames uint8 [n, C, H, W], reward, cont [n]; the memory before them ends at `known_to`."""

    known_to: int
    frames: np.ndarray
    reward: np.ndarray
    cont: np.ndarray
    strip: Strip | None = None

    @classmethod
    def of(cls, future: Rollout, known_to: int) -> Prediction:
        """The only future of the only memory in `future`."""
        assert future.frames is not None
        frames, reward, cont = (
            v[0, 0].cpu().numpy() for v in (future.frames, future.reward, future.cont)
        )
        return cls(known_to, frames, reward, cont)


class Director:
    """Films one episode: shows the agent the frames, asks what it imagines, and keeps the scenes."""

    def __init__(self, config: RecordConfig, agent: Agent, stage: Stage, seed: int):
        self.config, self.agent, self.stage = config, agent, stage
        self.state = agent.initial(1)
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.scenes: list[Scene] = []
        self.decisions: list[dict[str, Any]] = []
        self.start: Moment | None = None
        self.branches: list[Branch] = []
        self.trail: list[Tensor] = []  # poses [3] that the memory took itself to be in
        self.sketch: Sketch | None = None

    def open_loop(self) -> None:
        """Observe the context, then imagine what the actions really taken lead to, until horizon or end."""
        moments = self._walk()
        known = self._context(moments)
        to_come = moments[known : known + self.config.horizon]
        for moment in moments[:known]:
            self._watch(moment)
        actions = torch.from_numpy(np.stack([moment.action for moment in to_come]))
        future = self._imagine(actions, known - 1)
        for moment in to_come:
            self._add(moment, IMAGINED, future)

    def _walk(self) -> list[Moment]:
        """The episode as far as it is needed, by scripted actions."""
        moments = [self.stage.now()]
        while not moments[-1].ended and len(moments) < self._enough(moments):
            moments.append(self.stage.act(self.stage.scripted()))
        return moments

    def _enough(self, moments: list[Moment]) -> int:
        """How many moments are needed, from those that are known."""
        if self.config.context:
            return self.config.context + self.config.horizon
        if not moments[0].guided:
            return LIMIT
        free = next((m.step for m in moments if not m.guided), moments[-1].step + 1)
        return free + 1 + self.config.horizon

    def _context(self, moments: list[Moment]) -> int:
        """How many moments are observed: as configured, or up to the first in which the agent may act."""
        guided = sum(moment.guided for moment in moments)
        known = self.config.context or (
            guided + 1 if guided else (len(moments) + 1) // 2
        )
        if known >= len(moments):
            setting = (
                f"record.context={self.config.context}"
                if self.config.context
                else "the context"
            )
            raise UserError(
                f"{setting} leaves nothing to imagine: an episode ended after {len(moments)} frames; "
                f"set record.context below {len(moments)}"
            )
        return known

    def _guided(self) -> Moment:
        """Observe the context phase; returns the moment from which the agent may act."""
        moment = self.stage.now()
        self._watch(moment)
        while not moment.ended and moment.guided:
            moment = self.stage.act(self.stage.guide.act())
            self._watch(moment)
        return moment

    def branch(self) -> None:
        """Observe the context, or let the agent act for `record.context` frames where there is none; then branch."""
        moment = self._guided()
        while not moment.ended and len(self.scenes) < self.config.context:
            action, self.state = self.agent.act(self.state)
            moment = self.stage.act(action.cpu().numpy())
            self._watch(moment)
        if moment.ended:
            raise UserError(
                f"record.context={self.config.context}: an episode ended before; set it lower"
            )
        fresh = replace(self.state, plan=None)
        _, state = self.agent.act(fresh)
        self.start = moment
        self.branches = branches(self.agent, state, self.stage, self.config.plans)
        if moment.bearing is not None:
            self.sketch = sketch(
                self.agent.model,
                state.memory,
                self.trail,
                self.branches,
                moment.bearing,
            )

    def plan(self) -> None:
        """Observe the context, then let the agent plan and act until the episode ends."""
        moment = self._guided()
        future, used, limit = None, 0, len(self.scenes) + LIMIT
        while not moment.ended and len(self.scenes) < limit:
            action, self.state = self.agent.act(self.state)
            if future is None or bool(self.state.replanned[0]):
                future, used = self._decide(moment.step), 0
            moment = self.stage.act(action.cpu().numpy())
            self._add(moment, IMAGINED, future)
            self._tell(moment)
            used += 1
            self.decisions[-1]["executed"] = used

    def _decide(self, step: int) -> Prediction:
        """Note the plan just made and what it was imagined to lead to."""
        plan = self.state.plan
        assert plan is not None
        actions = self.agent.objective.repeat_actions(plan.actions[None])[0, 0]
        future = self._imagine(actions, step)
        names = tuple(self.stage.name(action) for action in actions.cpu().numpy())
        self.decisions.append(
            {
                "step": step,
                "score": float(plan.score[0]),
                "actions": actions.tolist(),
                "action_names": list(names),
                "predicted_reward": _rounded(future.reward),
                "predicted_continue": _rounded(future.cont),
            }
        )
        return replace(
            future, strip=Strip(future.frames, names, tuple(future.reward.tolist()))
        )

    def _imagine(self, actions: Tensor, known_to: int) -> Prediction:
        """What actions [n, ...] lead to from the present memory."""
        actions = actions.to(self.agent.device)[None, None]
        with torch.no_grad():
            future = self.agent.model.imagine(
                self.state.memory,
                actions,
                denoising_steps=self.config.denoise,
                decode=True,
                generator=self.generator,
            )
        return Prediction.of(future, known_to)

    def _watch(self, moment: Moment) -> None:
        """Show the agent a frame of the context; what it expected one step before is kept beside it."""
        future = None
        if moment.step:
            future = self._imagine(
                torch.from_numpy(moment.action[None]), moment.step - 1
            )
        self._add(moment, CONTEXT, future)
        self._tell(moment)

    def _tell(self, moment: Moment) -> None:
        first = torch.tensor([moment.step == 0])
        frame, action = (
            torch.from_numpy(moment.pixels[None]),
            torch.from_numpy(moment.action[None]),
        )
        goals = self.stage.env.goals()
        goal = None if goals is None else torch.from_numpy(goals)
        self.state = self.agent.observe(self.state, frame, action, first, goal)
        if self.config.mode == "branches" and belief.has_map(self.agent.model):
            self.trail.append(belief.pose(self.agent.model, self.state.memory)[0])

    def _add(self, moment: Moment, kind: str, future: Prediction | None) -> None:
        """Keep a scene; `future` is the imagination that it is part of."""
        expected: dict[str, Any] = {}
        if future is not None:
            i = moment.step - future.known_to - 1
            expected = {
                "imagined": future.frames[i],
                "predicted": float(future.reward[i]),
                "goes_on": float(future.cont[i]),
                "known_to": future.known_to,
                "plan": future.strip,
            }
        scene = Scene(
            step=moment.step,
            kind=kind,
            real=moment.pixels,
            action=self.stage.name(moment.action) if moment.step else None,
            taken=moment.action.tolist() if moment.step else None,
            reward=moment.reward,
            map=moment.map,
            outcome=self.stage.outcome() if moment.ended else None,
            **expected,
        )
        self.scenes.append(scene)


def film_episode(config: RecordRunConfig, agent: Agent, stage: Stage) -> Director:
    """Film one episode in `record.mode`; the result has its scenes and decisions."""
    director = Director(config.record, agent, stage, config.seed)
    {
        "open_loop": director.open_loop,
        "plan": director.plan,
        "branches": director.branch,
    }[config.record.mode]()
    return director


def record(config: RecordRunConfig, output: Path) -> list[Path]:
    """Film held-out tasks; returns the files written into `output`: per task mp4, json, png, gif.

    Raises UserError for settings that cannot be filmed or a checkpoint that does not fit, OSError if a file
    cannot be written in full (it is then not there at all).
    """
    if config.checkpoint is None:
        raise UserError("record needs checkpoint=NAME_OR_FOLDER")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(config.checkpoint, config.device, config.backend)
    env = build_env(config, 1)
    seeds = task_seeds(config.tasks.seed, config.record.episodes)
    _make_folder(output)
    progress, paths = Progress("record", len(seeds), "videos"), []
    for index, seed in enumerate(seeds.tolist()):
        stage = Stage(env, seed, int(seeds[0]) % 2**31)
        director = film_episode(config, build_agent(config, model, env), stage)
        paths += save(config, director, index, seed, output)
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
    config: RecordRunConfig, director: Director, index: int, seed: int, output: Path
) -> list[Path]:
    """Write what was filmed as `output/<mode>-<index>` with .mp4, .json, .png and, if asked for, .gif."""
    shown, scenes = config.record, director.scenes
    title = f"{shown.mode.replace('_', ' ')}   {config.env.kind}   task {index}"
    if director.start:
        painter = BranchPainter(
            director.start, director.branches, shown.scale, title, director.sketch
        )
        at = painter.steps
    else:
        painter, at = Painter(scenes, shown.scale, title), middle(scenes)
    base = output / f"{shown.mode}-{index}"
    video, data, still = (
        base.with_name(f"{base.name}.{kind}") for kind in ("mp4", "json", "png")
    )
    film.write_mp4(video, painter.pictures(), painter.size, shown.fps)
    film.write_png(still, painter.draw(at))
    written = [video, data, still]
    if shown.gif:
        written.append(base.with_name(f"{base.name}.gif"))
        film.write_gif(written[-1], painter.pictures(), shown.fps)
    found = describe(config, director, index, seed)
    with film.replacing(data) as part:
        part.write_text(json.dumps(found, indent=1, default=str, allow_nan=False))
    return written


def middle(scenes: Sequence[Scene]) -> int:
    """The index of the scene in the middle of what was imagined."""
    imagined = [i for i, scene in enumerate(scenes) if scene.kind == IMAGINED]
    return imagined[len(imagined) // 2] if imagined else len(scenes) // 2


def describe(
    config: RecordRunConfig, director: Director, index: int, seed: int
) -> dict[str, Any]:
    """Everything that a video shows, as plain data."""
    stage, scenes = director.stage, director.scenes
    actions = stage.env.actions
    return {
        "mode": config.record.mode,
        "checkpoint": config.checkpoint,
        "environment": vars(config.env),
        "task": {"index": index, "seed": seed, "tasks_seed": config.tasks.seed},
        "action_names": list(actions.names) if isinstance(actions, Discrete) else None,
        "outcome": stage.outcome(),
        "success": bool(stage.env.truth()["success"][0]),
        "total_reward": sum(scene.reward for scene in scenes),
        "context_frames": sum(scene.kind == CONTEXT for scene in scenes),
        "imagined_frames": sum(scene.kind == IMAGINED for scene in scenes),
        "mean_psnr": {kind: mean_psnr(scenes, kind) for kind in (CONTEXT, IMAGINED)},
        "decisions": director.decisions,
        "branches": [branch.describe(stage) for branch in director.branches],
        "frames": [_row(scene) for scene in scenes],
    }


def mean_psnr(scenes: Sequence[Scene], kind: str) -> float | None:
    """Mean PSNR in dB of the predicted frames of one kind; None without any."""
    values = [
        scene.psnr for scene in scenes if scene.kind == kind and scene.psnr is not None
    ]
    return round(sum(values) / len(values), 3) if values else None


def _row(scene: Scene) -> dict[str, Any]:
    quality = scene.psnr
    return {
        "step": scene.step,
        "kind": scene.kind,
        "action": scene.taken,
        "action_name": scene.action,
        "reward": scene.reward,
        "predicted_reward": None
        if scene.predicted is None
        else round(scene.predicted, 5),
        "predicted_continue": None
        if scene.goes_on is None
        else round(scene.goes_on, 5),
        "psnr": None if quality is None else round(quality, 3),
        "predicted_from_step": scene.known_to,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
