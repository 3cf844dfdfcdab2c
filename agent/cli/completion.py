"""Complete settings and their values in the shell, without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from click.shell_completion import BashComplete, CompletionItem, add_completion_class
from lssvwm.agent.config.presets import GROUPS, config_dir, options, pretrained

TOP_LEVEL = ("checkpoint", "mode")
"""Settings that no packaged configuration holds."""
MODES = ("open_loop", "plan", "counterfactuals")


class SettingsBash(BashComplete):
    """Add no space after `key=`."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)",
        "COMPREPLY+=($value); [[ $value == *= ]] && compopt -o nospace",
    )


def register() -> None:
    """Use `SettingsBash` for bash."""
    add_completion_class(SettingsBash)


def complete(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return completions of a setting `key=value`.

    Bash splits words at "=": it asks for the value alone, and `key` is the last complete word.
    """
    words = [word for word in ctx.params.get("settings") or () if word != "="]
    after_key = bool(words) and "=" not in words[-1]
    if after_key:
        found = [CompletionItem(value) for value in _values(words[-1])]
    elif "=" in incomplete:
        key = incomplete.partition("=")[0]
        found = [CompletionItem(f"{key}={value}") for value in _values(key)]
    else:
        found = [CompletionItem(f"{name}=") for name in names()]
    return [item for item in found if item.value.startswith(incomplete)]


def names() -> list[str]:
    """Return the names of all groups of presets and of packaged settings."""
    found = {*GROUPS, *TOP_LEVEL}
    for path in [*config_dir().glob("*/*.yaml"), *config_dir().glob("*/*/config.yaml")]:
        plain = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        section = path.parent.name
        is_section = section in GROUPS and section != "experiment"
        found.update(_dotted(plain, f"{section}." if is_section else ""))
    return sorted(found)


def _values(key: str) -> list[str]:
    """Return the values that a setting may have, where they can be listed."""
    if key in GROUPS:
        return list(options(key))
    if key in ("checkpoint", "train.init"):
        runs = [str(path.parent) for path in Path("runs").glob("*/config.yaml")]
        return [*pretrained(), *sorted(runs)]
    return list(MODES) if key in ("mode", "record.mode") else []


def _dotted(plain: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted names of the settings in nested plain data."""
    for name, value in plain.items():
        is_section = isinstance(value, Mapping) and name not in ("mix", "vary")
        if is_section and value:
            yield from _dotted(value, f"{above}{name}.")
        elif name not in ("defaults", "format_version"):
            yield f"{above}{name}"
