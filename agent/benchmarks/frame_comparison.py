"""Compare imagined with real frames, by distance and by age of the tiles.

Shapes: N walks, H imagined frames, 9 tiles of the view.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lssvwm.agent.benchmarks.maze_walks import AGES, NEVER, Recorded, Walks
from lssvwm.envs.maze import rendering as picture
from lssvwm.worldmodel import Memory, RolloutPolicy, WorldModel
from torch import Tensor

DISTANCES = (1, 9, 17, 33, 65, 129)
"""Lower bounds of the ranges of distances."""
ROWS = 16
"""Walks that a model processes at once."""
SSIM_WALKS = 8
"""Walks for which SSIM is computed, which takes longer than everything else."""
UNBOUNDED = 1 << 30

Row = dict[str, Any]


@torch.no_grad()
def imagine(model: WorldModel, walks: Recorded, memories: list[Memory]) -> Tensor:
    """Imagine the frames uint8 [N, horizon, 3, H, W] after the contexts.

    Each memory holds the contexts of ROWS walks.
    """
    out = []
    given = model.config.pose == "given"
    actions = walks.action[:, walks.context :].split(ROWS)
    poses = walks.pose[:, walks.context :].split(ROWS)
    for action, pose, memory in zip(actions, poses, memories):
        action, pose = (v[:, None].to(model.device) for v in (action, pose))
        policy = RolloutPolicy.along(action, pose) if given else action
        future = model.imagine(memory, policy, decode=True)
        assert future.frames is not None
        out.append(future.frames[:, 0].cpu())
    return torch.cat(out)


def compare(walks: Walks, imagined: Tensor, test: str) -> list[Row]:
    """Compare imagined with real frames, by distance and by age.

    PSNR is that of the mean squared error of all pixels in a range.
    """
    real, error = _errors(walks, imagined)
    tile_error = _tile_errors(error)
    recognised = _recognised(imagined) == walks.tile
    return [
        *_by_distance(error, _ssim(real, imagined), test),
        *_by_age(walks.age, tile_error, recognised),
    ]


def compare_seen(walks: Walks, imagined: Tensor) -> Row:
    """Compare the tiles that were in view in the context, whenever that was."""
    _, error = _errors(walks, imagined)
    recognised = _recognised(imagined) == walks.tile
    return _tile_scores(_tile_errors(error), recognised, walks.age > 0)


def compare_all(walks: Recorded, imagined: Tensor) -> Row:
    """Compare all imagined frames; PSNR is that of the mean squared error of all pixels."""
    real, error = _errors(walks, imagined)
    score = float(_ssim(real, imagined).mean())
    return {"n": len(real), "psnr": psnr(error.mean()), "ssim": score}


def frame_errors(walks: Recorded, imagined: Tensor) -> np.ndarray:
    """Return the mean squared error of every imagined frame, [N, H]."""
    return _errors(walks, imagined)[1].mean((2, 3, 4)).numpy()


def _errors(walks: Recorded, imagined: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real frames, from 0 to 1, and the squared errors of imagined ones."""
    real = walks.frames[:, walks.context :].float() / 255
    return real, (real - imagined.float() / 255).square()


def _tile_errors(error: Tensor) -> np.ndarray:
    """Return the mean squared error of each tile, [N, H, 9]."""
    return _tiles(error).mean((-1, -2, -3)).numpy()


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
        row["psnr"] = psnr(frame_error[in_range])
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
        rows.append(row | _tile_scores(error, recognised, in_range))
    return rows


def _tile_scores(error: np.ndarray, recognised: np.ndarray, some: np.ndarray) -> Row:
    """Return the measures of `some` of the tiles, all arrays [N, H, 9]."""
    return {
        "n": int(some.sum()),
        "psnr": psnr(error[some]),
        "tiles_right": float(recognised[some].mean()),
    }


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


def psnr(error: np.ndarray | Tensor) -> float:
    """Return the PSNR in dB of the mean of squared errors."""
    return float(-10 * np.log10(float(error.mean()) + 1e-12))
