"""Inject faults into commands and count how they end.

    python -m tests.faults.campaign docs/results/faults.json

runs all cases, in one to two hours on two cores. Names of kinds after the file choose some; others keep their counts.
`test_faults.py` runs a tenth of the cases, and all with `-m slow`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lssvwm.agent.files import write_json

from tests.envs.faulty_env import RAISING, RESETS, STEPS
from tests.faults import wrong_lines
from tests.faults.harness import SMALL, Case, arms, described, run
from tests.faults.stops import SUBJECTS, disks, kills, pairs, stops

FAULTY = Path(__file__).parents[1] / "envs" / "faulty_env.py"


Cases = Sequence[Case]


def lines() -> Cases:
    """List wrong command lines."""

    def case(arguments: list[str]) -> Case:
        def inject(folder: Path) -> str | None:
            os.chdir(folder)
            return described(run(arguments, patience=60))

        return Case(" ".join(arguments), inject)

    return [
        case(line) for line in [*wrong_lines.written(), *wrong_lines.generated()[::4]]
    ]


def environments() -> Cases:
    """List faulty environments in every command that plays them."""

    def case(fault: str, command: str) -> Case:
        def inject(folder: Path) -> str | None:
            env = ["env=gym", f"env.factory={FAULTY}:Faulty", "env.size=66"]
            small = [text for text in SMALL if not text.startswith("env")]
            if command in ("train", "collect"):
                made = [*env, f"env.kwargs.fault={fault}", *small, "train.steps=1"]
                return described(run([command, *made, f"output={folder}/run"]))
            made = [*env, *small, "train.steps=1", f"output={folder}/run"]
            if run(["train", *made]).code != 0:
                return "the right environment fails"
            given = [
                f"checkpoint={folder}/run",
                f"env.kwargs.fault={fault}",
                "trust=true",
            ]
            mode = [] if command == "evaluate" else ["record.episodes=1"]
            output = f"output={folder}/out"
            return described(run([command, *given, *mode, "threads=1", output]))

        return Case(f"{command} {fault}", inject)

    faults = [*RAISING, *STEPS, *RESETS]
    return [case(fault, name) for name in COMMANDS for fault in faults]


COMMANDS = ("train", "collect", "evaluate", "record")


def reference() -> Path:
    """Return the folder of the undisturbed run, trained on first use."""
    assert SUBJECTS["train"].undisturbed
    return SUBJECTS["train"].folder


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "flipped": lambda file: _flip(file),
    "missing": lambda file: file.unlink(),
    "foreign": lambda file: file.write_bytes(b"\x89PNG\r\n" + bytes(range(256)) * 9),
}


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
    file.write_bytes(content)


def damages() -> Cases:
    """List damaged files of a run, before it is resumed and evaluated."""

    def case(name: str, damage: str) -> Case:
        def inject(folder: Path) -> str | None:
            copy = folder / "run"
            shutil.copytree(reference(), copy)
            DAMAGES[damage](copy / name)
            resumed = run(["resume", str(copy), "train.steps=5"])
            if fault := described(resumed, False):
                return f"resume {fault}"
            evaluated = run(_evaluation(copy, folder / "results"))
            if fault := described(evaluated, False):
                return f"evaluate {fault}"
            return None

        return Case(f"{damage} {name}", inject)

    whole = reference()
    files = [path for path in whole.rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(whole)) for path in files)
    return [case(name, damage) for name in names for damage in DAMAGES]


def weights() -> Cases:
    """List damaged exports; an evaluation must give the same results or refuse them."""

    def case(name: str, damage: str) -> Case:
        def inject(folder: Path) -> str | None:
            copy = folder / "export"
            shutil.copytree(reference() / "export", copy)
            right = run(_evaluation(copy, folder / "right"))
            if right.code != 0:
                return f"cannot evaluate: {right.line}"
            DAMAGES[damage](copy / name)
            ending = run(_evaluation(copy, folder / "results"))
            if fault := described(ending, False):
                return fault
            same = ending.code or arms(folder / "results") == arms(folder / "right")
            return None if same else "silent wrong result"

        return Case(f"evaluate with {damage} {name}", inject)

    names = ("weights.safetensors", "config.yaml")
    return [case(name, damage) for name in names for damage in DAMAGES]


def _evaluation(checkpoint: Path, output: Path) -> list[str]:
    chosen = ["tasks.count=2", "tasks.arms=[retained,random]", "threads=1"]
    return ["evaluate", f"checkpoint={checkpoint}", *chosen, f"output={output}"]


KINDS: dict[str, Callable[[], Cases]] = {
    "wrong command lines": lines,
    "faulty environments": environments,
    "kills and signals": stops,
    "kills at random times": kills,
    "the same command twice": pairs,
    "full and read-only disks": disks,
    "damaged files of a run": damages,
    "damaged weights": weights,
}


def campaign(kind: str, every: int = 1) -> Iterator[tuple[Case, str | None]]:
    """Inject every n-th fault of a kind; yield it and what was wrong."""
    for case in KINDS[kind]()[::every]:
        with tempfile.TemporaryDirectory() as top:
            here = Path.cwd()
            try:
                yield case, case.inject(Path(top))
            finally:
                os.chdir(here)


def counts(kind: str) -> dict[str, int]:
    """Return cases and faults found; prints each fault."""
    found: Counter[str] = Counter(cases=0, faults=0)
    for case, fault in campaign(kind):
        found["cases"] += 1
        if fault is not None:
            found["faults"] += 1
            print(f"{kind}: {case.name}: {fault}", flush=True)
    print(kind, dict(found), flush=True)
    return dict(found)


def main(file: Path, kinds: Sequence[str]) -> None:
    """Count the faults of `kinds` and write them, after each kind."""
    known = json.loads(file.read_text())["kinds"] if file.exists() else {}
    for kind in kinds or KINDS:
        known[kind] = counts(kind)
        write_json(file, {"kinds": known})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
