"""Upgrade weights and model settings of earlier formats.

Format 1 has no `format_version`. Format 2 has the present names. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

V = TypeVar("V")

FORMAT_VERSION = 2
"""Format of weights, and of the model settings in their header, that this version writes."""

_RENAMED_WEIGHTS: list[tuple[str, str]] = [
    (r"^blocks\.(\d+)\.scan\.place$", r"blocks.\1.mixer.pos_embed"),
    (r"^blocks\.(\d+)\.scan\.odometer\.", r"blocks.\1.mixer.path_integrator."),
    (r"^blocks\.(\d+)\.scan\.", r"blocks.\1.mixer."),
]
"""Regular expressions of state-dict keys in format 1, and what replaces the match; applied in this order."""

RENAMED_SETTINGS: dict[str, str] = {
    "standardise": "normalize_frames",
    "mlp": "mlp_ratio",
    "imagined": "self_forcing_prob",
    "imagined_span": "self_forcing_span",
    "pixel_share": "pixel_fraction",
    "rarity": "rare_colour_power",
    "kind": "mixer.kind",
    "tiles": "mixer.tiles",
    "state": "mixer.state",
    "scan_head": "mixer.head_dim",
    "rotary": "mixer.rope_fraction",
    "window": "attention_window",
}
"""Dotted names of model settings in format 1, below `model`, and their names in format 2."""

REMOVED_SETTINGS: dict[str, str] = {
    "head_hidden": "it is always 128",
    "expand": "it is always 2",
    "clean_prefix": "set model.forcing=diffusion_prefix, or model.forcing=diffusion for no clean prefix",
    "flow": "it is always 0.125",
    "trace": "it is always 0.95",
    "advantage": "it is always 0.1",
    "optimism": "it is always 0.1",
    "loss.cont": "it is always 1",
    "loss.reach": "it is always 1",
}
"""Dotted names of model settings that format 2 lacks, and the constant or setting that replaces them."""

_SIZES = {"head_hidden": 128, "expand": 2}
"""Removed settings that decide the shapes of weights, and their constants."""


_MIXER_DEFAULTS: dict[str, Any] = {
    "kind": "lssvwm",
    "tiles": [1, 3],
    "state": 128,
    "scan_head": 32,
    "rotary": 0.75,
    "expand": 2,
}
"""Settings of format 1 that belong to the mixer, and their defaults."""


def check_version(version: int, what: str) -> None:
    """Raise ValueError if a file has a newer format than this version of the package reads."""
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{what} has format {version}, this version reads formats up to {FORMAT_VERSION}: update it"
        )


def migrate_weights(state: Mapping[str, V], version: int = 1) -> dict[str, V]:
    """Return a state dict of format `version` with the present keys.

    Raises ValueError for a newer format.
    """
    check_version(version, "the state dict")
    if version == FORMAT_VERSION:
        return dict(state)
    return {_renamed(key): value for key, value in state.items()}


def migrate_config(fields: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
    """Return model settings of format `version`, as plain data, with the present names and groups.

    Removed training settings are dropped. Raises ValueError for a newer format, and for weights of other shapes than
    the present model can have.
    """
    check_version(version, "the model configuration")
    plain = deepcopy(dict(fields))
    return plain if version == FORMAT_VERSION else _from_format1(plain)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED_WEIGHTS:
        key = re.sub(pattern, replacement, key)
    return key


def _from_format1(plain: dict[str, Any]) -> dict[str, Any]:
    for name, size in _SIZES.items():
        if plain.get(name, size) != size:
            raise ValueError(
                f"model.{name}={plain[name]} is no longer supported: it is always {size}"
            )
    if plain.get("forcing") == "diffusion" and plain.get("clean_prefix", 0.5) > 0:
        plain["forcing"] = "diffusion_prefix"
    if "mixer" not in plain:
        plain = _nest_mixer(plain)
    for name in REMOVED_SETTINGS:
        _take(plain, name)
    moved = {
        new: _take(plain, old)
        for old, new in RENAMED_SETTINGS.items()
        if _has(plain, old)
    }
    for name, value in moved.items():
        _put(plain, name, value)
    return plain


def _nest_mixer(plain: dict[str, Any]) -> dict[str, Any]:
    """Move the settings of the mixer, some of which had several meanings in format 1, into a group of their own."""
    old = _MIXER_DEFAULTS | plain
    rest = {name: value for name, value in plain.items() if name not in _MIXER_DEFAULTS}
    layers = len(old["tiles"])
    if old["kind"] == "gru":
        mixer = {"kind": "gru", "layers": layers, "state": old["state"]}
    elif old["kind"] in ("attention", "attention_odometer"):
        mixer = {
            "kind": "attention",
            "layers": layers,
            "window": plain.get("window", 3),
            "heads": plain.get("attention_heads", 4),
            "path_integration": old["kind"] == "attention_odometer",
            "rope_fraction": old["rotary"],
        }
        rest["window"] = 0  # attention had no frame-local attention beside it
    else:
        mixer = {
            "kind": "tiled_ssd",
            "tiles": old["tiles"],
            "state": old["state"],
            "head_dim": old["scan_head"],
            "rope_fraction": old["rotary"],
        }
    return {"mixer": mixer} | rest


def _inside(plain: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the group that holds a dotted name (empty if there is none), and the last part of the name."""
    *groups, last = name.split(".")
    for group in groups:
        plain = plain.get(group) or {}
    return plain, last


def _has(plain: dict[str, Any], name: str) -> bool:
    group, last = _inside(plain, name)
    return last in group


def _take(plain: dict[str, Any], name: str) -> Any:
    """Remove the value under a dotted name and return it; None if there is none."""
    group, last = _inside(plain, name)
    return group.pop(last, None)


def _put(plain: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        plain = plain.setdefault(group, {})
    plain[last] = value
