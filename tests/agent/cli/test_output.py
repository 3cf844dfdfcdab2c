"""Output to a reader that is gone stops no command."""

import os
import subprocess
import sys
from pathlib import Path

LSSVWM = [sys.executable, "-m", "lssvwm"]
EVALUATE = ["evaluate", "checkpoint=tmaze", "tasks.count=2", "tasks.arms=[random]"]


def test_results_are_complete_without_a_reader(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*LSSVWM, *EVALUATE, "threads=1", "output=out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    child.stderr.close()
    assert child.wait() == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written >= {"evaluation.json", "evaluation.md", "tasks.csv", "report.html"}


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [*LSSVWM, *EVALUATE, "threads=1", "output=模型"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert ended.returncode == 0
    assert rb"wrote \u6a21\u578b/evaluation.json" in ended.stdout
