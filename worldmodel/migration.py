"""Upgrade weights and model settings of earlier formats.

Format 1 has no `format_version`. Format 2 has the present names. Format 3 adds checksums. Format 4 adds the units of
reward and value, which are 1 in older weights. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 4
"""Format of weights, with the model settings in their header, and of memories that this version writes."""

_RENAMED_WEIGHTS: list[tuple[str, str]] = [
    (r"^blocks\.(\d+)\.scan\.place$", r"blocks.\1.mixer.pos_embed"),
    (r"^blocks\.(\d+)\.scan\.odometer\.", r"blocks.\1.mixer.path_integrator."),
    (r"^blocks\.(\d+)\.scan\.", r"blocks.\1.mixer."),
    (r"^place$", "embedding.pos_embed"),
    (r"^embed\.", "embedding.patch_embed."),
    (r"^act\.", "embedding.action_embed."),
    (r"^level\.", "embedding.noise_embed."),
    (r"^patches\.centre$", "embedding.patches.mean"),
    (r"^patches\.spread$", "embedding.patches.std"),
    (r"^reach\.tell\.", "action_limits.layers."),
    (r"^reach\.", "action_limits."),
    (r"^rarity\.", "colour_weights."),
]
"""Regular expressions of state-dict keys in format 1, and what replaces the match; applied in this order."""

RENAMED_SETTINGS: dict[str, str] = {
    "kind": "mixer.kind",
    "tiles": "mixer.tiles",
    "state": "mixer.state",
    "scan_head": "mixer.head_dim",
    "rotary": "mixer.rope_fraction",
    "window": "attention_window",
    "standardise": "normalize_frames",
    "mlp": "mlp_ratio",
    "imagined": "self_forcing_prob",
    "imagined_span": "self_forcing_span",
    "pixel_share": "pixel_fraction",
    "rarity": "rare_colour_power",
}
"""Dotted names of model settings in format 1, below `model`, and their names in format 2.

The mixers attention and gru have `mixer.layers` instead of `mixer.tiles`; attention has `mixer.window`.
"""

REMOVED_SETTINGS: dict[str, str] = {
    "head_hidden": "it is always 128",
    "expand": "it is always 2",
    "clean_prefix": "set model.forcing to diffusion_prefix, or to diffusion for none",
    "flow": "it is always 0.125",
    "trace": "it is always 0.95",
    "advantage": "it is always 0.1",
    "optimism": "it is always 0.1",
    "loss.cont": "it is always 1",
    "loss.value": "it is always 0.1",
    "loss.reach": "it is always 1",
}
"""Dotted names of model settings that format 2 lacks, and the constant or setting that replaces them."""

_LIMITS = "action_limits."
"""First part of the keys of action limits."""

_SCALES = "heads.scales"
"""Key of the units of reward and value, [2]."""

_WALLS = ".path_integrator.frame."
"""Part of the keys of the wall predictor."""

_MEMORY = {"seen": "visible", "reach": "action_limits"}
"""Entries of a saved memory in format 1, and their names in format 2."""

_MEMORY_FIELDS = {"layers", "visible", "action_limits", "frames"}

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


def check_version(version: int, what: str, newest: int = FORMAT_VERSION) -> None:
    """Raise ValueError if a file has a newer format than this version reads."""
    if version > newest:
        raise ValueError(
            f"{what} has format {version}, this version reads formats up to {newest}: update it"
        )


def migrate_weights(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], version: int = 1
) -> dict[str, Tensor]:
    """Return a state dict of format `version` with the present keys.

    own: state dict of the model that will load it
    Raises ValueError for a newer format.
    """
    check_version(version, "the state dict")
    if version >= FORMAT_VERSION:
        return dict(state)
    units = {key: own[key].new_ones(2) for key in own if key == _SCALES}
    if version > 1:
        return dict(state) | units
    renamed = {_renamed(key): value for key, value in state.items()}
    return _complete(renamed, own) | units


def migrate_config(fields: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
    """Return model settings of format `version`, as plain data, with the present names and groups.

    Raises ValueError for a newer format.
    """
    check_version(version, "the model configuration")
    plain = deepcopy(dict(fields))
    return plain if version > 1 else _from_format1(plain)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMED_WEIGHTS:
        key = re.sub(pattern, replacement, key)
    return key


def _complete(
    weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Adapt weights of the first releases to the modules that the model has.

    They lack `known` motions, and maybe action limits: these begin as in a new model. With continuous actions, they may
    hold a wall predictor, which the model lacks.
    """
    added = {
        key: value.new_zeros(value.shape)
        for key, value in own.items()
        if key.endswith(".path_integrator.known")
    }
    if not any(key.startswith(_LIMITS) for key in weights):
        added |= {key: own[key] for key in own if key.startswith(_LIMITS)}
    kept = {
        key: value for key, value in weights.items() if _WALLS not in key or key in own
    }
    return added | kept


def migrate_memory(saved: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a saved memory, as plain data, with the present names and without its `format_version`.

    Raises ValueError if it holds something else or has a newer format.
    """
    saved = dict(saved)
    version = saved.pop("format_version", 1)
    check_version(version, path)
    if version == 1:
        saved = {_MEMORY.get(name, name): value for name, value in saved.items()}
    if missing := _MEMORY_FIELDS - saved.keys():
        raise ValueError(
            f"{path} holds no memory: it lacks {', '.join(sorted(missing))}"
        )
    if version == 1:
        layers = saved["layers"].items()
        saved["layers"] = {name: _split_layer(layer) for name, layer in layers}
    return saved


def _split_layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Separate what the mixer and what local attention remember. The mixer `attention` had no local attention."""
    if "valid" in layer:
        return {"mixer": layer, "attention": {}}
    local = {name: layer[name] for name in ("key", "value") if name in layer}
    mixer = {name: value for name, value in layer.items() if name not in local}
    return {"mixer": mixer, "attention": local}


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
    """Move the settings of the mixer into a group of their own.

    In format 1, some of them had several meanings.
    """
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
        rest["window"] = 0  # the mixer replaced frame-local attention
        rest.pop("attention_heads", None)
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
    """Return the group of a dotted name, and the last part of the name.

    The group is empty if it does not exist.
    """
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
