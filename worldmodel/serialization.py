"""Save a model in one file of weights.

The header of the safetensors file holds what is needed to build the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from lssvwm.worldmodel.config import ModelConfig
from lssvwm.worldmodel.migration import (
    FORMAT_VERSION,
    check_version,
    migrate_config,
    migrate_weights,
)
from lssvwm.worldmodel.model import WorldModel
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

WEIGHTS = "weights.safetensors"
"""Name of the file in a folder."""
HEADER = "lssvwm"
"""Key of the file's metadata that holds format version, configuration and sizes, as JSON."""


def save(model: WorldModel, path: str | Path) -> Path:
    """Write `model` to a folder, or to a file ending in .safetensors.

    The file replaces an older one only when it is complete. Returns the file.
    """
    file = _file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "format_version": FORMAT_VERSION,
        "config": dataclasses.asdict(model.config),
        "frame_shape": model.frame_shape,
        "actions": model.actions,
        "discrete": model.discrete,
    }
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    draft = file.with_suffix(".tmp")
    try:
        save_file(weights, draft, {HEADER: json.dumps(header)})
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def load(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """Load the model saved in a folder or file, in evaluation mode.

    Older formats are migrated. Raises FileNotFoundError if there is no such file. Raises ValueError if the file is
    damaged, holds something else, or has a newer format.
    """
    file = _file(path)
    if not file.is_file():
        raise FileNotFoundError(f"no model at {path}: {file} does not exist")
    header, weights = _read(file)
    version = header.get("format_version", 1)
    check_version(version, str(file))
    config = config_from(migrate_config(header["config"], version))
    model = WorldModel(
        config, tuple(header["frame_shape"]), header["actions"], header["discrete"]
    )
    model.load_state_dict(migrate_weights(weights, model.state_dict(), version))
    return model.eval().to(device)


def config_from(fields: dict[str, Any]) -> ModelConfig:
    """Build a `ModelConfig` from plain data, as JSON or YAML hold it."""
    return TypeAdapter(ModelConfig).validate_python(fields)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / WEIGHTS


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return header and weights; raises ValueError if the file is damaged or holds something else."""
    try:
        with safe_open(file, "pt") as saved:
            header = json.loads((saved.metadata() or {})[HEADER])
            weights = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} is damaged or not a saved world model ({error})"
        ) from None
    return header, weights
