"""Train models on the same frames from several seeds, and resume stopped runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent import checkpoint
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.presets import options
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import read_json
from lssvwm.agent.replay import Replay
from lssvwm.agent.run_folder import saved_config
from lssvwm.agent.training.collection import build_collection, fill
from lssvwm.agent.training.stages import resume, train
from lssvwm.worldmodel import WorldModel

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantiles (97.5 %) of Student's t with 1, 2, ... degrees of freedom."""

AGAIN = "delete it to measure again, or choose another output="
"""Remedy for a result file that is damaged or has other settings."""


def collected(config: Config, folder: Path) -> str:
    """Collect the frames that are missing for training; returns the folder's name."""
    collection = build_collection(config.env, config.train.collect)
    replay = Replay(folder, environment=collection.environment)
    fill(collection, replay, config.seed)
    return str(folder)


def check_models(models: Sequence[str]) -> None:
    """Raise UserError for a model preset that does not exist, before anything is done."""
    known = options("model")
    if unknown := [name for name in models if name not in known]:
        raise UserError(
            f"benchmark.models: no {unknown[0]!r}; there are {', '.join(known)}"
        )


def check(config: Config, folder: Path) -> bool:
    """Return whether the folder holds a run; raises UserError for other settings."""
    if not (folder / "config.yaml").exists():
        return False
    plain = configuration.to_dict(config)
    saved = configuration.to_dict(saved_config(folder))
    if other := [
        key for key in ("env", "model", "train", "stages") if saved[key] != plain[key]
    ]:
        raise UserError(
            f"{folder} was trained with other settings ({', '.join(other)}): choose another output="
        )
    return True


def measured(file: Path, settings: dict[str, Any]) -> bool:
    """Return whether a file holds results of these settings; raises UserError for others."""
    if not file.exists():
        return False
    if read_json(file, AGAIN).get("settings") != settings:
        raise UserError(f"{file} holds results of other settings: {AGAIN}")
    return True


def trained(config: Config, folder: Path) -> WorldModel:
    """Train the model of these settings in the folder, or resume its training.

    Raises UserError as `check` does.
    """
    if check(config, folder):
        resume(folder, ["trust=true"])  # its code is that of `config`
    else:
        train(config, folder)
    return checkpoint.load(folder, config.device, config.backend)


def spread(values: list[float]) -> dict[str, Any]:
    """Return the mean over seeds and its 95 % interval by Student's t.

    There are no bounds with a single seed.
    """
    n = len(values)
    mean = float(np.mean(values))
    found = {"mean": mean, "seeds": [round(value, 4) for value in values]}
    if n < 2:
        return found
    quantile = STUDENT[min(n - 2, len(STUDENT) - 1)]
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(n)
    return found | {"low": mean - half, "high": mean + half}
