"""Train an experiment from several seeds and test every run: `lssvwm benchmark seeds experiment=NAME`.

Each seed is a run that begins with nothing. All runs are tested under the same conditions: changes of the settings,
by name, in `benchmark.conditions`. The run with the median success becomes a package: weights, configuration and a
model card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks.seed_runs import AGAIN, check, spread, trained
from lssvwm.agent.config import composition
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.evaluate import measure, summary
from lssvwm.agent.evaluation.origin import Origin, used_settings, weights_hash
from lssvwm.agent.files import read_json, read_json_lines
from lssvwm.agent.run_folder import saved_config, training_seconds
from lssvwm.worldmodel import WorldModel

RESULT = "seeds.json"
PACKAGE = "package"
CARD = "card.md"
SAME = "as trained"
"""Name of the only condition, if the experiment defines none."""

Row = dict[str, Any]


def seeds(settings: list[str], output: Path) -> Path:
    """Train and test the seeds that are missing, and summarise all; returns the JSON file."""
    base = compose(settings, BenchmarkRunConfig)
    conditions(base)  # mistakes are reported before anything is trained
    for seed in base.benchmark.seeds:
        config = compose([*settings, f"seed={seed}"], BenchmarkRunConfig)
        _test(config, output / f"seed-{seed}")
        found = summarise(base, _read(output, base))
        results.write_json(output / RESULT, found)
    package(found, output)
    tables.publish([tables.seeds_grid(found)], output / "seeds.md")
    return output / RESULT


def conditions(config: BenchmarkRunConfig) -> dict[str, BenchmarkRunConfig]:
    """Return the configuration of each condition by name; raises UserError for a wrong setting."""
    changes = config.benchmark.conditions or {SAME: {}}
    return {name: composition.changed(config, own) for name, own in changes.items()}


def _test(config: BenchmarkRunConfig, folder: Path) -> None:
    """Train a run, and test it under the conditions that its file lacks."""
    file = folder / RESULT
    complete = check(config, folder)
    saved = read_json(file, AGAIN) if file.exists() else {}
    played = saved.get("conditions", {})
    model: WorldModel | None = None
    for name, case in conditions(config).items():
        settings = used_settings(case)
        same = {
            key: settings[key]
            for key in ("env", "planner", "objective", "mpc", "tasks")
        }
        if name in played and played[name]["settings"] != same:
            raise UserError(f"{file} has other settings of {name!r}: {AGAIN}")
        if name in played and complete:
            continue
        if model is None:
            print(f"{config.name}, seed {config.seed}")
            model = trained(config, folder)
        print(f"test: {name}")
        outcomes = measure(case, model, case.tasks.arms)
        found = summary(case, outcomes).to_dict()
        played[name] = {
            "settings": same,
            "arms": found["arms"],
            "tasks": found["tasks"],
        }
        saved = {
            "seed": config.seed,
            "weights": weights_hash(folder),
            "origin": dataclasses.asdict(Origin.of(str(folder))),
            "hours": training_hours(folder),
            "conditions": played,
        }
        results.write_json(file, saved)


def training_hours(folder: Path) -> float:
    """Return the hours of training of a run, by its logs."""
    logs = folder.rglob("metrics.jsonl")
    return sum(training_seconds(read_json_lines(log)) for log in logs) / 3600


def _read(output: Path, base: BenchmarkRunConfig) -> list[Row]:
    files = [output / f"seed-{seed}" / RESULT for seed in base.benchmark.seeds]
    return [read_json(file, AGAIN) for file in files if file.exists()]


def summarise(base: BenchmarkRunConfig, runs: Sequence[Row]) -> Row:
    """Return the success of every arm under every condition: mean and interval over seeds."""
    rows = []
    for name in conditions(base):
        played = [
            run["conditions"][name]["arms"] for run in runs if name in run["conditions"]
        ]
        arms = dict.fromkeys(arm for arms in played for arm in arms)
        for arm in arms:
            mine = [one[arm] for one in played if arm in one]
            row: Row = {"condition": name, "arm": arm, "n": mine[0]["n"]}
            row["success"] = spread([one["success"]["mean"] for one in mine])
            row["reward"] = spread([one["reward"] for one in mine])
            row["wrong"] = spread([one["wrong"] for one in mine])
            rows.append(row)
    return {
        "format_version": results.FORMAT_VERSION,
        "command": f"lssvwm benchmark seeds experiment={base.name}",
        "name": base.name,
        "settings": composition.to_dict(base),
        "seeds": [run["seed"] for run in runs],
        "hours": spread([run["hours"] for run in runs]),
        "weights": [run["weights"] for run in runs],
        "median": median_seed(runs),
        "rows": rows,
    }


def median_seed(runs: Sequence[Row]) -> int:
    """Return the seed whose mean reward over the conditions is the median.

    Of an even number, the lower one counts.
    """
    scores = []
    for run in runs:
        rewards = [
            case["arms"]["retained"]["reward"]
            for case in run["conditions"].values()
            if "retained" in case["arms"]
        ]
        scores.append((float(np.mean(rewards)) if rewards else 0.0, run["seed"]))
    return sorted(scores)[(len(scores) - 1) // 2][1]


def package(found: Row, output: Path) -> Path:
    """Copy the weights of the median seed, with a model card, into the folder `package`."""
    folder = output / PACKAGE
    run = output / f"seed-{found['median']}"
    model = checkpoint.load(run, "cpu")
    config = saved_config(run)
    checkpoint.export(model, dataclasses.replace(config, data=None), folder)
    (folder / CARD).write_text(card(found), encoding="utf-8")
    return folder


def card(found: Row) -> str:
    """Return the model card of the median seed as Markdown."""
    hours = found["hours"]
    lines = [
        f"# {found['name']}",
        "",
        f"- **Command**: `{found['command']}`",
        f"- **Seeds**: {', '.join(map(str, found['seeds']))}; these weights are those of seed {found['median']}, the "
        "median",
        f"- **Training**: {hours['mean']:.1f} hours per seed on one CPU core",
        "- **Tested on**: held-out tasks with the settings below. Other environments, sizes and planners were not "
        "tested.",
        "",
        tables.seeds_grid(found).markdown(),
    ]
    return "\n".join(lines) + "\n"
