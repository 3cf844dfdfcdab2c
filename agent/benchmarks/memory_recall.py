"""Measure memory as LSSVWM does, on held-out mazes: `lssvwm benchmark memory`.

    retrieval   the guide walks `context` frames, turns round and walks the exact way back
    reasoning   the guide walks `context` frames and walks on

Every model (a preset) is trained from every seed on the same frames for the same number of steps.
It observes the context and imagines the continuation from the actions alone.
Frames are grouped in two ways:

    distance    frames since the place was passed (retrieval), or frames ahead (reasoning)
    age         for each tile, frames since it was last in view while the model observed

Module `linear_probes` adds linear probes of the memory.

Shapes: N walks, T = context + horizon frames, 9 tiles of the view.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent.benchmarks.linear_probes import probes
from lssvwm.agent.benchmarks.maze_walks import AGES, NEVER, TESTS, Walks, remember, walk
from lssvwm.agent.benchmarks.seed_runs import check, collected, spread, trained
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.evaluation import plots, results, tables
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.envs.maze import rendering as picture
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

DISTANCES = (1, 9, 17, 33, 65, 129)
"""Lower bounds of the ranges of distances."""
ROWS = 16
"""Walks that a model processes at once."""
SSIM_WALKS = 8
"""Walks for which SSIM is computed, which takes longer than everything else."""
MEASURES = ("psnr", "ssim", "tiles_right", "right")
SETTINGS = ("models", "seeds", "walks", "contexts", "horizon", "probed")
"""Settings of this benchmark in section `benchmark`."""
KEYS = ("test", "context", "arm", "by", "from", "to")
"""Fields that identify a row of results."""
UNBOUNDED = 1 << 30

Row = dict[str, Any]


@torch.no_grad()
def imagine(model: WorldModel, walks: Walks, memories: list[Memory]) -> Tensor:
    """Imagine the frames uint8 [N, horizon, 3, H, W] after the contexts.

    Each memory holds the contexts of ROWS walks.
    """
    out = []
    actions = walks.action[:, walks.context :].split(ROWS)
    for action, memory in zip(actions, memories):
        future = model.imagine(memory, action[:, None].to(model.device), decode=True)
        assert future.frames is not None
        out.append(future.frames[:, 0].cpu())
    return torch.cat(out)


def contexts(model: WorldModel, walks: Walks, erased: bool = False) -> list[Memory]:
    """Return memories of the contexts, of ROWS walks each.

    With `erased`, only the last frame of each context is observed.
    """
    first = walks.context - 1 if erased else 0
    frames = walks.frames[:, first : walks.context].split(ROWS)
    actions = walks.action[:, first : walks.context].split(ROWS)
    device = model.device
    return [
        remember(model, frame.to(device), action.to(device))
        for frame, action in zip(frames, actions)
    ]


def compare(walks: Walks, imagined: Tensor, test: str) -> list[Row]:
    """Compare imagined with real frames, by distance and by age.

    PSNR is that of the mean squared error of all pixels in a range.
    """
    real = walks.frames[:, walks.context :].float() / 255
    error = (real - imagined.float() / 255).square()
    tile_error = _tiles(error).mean((-1, -2, -3)).numpy()
    recognised = _recognised(imagined) == walks.tile
    return [
        *_by_distance(error, _ssim(real, imagined), test),
        *_by_age(walks.age, tile_error, recognised),
    ]


def _ssim(real: Tensor, imagined: Tensor) -> np.ndarray:
    """Return SSIM [SSIM_WALKS, horizon] of the first walks."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    some = slice(0, SSIM_WALKS)
    shown = (imagined[some].float() / 255).flatten(0, 1)
    target = real[some].flatten(0, 1)
    ssim = structural_similarity_index_measure(
        shown, target, data_range=1.0, reduction="none"
    )
    return np.asarray(ssim).reshape(-1, real.shape[1])


def _by_distance(error: Tensor, ssim: np.ndarray, test: str) -> list[Row]:
    frame_error = error.mean((2, 3, 4)).numpy()
    ahead = np.arange(1, frame_error.shape[1] + 1)
    passed = np.maximum(1, 2 * ahead - 2)  # the way back passes the latest place first
    distance = passed if test == "retrieval" else ahead
    distance = np.broadcast_to(distance, frame_error.shape)
    rows = []
    for low, high in pairwise((*DISTANCES, UNBOUNDED)):
        in_range = (distance >= low) & (distance < high)
        if not in_range.any():
            continue
        row: Row = {"by": "distance", "from": low}
        row["to"] = min(high - 1, int(distance.max()))
        row["n"] = int(in_range.sum())
        row["psnr"] = _psnr(frame_error[in_range])
        row["ssim"] = float(ssim[in_range[: len(ssim)]].mean())
        rows.append(row)
    return rows


def _by_age(age: np.ndarray, error: np.ndarray, recognised: np.ndarray) -> list[Row]:
    rows = []
    for low, high in ((NEVER, NEVER + 1), *pairwise(AGES), (49, AGES[-1])):
        in_range = (age >= low) & (age < high)
        if not in_range.any():
            continue
        row: Row = {"by": "age", "from": low, "to": high - 1}
        row["n"] = int(in_range.sum())
        row["psnr"] = _psnr(error[in_range])
        row["tiles_right"] = float(recognised[in_range].mean())
        rows.append(row)
    return rows


def _tiles(x: Tensor) -> Tensor:
    """Cut frames [N, H, 3, 64, 64] into the tiles of the view [N, H, 9, 3, 20, 20]."""
    size, margin, count = picture.TILE, picture.MARGIN, picture.VIEW
    x = x[..., margin:-margin, margin:-margin]
    x = x.unflatten(-1, (count, size)).unflatten(-3, (count, size))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3)


def _recognised(frames: Tensor) -> np.ndarray:
    """Return the nearest tile picture int64 [N, H, 9] for frames [N, H, 3, 64, 64]."""
    pictures = torch.from_numpy(picture.ATLAS.transpose(0, 3, 1, 2).copy())
    pictures = pictures.float().flatten(1)
    tiles = _tiles(frames.float()).flatten(3)
    own = picture.VIEW * picture.VIEW - picture.VIEW // 2 - 1  # the agent's own tile
    found = torch.cdist(tiles, pictures[: picture.TILES]).argmin(-1)
    with_agent = torch.cdist(tiles[..., own, :], pictures[picture.TILES :])
    found[..., own] = with_agent.argmin(-1)
    return found.numpy()


def _psnr(error: np.ndarray) -> float:
    return float(-10 * np.log10(error.mean() + 1e-12))


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

    Raises UserError if the folder holds a run with other settings.
    """
    trained_before = check(config, folder)
    file = folder / "memory.json"
    settings = _settings(config) | {"models": [config.name], "seeds": [config.seed]}
    measured = json.loads(file.read_text()) if file.exists() else {}
    if trained_before and measured.get("settings") == settings:
        return
    print(f"{config.name}, seed {config.seed}")
    model = trained(config, folder)
    found = {
        "model": config.name,
        "seed": config.seed,
        "steps": config.train.steps,
        "settings": settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_bytes": model.initial(1).nbytes(),
        "rows": video(config, model) + probes(config, model),
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
    runs = [
        json.loads(file.read_text()) for file in sorted(output.glob("*/memory.json"))
    ]
    return [run for run in runs if same.items() <= run["settings"].items()]
