"""Say where results come from, and find a folder in which they replace no others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lssvwm.agent.checkpoint import resolve
from lssvwm.agent.config.composition import to_dict
from lssvwm.agent.config.settings import CheckpointConfig, Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import read_json
from lssvwm.worldmodel.serialization import WEIGHTS

UNUSED = ("train", "benchmark", "name", "output", "data", "trust")
"""Settings that results of a checkpoint do not depend on."""
MACHINE = ("threads", "seed")
"""Settings that measurements of a machine depend on."""

IsOurs = Callable[[dict[str, Any]], bool]
"""Says whether a result file has the settings and weights of the present command."""


@dataclass(frozen=True)
class Origin:
    """Say where a result comes from.

    version: of the package
    date: UTC, ISO 8601
    checkpoint: name or folder; None if there is none
    weights: start of the SHA-256 of the weights
    """

    version: str
    date: str
    checkpoint: str | None
    weights: str | None

    @staticmethod
    def of(checkpoint: str | None = None) -> Origin:
        """Describe a result made now, maybe with a checkpoint."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        weights = weights_hash(checkpoint) if checkpoint else None
        return Origin(version("lssvwm"), date, checkpoint, weights)


def weights_hash(checkpoint: str | Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a checkpoint's weights."""
    weights = (resolve(checkpoint) / WEIGHTS).read_bytes()
    return hashlib.sha256(weights).hexdigest()[:16]


def used_settings(config: Config, benchmark: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that results of a checkpoint depend on, as plain data.

    benchmark: settings of this section that matter, too
    """
    plain = to_dict(config)
    used = {key: value for key, value in plain.items() if key not in UNUSED}
    used["tasks"].pop("workers")
    if benchmark:
        used["benchmark"] = {key: plain["benchmark"][key] for key in benchmark}
    return used


def same_checkpoint(config: CheckpointConfig, benchmark: Sequence[str] = ()) -> IsOurs:
    """Compare all settings and the weights; the name of the checkpoint may differ.

    benchmark: see `used_settings`
    """
    ours = used_settings(config, benchmark) | {"checkpoint": None}

    def is_ours(found: dict[str, Any]) -> bool:
        settings = found.get("settings", {}) | {"checkpoint": None}
        weights = found.get("origin", {}).get("weights")
        return settings == ours and weights == weights_hash(str(config.checkpoint))

    return is_ours


def machine_settings(config: Config) -> dict[str, Any]:
    """Return the settings that measurements of a machine depend on."""
    return {name: getattr(config, name) for name in MACHINE}


def same_machine(config: Config) -> IsOurs:
    """Compare the settings that measurements of a machine depend on."""
    ours = machine_settings(config)

    def is_ours(found: dict[str, Any]) -> bool:
        settings = found.get("settings", {})
        return "origin" in found and settings == settings | ours

    return is_ours


def free_folder(folder: Path, name: str, is_ours: IsOurs, chosen: bool) -> Path:
    """Return `folder`, or the first of folder-2, folder-3 and so on without other results.

    name: file of the results
    is_ours: says whether new results may replace those in a file
    chosen: whether the user named the folder; then other results in it raise UserError
    """
    candidate = folder
    number = 1
    while (candidate / name).exists() and not is_ours(_content(candidate / name)):
        if chosen:
            raise UserError(
                f"{candidate / name} holds results of other settings or weights: "
                f"choose another output="
            )
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _content(file: Path) -> dict[str, Any]:
    """Read a result file; a damaged one is empty, so that it is kept."""
    try:
        return read_json(file, "")
    except UserError:
        return {}
