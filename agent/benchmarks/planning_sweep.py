"""`lssvwm benchmark planning`: planning success over settings of the task, the planner and the model, arm by arm.

Every combination of the values in `benchmark.sweep` is a case: all of `tasks.arms` on the same held-out tasks, as
`lssvwm evaluate` plays them. A case's file holds how every task ended, and is written anew after each arm, so that a
sweep which was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config import settings as configuration
from lssvwm.agent.config.settings import Config, from_checkpoint, given
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import tables as report
from lssvwm.agent.evaluation.evaluate import (
    ARRAYS,
    Outcome,
    crossed,
    difference,
    grouped,
    measure,
    offered,
    summary,
)
from lssvwm.agent.training.collection import build_env
from lssvwm.worldmodel.serialization import WEIGHTS

GROUPS = 4
"""Ranges of goal distance and of evidence age in the grid."""
COUNTS = ("seconds", "decisions", "memory_bytes")


@dataclass(frozen=True)
class Case:
    """One combination: what sets it apart, the whole configuration, and the file for how its tasks ended."""

    values: dict[str, Any]
    config: Config
    file: Path

    def asked(self) -> dict[str, Any]:
        """All that the outcomes depend on."""
        c = configuration.to_dict(self.config)
        tasks = {key: value for key, value in c["tasks"].items() if key != "arms"}
        return {
            "env": c["env"],
            "planner": c["planner"],
            "tasks": tasks,
            "seed": c["seed"],
        } | {"weights": _fingerprint(str(self.config.checkpoint))}

    def results(self) -> dict[str, Outcome]:
        """The arms that have been played."""
        if not self.file.exists():
            return {}
        arms = json.loads(self.file.read_text())["arms"]
        for row in arms.values():
            row |= {
                key: np.array(row[key], bool if key == "success" else None)
                for key in ARRAYS
            }
        return {arm: Outcome(**row) for arm, row in arms.items()}


def folder(settings: Sequence[str]) -> Path:
    """Where results go if nothing else is said: a folder for each checkpoint, and each choice of what is swept."""
    checkpoint, sweep = (
        given(settings, "checkpoint"),
        given(settings, "benchmark.sweep"),
    )
    names = [Path(str(checkpoint)).name] if checkpoint else []
    names += (
        [str(key).rpartition(".")[2] for key in sweep]
        if isinstance(sweep, dict)
        else []
    )
    return Path("runs", "benchmark", "-".join(names) or "planning")


def cases(settings: Sequence[str], output: Path) -> list[Case]:
    """All combinations of `benchmark.sweep`; raises UserError for a setting that does not exist."""
    sweep = given(settings, "benchmark.sweep") or {}
    if not isinstance(sweep, dict) or not all(
        isinstance(values, list) and values for values in sweep.values()
    ):
        raise UserError(
            "benchmark.sweep must be {setting: [value, ...], ...}, e.g. {env.delay: [32,128]}"
        )
    sweep = {str(key): values for key, values in sweep.items()}
    if bad := [
        key
        for key in sweep
        if key.split(".")[0] in ("benchmark", "model", "train", "output")
    ]:
        raise UserError(
            f"benchmark.sweep: {bad[0]} cannot be swept; sweep checkpoint, env, planner or tasks"
        )
    found = []
    for values in itertools.product(*sweep.values()):
        mine = dict(zip(sweep, values))
        overrides = [
            *settings,
            *(f"{key}={_text(value)}" for key, value in mine.items()),
        ]
        name = given(overrides, "checkpoint")
        if name is None:
            raise UserError(
                "which checkpoint? e.g. lssvwm benchmark planning checkpoint=recall9"
            )
        config = from_checkpoint(
            checkpoint.read_config(checkpoint.resolve(name)), overrides
        )
        case = Case(mine, config, output)
        key = hashlib.sha256(
            json.dumps(case.asked(), sort_keys=True).encode()
        ).hexdigest()[:12]
        label = "-".join(str(value).rpartition("/")[2] for value in values)
        found.append(
            dataclasses.replace(
                case, file=output / "cases" / f"{label or 'case'}-{key}.json"
            )
        )
    return found


def planning(settings: Sequence[str], output: Path) -> Path:
    """Play all cases, or what is missing of them, in `benchmark.processes` processes; sum up. Returns the JSON file."""
    todo = cases(settings, output)
    processes = min(todo[0].config.benchmark.processes, len(todo))
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            for _ in pool.map(_play, todo, itertools.repeat(1)):
                pass
    else:
        for case in todo:
            _play(case, case.config.threads)
    found = sum_up(todo)
    report.write_json(output / "planning.json", found)
    report.publish(report.sweep_grids(found), output / "planning.md")
    report.plot_sweep(found, output / "planning.png")
    return output / "planning.json"


def _play(case: Case, threads: int) -> None:
    """Play the arms of a case that are missing in its file."""
    before, arms = (
        case.results(),
        offered(build_env(case.config, 1), case.config.tasks.arms),
    )
    missing = [arm for arm in arms if arm not in before]
    if (
        "swapped" in missing and "retained" in before
    ):  # it takes the memories of that arm
        missing = ["retained", *missing]
    if not missing:
        return
    if threads:
        torch.set_num_threads(threads)
    print(
        ", ".join(f"{key}={value}" for key, value in case.values.items())
        or case.config.checkpoint,
        flush=True,
    )
    asked, model = (
        case.asked(),
        checkpoint.load(
            str(case.config.checkpoint), case.config.device, case.config.backend
        ),
    )

    def keep(results: dict[str, Outcome]) -> None:
        rows = {}
        for arm, result in (before | results).items():
            rows[arm] = {
                key: getattr(result, key).astype(
                    float if key == "total_reward" else int
                )
                for key in ARRAYS
            }
            rows[arm] = {key: value.tolist() for key, value in rows[arm].items()}
            rows[arm] |= {key: getattr(result, key) for key in COUNTS}
        report.write_json(case.file, {"asked": asked, "arms": rows}, indent=None)

    measure(case.config, model, tuple(missing), keep)


def sum_up(played: Sequence[Case]) -> dict[str, Any]:
    """What `planning.json` holds: every case with its arms and the paired difference of its planning success to the
    first case with the same tasks; and per model and planner, all their cases together: success by goal distance, by
    evidence age, and by both."""
    rows, first = [], {}
    pools: dict[str, dict[str, list[Outcome]]] = {}
    for case in played:
        results = {
            arm: result
            for arm, result in case.results().items()
            if arm in case.config.tasks.arms
        }
        found = summary(case.config, results)
        arms = {
            arm: {k: v for k, v in row.items() if not k.startswith("by_")}
            for arm, row in found["arms"].items()
        }
        row = {"values": case.values, "tasks": found["tasks"], "arms": arms}
        if "retained" in results:
            mine = results["retained"].counted().success
            row["retained_minus_first"] = difference(
                mine, first.setdefault(found["tasks"]["hash"], mine)
            )
        rows.append(row)
        pool = pools.setdefault(
            json.dumps(
                {k: v for k, v in case.values.items() if not k.startswith("env")}
            ),
            {},
        )
        for arm, result in results.items():
            pool.setdefault(arm, []).append(result.counted())
    together = []
    for values, arms in pools.items():
        whole = {arm: Outcome.cat(parts) for arm, parts in arms.items()}
        told = {
            arm: {
                "by_goal_distance": grouped(
                    result.success, result.goal_distance, GROUPS
                ),
                "by_evidence_age": grouped(result.success, result.evidence_age, GROUPS),
                "by_both": crossed(result, GROUPS),
            }
            | ({} if arm == "retained" else {"retained_minus_this": _minus(whole, arm)})
            for arm, result in whole.items()
        }
        together.append(
            {
                "values": json.loads(values),
                "n": len(next(iter(whole.values())).success),
                "arms": told,
            }
        )
    settings = {
        key: configuration.to_dict(played[0].config)[key]
        for key in ("env", "planner", "tasks")
    }
    about = {"command": "lssvwm benchmark planning", "settings": settings}
    return about | {"cases": rows, "together": together}


def _minus(whole: dict[str, Outcome], arm: str) -> dict[str, float] | None:
    return (
        difference(whole["retained"].success, whole[arm].success)
        if "retained" in whole
        else None
    )


def _fingerprint(name: str) -> str:
    """Tells the weights of a checkpoint from others."""
    return hashlib.sha256(
        (checkpoint.resolve(name) / WEIGHTS).read_bytes()
    ).hexdigest()[:16]


def _text(value: Any) -> str:
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
