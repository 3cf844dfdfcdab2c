"""A model in one file: safetensors weights, with what is needed to build the model in the file's header."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from lssvwm.worldmodel.model import LossWeights, ModelConfig, WorldModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

WEIGHTS = "weights.safetensors"


def save(model: WorldModel, path: str | Path) -> Path:
    """Write `model` to `path` (a folder, or a file ending in .safetensors), all at once; returns the file."""
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    built = {
        "config": dataclasses.asdict(model.config),
        "frame_shape": model.frame_shape,
        "actions": model.actions,
        "discrete": model.discrete,
    }
    draft = file.with_suffix(".tmp")
    try:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, draft, {"lssvwm": json.dumps(built)})
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def load(path: str | Path, device: str | torch.device = "cpu") -> WorldModel:
    """The model saved at `path` (a folder or file), ready for `initial`, `observe` and `imagine`.

    Raises FileNotFoundError if there is none, ValueError if the file is damaged or not one of ours.
    """
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"no model at {path}: {file} does not exist")
    try:
        with safe_open(file, "pt") as saved:
            built = json.loads((saved.metadata() or {})["lssvwm"])
            state = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged or not a saved world model ({error})") from None
    model = WorldModel(config_from(built["config"]), tuple(built["frame_shape"]), built["actions"], built["discrete"])
    model.load_state_dict(state)
    return model.eval().to(device)


def config_from(fields: dict[str, Any]) -> ModelConfig:
    """A `ModelConfig` from plain data, as JSON or YAML hold it."""
    return ModelConfig(**fields | {"tiles": tuple(fields["tiles"]), "loss": LossWeights(**fields["loss"])})
