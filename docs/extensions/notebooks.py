"""Show Jupyter notebooks as pages: their Markdown, code, and the texts and pictures of their stored outputs.

Nothing is executed; the tests run the notebooks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Codes that colour a text on a terminal."""


def markdown(notebook: dict[str, Any]) -> str:
    """Return the content of a notebook as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(_fenced("python", source))
            parts += _outputs(cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            yield f"![output](data:image/png;base64,{picture})"
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            yield _fenced("text", COLOUR.sub("", text))


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


class NotebookParser(MystParser):
    """Parse a notebook as the Markdown that it holds."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse the text of a notebook file."""
        super().parse(markdown(json.loads(inputstring)), document)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the suffix of notebooks."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
