"""Compare planning success of models trained under the same conditions.

    strategies   T-mazes (experiment=strategies): one training strategy changed at a time;
                 success by length of the corridor, most of them longer than in training
    recall       Recall mazes (experiment=recall_benchmark), from the weights of `benchmark memory`:
                 every model; success by dark frames between observation and choice

Both tasks are a choice between two, so that success without memory is at most about one half.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent.benchmarks.seed_runs import (
    AGAIN,
    check,
    check_models,
    collected,
    measured,
    spread,
    trained,
)
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.evaluate import measure
from lssvwm.agent.evaluation.origin import Origin
from lssvwm.agent.files import read_json
from lssvwm.envs.base import WRONG

Row = dict[str, Any]
Run = dict[str, Any]
"""Contents of one `success.json`."""
BEYOND = "beyond training, mean"
"""Label of the mean over all values but the first, which is that of training."""

STRATEGIES: dict[str, tuple[str, ...]] = {
    "default": (),
    "lengths_none": ("train.length_augmentation=none",),
    "lengths_adversarial": ("train.length_augmentation=adversarial",),
    "diffusion": ("model.forcing=diffusion",),
    "diffusion_prefix": ("model.forcing=diffusion_prefix",),
    "mask_frames": ("train.frame_mask.prob=0.2", "train.frame_mask.span=1"),
    "mask_spans": ("train.frame_mask.prob=0.2", "train.frame_mask.span=8"),
    "no_context_noise": ("model.context_noise=0.0",),
    "segments": ("train.tbptt_length=32",),
    "burn_in": ("train.burn_in=64",),
    "self_forcing": ("model.self_forcing_prob=0.3",),
    "state_resets": ("train.state_reset_prob=0.01",),
}
"""Settings that each strategy changes in experiment=strategies."""


def strategies(settings: list[str], output: Path) -> Path:
    """Train by every strategy from every seed, measure what is missing, summarise.

    Returns the JSON file. Raises UserError for an unknown strategy.
    """
    base = compose(settings, BenchmarkRunConfig)
    benchmark = base.benchmark
    if unknown := [name for name in benchmark.strategies if name not in STRATEGIES]:
        known = ", ".join(STRATEGIES)
        raise UserError(f"benchmark.strategies: no {unknown[0]!r}; there are {known}")
    data = collected(base, output / "data")
    for seed in benchmark.seeds:
        for name in benchmark.strategies:
            config = compose(
                [*settings, *STRATEGIES[name], f"seed={seed}"], BenchmarkRunConfig
            )
            config = dataclasses.replace(config, name=name, data=data)
            _measure(config, output / f"{name}-{seed}", "length", benchmark.lengths)
    runs = _read(output, "*/success.json")
    return _publish(output, "strategies", base, benchmark.strategies, runs)


def recall(settings: list[str], output: Path) -> Path:
    """Train every model of `benchmark memory` further on Recall, measure, summarise.

    Returns the JSON file.
    """
    settings = [text for text in settings if not text.startswith("experiment=")]
    base = compose(["experiment=recall_benchmark", *settings], BenchmarkRunConfig)
    first = compose(["experiment=memory_benchmark", *settings], BenchmarkRunConfig)
    benchmark = base.benchmark
    check_models(benchmark.models)
    first_data = collected(first, output / "data")
    data = collected(base, output / "recall-data")
    for seed in benchmark.seeds:
        for name in benchmark.models:
            folder = output / f"{name}-{seed}"
            own = [*settings, f"model={name}", f"seed={seed}"]
            if not (folder / "recall" / "config.yaml").exists():
                config = compose(
                    ["experiment=memory_benchmark", *own], BenchmarkRunConfig
                )
                trained(dataclasses.replace(config, name=name, data=first_data), folder)
            init = f"train.init={folder}"
            config = compose(
                ["experiment=recall_benchmark", *own, init], BenchmarkRunConfig
            )
            config = dataclasses.replace(config, name=name, data=data)
            _measure(config, folder / "recall", "delay", benchmark.delays)
    runs = _read(output, "*/recall/success.json")
    return _publish(output, "recall", base, benchmark.models, runs)


def _measure(
    config: BenchmarkRunConfig, folder: Path, key: str, values: tuple[int, ...]
) -> None:
    """Measure one model, trained in the folder, for every value of `env.KEY`.

    Does nothing if the file holds results of these settings; raises UserError if it holds others.
    """
    file = folder / "success.json"
    settings = {
        key: list(values),
        "seed": config.tasks.seed,
        "tasks": config.tasks.count,
    }
    if measured(file, settings) and check(config, folder):
        return
    print(f"{config.name}, seed {config.seed}")
    model = trained(config, folder)
    rows = []
    for value in values:
        env = dataclasses.replace(config.env, **{key: value})
        outcomes = measure(dataclasses.replace(config, env=env), model, ("retained",))
        found = outcomes["retained"]
        row: Row = {"by": key, "at": value, "n": len(found.success)}
        row["success"] = float(found.success.mean())
        row["wrong"] = float((found.outcome == WRONG).mean())
        rows.append(row)
    about = {"name": config.name, "seed": config.seed, "steps": config.train.steps}
    about["origin"] = dataclasses.asdict(Origin.of(str(folder)))
    results.write_json(file, about | {"settings": settings, "rows": rows})


def _read(output: Path, pattern: str) -> list[Run]:
    return [read_json(file, AGAIN) for file in sorted(output.glob(pattern))]


def _publish(
    output: Path,
    what: str,
    base: BenchmarkRunConfig,
    names: tuple[str, ...],
    runs: list[Run],
) -> Path:
    """Write the summary of all runs as JSON and as a table. Returns the JSON file."""
    settings = next(run for run in runs if run["name"] == names[-1])["settings"]
    runs = [run for run in runs if run["settings"] == settings]
    found = {
        "command": f"lssvwm benchmark {what}",
        "settings": configuration.to_dict(base),
        "rows": summary(runs, names),
    }
    results.write_json(output / f"{what}.json", found)
    tables.publish([tables.success_grid(found)], output / f"{what}.md")
    return output / f"{what}.json"


def summary(runs: list[Run], names: tuple[str, ...]) -> list[Row]:
    """Return means over seeds with intervals, and paired differences to the first name.

    `more` is the difference in success to `names[0]`, over the seeds that both have.
    """
    grouped: dict[tuple, dict[int, Row]] = {}
    for run in runs:
        for row in [*run["rows"], *_beyond_training(run["rows"][1:])]:
            key = (run["name"], row["by"], row["at"], row["n"])
            grouped.setdefault(key, {})[run["seed"]] = row
    rows = []
    for key, found in grouped.items():
        row: Row = dict(zip(("name", "by", "at", "n"), key))
        first = grouped.get((names[0], *key[1:]), {})
        shared = [seed for seed in found if seed in first]
        gaps = [found[seed]["success"] - first[seed]["success"] for seed in shared]
        if gaps:
            row["more"] = spread(gaps)
        for measure_name in ("success", "wrong"):
            row[measure_name] = spread([one[measure_name] for one in found.values()])
        rows.append(row)
    order = list(dict.fromkeys((*names, *(row["name"] for row in rows))))
    return sorted(rows, key=lambda row: order.index(row["name"]))


def _beyond_training(rows: list[Row]) -> list[Row]:
    """Return one row with the means of rows, or none if there are none."""
    if not rows:
        return []
    mean: Row = rows[0] | {"at": BEYOND, "n": sum(row["n"] for row in rows)}
    for key in ("success", "wrong"):
        mean[key] = float(np.mean([row[key] for row in rows]))
    return [mean]
