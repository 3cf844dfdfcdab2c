"""Build the settings reference from the documented fields of the config classes.

The directive `{settings} module:Class PREFIX` lists every field of a pydantic dataclass as
`PREFIX.field`, with its type, default, range and documentation.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RANGES = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """Return the documented fields of a pydantic dataclass."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def describe_type(annotation: Any) -> str:
    """Return a type in words."""
    if annotation in NAMES:
        return NAMES[annotation]
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(parts[0])
    if origin is typing.Literal:
        return " | ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is dict:
        return f"mapping of {describe_type(parts[0])} to {describe_type(parts[1])}"
    if origin in (tuple, list):
        inner = [describe_type(part) for part in parts if part is not Ellipsis]
        return f"list of {', '.join(inner)}"
    return getattr(annotation, "__name__", str(annotation))


def describe_default(field: FieldInfo) -> str:
    """Return the default as it is written in YAML."""
    if field.default_factory is not None:
        value = field.default_factory()  # type: ignore[call-arg]
    else:
        value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return str(value) if value != "" else '""'


def describe_range(field: FieldInfo) -> str:
    """Return the allowed range, empty if there is none."""
    bounds = []
    for part in field.metadata:
        for name, word in RANGES.items():
            if getattr(part, name, None) is not None:
                bounds.append(f"{word} {getattr(part, name):g}")
    return " and ".join(bounds)


def entries(cls: type, prefix: str) -> list[str]:
    """Return one definition-list entry per leaf field, those of nested sections after it."""
    found = []
    for name, field in fields_of(cls).items():
        key = f"{prefix}.{name}".strip(".")
        sections = nested(field.annotation)
        if len(sections) == 1:
            found += entries(sections[0], key)
            continue
        if sections:
            continue  # a section with several kinds has headings of its own
        limits = describe_range(field)
        facts = [describe_type(field.annotation), *([limits] if limits else [])]
        text = (field.description or "").strip().replace("\n", " ")
        found.append(
            f"`{key}` = `{describe_default(field)}`\n"
            f": {text}\n  *({', '.join(facts)})*\n"
        )
    return found


def nested(annotation: Any) -> list[type]:
    """Return the config classes that a field may hold."""
    if typing.get_origin(annotation) is typing.Annotated:
        return nested(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [cls for part in typing.get_args(annotation) for cls in nested(part)]
    known = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    return [annotation] if known and is_pydantic_dataclass(annotation) else []


class Settings(SphinxDirective):
    """Insert the fields of one config class."""

    required_arguments = 1
    optional_arguments = 1
    option_spec = {"only": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the parsed definition list."""
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(importlib.import_module(module), name)
        prefix = self.arguments[1] if len(self.arguments) > 1 else ""
        return self.parse_text_to_nodes("\n".join(entries(cls, prefix)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
