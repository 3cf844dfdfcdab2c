"""Collect what the folders of runs hold, for a report.

Everything in these folders is data from elsewhere. A file that cannot be read becomes a line of `problems`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lssvwm.agent.checkpoint import CONFIG, stage_folders
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import Config
from lssvwm.agent.config.validation import build
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.evaluation.tables import Grid, Row
from lssvwm.agent.files import read_json_lines

T = TypeVar("T")

METRICS = "metrics.jsonl"
BENCHMARKS: dict[str, Callable[[Row], list[Grid]]] = {
    "memory": tables.memory_grids,
    "memorymaze": tables.memory_maze_grids,
    "recall": lambda found: [tables.success_grid(found)],
    "strategies": lambda found: [tables.success_grid(found)],
    "seeds": lambda found: [tables.seeds_grid(found)],
    "agents": lambda found: [tables.agents_grid(found)],
    "pose": lambda found: [tables.pose_grid(found)],
    "planning": tables.sweep_grids,
    "planners": lambda found: [tables.planner_grid(found)],
    "decide": lambda found: [tables.decision_grid(found)],
    "device": tables.device_grids,
}
"""Files of benchmarks by name, and what builds their tables."""


@dataclass(frozen=True)
class Result:
    """Hold a result file and its tables."""

    path: Path
    found: Row
    grids: list[Grid]

    @property
    def origin(self) -> Row:
        """Return version, date and weights of the result, as far as it has them."""
        return self.found.get("origin") or {}


@dataclass(frozen=True)
class Video:
    """Hold the file of a video, and its data."""

    path: Path
    about: Row


@dataclass
class RunData:
    """Hold what a folder has of a run.

    logs: rows of metrics.jsonl, one list for each stage
    weights: start of the SHA-256 of the weights
    problems: one line for each file that cannot be shown
    """

    folder: Path
    label: str
    config: Config | None = None
    logs: list[list[Row]] = field(default_factory=list)
    evaluations: list[Result] = field(default_factory=list)
    benchmarks: list[Result] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    weights: str | None = None
    problems: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[Path], T], path: Path) -> T | None:
        """Read a file; returns None and notes the problem if that fails in any way."""
        try:
            return read(path)
        except Exception as error:  # files of other versions fail in any way
            self.problems.append(f"{path} cannot be shown: {first_line(error)}")
            return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def collect(folder: Path) -> RunData:
    """Collect the results in a folder.

    It may be that of a run, of an evaluation, of videos or of benchmarks.
    Raises UserError if it holds none.
    """
    run = RunData(folder, folder.resolve().name)
    if (folder / CONFIG).is_file():
        run.config = run.attempt(_saved_settings, folder / CONFIG)
    run.logs = _logs(run)
    run.evaluations = _results(run, "evaluation*.json", tables.evaluation_grids)
    for name, build_grids in BENCHMARKS.items():
        run.benchmarks += _results(run, f"{name}.json", build_grids)
    run.videos = list(_videos(run))
    if run.config is None and run.evaluations:
        run.config = run.attempt(_settings_of, run.evaluations[0].path)
    try:
        run.weights = weights_hash(folder)
    except (UserError, OSError):  # a run that has no weights yet
        run.weights = None
    if not (run.config or run.logs or run.benchmarks or run.videos or run.problems):
        raise UserError(
            f"no results in {folder}: give folders of runs, e.g. lssvwm report runs/tmaze"
        )
    return run


def _logs(run: RunData) -> list[list[Row]]:
    """Read the log of the run, or those of its stages in order."""
    folders = [run.folder, *stage_folders(run.folder)]
    files = [folder / METRICS for folder in folders]
    logs = [run.attempt(_numbers, file) for file in files if file.is_file()]
    return [rows for rows in logs if rows]


def _numbers(file: Path) -> list[Row]:
    """Read the numbers in the rows of a log that have a step."""
    rows = [
        {key: value for key, value in row.items() if is_number(value)}
        for row in read_json_lines(file)
    ]
    return [row for row in rows if "step" in row]


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a finite number."""
    is_plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_plain and math.isfinite(value)


def _results(
    run: RunData, pattern: str, build_grids: Callable[[Row], list[Grid]]
) -> list[Result]:
    """Read the result files of one kind in the folder and directly below it."""

    def read(path: Path) -> Result:
        found = results.read(path)
        return Result(path, found, build_grids(found))

    read_files = [run.attempt(read, path) for path in _files(run.folder, pattern)]
    return [result for result in read_files if result is not None]


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield files in a folder and directly below it, without links to other places."""
    inside = folder.resolve()
    for path in (*sorted(folder.glob(pattern)), *sorted(folder.glob(f"*/{pattern}"))):
        if path.is_file() and path.resolve().is_relative_to(inside):
            yield path


def _videos(run: RunData) -> Iterator[Video]:
    for path in _files(run.folder, "*.mp4"):
        data = path.with_suffix(".json")
        about = run.attempt(results.read, data) if data.is_file() else None
        yield Video(path, about or {})


def _saved_settings(path: Path) -> Config:
    return build(Config, composition.read(path))


def _settings_of(path: Path) -> Config:
    """Return the settings that an evaluation has stored; the others are at their defaults."""
    stored: dict[str, Any] = results.read(path)["settings"]
    names = composition.to_dict(Config())
    return build(Config, {key: stored[key] for key in names if key in stored})
