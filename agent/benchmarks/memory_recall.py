"""Measure memory as LSSVWM does, on held-out mazes: `lssvwm benchmark memory`.

    retrieval   the guide walks `context` frames, turns round and walks the exact way back
    reasoning   the guide walks `context` frames and walks on

Every model (a preset) is trained from every seed on the same frames for the same number of steps.
It observes the context and imagines the continuation from the actions alone.
Frames are grouped in two ways:

    distance    frames since the place was passed (retrieval), or frames ahead (reasoning)
    age         for each tile, frames since it was last in view while the model observed

Module `retention` adds frames without news, `linear_probes` linear probes of the memory.

Shapes: N walks, T = context + horizon frames, 9 tiles of the view.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lssvwm.agent.benchmarks.frame_comparison import ROWS, Row, compare, imagine
from lssvwm.agent.benchmarks.linear_probes import probes
from lssvwm.agent.benchmarks.maze_walks import TESTS, Recorded, remember, walk
from lssvwm.agent.benchmarks.retention import retention
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
from lssvwm.agent.evaluation import plots, results, tables
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.evaluation.origin import Origin
from lssvwm.agent.files import read_json
from lssvwm.worldmodel import Memory, WorldModel

MEASURES = ("psnr", "ssim", "tiles_right", "right", "norm")
SETTINGS = ("models", "seeds", "walks", "contexts", "horizon", "probed", "idle")
"""Settings of this benchmark in section `benchmark`."""
KEYS = ("test", "context", "arm", "by", "from", "to")
"""Fields that identify a row of results."""


def contexts(model: WorldModel, walks: Recorded, erased: bool = False) -> list[Memory]:
    """Return memories of the contexts, of ROWS walks each.

    With `erased`, only the last frame of each context is observed.
    """
    first = walks.context - 1 if erased else 0
    frames = walks.frames[:, first : walks.context].split(ROWS)
    actions = walks.action[:, first : walks.context].split(ROWS)
    poses = walks.pose[:, first : walks.context].split(ROWS)
    return [
        remember(model, *(v.to(model.device) for v in inputs))
        for inputs in zip(frames, actions, poses)
    ]


def video(config: BenchmarkRunConfig, model: WorldModel) -> list[Row]:
    """Run both tests at every context, with the memory and without.

    The arm `last_frame` repeats the last context frame: a floor.
    """
    settings = config.benchmark
    seeds = task_seeds(config.tasks.seed, settings.walks)
    rows = []
    for context in settings.contexts:
        arms: dict[str, list[Memory]] = {}  # both tests have the same contexts
        for test in TESTS:
            walks = walk(config, test, context, settings.horizon, seeds)
            if not arms:
                arms["retained"] = contexts(model, walks)
                arms["erased"] = contexts(model, walks, erased=True)
            frames = {arm: imagine(model, walks, m) for arm, m in arms.items()}
            last = walks.frames[:, context - 1 : context]
            frames["last_frame"] = last.expand(-1, settings.horizon, -1, -1, -1)
            for arm, shown in frames.items():
                about = {"test": test, "context": context, "arm": arm}
                rows.extend(about | row for row in compare(walks, shown, test))
    return rows


def memory(settings: list[str], output: Path) -> Path:
    """Train and measure the models that are missing, and summarise all.

    Returns the JSON file.
    """
    base = compose(settings, BenchmarkRunConfig)
    check_models(base.benchmark.models)
    data = collected(base, output / "data")
    for seed in base.benchmark.seeds:
        for name in base.benchmark.models:
            config = compose(
                [*settings, f"model={name}", f"seed={seed}"], BenchmarkRunConfig
            )
            config = dataclasses.replace(config, name=name, data=data)
            _run(config, output / f"{name}-{seed}")
            found = summary(output, base)
            results.write_json(output / "memory.json", found)
    tables.publish(tables.memory_grids(found), output / "memory.md")
    plots.plot_memory(found, output / "memory.png")
    return output / "memory.json"


def _run(config: BenchmarkRunConfig, folder: Path) -> None:
    """Train one model, or continue its training, and measure it, unless that is done.

    Raises UserError if the folder holds a run or results with other settings.
    """
    trained_before = check(config, folder)
    file = folder / "memory.json"
    settings = _settings(config) | {"models": [config.name], "seeds": [config.seed]}
    if measured(file, settings) and trained_before:
        return
    print(f"{config.name}, seed {config.seed}")
    model = trained(config, folder)
    found = {
        "origin": dataclasses.asdict(Origin.of(str(folder))),
        "model": config.name,
        "seed": config.seed,
        "steps": config.train.steps,
        "settings": settings,
        "tasks_seed": config.tasks.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_bytes": model.initial(1).nbytes(),
        "rows": video(config, model) + retention(config, model) + probes(config, model),
    }
    results.write_json(file, found)


def _settings(config: BenchmarkRunConfig) -> dict[str, Any]:
    """Return the settings of this benchmark as plain data."""
    section = configuration.to_dict(config)["benchmark"]
    return {key: section[key] for key in SETTINGS}


def summary(output: Path, base: BenchmarkRunConfig) -> dict[str, Any]:
    """Summarise all runs in `output` that were measured with the same settings.

    Each measure has its mean over training seeds and a 95 % interval (Student's t).
    """
    settings = _settings(base)
    runs = _comparable(output, settings)
    grouped: dict[tuple, list[Row]] = {}
    for run in runs:
        for row in run["rows"]:
            key = (run["model"], *(row[name] for name in KEYS))
            grouped.setdefault(key, []).append(row)
    rows = []
    for key, found in grouped.items():
        row = dict(zip(("model", *KEYS), key)) | {"n": found[0]["n"]}
        for measure in MEASURES:
            if measure in found[0]:
                row[measure] = spread([one[measure] for one in found])
        rows.append(row)
    sizes = ("steps", "parameters", "memory_bytes")
    models = {run["model"]: {key: run[key] for key in sizes} for run in runs}
    listed = [name for name in base.benchmark.models if name in models]
    order = list(dict.fromkeys([*listed, *models]))
    rows.sort(key=lambda row: order.index(row["model"]))
    return {
        "command": "lssvwm benchmark memory",
        "settings": settings,
        "models": {name: models[name] for name in order},
        "rows": rows,
    }


def _comparable(output: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the runs whose settings agree, apart from models and seeds."""
    same = {k: v for k, v in settings.items() if k not in ("models", "seeds")}
    runs = [read_json(file, AGAIN) for file in sorted(output.glob("*/memory.json"))]
    return [run for run in runs if same.items() <= run["settings"].items()]
