"""Plain data (from YAML, from a command line) to frozen dataclasses: keys and types are checked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lssvwm.agent.errors import UserError
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

T = TypeVar("T")
Kinds = Mapping[str, Mapping[str, type]]
"""Per top-level key that may hold several classes: the class of each `kind`."""

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "null",
}


LAST = ("env.", "benchmark.")
"""Groups whose settings are not what a name without a group most likely means."""


def build(cls: type[T], plain: Mapping[str, Any], kinds: Kinds) -> T:
    """An instance of the dataclass `cls`, and of those inside it, from plain data.

    Lists become tuples where the class says so. Raises UserError for an unknown key (naming the
    nearest valid one), for a value of another type, and for one that a class refuses.
    """
    hints = get_type_hints(cls) | {
        key: _kind(key, plain.get(key), classes) for key, classes in kinds.items()
    }
    return _build(cls, hints, plain, "", tuple(_keys(cls, hints)))


def nearest(key: str, names: Iterable[str]) -> str | None:
    """The one of (dotted) `names` that `key` was probably meant to be, within its group if that is right."""
    names = list(names)
    group, _, last = key.rpartition(".")
    beside = [name for name in names if group and name.rpartition(".")[0] == group]
    pool = beside or names
    found = difflib.get_close_matches(
        last, {name.rpartition(".")[2] for name in pool}, 1
    )
    alike = [name for name in pool if found and name.rpartition(".")[2] == found[0]]
    alike = [name for name in alike if group or not name.startswith(LAST)] or alike
    return difflib.get_close_matches(key, alike, 1, 0.0)[0] if alike else None


def meant(key: str, names: Iterable[str], before: str = "") -> str:
    """Asks whether the nearest of `names` was meant, written after `before`; empty where none is near."""
    hint = nearest(key, names)
    return f"did you mean {before}{hint}? " if hint else ""


def _kind(key: str, values: Any, classes: Mapping[str, type]) -> type:
    """The class that `values["kind"]` names."""
    kind = values.get("kind") if isinstance(values, Mapping) else values
    if isinstance(kind, str) and kind in classes:
        return classes[kind]
    question = meant(str(kind), classes, f"{key}.kind=")
    raise UserError(
        f"unknown {key}.kind={_show(kind)}; {question}there are: {', '.join(classes)}"
    )


def _keys(cls: type, hints: Mapping[str, Any], above: str = "") -> Iterable[str]:
    """The dotted names of all settings of a dataclass."""
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _keys(hint, get_type_hints(hint), f"{above}{field.name}.")
        else:
            yield above + field.name


def _build(
    cls: type[T],
    hints: Mapping[str, Any],
    plain: Any,
    above: str,
    names: tuple[str, ...],
) -> T:
    if not isinstance(plain, Mapping):
        one = next(name for name in names if name.startswith(above))
        raise UserError(
            f"{above[:-1]}={_show(plain)}: this is a group of settings, set one, e.g. {one}=..."
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for name, value in plain.items():
        key = above + str(name)
        if name not in fields:
            raise UserError(_unknown(key, value, names))
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = _build(hint, get_type_hints(hint), value, key + ".", names)
        else:
            values[name] = _value(hint, value, key, fields[name])
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(_refused(error, above)) from None
    except ValueError as error:
        raise UserError(str(error)) from None


LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _refused(error: ValidationError, above: str) -> str:
    """Say in one line which value a pydantic dataclass refused, and its limit."""
    first = error.errors()[0]
    limits = [
        f"{words} {first['ctx'][name]:g}"
        for name, words in LIMITS.items()
        if name in first.get("ctx", {})
    ]
    key = ".".join(map(str, first["loc"]))
    if not key:  # raised by __post_init__
        return first["msg"].removeprefix("Value error, ")
    return f"{above}{key}={_show(first['input'])} is wrong: it must be {limits[0] if limits else first['msg']}"


def _unknown(key: str, value: Any, names: tuple[str, ...]) -> str:
    while isinstance(value, Mapping) and len(value) == 1:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    hint = nearest(key, names)
    group = key.rpartition(".")[0]
    beside = [name for name in names if group and name.rpartition(".")[0] == group]
    there_are = (
        f"there are: {', '.join(beside)}" if beside else "see `lssvwm train --help`"
    )
    return f"unknown setting {key}={_show(value)}; " + (
        f"did you mean {hint}?" if hint else there_are
    )


def _value(hint: Any, value: Any, key: str, field: dataclasses.Field) -> Any:
    try:
        return _convert(hint, value)
    except TypeError:
        given = getattr(
            field.default, "default", field.default
        )  # of a pydantic field, or the plain default
        default = (
            ""
            if given in (dataclasses.MISSING, PydanticUndefined)
            else f" (default {_show(given)})"
        )
        raise UserError(
            f"{key}={_show(value)} is wrong: it must be {_words(hint)}{default}"
        ) from None


def _convert(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it; raises TypeError if it is something else."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (origin is Literal and value in inner):
        return value
    if origin in (Union, UnionType):
        return (
            None if value is None and NoneType in inner else _convert(inner[0], value)
        )
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(inner[0], item) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {
            _convert(inner[0], name): _convert(inner[1], item)
            for name, item in value.items()
        }
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is float and number:
        return float(value)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint is str and (number or isinstance(value, str)):
        return str(value)
    raise TypeError


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"a list, each entry {_words(inner[0])}"
    if origin is dict:
        return f"{{name: value, ...}}, each value {_words(inner[1])}"
    return WORDS.get(hint, "something else")


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{name}: {_show(inner)}" for name, inner in value.items())
            + "}"
        )
    return (
        "[" + ",".join(map(_show, value)) + "]"
        if isinstance(value, (list, tuple))
        else str(value)
    )
