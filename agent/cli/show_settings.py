"""Print a configuration as YAML, with the source of each changed value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from lssvwm.agent.config.composition import parse, to_dict
from lssvwm.agent.config.presets import GROUPS, config_dir
from lssvwm.agent.config.reference import describe, text
from lssvwm.agent.config.settings import Config

COLUMN = 40
"""Column in which comments start."""


@dataclass(frozen=True)
class Layer:
    """Hold settings from one source, as nested plain data, and the name of the source."""

    source: str
    plain: Mapping[str, Any]


@dataclass
class Composition:
    """Hold the presets of a new run: one of each group, and experiments."""

    choices: dict[str, str] = field(default_factory=dict)
    experiments: list[Layer] = field(default_factory=list)


def of_new_run(config: Config, settings: Sequence[str]) -> None:
    """Print a configuration that `settings` compose from presets."""
    print(annotated(config, [*preset_layers(settings), *override_layers(settings)]))


def of_checkpoint(
    config: Config, settings: Sequence[str], checkpoint: str | None = None
) -> None:
    """Print a configuration that `settings` change from that of a checkpoint."""
    name = checkpoint or getattr(config, "checkpoint", None)
    saved = Layer(f"checkpoint {name}", to_dict(config))
    chosen = [parse(setting) for setting in settings]
    replaced = [
        Layer(str(override), _preset(override.key, str(override.value)))
        for override in chosen
        if override.key in GROUPS
    ]
    print(annotated(config, [saved, *replaced, *override_layers(settings)]))


def annotated(config: Config, layers: Sequence[Layer]) -> str:
    """Return a configuration as YAML. A comment names the source and the default of each changed value.

    The last of `layers` that holds a setting is its source.
    """
    plain = to_dict(config)
    lines: list[str] = []
    above: list[str] = []
    for setting in describe(type(config), plain):
        *sections, last = setting.name.split(".")
        lines += _headings(above, sections)
        above = sections
        value = _lookup(plain, setting.name)
        line = f"{'  ' * len(sections)}{last}: {_yaml(value)}"
        source = _source(setting.name, layers)
        if value != setting.default and source:
            comment = f"# {source} (default {text(setting.default) or 'empty'})"
            line = f"{line:<{COLUMN}}  {comment}"
        lines.append(line)
    return "\n".join(lines)


def override_layers(settings: Sequence[str]) -> list[Layer]:
    """Return a layer for each setting of the command line that changes a value."""
    overrides = [parse(setting) for setting in settings]
    return [
        Layer("command line", _nested(override.key, override.value))
        for override in overrides
        if override.key not in GROUPS
    ]


def preset_layers(settings: Sequence[str]) -> list[Layer]:
    """Return the presets of all groups, then the experiments, weakest first."""
    overrides = [parse(setting) for setting in settings]
    chosen = {o.key: str(o.value) for o in overrides if o.key in GROUPS}
    composition = Composition()
    for entry in _load("config.yaml")["defaults"]:
        if isinstance(entry, dict) and None not in entry.values():
            composition.choices |= entry
    if "experiment" in chosen:
        _add_experiment(composition, chosen["experiment"])
    chosen.pop("experiment", None)
    composition.choices |= chosen  # the command line has the last word
    groups = [
        Layer(f"{group}={name}", _preset(group, name))
        for group, name in composition.choices.items()
    ]
    return [*groups, *composition.experiments]


def _add_experiment(composition: Composition, name: str) -> None:
    """Add an experiment to a composition, after those that it builds on."""
    body = _load(f"experiment/{name}.yaml")
    for entry in body.pop("defaults", []):
        if isinstance(entry, dict):
            for key, value in entry.items():
                composition.choices[key.removeprefix("override /")] = value
        elif entry != "_self_":
            _add_experiment(composition, entry)
    composition.experiments.append(Layer(f"experiment={name}", body))


def _preset(group: str, name: str) -> dict[str, Any]:
    return {group: _load(f"{group}/{name}.yaml")}


def _load(path: str) -> dict[str, Any]:
    return yaml.safe_load((config_dir() / path).read_text(encoding="utf-8")) or {}


def _headings(above: Sequence[str], sections: Sequence[str]) -> Iterable[str]:
    """Yield the lines that open sections which were not open above."""
    for depth, section in enumerate(sections):
        if list(above[: depth + 1]) != list(sections[: depth + 1]):
            yield f"{'  ' * depth}{section}:"


def _source(name: str, layers: Sequence[Layer]) -> str:
    """Return the source of the last layer that holds a setting."""
    sources = [layer.source for layer in layers if _has(layer.plain, name)]
    return sources[-1] if sources else ""


def _has(plain: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(plain, Mapping) or part not in plain:
            return False
        plain = plain[part]
    return True


def _lookup(plain: Any, name: str) -> Any:
    for part in name.split("."):
        plain = plain[part]
    return plain


def _nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _yaml(value: Any) -> str:
    """Write a value as YAML on one line."""
    written = yaml.safe_dump(
        value, default_flow_style=True, width=10_000, sort_keys=False
    )
    return written.removesuffix("\n...\n").removesuffix("\n")
