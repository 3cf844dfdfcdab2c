"""Turn plain data from YAML or a command line into a configuration.

Pydantic checks names, types and ranges. This module says in one line what is wrong, and how to correct it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lssvwm.agent.config import migration
from lssvwm.agent.config.reference import Setting, describe, kinds, text
from lssvwm.agent.errors import UserError
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")

ALIASES = {
    "lr": "train.learning_rate",
    "batch_size": "train.batch",
    "epochs": "train.steps",
    "iterations": "train.steps",
    "max_steps": "env.max_steps",
    "num_envs": "train.collect.envs",
    "gpu": "device=cuda",
    "cuda": "device=cuda",
    "cpu": "device=cpu",
    "gamma": "model.discount",
    "seeds": "seed, or benchmark.seeds of `lssvwm benchmark`",
    "out": "output",
    "model_size": "model",
}
"""Names that other projects use for settings."""

UNLIKELY = ("env.", "benchmark.")
"""Sections that a name without a section seldom refers to."""
SECTIONS = {
    "mode": "record",
    "record": "record",
    "benchmark": "benchmark",
    "checkpoint": "evaluate, record, collect, benchmark",
    "trust": "resume, evaluate, record, collect, benchmark",
}
"""Settings that only some commands have, and these commands."""


def build(cls: type[T], plain: Mapping[str, Any]) -> T:
    """Return an instance of the settings class `cls` from plain data.

    Lists become tuples and whole numbers become floats where the class says so; nothing else is converted.
    Raises UserError with one line that names the setting, its value, and the values it takes.
    """
    as_json = json.dumps(
        plain, default=str
    )  # JSON, because strict validation of Python data refuses lists for tuples
    try:
        return TypeAdapter(cls).validate_json(as_json, strict=True)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], cls, plain)) from None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the nearest of `names`, which are dotted; None where none is near.

    Names of the same section come first.
    """
    names = list(names)
    section, _, last = name.rpartition(".")
    same_section = [other for other in names if section and _section(other) == section]
    candidates = same_section or names
    close = difflib.get_close_matches(last, {_last(other) for other in candidates}, 1)
    if not close:
        return None
    same_last = [other for other in candidates if _last(other) == close[0]]
    if not section:
        same_last = [
            other for other in same_last if not other.startswith(UNLIKELY)
        ] or same_last
    return difflib.get_close_matches(name, same_last, 1, cutoff=0.0)[0]


def suggestion(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean ...? " with the nearest of `names` after `prefix`.

    Returns an empty text where none is near.
    """
    found = nearest(name, names)
    return f"did you mean {prefix}{found}? " if found else ""


def _section(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def replaced(settings: T, above: str, changes: Mapping[str, Any]) -> T:
    """Return `settings` with other values; raises UserError with dotted names below `above`."""
    cls = type(settings)
    try:
        return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    except ValidationError as error:
        message = _explain(error.errors()[0], cls, dict(changes))
        raise UserError(f"{above}: {message}") from None


def _explain(error: ErrorDetails, cls: type, plain: Mapping[str, Any]) -> str:
    """Return one line about the first mistake that pydantic found."""
    settings = {setting.name: setting for setting in describe(cls, plain)}
    name, value = _locate(error["loc"], plain, settings)
    match error["type"]:
        case (
            "value_error"
        ):  # raised by a class about several fields: the message is complete
            return str(error.get("ctx", {})["error"])
        case "unexpected_keyword_argument":
            return _unknown(name, value, settings)
        case "union_tag_invalid" | "union_tag_not_found" if isinstance(value, Mapping):
            return _unknown_kind(cls, name, value.get("kind"))
        case "missing":
            return f"{name} is missing"
    if name not in settings:
        inner = next(other for other in settings if other.startswith(f"{name}."))
        return f"{name}={text(value)}: this is a group of settings, set one, e.g. {inner}=..."
    setting = settings[name]
    default = f" (default {text(setting.default)})"
    return f"{name}={text(value)} is wrong: it must be {setting.takes}{default}"


def _locate(
    location: tuple[int | str, ...],
    plain: Mapping[str, Any],
    settings: Mapping[str, Setting],
) -> tuple[str, Any]:
    """Return the dotted name and the value at a location of pydantic.

    A location also holds the kinds of sections and places in lists, which are no part of the name.
    """
    parts: list[str] = []
    value: Any = plain
    for part in location:
        known = ".".join(parts) in settings
        if known or not isinstance(value, Mapping):
            break
        if part in value:
            parts.append(str(part))
            value = value[str(part)]
    return ".".join(parts), value


def _unknown(name: str, value: Any, settings: Mapping[str, Setting]) -> str:
    """Return the line about a setting that does not exist."""
    while isinstance(value, Mapping) and len(value) == 1:
        inner, value = next(iter(value.items()))
        name = f"{name}.{inner}"
    if replaced := migration.replacement(name):
        return replaced
    problem = f"unknown setting {name}={text(value)}; "
    if command := SECTIONS.get(name.split(".")[0]):
        return f"{problem}it belongs to `lssvwm {command}`"
    if usual := ALIASES.get(_last(name)):
        return f"{problem}did you mean {usual}?"
    exists = any(_last(other) == name for other in settings)
    sections = {other.split(".")[0] for other in settings} - {name}
    section = difflib.get_close_matches(name, sections, 1)
    if section and not exists and "." not in name:
        return f"{problem}did you mean {section[0]}?"
    if found := nearest(name, settings):
        return f"{problem}did you mean {found}?"
    same_section = [
        other
        for other in settings
        if _section(name) and _section(other) == _section(name)
    ]
    if same_section:
        return f"{problem}there are: {', '.join(same_section)}"
    return f"{problem}`--help` lists those of the command"


def _unknown_kind(cls: type, section: str, kind: Any) -> str:
    """Return the line about a section whose `kind` is not known."""
    known = kinds(cls, section)
    question = suggestion(str(kind), known, f"{section}.kind=")
    return (
        f"unknown {section}.kind={text(kind)}; {question}there are: {', '.join(known)}"
    )
