"""Build the tables of a report that no single result file holds."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from lssvwm.agent.evaluation.interventions import ARMS, describe_arm
from lssvwm.agent.evaluation.tables import (
    NONE,
    Grid,
    Row,
    difference_cell,
    gives_several_rewards,
    interval_cell,
    reward_cell,
)
from lssvwm.agent.report.collect import Result, RunData
from lssvwm.agent.report.reproduce import differences, result_command, train_command
from lssvwm.agent.run_folder import training_seconds

PACKAGES = ("lssvwm", "torch", "torchrl", "tensordict", "gymnasium", "numpy")
"""Packages whose versions a report shows."""


@dataclass(frozen=True)
class Measured:
    """Hold an evaluation and its run."""

    run: RunData
    result: Result

    @property
    def place(self) -> str:
        """Return the folder of the evaluation in that of its run, or its file."""
        file = self.result.path.relative_to(self.run.folder)
        in_folder = file.stem == "evaluation" and len(file.parts) > 1
        return str(file.parent if in_folder else file.with_suffix(""))

    @property
    def name(self) -> str:
        """Return the name of the run, and the place if the run has several evaluations."""
        several = len(self.run.evaluations) > 1
        return f"{self.run.label}, {self.place}" if several else self.run.label

    @property
    def arms(self) -> dict[str, Row]:
        """Return the results of every arm."""
        return self.result.found["arms"]

    @property
    def changes(self) -> list[str]:
        """Return the settings in which it differs from its run."""
        stored = self.result.found.get("settings") or {}
        return differences(self.run.config, stored) if self.run.config else []

    @property
    def outdated(self) -> bool:
        """Return whether the run has other weights than those that were measured."""
        measured = self.result.origin.get("weights")
        return bool(self.run.weights and measured and measured != self.run.weights)

    def score(self, arm: str) -> str:
        """Return success, or reward, of an arm with its interval."""
        row = self.arms.get(arm)
        if row is None:
            return NONE
        several = gives_several_rewards(self.arms)
        return reward_cell(row) if several else interval_cell(row["success"], 2)


def measured(runs: Sequence[RunData]) -> list[Measured]:
    """Return the evaluations of all runs."""
    return [Measured(run, result) for run in runs for result in run.evaluations]


def memory_grid(evaluations: Sequence[Measured]) -> Grid | None:
    """Build the table of success with memory and without; None without such arms."""
    arms = [arm for arm in ARMS if any(arm in one.arms for one in evaluations)]
    arms = [arm for arm in arms if arm not in ("retained", "policy")]
    shown = [one for one in evaluations if "retained" in one.arms]
    if not arms or not shown:
        return None
    header = ["evaluation", describe_arm("retained")]
    for arm in arms:
        header += [describe_arm(arm), "difference, paired"]
    grid = Grid("The same tasks with the memory kept, and with it changed", [header])
    for one in shown:
        cells = [one.name, one.score("retained")]
        for arm in arms:
            gap = one.arms.get(arm, {}).get("retained_minus_this")
            cells += [one.score(arm), difference_cell(gap)]
        grid.rows.append(cells)
    return grid


def timing_grid(runs: Sequence[RunData]) -> Grid:
    """Build the table of training times, and of time and memory of decisions."""
    header = ["run", "steps", "training", "a step", "a decision", "memory"]
    grid = Grid("Times and sizes", [header])
    for run in runs:
        retained = [one.found["arms"].get("retained") for one in run.evaluations]
        row = next((row for row in retained if row), None)
        pace, size = NONE, NONE
        if row is not None:
            pace = f"{1000 * row['seconds_per_decision']:.1f} ms"
            size = f"{row['memory_bytes'] / 1024:,.0f} KiB"
        grid.rows.append([run.label, *_training_cells(run), pace, size])
    return grid


def trained(run: RunData) -> str:
    """Return steps and time of the training in words."""
    steps, time, _ = _training_cells(run)
    return f"{steps} steps" if time == NONE else f"{steps} steps in {time}"


def _training_cells(run: RunData) -> list[str]:
    """Return steps, training time and seconds of a step, as the log has them."""
    steps = sum(rows[-1]["step"] for rows in run.logs)
    total, pace = 0.0, []
    for rows in run.logs:
        rows = [row for row in rows if "time" in row]
        times = np.diff([row["time"] for row in rows])
        counts = np.diff([row["step"] for row in rows])
        total += training_seconds(rows)
        pace += (times[counts > 0] / counts[counts > 0]).tolist()
    if not pace:
        return [f"{steps:,}" if steps else NONE, NONE, NONE]
    return [f"{steps:,}", duration(total), f"{np.median(pace):.3f} s"]


def duration(seconds: float) -> str:
    """Write a duration as hours and minutes, or as minutes and seconds."""
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds % 60:02.0f} s"


def version_grid() -> Grid:
    """Build the table of the versions with which the report is written."""
    rows = [[name, version(name)] for name in PACKAGES]
    machine = f"{platform.system()} {platform.machine()}"
    rows += [["Python", platform.python_version()], ["system", machine]]
    return Grid("Versions that wrote this page", [["package", "version"], *rows])


def origin_grid(runs: Sequence[RunData]) -> Grid:
    """Build the table of version, date and weights of every result."""
    header = ["result", "weights", "version", "date"]
    grid = Grid("Origin of the results", [header])
    for run in runs:
        grid.rows.append([f"{run.label}, weights of the run", run.weights or NONE])
        grid.rows[-1] += [NONE, NONE]
        origins = {result.path: result.origin for result in run.evaluations}
        origins |= {result.path: result.origin for result in run.benchmarks}
        origins |= {video.path: video.about.get("origin") or {} for video in run.videos}
        for path, origin in origins.items():
            name = f"{run.label}, {path.relative_to(run.folder)}"
            values = [str(origin.get(key) or NONE) for key in header[1:]]
            grid.rows.append([name, *values])
    return grid


def commands(run: RunData) -> list[str]:
    """Return the commands that reproduce a run and its results."""
    if run.config is None:
        return []
    config = run.config
    attempts: list[Callable[[], str | None]] = []
    if run.logs:
        attempts.append(lambda: train_command(config, run.folder))
    for result in run.evaluations:
        found = result.found
        attempts.append(lambda found=found: result_command("evaluate", config, found))
    for video in run.videos:
        about = video.about
        attempts.append(lambda about=about: result_command("record", config, about))
    written = [attempt() for attempt in attempts]
    return list(dict.fromkeys(line for line in written if line))
