"""Find, load and export trained models.

A model is a folder with config.yaml and weights.safetensors: all that evaluating, recording and acting need.
It is named by that folder, by the folder of its run, or by a name in `configs/pretrained`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.presets import config_dir, pretrained
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError, did_you_mean
from lssvwm.worldmodel import WorldModel
from lssvwm.worldmodel import load as load_model
from lssvwm.worldmodel import save as save_model
from lssvwm.worldmodel.scan import backends
from lssvwm.worldmodel.scan.backends import Scan
from lssvwm.worldmodel.serialization import WEIGHTS

CONFIG = "config.yaml"
BEST, EXPORT = "best", "export"
"""Folders in a run's folder: weights that a validation score selected, and the latest weights of other runs."""
STAGES = "stages"
"""Folder in a run's folder; each folder in it, such as `1-walk`, is a run of its own."""


def resolve(name: str | Path) -> Path:
    """Return the folder with config.yaml and weights of a pretrained name or a folder.

    Of a run's folder, best/ comes first, then export/, then the same of its latest stage. A Path is never a pretrained
    name. Raises UserError if there is no such model, or a pretrained one and a folder of the same name.
    """
    known = pretrained()
    places = (place for place in _places(Path(name)) if (place / WEIGHTS).is_file())
    folder = next(places, None)
    if isinstance(name, str) and name in known:
        if folder is not None:
            raise UserError(
                f"{name} is a pretrained model, and a folder here: "
                f"write ./{name} for the folder, or rename it"
            )
        return config_dir() / "pretrained" / name
    if folder is not None:
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{folder} has weights but no {CONFIG}: copy that of its run there"
            )
        return folder
    there_are = f"pretrained: {', '.join(known) or 'none'}"
    hint = did_you_mean(str(name), known) or there_are
    raise UserError(
        f"no checkpoint at {name}: "
        f"neither a pretrained model nor a folder with {WEIGHTS}; {hint}"
    )


def _places(run: Path) -> Iterator[Path]:
    """Return the folders that may hold the weights of a run, the preferred one first."""
    yield from (run / BEST, run / EXPORT, run)
    for stage in reversed(stage_folders(run)):
        yield from (stage / BEST, stage / EXPORT)


def stage_folders(run: Path) -> list[Path]:
    """Return the folders of a run's stages that have begun, in order."""
    numbers = {
        int(path.name.partition("-")[0]): path
        for path in run.glob(f"{STAGES}/*-*")
        if path.name.partition("-")[0].isdecimal()
    }
    return [numbers[number] for number in sorted(numbers)]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the saved configuration next to the weights, as plain data."""
    return configuration.read(folder / CONFIG)


def export(model: WorldModel, config: Config, folder: Path) -> None:
    """Write weights and configuration to a folder."""
    save_model(model, folder)
    configuration.save(dataclasses.replace(config, output=None), folder / CONFIG)


def load(folder: str | Path, device: str = "auto", backend: str = "auto") -> WorldModel:
    """Load the model of a checkpoint.

    Raises UserError if it is missing or damaged, or if device or backend cannot be used.
    """
    place = pick_device(device)
    pick_backend(backend, place)
    try:
        return load_model(resolve(folder), place).use_backend(backend)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{error}; train again or copy the file again") from None


def pick_device(name: str) -> torch.device:
    """Return a device; `auto` is CUDA if there is a GPU.

    Raises UserError for a device that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device={name} cannot be used here ({reason}); try device=cpu"
        ) from None


def pick_backend(name: str, device: torch.device) -> tuple[str, Scan]:
    """Return name and function of a backend of the scan.

    Raises UserError if it cannot be used on the device.
    """
    try:
        return backends.select_backend(name, device)
    except (ValueError, backends.BackendUnavailable) as error:
        raise UserError(f"{error}; see `lssvwm doctor`") from None


def check_fits(
    model: WorldModel, frame_shape: tuple[int, ...], actions: int, discrete: bool
) -> None:
    """Raise UserError if a model was trained for another kind of environment.

    actions: number of discrete actions, or of dimensions of a continuous one
    """
    same_frames = tuple(model.frame_shape) == tuple(frame_shape)
    same_actions = (model.actions, model.discrete) == (actions, discrete)
    if not (same_frames and same_actions):
        own = _actions(model.actions, model.discrete)
        raise UserError(
            f"this checkpoint is for frames {model.frame_shape} and {own}, "
            f"the environment has {tuple(frame_shape)} "
            f"and {_actions(actions, discrete)}: "
            f"use the environment it was trained on"
        )


def _actions(count: int, discrete: bool) -> str:
    return f"{count} actions" if discrete else f"actions of {count} dimensions"
