"""`lssvwm benchmark memory`: what a world model remembers, after LSSVWM's two tests, on mazes of held-out seeds.

    retrieval   the guide walks `context` frames, turns round and walks the exact way back
    reasoning   the guide walks `context` frames and walks on

Every model (a preset) is trained from every seed on the same frames for the same number of steps. Then it observes the
context and imagines the rest from the actions alone. Frames are compared by how far back lies what they show: by
`distance`, frames since the place was passed (retrieval) or frames ahead (reasoning); and tile by tile by `age`, frames
since that tile of the map was last in view while the model observed. Linear probes of the memory: `probe`.

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
from lssvwm.agent.config import settings as configuration
from lssvwm.agent.config.settings import Config, compose
from lssvwm.agent.evaluation import tables as report
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.envs.maze import rendering as picture
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

DISTANCES = (1, 9, 17, 33, 65, 129)
"""Where ranges begin."""
ROWS = 16
"""Walks that a model works on at once."""
SSIM_WALKS = 8
"""Walks for which SSIM is computed: it takes longer than all the rest."""
MEASURES = ("psnr", "ssim", "tiles_right", "right")
ASKED = ("models", "seeds", "walks", "contexts", "horizon", "probed")
"""The settings of this benchmark."""


@torch.no_grad()
def imagine(model: WorldModel, walks: Walks, memories: list[Memory]) -> Tensor:
    """Frames uint8 [N, horizon, 3, H, W] that the model imagines after a context, from memories of ROWS walks each."""
    out = []
    for action, memory in zip(walks.action[:, walks.context :].split(ROWS), memories):
        future = model.imagine(
            memory, action[:, None].to(model.place.device), decode=True
        )
        assert future.frames is not None
        out.append(future.frames[:, 0].cpu())
    return torch.cat(out)


def contexts(model: WorldModel, walks: Walks, erased: bool = False) -> list[Memory]:
    """What is remembered of the contexts (or, `erased`, of their last frames only), of ROWS walks each."""
    seen = slice(walks.context - 1 if erased else 0, walks.context)
    pairs = zip(walks.frames[:, seen].split(ROWS), walks.action[:, seen].split(ROWS))
    return [
        remember(model, *(x.to(model.place.device) for x in pair)) for pair in pairs
    ]


def compare(walks: Walks, imagined: Tensor, test: str) -> list[dict[str, Any]]:
    """PSNR (of the mean squared error of all pixels in a range) and SSIM by distance; PSNR and share of tiles
    recognised by age."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    real = walks.frames[:, walks.context :]
    a, b = real.float() / 255, imagined.float() / 255
    error = (a - b).square()
    frame_error = error.mean((2, 3, 4)).numpy()
    few = slice(0, SSIM_WALKS)
    ssim = structural_similarity_index_measure(
        b[few].flatten(0, 1), a[few].flatten(0, 1), data_range=1.0, reduction="none"
    )
    ssim = np.asarray(ssim).reshape(-1, frame_error.shape[1])
    ahead = np.arange(1, frame_error.shape[1] + 1)
    distance = np.broadcast_to(
        np.maximum(1, 2 * ahead - 2) if test == "retrieval" else ahead,
        frame_error.shape,
    )
    rows = []
    for low, high in pairwise((*DISTANCES, 1 << 30)):
        where = (distance >= low) & (distance < high)
        if where.any():
            row = {
                "by": "distance",
                "from": low,
                "to": min(high - 1, int(distance.max())),
                "n": int(where.sum()),
            }
            rows.append(
                row
                | {
                    "psnr": _psnr(frame_error[where]),
                    "ssim": float(ssim[where[few]].mean()),
                }
            )
    tile_error = _tiles(error).mean((-1, -2, -3)).numpy()
    right = _recognised(imagined) == walks.tile
    spans = [(NEVER, NEVER + 1), *pairwise(AGES), (49, AGES[-1])]
    for low, high in spans:
        where = (walks.age >= low) & (walks.age < high)
        if where.any():
            row = {"by": "age", "from": low, "to": high - 1, "n": int(where.sum())}
            rows.append(
                row
                | {
                    "psnr": _psnr(tile_error[where]),
                    "tiles_right": float(right[where].mean()),
                }
            )
    return rows


def _tiles(x: Tensor) -> Tensor:
    """Frames [N, H, 3, 64, 64] cut into the tiles of the view, [N, H, 9, 3, 20, 20]"""
    size, margin, count = picture.TILE, picture.MARGIN, picture.VIEW
    x = (
        x[..., margin:-margin, margin:-margin]
        .unflatten(-1, (count, size))
        .unflatten(-3, (count, size))
    )
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(2, 3)


def _recognised(frames: Tensor) -> np.ndarray:
    """Which tile picture is nearest to each tile of frames [N, H, 3, 64, 64]: int64 [N, H, 9]"""
    atlas = (
        torch.from_numpy(picture.ATLAS.transpose(0, 3, 1, 2).copy()).float().flatten(1)
    )
    tiles = _tiles(frames.float()).flatten(3)
    own = (
        picture.VIEW * picture.VIEW - picture.VIEW // 2 - 1
    )  # the agent stands on this one
    found = torch.cdist(tiles, atlas[: picture.TILES]).argmin(-1)
    found[..., own] = torch.cdist(tiles[..., own, :], atlas[picture.TILES :]).argmin(-1)
    return found.numpy()


def _psnr(error: np.ndarray) -> float:
    return float(-10 * np.log10(error.mean() + 1e-12))


def video(config: Config, model: WorldModel) -> list[dict[str, Any]]:
    """Both tests at every context, with the memory and without; and the last frame standing still, as a floor."""
    c = config.benchmark
    seeds = task_seeds(config.tasks.seed, c.walks)
    rows = []
    for context in c.contexts:
        arms: dict[
            str, list[Memory]
        ] = {}  # tests differ in what comes after the context
        for test in TESTS:
            walks = walk(config, test, context, c.horizon, seeds)
            arms = arms or {
                "retained": contexts(model, walks),
                "erased": contexts(model, walks, erased=True),
            }
            frames = {
                arm: imagine(model, walks, memories) for arm, memories in arms.items()
            }
            frames["still"] = walks.frames[:, context - 1 : context].expand(
                -1, c.horizon, -1, -1, -1
            )
            for arm, shown in frames.items():
                about = {"test": test, "context": context, "arm": arm}
                rows.extend(about | row for row in compare(walks, shown, test))
    return rows


# ---- the benchmark


def memory(settings: list[str], output: Path) -> Path:
    """`lssvwm benchmark memory`: train and measure what is not there yet, sum up what is. Returns the JSON file."""
    base = compose(settings)
    configs = [
        dataclasses.replace(
            compose([*settings, f"model={name}", f"seed={seed}"]), name=name
        )
        for seed in base.benchmark.seeds
        for name in base.benchmark.models
    ]
    data = collected(base, output / "data")
    for config in configs:
        _run(
            dataclasses.replace(config, data=data),
            output / f"{config.name}-{config.seed}",
        )
        found = summary(output, base)
        report.write_json(output / "memory.json", found)
    report.publish(report.memory_grids(found), output / "memory.md")
    report.plot_memory(found, output / "memory.png")
    return output / "memory.json"


def _run(config: Config, folder: Path) -> None:
    """Train one model, or go on with it, and measure it; nothing where that is done. Raises UserError if the folder
    holds a run with other settings."""
    there, file = check(config, folder), folder / "memory.json"
    asked = configuration.to_dict(config)["benchmark"] | {
        "models": [config.name],
        "seeds": [config.seed],
    }
    asked = {key: value for key, value in asked.items() if key in ASKED}
    if there and file.exists() and json.loads(file.read_text())["asked"] == asked:
        return
    print(f"{config.name}, seed {config.seed}")
    model = trained(config, folder)
    about = {
        "model": config.name,
        "seed": config.seed,
        "steps": config.train.steps,
        "asked": asked,
    }
    size = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "memory_bytes": model.initial(1).nbytes(),
    }
    report.write_json(
        file, about | size | {"rows": video(config, model) + probes(config, model)}
    )


def summary(output: Path, base: Config) -> dict[str, Any]:
    """All runs found in `output` that were measured in the same way: each measure's mean over training seeds, with its
    95 % interval (Student's t)."""
    settings = {
        key: value
        for key, value in configuration.to_dict(base)["benchmark"].items()
        if key in ASKED
    }
    alike = {
        key: value for key, value in settings.items() if key not in ("models", "seeds")
    }
    runs = [
        json.loads(file.read_text()) for file in sorted(output.glob("*/memory.json"))
    ]
    runs = [run for run in runs if alike.items() <= run["asked"].items()]
    grouped: dict[tuple, list[dict[str, Any]]] = {}
    keys = ("test", "context", "arm", "by", "from", "to")
    for run in runs:
        for row in run["rows"]:
            grouped.setdefault((run["model"], *(row[key] for key in keys)), []).append(
                row
            )
    rows = []
    for what, found in grouped.items():
        measures = {
            key: spread([row[key] for row in found])
            for key in MEASURES
            if key in found[0]
        }
        rows.append(dict(zip(("model", *keys), what)) | {"n": found[0]["n"]} | measures)
    models = {
        run["model"]: {key: run[key] for key in ("steps", "parameters", "memory_bytes")}
        for run in runs
    }
    order = [*(name for name in base.benchmark.models if name in models), *models]
    rows.sort(key=lambda row: order.index(row["model"]))
    about = {"command": "lssvwm benchmark memory", "settings": settings}
    return about | {
        "models": {name: models[name] for name in dict.fromkeys(order)},
        "rows": rows,
    }
