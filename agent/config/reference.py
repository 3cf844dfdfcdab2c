"""Describe settings from their definitions: name, type and range, default, documentation.

Help pages, error messages and the reference of the documentation are made of these descriptions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter

TYPES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "null": "null",
}
"""JSON types in plain words."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Describe one setting: its dotted name, the values it takes, its default, its documentation."""

    name: str
    takes: str
    default: Any
    about: str

    @property
    def group(self) -> str:
        """Return the dotted name of the section; empty at the top level."""
        return self.name.rpartition(".")[0]


def describe(
    cls: type, plain: Mapping[str, Any] | None = None, above: str = ""
) -> Iterator[Setting]:
    """Yield the settings of a settings class, in the order of their definition.

    `plain` is a configuration as plain data. Its `kind` entries choose the class of a section that has several.
    """
    plain = plain or {}
    defaults = cls()
    properties = _properties(cls)
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        name = f"{above}{field.name}"
        default = getattr(defaults, field.name)
        section = section_class(hints[field.name], default, plain.get(field.name))
        if section is None:
            schema = properties[field.name]
            yield Setting(
                name,
                _values(schema),
                plain_data(default),
                documentation(cls, field.name),
            )
        else:
            yield from describe(section, _mapping(plain.get(field.name)), f"{name}.")


def documentation(cls: type, name: str) -> str:
    """Return the text below a field, which a class may inherit."""
    for owner in cls.__mro__:
        field = getattr(owner, "__pydantic_fields__", {}).get(name)
        if field is not None and field.description:
            return field.description
    return ""


def section_class(hint: Any, default: Any, plain: Any) -> type | None:
    """Return the settings class of a section; None for a setting.

    The `kind` in `plain` chooses it. An unknown kind gives the class of the default.
    """
    if not dataclasses.is_dataclass(default):
        return None
    kind = _mapping(plain).get("kind")
    for candidate in _classes(hint):
        if kind is not None and getattr(candidate, "kind", None) == kind:
            return candidate
    return type(default)


def kinds(cls: type, section: str) -> list[str]:
    """Return the kinds of a section, such as "env" or "model.mixer"."""
    hint: Any = cls
    for part in section.split("."):
        owner = next(_classes(hint))
        hint = get_type_hints(owner, include_extras=True)[part]
    return [candidate.kind for candidate in _classes(hint)]  # type: ignore[attr-defined]


def plain_data(value: Any) -> Any:
    """Return a configuration or a value of one as dicts, lists, numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain_data(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain_data(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(inner) for inner in value]
    return value


def text(value: Any) -> str:
    """Write a value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{name}: {text(inner)}" for name, inner in value.items())
            + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(text, value)) + "]"
    return str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _classes(hint: Any) -> Iterator[type]:
    """Yield the settings classes in a type, through unions and annotations."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for inner in get_args(hint):
        yield from _classes(inner)


@lru_cache
def _properties(cls: type) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field of a settings class."""
    return TypeAdapter(cls).json_schema()["properties"]


def _values(schema: dict[str, Any]) -> str:
    """Say in plain words which values a JSON schema admits."""
    if "anyOf" in schema:
        return " or ".join(_values(option) for option in schema["anyOf"])
    if "const" in schema:
        return text(schema["const"])
    if "enum" in schema:
        return " or ".join(map(text, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        several = (
            "a list"
            if schema.get("minItems", 0) < 1
            else "a list with an entry or more"
        )
        return f"{several}, each entry {_values(schema.get('items', {}))}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        values = _values(inner if isinstance(inner, dict) else {})
        return "{name: value, ...}, each value " + values
    return TYPES.get(str(kind), "any value") + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    """Say in plain words which range a JSON schema of a number admits.

    Returns an empty text without a range.
    """
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {_limit(low)} to {_limit(high)}"
    limits = {
        "minimum": "of at least",
        "maximum": "of at most",
        "exclusiveMinimum": "greater than",
        "exclusiveMaximum": "less than",
    }
    found = [
        f" {words} {_limit(schema[name])}"
        for name, words in limits.items()
        if name in schema
    ]
    return " and".join(found)


def _limit(number: float) -> str:
    """Write the end of a range."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
