"""Results of an evaluation: how tasks ended, what `evaluation.json` holds, and its format.

Shapes: N tasks.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent import files
from lssvwm.agent.config.migration import RENAMED_VALUES
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.interventions import ARMS
from lssvwm.agent.evaluation.origin import Origin
from lssvwm.agent.evaluation.statistics import (
    crossed,
    difference,
    gain,
    grouped,
    wilson,
)
from lssvwm.envs.base import TIMEOUT, WRONG
from lssvwm.worldmodel import Memory

FORMAT_VERSION = 2
"""Format of `evaluation.json` and `planning.json`. Format 1 has no `format_version` and other names of arms."""

ARRAYS = (
    "task_seed",
    "success",
    "outcome",
    "steps",
    "total_reward",
    "goal_distance",
    "evidence_age",
    "goal",
)
"""Arrays of an `Outcome`, one entry for each task."""


@dataclass
class Outcome:
    """Record how each of N tasks ended, in arrays [N].

    Distance to the goal, age of the evidence and goal are those at planning start.
    Unknown distances and ages are -1.
    """

    task_seed: np.ndarray
    success: np.ndarray
    outcome: np.ndarray
    steps: np.ndarray
    total_reward: np.ndarray
    goal_distance: np.ndarray
    evidence_age: np.ndarray
    goal: np.ndarray
    seconds: float = 0.0
    """Wall time of decisions, summed over steps; in each step a whole batch of tasks decides together."""
    decisions: int = 0
    """Decisions, summed over tasks."""
    memory_bytes: int = 0
    memories: list[Memory] = field(default_factory=list)
    """Memories [1] at planning start, one for each task; only the arm `retained` keeps them."""

    @staticmethod
    def empty(task_seed: np.ndarray) -> Outcome:
        """Return the outcome of tasks with these seeds [N] before they start."""
        n = len(task_seed)
        return Outcome(
            task_seed=task_seed,
            success=np.zeros(n, bool),
            outcome=np.zeros(n, np.int64),
            steps=np.zeros(n, np.int64),
            total_reward=np.zeros(n),
            goal_distance=np.full(n, -1),
            evidence_age=np.full(n, -1),
            goal=np.zeros(n, np.int64),
        )

    def counted(self) -> Outcome:
        """Leave out tasks that are solved before the first action."""
        unsolved = self.goal_distance != 0
        kept = {key: getattr(self, key)[unsolved] for key in ARRAYS}
        return dataclasses.replace(self, **kept)

    @staticmethod
    def cat(parts: list[Outcome]) -> Outcome:
        """Join the tasks of all parts in order."""
        joined = {
            key: np.concatenate([getattr(part, key) for part in parts])
            for key in ARRAYS
        }
        return Outcome(
            **joined,
            seconds=sum(part.seconds for part in parts),
            decisions=sum(part.decisions for part in parts),
            memory_bytes=max(part.memory_bytes for part in parts),
            memories=[memory for part in parts for memory in part.memories],
        )


@dataclass(frozen=True)
class TaskList:
    """Identify the held-out tasks: seed, number of tasks, hash of environment settings and episode seeds."""

    seed: int
    count: int
    hash: str
    solved_at_start: int = 0


@dataclass(frozen=True)
class ArmResult:
    """Summarise the tasks of one arm; intervals are at 95 %.

    Differences are those of `retained` minus this arm, task by task. `seconds_per_decision` is the wall time of a step
    of a batch of tasks, shared among the tasks in which the agent acts.
    """

    n: int
    success: dict[str, float]
    wrong: float
    timeout: float
    reward: float
    reward_error: float
    steps: float
    seconds_per_decision: float
    memory_bytes: int
    retained_minus_this: dict[str, float] | None
    retained_minus_this_reward: dict[str, float] | None
    by_goal_distance: list[dict[str, Any]]
    by_evidence_age: list[dict[str, Any]]
    by_both: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; differences that do not exist are left out."""
        plain = dataclasses.asdict(self)
        return {key: value for key, value in plain.items() if value is not None}


@dataclass(frozen=True)
class Evaluation:
    """Hold what `evaluation.json` contains."""

    tasks: TaskList
    arms: dict[str, ArmResult]
    settings: dict[str, Any]
    origin: Origin | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data in the present format."""
        return {
            "format_version": FORMAT_VERSION,
            "origin": dataclasses.asdict(self.origin) if self.origin else None,
            "tasks": dataclasses.asdict(self.tasks),
            "arms": {arm: row.to_dict() for arm, row in self.arms.items()},
            "settings": self.settings,
        }


def summarise(outcomes: Mapping[str, Outcome]) -> dict[str, ArmResult]:
    """Summarise every arm on the tasks that are not solved at the start."""
    counted = {arm: outcome.counted() for arm, outcome in outcomes.items()}
    retained = counted.get("retained")
    return {arm: _arm_result(arm, mine, retained) for arm, mine in counted.items()}


def _arm_result(arm: str, mine: Outcome, retained: Outcome | None) -> ArmResult:
    n = len(mine.success)
    reference = None if arm == "retained" else retained
    success_gap = reward_gap = None
    if reference is not None:
        success_gap = difference(reference.success, mine.success)
        reward_gap = gain(reference.total_reward, mine.total_reward)
    return ArmResult(
        n=n,
        success=wilson(mine.success.sum(), n),
        wrong=float((mine.outcome == WRONG).mean()),
        timeout=float((mine.outcome == TIMEOUT).mean()),
        reward=float(mine.total_reward.mean()),
        reward_error=float(mine.total_reward.std() / math.sqrt(max(1, n))),
        steps=float(mine.steps.mean()),
        seconds_per_decision=mine.seconds / max(1, mine.decisions),
        memory_bytes=retained.memory_bytes if retained and arm in ARMS else 0,
        retained_minus_this=success_gap,
        retained_minus_this_reward=reward_gap,
        by_goal_distance=grouped(mine.success, mine.goal_distance),
        by_evidence_age=grouped(mine.success, mine.evidence_age),
        by_both=crossed(mine.success, mine.goal_distance, mine.evidence_age),
    )


def write(
    found: Evaluation,
    outcomes: Mapping[str, Outcome],
    output: Path,
) -> None:
    """Write `evaluation.json`, and `tasks.csv` with one row for each arm and task."""
    write_json(output / "evaluation.json", found.to_dict())
    with (output / "tasks.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("arm", *ARRAYS))
        for arm, outcome in outcomes.items():
            columns = [getattr(outcome, key).tolist() for key in ARRAYS]
            rows.writerows((arm, *values) for values in zip(*columns))


def arms_in(output: Path) -> int:
    """Return how many arms the evaluation in a folder has; 0 without one."""
    with suppress(UserError):
        return len(files.read_json(output / "evaluation.json", "").get("arms", {}))
    return 0


def write_json(file: Path, found: dict[str, Any], indent: int | None = 1) -> None:
    """Write a result with a checksum; without an origin it gets version and date."""
    origin = {"origin": dataclasses.asdict(Origin.of())}
    files.write_json(file, origin | found, indent)


def read(file: Path) -> dict[str, Any]:
    """Read a result file in the present format; raises UserError if it is damaged."""
    return migrate(files.read_json(file, "restore it, or measure again"))


def migrate(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result in the present format.

    Raises UserError for a format that is newer than this version of the package.
    """
    saved = found.get("format_version", 1)
    if saved > FORMAT_VERSION:
        raise UserError(
            f"the result has format {saved}, this version reads up to {FORMAT_VERSION}: update"
        )
    renamed = _renamed_arms(found) if saved == 1 else found
    return renamed | {"format_version": FORMAT_VERSION}


def _renamed_arms(part: Any) -> Any:
    """Rename the arms in every mapping or list called `arms`."""
    names = RENAMED_VALUES["tasks.arms"]
    if isinstance(part, list):
        return [_renamed_arms(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    inner = {key: _renamed_arms(value) for key, value in part.items()}
    arms = inner.get("arms")
    if isinstance(arms, dict):
        inner["arms"] = {names.get(arm, arm): row for arm, row in arms.items()}
    elif isinstance(arms, list):
        inner["arms"] = [names.get(arm, arm) for arm in arms]
    return inner
