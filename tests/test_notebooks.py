"""The notebooks of the site are small, can be shown, and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
MINUTES = 10
"""Minutes that a notebook may take on two cores."""
sys.path.insert(0, str(ROOT / "docs" / "extensions"))
import notebooks  # noqa: E402

every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def sources(file: Path, kind: str) -> list[str]:
    """Return the texts of the cells of one kind."""
    cells = json.loads(file.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_site_has_a_notebook() -> None:
    assert "notebooks/tour" in (ROOT / "docs" / "index.md").read_text()
    assert ROOT / "docs" / "notebooks" / "tour.ipynb" in NOTEBOOKS


@every_notebook
def test_notebook_is_small_and_has_no_error(file: Path) -> None:
    text = file.read_text()
    assert len(text) < MAX_BYTES
    assert '"output_type": "error"' not in text
    assert "/home/" not in text and "/root/" not in text and "/tmp/" not in text


@every_notebook
def test_page_of_a_notebook_holds_all_cells(file: Path) -> None:
    page = notebooks.markdown(json.loads(file.read_text()))
    for kind in ("markdown", "code"):
        for source in sources(file, kind):
            assert source.rstrip() in page


def test_outputs_become_text_and_pictures() -> None:
    outputs = [
        {"output_type": "stream", "text": ["\x1b[1mone\x1b[0m\n", "two\n"]},
        {"output_type": "execute_result", "data": {"text/plain": ["42"]}},
        {"data": {"image/png": "aGk=\n", "text/plain": ["<Figure>"]}},
    ]
    cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": outputs}
    page = notebooks.markdown({"cells": [cell]})
    assert "````python\n1 + 1\n````" in page
    assert "````text\none\ntwo\n````" in page
    assert "````text\n42\n````" in page
    assert "(data:image/png;base64,aGk=)" in page and "<Figure>" not in page


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES)
@every_notebook
def test_notebook_runs(file: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{file.stem}.py"
    script.write_text("\n\n".join(sources(file, "code")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "report.html" in ended.stdout
