"""Prepare docstrings, which use Markdown marks, for autodoc.

Code spans become literals, lists get the blank lines that reStructuredText needs, and
characters with a special role are escaped.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SPAN = re.compile(r"(`+)(.+?)\1")
BULLET = re.compile(r"(\s*)([-*]|\d+\.)\s")
NAME = re.compile(r"([A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*)*): +(?=\S)")
"""A line that documents one name, such as "actions: int64 [B, H]"."""


def prepare(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText."""
    prepared: list[str] = []
    kind = "blank"
    for line in lines:
        last, kind = kind, _kind(line, kind, prepared)
        if kind != last and "blank" not in (kind, last):
            prepared.append("")
        if kind == "literal" and last != "literal":
            prepared += ["::", ""]
        if kind == "name" and (found := NAME.match(line)):
            prepared.append(f"- ``{found[1]}``: {_inline(line[found.end() :])}")
        elif kind in ("name", "bullet") and not BULLET.match(line):
            prepared.append("  " + _inline(line.strip()))
        else:
            prepared.append(line if kind == "literal" else _inline(line))
    return prepared


def _kind(line: str, last: str, prepared: list[str]) -> str:
    """Return what a line is: blank, text, bullet, name or literal."""
    if not line.strip():
        return "literal" if last == "literal" else "blank"
    if BULLET.match(line):
        return "bullet"
    ended = last != "text" or prepared[-1].rstrip().endswith((".", ":"))
    if NAME.match(line) and ended:
        return "name"
    if line.startswith("  "):
        return last if last in ("bullet", "name", "literal") else "literal"
    return "text"


def _inline(line: str) -> str:
    """Turn code spans into literals, and escape the text between them."""
    parts, last = [], 0
    for match in SPAN.finditer(line):
        parts.append(_escape(line[last : match.start()]))
        parts.append(f"``{match.group(2)}``")
        last = match.end()
    parts.append(_escape(line[last:]))
    return "".join(parts)


def _escape(text: str) -> str:
    marker = BULLET.match(text)
    start = marker.end() if marker else 0
    return text[:start] + re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", text[start:])


def process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring in place."""
    lines[:] = prepare(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
