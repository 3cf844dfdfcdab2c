"""Where trained models are found: a run's folder, an exported folder, or a name in `configs/pretrained`.

A run's folder holds config.yaml, metrics.jsonl, data/, checkpoints/ (everything needed to go on) and best/ (config.yaml
and weights.safetensors: all that evaluating, recording and acting need).
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.presets import config_dir
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import WorldModel
from lssvwm.worldmodel import load as load_model
from lssvwm.worldmodel import save as save_model
from lssvwm.worldmodel.scan import backends
from lssvwm.worldmodel.scan.backends import Scan
from lssvwm.worldmodel.serialization import WEIGHTS

CONFIG = "config.yaml"


def pretrained() -> dict[str, Path]:
    """The models that come with the package, by name."""
    root = config_dir() / "pretrained"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{WEIGHTS}"))}


def resolve(name: str | Path) -> Path:
    """The folder with config.yaml and weights that a pretrained name or a folder means; raises UserError."""
    known = pretrained()
    if str(name) in known:
        return known[str(name)]
    for folder in (Path(name) / "best", Path(name)):
        if (folder / WEIGHTS).is_file():
            if not (folder / CONFIG).is_file():
                raise UserError(
                    f"{folder} has weights but no {CONFIG}: copy the one of its run beside them"
                )
            return folder
    near = difflib.get_close_matches(str(name), known, 1)
    hint = (
        f"; did you mean {near[0]}?"
        if near
        else f"; pretrained: {', '.join(known) or 'none'}"
    )
    raise UserError(
        f"no checkpoint at {name}: neither a pretrained model nor a folder with {WEIGHTS}{hint}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The saved configuration beside the weights, as plain data."""
    return configuration.read(folder / CONFIG)


def export(model: WorldModel, config: Config, folder: Path) -> None:
    """Write what evaluating and acting need: weights and configuration."""
    save_model(model, folder)
    configuration.save(dataclasses.replace(config, output=None), folder / CONFIG)


def load(folder: str | Path, device: str = "auto", backend: str = "auto") -> WorldModel:
    """The model of a checkpoint; raises UserError if it is missing or damaged, or device or backend cannot be used."""
    place = pick_device(device)
    pick_backend(backend, place)
    try:
        return load_model(resolve(folder), place).use(backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{error}; train again or copy the file anew") from None


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}); try device=cpu"
        ) from None


def pick_backend(name: str, device: torch.device) -> tuple[str, Scan]:
    """The backend of the scan for a device; raises UserError if it cannot be used there."""
    try:
        return backends.select_backend(name, device)
    except (ValueError, backends.BackendUnavailable) as error:
        raise UserError(f"{error}; see `lssvwm doctor`") from None


def check_fits(model: WorldModel, frame_shape: tuple[int, ...], actions: int) -> None:
    """Raises UserError if a model was trained for another kind of environment."""
    if tuple(model.frame_shape) != tuple(frame_shape) or model.actions != actions:
        raise UserError(
            f"this checkpoint is for frames {model.frame_shape} and {model.actions} actions, "
            f"the environment has {tuple(frame_shape)} and {actions}: use the environment it was trained on"
        )
