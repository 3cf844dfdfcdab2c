"""Look into the folder of a run before a command uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent.checkpoint import BEST, CONFIG, EXPORT, stage_folders
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import Config, SavedRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.training.state_file import has_state
from lssvwm.worldmodel.serialization import WEIGHTS

PAUSE = 120.0
"""Seconds between two rows of a log beyond which training was interrupted."""


def saved_config(folder: Path) -> SavedRunConfig:
    """Read the settings of a run for a comparison.

    Code that they name is accepted, so nothing may be built from them.
    """
    saved = composition.read(folder / CONFIG)
    return composition.from_checkpoint(saved, ["trust=true"], SavedRunConfig)


def refuse_existing_run(folder: Path, config: Config) -> None:
    """Raise UserError if a new run would mix with steps or frames of another one.

    The folder of a run that failed before its first saved step can be used again. Frames that it collected with the
    settings of `config` are kept.
    """
    if not (folder / CONFIG).is_file():
        return
    parts = [folder, *stage_folders(folder)]
    if any(has_state(part) or _has_weights(part) for part in parts):
        raise UserError(
            f"{folder} holds a run already: "
            f"use `lssvwm resume {folder}`, or another output="
        )
    collected = [part / "data" for part in parts if any(part.glob("data/shard-*"))]
    if collected and not _collects_the_same(folder, config):
        raise UserError(
            f"{collected[0]} holds frames that other settings collected: "
            f"delete it, or choose another output="
        )


def _has_weights(folder: Path) -> bool:
    return any((folder / name / WEIGHTS).is_file() for name in (BEST, EXPORT, "."))


def _collects_the_same(folder: Path, config: Config) -> bool:
    """Return whether the saved settings of a run collect the frames of `config`."""
    try:
        saved = saved_config(folder)
    except UserError:
        return False
    return (
        saved.env == config.env
        and saved.seed == config.seed
        and saved.stages == config.stages
        and saved.train.collect == config.train.collect
    )


def refuse_exported_weights(folder: Path) -> None:
    """Raise UserError if a folder holds the exported weights of a run, but no run."""
    if has_state(folder) or not (folder / WEIGHTS).is_file():
        return
    if (folder.parent / CONFIG).is_file():
        remedy = f"use `lssvwm resume {folder.parent}`"
    else:
        remedy = f"begin a run from them with `lssvwm train train.init={folder}`"
    raise UserError(f"{folder} holds exported weights, no run: {remedy}")


def training_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds between the rows of a log, without interruptions."""
    times = np.diff([row["time"] for row in rows if "time" in row])
    return float(times[times < PAUSE].sum())
