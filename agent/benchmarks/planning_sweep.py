"""Measure planning success over settings of task, planner and model: `lssvwm benchmark planning`.

Every combination of the values in `benchmark.sweep` is a case.
Each case plays all of `tasks.arms` on the same held-out tasks, as `lssvwm evaluate` does.
The file of a case holds the outcome of every task.
It is written after each arm, so that a stopped sweep resumes there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_env
from lssvwm.agent.config.composition import from_checkpoint, given
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import plots, results, tables
from lssvwm.agent.evaluation.evaluate import measure, offered, summary
from lssvwm.agent.evaluation.origin import IsOurs, used_settings, weights_hash
from lssvwm.agent.evaluation.results import ARRAYS, Outcome
from lssvwm.agent.evaluation.statistics import crossed, difference, grouped
from lssvwm.agent.files import locked, read_json
from lssvwm.agent.processes import Workers
from lssvwm.agent.progress import Progress

GROUPS = 4
"""Ranges of goal distance and of evidence age in the grid."""
COUNTS = ("seconds", "decisions", "memory_bytes")
FIXED = ("benchmark", "model", "train", "output")
"""Sections and settings that cannot be swept."""
PLAYED_BY = ("env", "planner", "objective", "mpc", "seed")
"""Sections and settings that the outcomes depend on, next to tasks and weights."""


@dataclass(frozen=True)
class Case:
    """Hold one combination of settings.

    values: the swept settings
    config: the complete configuration
    file: where the outcomes of the tasks are kept
    """

    values: dict[str, Any]
    config: BenchmarkRunConfig
    file: Path

    def settings(self) -> dict[str, Any]:
        """Return everything that the outcomes depend on."""
        plain = used_settings(self.config)
        found = {key: plain[key] for key in PLAYED_BY if key in plain}
        found["tasks"] = {k: v for k, v in plain["tasks"].items() if k != "arms"}
        found["weights"] = weights_hash(str(self.config.checkpoint))
        return found

    def results(self) -> dict[str, Outcome]:
        """Return the outcomes of the arms that have been played."""
        if not self.file.exists():
            return {}
        arms = read_json(self.file, "delete it to play its tasks again")["arms"]
        complete = {arm: row for arm, row in arms.items() if set(ARRAYS) <= set(row)}
        return {arm: _outcome(row) for arm, row in complete.items()}

    def label(self) -> str:
        """Return the swept settings as text."""
        texts = [f"{key}={value}" for key, value in self.values.items()]
        return ", ".join(texts) or str(self.config.checkpoint)


def _outcome(row: dict[str, Any]) -> Outcome:
    """Build the outcome of one arm from plain data."""
    fields = dict(row)
    for key in ARRAYS:
        fields[key] = np.array(row[key], bool if key == "success" else None)
    return Outcome(**fields)


def _plain(result: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    row = {}
    for key in ARRAYS:
        kind = float if key == "total_reward" else int
        row[key] = getattr(result, key).astype(kind).tolist()
    return row | {key: getattr(result, key) for key in COUNTS}


def folder(settings: Sequence[str]) -> Path:
    """Return the default folder, named after the checkpoint and the swept settings."""
    name = given(settings, "checkpoint")
    sweep = given(settings, "benchmark.sweep")
    parts = [Path(str(name)).name] if name else []
    if isinstance(sweep, dict):
        parts += [str(key).rpartition(".")[2] for key in sweep]
    return Path("runs", "benchmark", "-".join(parts) or "planning")


def cases(settings: Sequence[str], output: Path) -> list[Case]:
    """Return all combinations of `benchmark.sweep`.

    Raises UserError for a setting that does not exist or cannot be swept.
    """
    sweep = _sweep(settings)
    return [
        _case(settings, dict(zip(sweep, values)), output)
        for values in itertools.product(*sweep.values())
    ]


def same_sweep(settings: Sequence[str]) -> IsOurs:
    """Compare cases: a sweep may replace the summary of its own cases."""
    ours = {case.file.stem for case in cases(settings, Path())}

    def is_ours(found: dict[str, Any]) -> bool:
        rows = found.get("cases", [])
        return bool(rows) and {row.get("case") for row in rows} <= ours

    return is_ours


def _sweep(settings: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of every swept setting; raises UserError."""
    sweep = given(settings, "benchmark.sweep") or {}
    lists = isinstance(sweep, dict) and all(
        isinstance(values, list) and values for values in sweep.values()
    )
    if not lists:
        raise UserError(
            "benchmark.sweep must be {setting: [value, ...], ...}, "
            "e.g. {env.delay: [32,128]}"
        )
    for key in map(str, sweep):
        if key.split(".")[0] in FIXED:
            raise UserError(
                f"benchmark.sweep: {key} cannot be swept; "
                "sweep checkpoint, env, planner or tasks"
            )
    return {str(key): values for key, values in sweep.items()}


def _case(settings: Sequence[str], values: dict[str, Any], output: Path) -> Case:
    """Compose the configuration of one combination; raises UserError."""
    swept = [f"{key}={_text(value)}" for key, value in values.items()]
    overrides = [*settings, *swept]
    name = given(overrides, "checkpoint")
    if name is None:
        raise UserError(
            "which checkpoint? e.g. lssvwm benchmark planning checkpoint=recall9"
        )
    saved = checkpoint.read_config(checkpoint.resolve(name))
    case = Case(values, from_checkpoint(saved, overrides, BenchmarkRunConfig), output)
    text = json.dumps(case.settings(), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    label = "-".join(str(value).rpartition("/")[2] for value in values.values())
    file = output / "cases" / f"{label or 'case'}-{key}.json"
    return dataclasses.replace(case, file=file)


def planning(settings: Sequence[str], output: Path) -> Path:
    """Play the cases that are missing, in `benchmark.processes` processes.

    Returns the JSON file of the summary.
    """
    todo = cases(settings, output)
    config = todo[0].config
    processes = min(config.benchmark.processes, len(todo))
    for case in todo:
        offered(build_env(case.config.env, 1), case.config.tasks.arms)  # before hours
    progress = Progress("sweep", len(todo), "cases")
    with (
        locked(output),
        Workers(_play, processes, config.threads or 1) as workers,
    ):
        for _ in workers.run(todo, progress.refresh):
            progress.update(progress.done + 1)
    progress.close()
    found = summarise(todo)
    results.write_json(output / "planning.json", found)
    tables.publish(tables.sweep_grids(found), output / "planning.md")
    plots.plot_sweep(found, output / "planning.png")
    return output / "planning.json"


def _play(case: Case) -> None:
    """Play the arms of a case that its file lacks."""
    config = case.config
    played = case.results()
    arms = offered(build_env(config.env, 1), config.tasks.arms)
    missing = [arm for arm in arms if arm not in played]
    if "swapped" in missing and "retained" in played:
        missing = ["retained", *missing]  # `swapped` needs the memories of this arm
    if not missing:
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    print(case.label(), flush=True)
    settings = case.settings()
    model = checkpoint.load(str(config.checkpoint), config.device, config.backend)

    def keep(outcomes: dict[str, Outcome]) -> None:
        rows = {arm: _plain(result) for arm, result in (played | outcomes).items()}
        results.write_json(case.file, {"settings": settings, "arms": rows}, indent=None)

    measure(config, model, tuple(missing), keep)


def summarise(played: Sequence[Case]) -> dict[str, Any]:
    """Return the contents of `planning.json`.

    cases: every case with its arms, and the paired difference of its success to the
        first case with the same tasks.
    together: the cases of each model and planner pooled, by goal distance and age.
    """
    plain = used_settings(played[0].config)
    return {
        "format_version": results.FORMAT_VERSION,
        "command": "lssvwm benchmark planning",
        "settings": {
            key: plain[key] for key in ("env", "planner", "objective", "mpc", "tasks")
        },
        "cases": _case_rows(played),
        "together": _pooled_rows(played),
    }


def _played_arms(case: Case) -> dict[str, Outcome]:
    """Return the results of the arms that the configuration names."""
    wanted = case.config.tasks.arms
    return {arm: result for arm, result in case.results().items() if arm in wanted}


def _case_rows(played: Sequence[Case]) -> list[dict[str, Any]]:
    rows = []
    first: dict[str, np.ndarray] = {}  # success of the first case, by task list
    for case in played:
        played_arms = _played_arms(case)
        found = summary(case.config, played_arms).to_dict()
        arms = {}
        for arm, row in found["arms"].items():
            arms[arm] = {k: v for k, v in row.items() if not k.startswith("by_")}
        row = {"values": case.values, "tasks": found["tasks"], "arms": arms}
        row["case"] = case.file.stem
        row["checkpoint"] = case.config.checkpoint
        row["weights"] = weights_hash(str(case.config.checkpoint))
        if "retained" in played_arms:
            own = played_arms["retained"].counted().success
            other = first.setdefault(found["tasks"]["hash"], own)
            row["retained_minus_first"] = difference(own, other)
        rows.append(row)
    return rows


def _pooled_rows(played: Sequence[Case]) -> list[dict[str, Any]]:
    """Pool the cases that differ in the environment only."""
    pools: dict[str, dict[str, list[Outcome]]] = {}
    for case in played:
        shared = {k: v for k, v in case.values.items() if not k.startswith("env")}
        pool = pools.setdefault(json.dumps(shared), {})
        for arm, result in _played_arms(case).items():
            pool.setdefault(arm, []).append(result.counted())
    rows = []
    for values, parts in pools.items():
        whole = {arm: Outcome.cat(outcomes) for arm, outcomes in parts.items()}
        row: dict[str, Any] = {"values": json.loads(values)}
        row["n"] = len(next(iter(whole.values())).success)
        row["arms"] = {arm: _pooled_arm(whole, arm) for arm in whole}
        rows.append(row)
    return rows


def _pooled_arm(whole: dict[str, Outcome], arm: str) -> dict[str, Any]:
    result = whole[arm]
    row: dict[str, Any] = {
        "by_goal_distance": grouped(result.success, result.goal_distance, GROUPS),
        "by_evidence_age": grouped(result.success, result.evidence_age, GROUPS),
        "by_both": crossed(
            result.success, result.goal_distance, result.evidence_age, GROUPS
        ),
    }
    if arm != "retained":
        retained = whole.get("retained")
        row["retained_minus_this"] = (
            None if retained is None else difference(retained.success, result.success)
        )
    return row


def _text(value: Any) -> str:
    """Write a value as the command line expects it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
