"""Planning success of models that are trained alike: one table for training strategies, one for models.

    strategies   T-mazes (experiment=strategies): every strategy switched on, or off, and nothing else changed;
                 success by length of the corridor, most of them longer than in training
    recall       Recall mazes (experiment=recollect_recall), from the weights of `benchmark memory`: every model;
                 success by dark frames between what was seen and the choice

Both ask for a choice between two, so that without memory success is at most about one half.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent.benchmarks.seed_runs import check, collected, spread, trained
from lssvwm.agent.config import settings as configuration
from lssvwm.agent.config.settings import Config, compose
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import tables as report
from lssvwm.agent.evaluation.evaluate import measure

BEYOND = "beyond training, mean"

STRATEGIES: dict[str, tuple[str, ...]] = {
    "default": (),
    "lengths_none": ("train.augment=none",),
    "lengths_adversarial": ("train.augment=adversarial",),
    "diffusion": ("model.forcing=diffusion", "model.clean_prefix=0.0"),
    "diffusion_prefix": ("model.forcing=diffusion", "model.clean_prefix=0.5"),
    "hide_frames": ("train.hide=0.2", "train.hide_span=1"),
    "hide_spans": ("train.hide=0.2", "train.hide_span=8", "train.hide_ramp=0.5"),
    "no_context_noise": ("model.context_noise=0.0",),
    "segments": ("train.segment=32",),
    "burn_in": ("train.burn_in=64",),
    "imagined": ("model.imagined=0.3",),
    "forget": ("train.forget=0.01",),
}
"""What differs from experiment=strategies."""


def strategies(settings: list[str], output: Path) -> Path:
    """`lssvwm benchmark strategies`: train by every strategy from every seed, measure what is not there yet, sum up.
    Returns the JSON file."""
    base = compose(settings)
    c, data = base.benchmark, collected(base, output / "data")
    if unknown := [name for name in c.strategies if name not in STRATEGIES]:
        raise UserError(
            f"benchmark.strategies: no {unknown[0]!r}; there are {', '.join(STRATEGIES)}"
        )
    for seed in c.seeds:
        for name in c.strategies:
            config = compose([*settings, *STRATEGIES[name], f"seed={seed}"])
            config = dataclasses.replace(config, name=name, data=data)
            _measure(config, output / f"{name}-{seed}", "length", c.lengths)
    return _sum_up(output, "strategies", base, c.strategies, "*/success.json")


def recall(settings: list[str], output: Path) -> Path:
    """`lssvwm benchmark recall`: train every model of `benchmark memory` on to recall, from every seed, measure what is
    not there yet, sum up. Returns the JSON file."""
    settings = [text for text in settings if not text.startswith("experiment=")]
    base, first = (
        compose([f"experiment={name}", *settings])
        for name in ("recollect_recall", "recollect")
    )
    c, seen, data = (
        base.benchmark,
        collected(first, output / "data"),
        collected(base, output / "recall-data"),
    )
    for seed in c.seeds:
        for name in c.models:
            given, folder = (
                [*settings, f"model={name}", f"seed={seed}"],
                output / f"{name}-{seed}",
            )
            config = compose(
                ["experiment=recollect_recall", *given, f"train.init={folder}"]
            )
            config = dataclasses.replace(config, name=name, data=data)
            if not (folder / "recall" / "config.yaml").exists():
                first = compose(["experiment=recollect", *given])
                trained(dataclasses.replace(first, name=name, data=seen), folder)
            _measure(config, folder / "recall", "delay", c.delays)
    return _sum_up(output, "recall", base, c.models, "*/recall/success.json")


def _measure(config: Config, folder: Path, key: str, values: tuple[int, ...]) -> None:
    """Success of one model, trained in the folder, for every value of the environment's setting `key`."""
    file, asked = (
        folder / "success.json",
        {key: list(values), "seed": config.tasks.seed, "tasks": config.tasks.count},
    )
    if (
        file.exists()
        and check(config, folder)
        and json.loads(file.read_text())["asked"] == asked
    ):
        return
    print(f"{config.name}, seed {config.seed}")
    model, rows = trained(config, folder), []
    for value in values:
        there = dataclasses.replace(
            config, env=dataclasses.replace(config.env, **{key: value})
        )
        found = measure(there, model, ("retained",))["retained"]
        row = {
            "success": float(found.success.mean()),
            "wrong": float((found.outcome == 2).mean()),
        }
        rows.append({"by": key, "at": value, "n": len(found.success)} | row)
    about = {
        "name": config.name,
        "seed": config.seed,
        "steps": config.train.steps,
        "asked": asked,
    }
    report.write_json(file, about | {"rows": rows})


def _sum_up(
    output: Path, what: str, base: Config, names: tuple[str, ...], files: str
) -> Path:
    """Means over seeds with their intervals, of all runs that were asked alike, and how much more success each had than
    the first contestant from the same seeds: a table, and JSON."""
    runs = [json.loads(file.read_text()) for file in sorted(output.glob(files))]
    last = next(run for run in runs if run["name"] == names[-1])
    grouped: dict[tuple, dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run["asked"] != last["asked"]:
            continue
        beyond = run["rows"][1:]  # the first is as in training
        mean = {
            key: float(np.mean([row[key] for row in beyond]))
            for key in ("success", "wrong")
            if beyond
        }
        more = (
            [
                run["rows"][0]
                | {"at": BEYOND, "n": sum(row["n"] for row in beyond)}
                | mean
            ]
            if beyond
            else []
        )
        for row in [*run["rows"], *more]:
            grouped.setdefault((run["name"], row["by"], row["at"], row["n"]), {})[
                run["seed"]
            ] = row
    rows = []
    for key, found in grouped.items():
        first = grouped.get((names[0], *key[1:]), {})
        gaps = [
            row["success"] - first[seed]["success"]
            for seed, row in found.items()
            if seed in first
        ]
        row: dict[str, Any] = dict(zip(("name", "by", "at", "n"), key)) | (
            {"more": spread(gaps)} if gaps else {}
        )
        for told in ("success", "wrong"):
            row[told] = spread([each[told] for each in found.values()])
        rows.append(row)
    order = list(dict.fromkeys((*names, *(row["name"] for row in rows))))
    rows.sort(key=lambda row: order.index(row["name"]))
    found = {
        "command": f"lssvwm benchmark {what}",
        "settings": configuration.to_dict(base),
        "rows": rows,
    }
    report.write_json(output / f"{what}.json", found)
    report.publish([report.success_grid(found)], output / f"{what}.md")
    return output / f"{what}.json"
