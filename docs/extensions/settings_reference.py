"""Build the settings reference from the documented fields of the config classes.

The directive `{settings} module:Class` lists every setting of a config class by section. A
section with several kinds, such as `planner`, lists the common settings first.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from docutils import nodes
from lssvwm.agent.config.reference import Setting, describe, kinds, text
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def entry(setting: Setting) -> str:
    """Return one setting as an entry of a definition list."""
    about = " ".join(setting.about.split()) or "Not documented."
    default = text(setting.default) or "(empty)"
    return f"`{setting.name}` = `{default}`\n: {about}\n  *({setting.takes})*\n"


def sections(cls: type) -> Iterator[tuple[str, list[Setting]]]:
    """Yield a title and the settings of every section."""
    every = list(describe(cls))
    with_kinds = tuple(s.group for s in every if s.name.endswith(".kind"))
    done = set()
    for setting in every:
        section = next((s for s in with_kinds if setting.name.startswith(s)), None)
        group = section or setting.group
        if group in done:
            continue
        done.add(group)
        if section:
            yield from _kinds(cls, section)
        else:
            title = group or "Top level"
            yield title, [s for s in every if s.group == group]


def _kinds(cls: type, section: str) -> Iterator[tuple[str, list[Setting]]]:
    found = {}
    for kind in kinds(cls, section):
        inner: dict = {"kind": kind}
        for part in reversed(section.split(".")):
            inner = {part: inner}
        every = [s for s in describe(cls, inner) if s.group.startswith(section)]
        found[kind] = [s for s in every if s.name != f"{section}.kind"]
    common = set.intersection(*(set(map(_key, group)) for group in found.values()))
    shared = [s for s in next(iter(found.values())) if _key(s) in common]
    if shared:
        yield f"{section}, all kinds", shared
    for kind, group in found.items():
        yield f"{section}.kind={kind}", [s for s in group if _key(s) not in common]


def _key(setting: Setting) -> tuple[str, str, str]:
    return setting.name, setting.about, text(setting.default)


class Settings(SphinxDirective):
    """Insert the settings of one config class."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one section per group of settings."""
        module, _, name = self.arguments[0].partition(":")
        cls = getattr(importlib.import_module(module), name)
        found = ""
        for title, group in sections(cls):
            body = "\n".join(map(entry, group)) or "No settings of its own.\n"
            found += f"## `{title}`\n\n{body}\n"
        return self.parse_text_to_nodes(found, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
