"""Save a model in one file of weights.

The header of the file holds what is needed to build the model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from lssvwm.worldmodel.config import ModelConfig
from lssvwm.worldmodel.migration import (
    FORMAT_VERSION,
    migrate_config,
    migrate_weights,
)
from lssvwm.worldmodel.model import WorldModel
from lssvwm.worldmodel.tensor_file import read_tensors, write_tensors
from pydantic import TypeAdapter

WEIGHTS = "weights.safetensors"
"""Name of the file in a folder."""


def save(model: WorldModel, path: str | Path) -> Path:
    """Write `model` to a folder, or to a file ending in .safetensors.

    The file replaces an older one only when it is complete. Returns the file.
    """
    file = _file(path)
    about = {
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(model.config),
        "frame_shape": model.frame_shape,
        "actions": model.actions,
        "discrete": model.discrete,
    }
    write_tensors(file, model.state_dict(), about)
    return file


def load(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Load the model saved in a folder or file, in evaluation mode.

    Older formats are migrated. Raises FileNotFoundError if there is no such file. Raises ValueError if the file is
    damaged, holds something else, or has a newer format.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"no model at {path}: {file} does not exist")
    about, weights = read_tensors(file, FORMAT_VERSION)
    version = about.get("format_version", 1)
    try:
        sizes = tuple(about["frame_shape"]), about["actions"], about["discrete"]
        config = config_from(migrate_config(about["config"], version))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no world model ({error})") from None
    model = WorldModel(config, *sizes)
    model.load_state_dict(migrate_weights(weights, model.state_dict(), version))
    return model.eval().to(device)


def config_from(fields: dict[str, Any]) -> ModelConfig:
    """Build a `ModelConfig` from plain data, as JSON or YAML hold it."""
    return TypeAdapter(ModelConfig).validate_python(fields)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS
