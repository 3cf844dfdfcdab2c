"""Prepare docstrings, which use Markdown marks, for autodoc.

Code spans become literals, lists get the blank lines that reStructuredText needs, and
characters with a special role are escaped.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SPAN = re.compile(r"(`+)(.+?)\1")
MARKER = re.compile(r"\s*([-*]|\d+\.)\s")


def prepare(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText."""
    prepared: list[str] = []
    in_list = False
    in_block = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and prepared and not prepared[-1].strip() and not in_list:
            if not in_block:
                prepared += ["::", ""]
            in_block = True
        elif line.strip() and not indented:
            in_block = False
        if in_block:
            prepared.append(line)
            continue
        starts = bool(MARKER.match(line))
        if starts and not in_list and prepared and prepared[-1].strip():
            prepared.append("")
        if in_list and line.strip() and not starts and not line.startswith(" "):
            if prepared[-1].strip():
                prepared.append("")
            in_list = False
        in_list = in_list or starts
        prepared.append(_inline(line))
    return prepared


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
    marker = re.match(r"\s*[-*]\s", text)
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
