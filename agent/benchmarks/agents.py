"""Compare agents of other libraries with this package: `lssvwm benchmark agents experiment=NAME`.

Every agent trains in the experiment's environment, on the same machine, for the same hours and from several seeds.
All are tested EVALUATIONS times on the held-out tasks of the experiment, by the rules of `lssvwm evaluate`.
Runs of this package are tested after each of their stages.

A new agent needs a `Learner` and an entry in LEARNERS.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks.seed_runs import AGAIN, check, measured, spread
from lssvwm.agent.build import build_env
from lssvwm.agent.config import composition
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig, Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import plots, results, tables
from lssvwm.agent.evaluation.evaluate import (
    BLOCK,
    Play,
    Player,
    balanced_seeds,
    measure,
    split,
    summary,
)
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.evaluation.results import Outcome
from lssvwm.agent.files import locked, read_json, read_json_lines
from lssvwm.agent.progress import Progress, announce
from lssvwm.agent.run_folder import saved_config, training_seconds
from lssvwm.envs.base import BatchedEnv

RESULT = "agents.json"
EVALUATIONS = 10
"""Tests of every agent, after equal parts of the hours."""
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
"""Functions that read each clock, in seconds."""
OURS = "lssvwm"
"""Name of this package's agent in the results."""

Row = dict[str, Any]


class Learner(Protocol):
    """Learn in the environment of an experiment, and act in others.

    frames: frames of the environment in training so far
    """

    @property
    def frames(self) -> int: ...

    def update(self, show: Callable[[], None]) -> None:
        """Take the least amount of training after which weights are consistent.

        `show` shows progress, and has to be called every few seconds.
        """
        ...

    def player(self, batch: int) -> Player:
        """Return a player of `batch` tasks with the present weights."""
        ...

    def close(self) -> None:
        """Free what the environments hold."""
        ...


def _recurrent_ppo(config: Config) -> Learner:
    from lssvwm.agent.benchmarks.recurrent_ppo import RecurrentPPOLearner

    return RecurrentPPOLearner(config)


LEARNERS: dict[str, Callable[[Config], Learner]] = {"recurrent_ppo": _recurrent_ppo}
"""Functions that build the agents of other libraries, by name."""


def agents(settings: list[str], output: Path) -> Path:
    """Train and test the agents that are missing, and summarise all; returns the JSON file."""
    base = compose(settings, BenchmarkRunConfig)
    if base.threads:
        torch.set_num_threads(base.threads)
    runs = run_folders(base)
    hours = budget(base, runs)
    with locked(output):
        done: list[Path] = []
        for seed in base.benchmark.seeds:
            config = dataclasses.replace(base, seed=seed)
            for name in LEARNERS:
                done.append(_train(config, name, hours, output))
                _save(base, done, output)
        for run in runs:
            done.append(_test_run(base, run, output))
            _save(base, done, output)
        found = results.read(output / RESULT)
        plots.plot_agents(found, output / "agents.png")
        tables.publish([tables.agents_grid(found)], output / "agents.md")
    return output / RESULT


def run_folders(base: BenchmarkRunConfig) -> list[Path]:
    """Return the folders of the runs to compare with.

    A folder of `lssvwm benchmark seeds` stands for all its runs.
    Raises UserError for a folder without a run of this experiment.
    """
    found: list[Path] = []
    for name in base.benchmark.runs:
        folder = Path(name).expanduser()
        runs = sorted(folder.glob("seed-*")) or [folder]
        for run in runs:
            if not check(base, run):
                raise UserError(f"benchmark.runs: there is no run in {run}")
        found += runs
    return found


def budget(base: BenchmarkRunConfig, runs: Sequence[Path]) -> float:
    """Return the hours of training of each agent; raises UserError if nothing sets them."""
    if base.benchmark.hours is not None:
        return base.benchmark.hours
    if not runs:
        raise UserError(
            "for how long? e.g. benchmark.hours=0.5, or benchmark.runs=[runs/tmaze] "
            "for the hours of a run"
        )
    return float(np.mean([_stages(run)[-1][1] for run in runs]))


# ---- agents of other libraries


def _train(config: BenchmarkRunConfig, name: str, hours: float, output: Path) -> Path:
    """Train and test one agent, unless its file exists; returns the file."""
    file = output / f"{name}-{config.seed}.json"
    clock = config.benchmark.clock
    spent = {"hours": hours, "clock": clock, "threads": config.threads}
    settings = _task_settings(config) | spent
    if measured(file, settings):
        return file
    learner = LEARNERS[name](config)
    tasks = HeldOut(config)
    seconds = 3600 * hours
    course = Course(learner, clock, f"{name} seed {config.seed}", seconds)
    points = []
    try:
        for part in range(1, EVALUATIONS + 1):
            course.train(seconds * part / EVALUATIONS)
            point = course.spent() | tasks.play(learner.player)
            points.append(point)
            course.announce(point)
    finally:
        course.close()
        learner.close()
        tasks.close()
    found = {"agent": name, "seed": config.seed, "settings": settings}
    results.write_json(file, found | {"tasks": tasks.listed, "points": points})
    return file


class Course:
    """Train a learner, count its seconds without the tests, and show its progress."""

    def __init__(self, learner: Learner, clock: str, label: str, seconds: float):
        self.learner = learner
        self.clock = clock
        self.label = label
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self.progress = Progress(label, round(seconds), "seconds")

    def train(self, until: float) -> None:
        """Train until `until` seconds of training are spent in all, or a little longer."""
        while self.seconds[self.clock] < until:
            began = {name: clock() for name, clock in CLOCKS.items()}
            before = self.seconds[self.clock] - began[self.clock]
            self.learner.update(lambda before=before: self._show(before))
            for name, clock in CLOCKS.items():
                self.seconds[name] += clock() - began[name]

    def _show(self, before: float) -> None:
        """Show progress; `before` is what the seconds so far exceed the clock by."""
        present = before + CLOCKS[self.clock]()
        self.progress.update(int(present), f"{self.learner.frames:,} frames")

    def spent(self) -> Row:
        """Return hours and frames of training so far."""
        return {
            "hours": self.seconds[self.clock] / 3600,
            "wall_hours": self.seconds["wall"] / 3600,
            "cpu_hours": self.seconds["cpu"] / 3600,
            "frames": self.learner.frames,
        }

    def announce(self, point: Row) -> None:
        """Write a line with the results of a test."""
        success, reward = point["success"]["mean"], point["reward"]
        spent = f"{point['hours']:.3f} hours, {point['frames']:,} frames"
        announce(f"{self.label}: {spent}, success {success:.2f}, reward {reward:.2f}")

    def close(self) -> None:
        """End the line of progress."""
        self.progress.close()


class HeldOut:
    """Hold the held-out tasks of an experiment, which `lssvwm evaluate` plays, too."""

    def __init__(self, config: Config):
        self.config = config
        count = config.tasks.count
        self.envs: dict[int, BatchedEnv] = {}
        self.seeds = balanced_seeds(
            self._env(min(BLOCK, count)), config.tasks.seed, count
        )
        self.listed: Row = {}

    def _env(self, batch: int) -> BatchedEnv:
        if batch not in self.envs:
            self.envs[batch] = build_env(self.config.env, batch)
        return self.envs[batch]

    def play(self, make_player: Callable[[int], Player]) -> Row:
        """Play all tasks; returns success and reward.

        Random numbers of the players start from the seed of the tasks.
        """
        progress = Progress("evaluate", len(self.seeds), "tasks", patience=8.0)
        parts = []
        with torch.random.fork_rng():
            torch.manual_seed(self.config.tasks.seed)
            for block in split("", self.seeds):
                batch = len(block.seeds)
                play = Play(
                    self._env(batch), block.seeds, lambda n=batch: make_player(n)
                )
                parts.append(play.run(progress))
                progress.update(progress.done + batch)
        progress.close()
        return self._summary(Outcome.cat(parts))

    def _summary(self, outcome: Outcome) -> Row:
        found = summary(self.config, {"agent": outcome}).to_dict()
        self.listed = found["tasks"]
        return _point(found["arms"]["agent"])

    def close(self) -> None:
        """Free what the environments hold."""
        for env in self.envs.values():
            env.close()


def _task_settings(config: Config) -> Row:
    """Return the settings of environment and tasks that results depend on."""
    tasks = {"seed": config.tasks.seed, "count": config.tasks.count}
    return {"env": composition.to_dict(config)["env"], "tasks": tasks}


def _point(arm: Row) -> Row:
    kept = ("n", "success", "wrong", "timeout", "reward", "reward_error", "steps")
    return {key: arm[key] for key in kept}


# ---- runs of this package


def _test_run(base: Config, run: Path, output: Path) -> Path:
    """Test every stage of a run, unless its file exists; returns the file."""
    saved = saved_config(run)
    plain = composition.to_dict(base)
    planning = {key: plain[key] for key in ("planner", "objective", "mpc")}
    settings = _task_settings(base) | planning | {"weights": weights_hash(run)}
    file = output / f"{OURS}-{saved.seed}.json"
    if measured(file, settings):
        return file
    points = []
    listed: Row = {}
    for folder, hours, frames in _stages(run):
        print(f"test {folder}")
        model = checkpoint.load(folder, base.device, base.backend)
        found = summary(base, measure(base, model, ("retained",))).to_dict()
        listed = found["tasks"]
        spent = {"hours": hours, "frames": frames}
        points.append(spent | _point(found["arms"]["retained"]))
    found = {"agent": OURS, "seed": saved.seed, "settings": settings}
    results.write_json(file, found | {"tasks": listed, "points": points})
    return file


def _stages(run: Path) -> list[tuple[Path, float, int]]:
    """Return each stage of a run, with hours and frames of training until its end."""
    found = []
    hours = 0.0
    frames = 0
    for folder in checkpoint.stage_folders(run) or [run]:
        hours += stage_seconds(folder) / 3600
        frames += collected_frames(saved_config(folder))
        found.append((folder, hours, frames))
    return found


def stage_seconds(folder: Path) -> float:
    """Return the seconds that a stage took, the first collection of frames included.

    The collection begins when the settings are written. The time is lost if the run was resumed or copied.
    """
    rows = read_json_lines(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder} has no training to compare with: its log is empty")
    before = rows[0]["time"] - (folder / checkpoint.CONFIG).stat().st_mtime
    return training_seconds(rows) + max(0.0, before)


def collected_frames(config: Config) -> int:
    """Return the frames that a run with these settings collects."""
    collect = config.train.collect
    rounds = (config.train.steps - 1) // collect.every if collect.every else 0
    return collect.frames + rounds * collect.more


# ---- results


def _save(base: BenchmarkRunConfig, files: Sequence[Path], output: Path) -> None:
    """Write the summary of all results so far."""
    runs = [read_json(file, AGAIN) for file in files]
    results.write_json(output / RESULT, summarise(base, runs))


def summarise(base: BenchmarkRunConfig, runs: Sequence[Row]) -> Row:
    """Return success of every agent by test: mean and interval over seeds.

    Raises UserError for results on different tasks.
    """
    lists = {run["tasks"]["hash"] for run in runs}
    if len(lists) > 1:
        raise UserError(f"the output holds results on different tasks: {AGAIN}")
    rows = []
    for name in dict.fromkeys(run["agent"] for run in runs):
        mine = [run for run in runs if run["agent"] == name]
        for points in zip(*(run["points"] for run in mine)):
            rows.append({"agent": name} | _mean_point(points))
    return {
        "format_version": results.FORMAT_VERSION,
        "command": f"lssvwm benchmark agents experiment={base.name}",
        "name": base.name,
        "settings": composition.to_dict(base),
        "tasks": runs[0]["tasks"],
        "rows": rows,
        "runs": list(runs),
    }


def _mean_point(points: Sequence[Row]) -> Row:
    """Average one test over seeds."""
    return {
        "n": points[0]["n"],
        "hours": float(np.mean([point["hours"] for point in points])),
        "frames": round(float(np.mean([point["frames"] for point in points]))),
        "success": spread([point["success"]["mean"] for point in points]),
        "reward": spread([point["reward"] for point in points]),
    }
