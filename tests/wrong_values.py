"""Generate wrong values of every setting from its type and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from lssvwm.agent.config.reference import _classes, _properties
from lssvwm.agent.config.settings import BenchmarkRunConfig, RecordRunConfig

HUGE = "1" + "0" * 30
FREE = {"string", "object", None}
"""JSON types that take any text; what they name is checked where it is used."""


@dataclass(frozen=True)
class Numbers:
    """Hold a setting, the `kind` of its section that it belongs to, and its JSON schema."""

    name: str
    kind: str | None
    schema: dict[str, Any]


def settings(cls: type, above: str = "", kind: str | None = None) -> Iterator[Numbers]:
    """Yield all settings of a class and of every kind of its sections."""
    hints = get_type_hints(cls, include_extras=True)
    defaults = cls()
    for field in dataclasses.fields(cls):
        name = f"{above}{field.name}"
        if not dataclasses.is_dataclass(getattr(defaults, field.name)):
            yield Numbers(name, kind, _properties(cls)[field.name])
            continue
        for section in _classes(hints[field.name]):
            own = getattr(section(), "kind", None)
            chosen = f"{name}.kind={own}" if own else kind
            yield from settings(section, f"{name}.", chosen)


def every_setting() -> list[Numbers]:
    """Return the settings of all commands, each once."""
    found = [*settings(BenchmarkRunConfig), *settings(RecordRunConfig)]
    return list({(one.name, one.kind): one for one in found}.values())


def numeric_parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas of all numbers in the schema of a setting."""
    if schema.get("type") in ("integer", "number") and "enum" not in schema:
        yield schema
    parts = [
        *schema.get("anyOf", []),
        schema.get("items"),
        *schema.get("prefixItems", []),
    ]
    for inner in [*parts, schema.get("additionalProperties")]:
        if isinstance(inner, dict):
            yield from numeric_parts(inner)


def wrong_values(schema: dict[str, Any]) -> list[str]:
    """Return values, as typed, that a setting with this schema must refuse."""
    if "anyOf" in schema:
        options = [wrong_values(option) for option in schema["anyOf"]]
        return [value for value in options[0] if value != "null"]
    match schema.get("type"):
        case "integer":
            return [
                *_outside(schema, 1),
                "1.5",
                "nan",
                "inf",
                HUGE,
                "word",
                "null",
                "true",
                "[1]",
            ]
        case "number":
            return [
                *_outside(schema, 0.5),
                "nan",
                "inf",
                "-inf",
                "word",
                "null",
                "true",
                "[1]",
            ]
        case "boolean":
            return ["2", "word", "null"]
        case "array":
            inner = schema.get("items", {})
            entries = [f"[{value}]" for value in wrong_values(inner) if value[0] != "["]
            return [
                *entries,
                "word",
                "1",
                "null",
                *(["[]"] if schema.get("minItems") else []),
            ]
    if "enum" in schema or "const" in schema:
        return ["nonsense", "1", "null"]
    return ["1", "word"] if schema.get("type") == "object" else []


def _outside(schema: dict[str, Any], step: float) -> list[str]:
    """Return numbers just outside of a range."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    below = [] if low is None else [low if "exclusiveMinimum" in schema else low - step]
    above = [] if high is None else [high + step]
    return [str(value) for value in (*below, *above)]
