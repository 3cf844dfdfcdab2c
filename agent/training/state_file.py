"""Write and read the file from which a run is resumed, `checkpoints/last.safetensors`.

It holds weights, averaged weights, moments of the optimizer and states of generators as tensors, the rest as JSON,
and a checksum. Formats 1 and 2 were pickles named `last.pt`. Of these only tensors and plain values are read.
Format 4 adds the metrics since the last row of the log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lssvwm.agent.errors import UserError
from lssvwm.agent.files import remove
from lssvwm.worldmodel.migration import check_version, migrate_weights
from lssvwm.worldmodel.tensor_file import (
    read_tensors,
    read_torch_file,
    write_tensors,
)
from torch import Tensor

FORMAT_VERSION = 4
"""Format that this version writes. Format 1 has no `format_version`."""
STATE, OLD_STATE = Path("checkpoints/last.safetensors"), Path("checkpoints/last.pt")
"""Files in a run's folder: of this format, and of formats 1 and 2."""
WEIGHTS = ("model", "ema")
"""Entries of the state that hold weights by name."""
GENERATORS = ("generator", "torch")
"""Entries of the state that hold the state of a generator as a tensor."""
PLAIN = ("step", "best", "shards", "rng", "lengths", "unlogged", "python")
"""Entries of the state that are plain data."""

State = dict[str, Any]


def has_state(folder: Path) -> bool:
    """Return whether the folder of a run holds a saved step."""
    return (folder / STATE).is_file() or (folder / OLD_STATE).is_file()


def write_state(folder: Path, state: State) -> None:
    """Write the state of a run.

    A killed process or a full disk leaves the last one whole.
    """
    optimizer = state["optimizer"]
    groups = {name: state[name] for name in WEIGHTS}
    for index, moments in optimizer["state"].items():
        groups[f"moments.{index}"] = moments
    tensors = {name: state[name] for name in GENERATORS}
    for group, values in groups.items():
        tensors |= {f"{group}.{name}": value for name, value in values.items()}
    about = {key: state[key] for key in PLAIN if key in state}
    about |= {"format_version": FORMAT_VERSION}
    about |= {"param_groups": optimizer["param_groups"]}
    write_tensors(folder / STATE, tensors, about)
    remove(folder / OLD_STATE)


def read_state(folder: Path, own: dict[str, Tensor]) -> State:
    """Return the state of a run in the present format, on the CPU.

    own: state dict of the run's model
    Raises UserError if the file is damaged, holds something else or has a newer format.
    """
    try:
        if not (folder / STATE).is_file():
            return migrate(read_torch_file(folder / OLD_STATE), own)
        about, tensors = read_tensors(folder / STATE, FORMAT_VERSION)
        return migrate(_assembled(about, tensors), own)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{error}; to begin a run from the exported weights: "
            f"lssvwm train train.init={folder}"
        ) from None


def _assembled(about: dict[str, Any], tensors: dict[str, Tensor]) -> State:
    """Return the state whose parts a file holds."""
    state = {key: about[key] for key in (*PLAIN, "format_version") if key in about}
    state |= {name: tensors[name] for name in GENERATORS}
    state |= {name: _below(tensors, f"{name}.") for name in WEIGHTS}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "moments.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    state["optimizer"] = {"state": moments, "param_groups": about["param_groups"]}
    version, internal, gauss = state["python"]
    state["python"] = (version, tuple(internal), gauss)  # JSON has no tuples
    return state


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def migrate(state: State, own: dict[str, Tensor]) -> State:
    """Return a state of any format in the present one.

    own: state dict of the run's model
    Raises ValueError for a newer format.
    """
    version = state.get("format_version", 1)
    check_version(version, "the state", FORMAT_VERSION)
    weights = {name: migrate_weights(state[name], own, version) for name in WEIGHTS}
    return state | weights
