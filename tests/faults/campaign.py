"""Inject faults into commands and count how they end.

    python -m tests.faults.campaign docs/results/faults.json

runs all cases, in about an hour on two cores. `test_faults.py` runs a tenth of them, and all with `-m slow`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.envs.faulty_env import RAISING, RESETS, STEPS
from tests.faults import harness, wrong_lines
from tests.faults.harness import SMALL, Ending, Hook, arms, operations, rows, run

FAULTY = Path(__file__).parents[1] / "envs" / "faulty_env.py"
RUN_STEPS = ["train.steps=4", "train.collect.every=2", "train.collect.more=40"]


@dataclass(frozen=True)
class Case:
    """Hold one fault: its name, and what injects it and returns what is wrong, or None."""

    name: str
    inject: Callable[[Path], str | None]


Cases = Sequence[Case]


def lines() -> Cases:
    """List wrong command lines."""

    def case(arguments: list[str]) -> Case:
        def inject(folder: Path) -> str | None:
            os.chdir(folder)
            return _described(run(arguments, patience=60))

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
                return _described(run([command, *made, f"output={folder}/run"]))
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
            return _described(run([command, *given, *mode, "threads=1", output]))

        return Case(f"{command} {fault}", inject)

    faults = [*RAISING, *STEPS, *RESETS]
    return [case(fault, name) for name in COMMANDS for fault in faults]


COMMANDS = ("train", "collect", "evaluate", "record")


def _described(ending: Ending, refused: bool = True) -> str | None:
    fault = ending.fault(refused)
    return None if fault is None else f"{fault}: {ending.line[:200]}"


def stops() -> Cases:
    """List kills and signals at every operation on files of a training run."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "run"
        count = operations(_training(folder), folder)
    actions = {
        "kill": harness.kill,
        "SIGTERM": harness.sends(signal.SIGTERM),
        "SIGHUP": harness.sends(signal.SIGHUP),
        "SIGINT": harness.sends(signal.SIGINT),
    }
    return [
        _stop(name, action, at)
        for name, action in actions.items()
        for at in range(1, count + 1, 1 if name == "kill" else 4)
    ]


def _training(folder: Path) -> list[str]:
    return ["train", *SMALL, *RUN_STEPS, f"output={folder}"]


def _stop(name: str, action: Callable[[], None], at: int) -> Case:
    def inject(folder: Path) -> str | None:
        stopped, whole = folder / "run", reference()
        ending = run(_training(stopped), Hook(stopped, at, action))
        if ending.code != -signal.SIGKILL and (fault := _described(ending, False)):
            return fault
        return _resumed(stopped, whole)

    return Case(f"{name} at operation {at}", inject)


def _resumed(stopped: Path, whole: Path) -> str | None:
    """Resume a stopped run; return how it differs from the uninterrupted one, or None."""
    again = run(["resume", str(stopped)])
    if again.code != 0:  # killed before there was a run
        again = run(_training(stopped))
    if again.code != 0:
        return f"cannot resume: {again.line[:200]}"
    return None if rows(stopped) == rows(whole) else "another run"


_REFERENCE: list[Path] = []


def reference() -> Path:
    """Return the folder of the uninterrupted run, trained on first use."""
    if not _REFERENCE:
        folder = Path(tempfile.mkdtemp()) / "whole"
        ending = run(_training(folder))
        assert ending.code == 0, ending.text
        _REFERENCE.append(folder)
    return _REFERENCE[0]


def disks() -> Cases:
    """List disks that are full or read-only from every operation on."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "run"
        count = operations(_training(folder), folder)
    actions = {"full": harness.FULL, "read-only": harness.READ_ONLY}

    def case(name: str, at: int) -> Case:
        def inject(folder: Path) -> str | None:
            stopped, whole = folder / "run", reference()
            hook = Hook(stopped, at, actions[name], lasting=True)
            if fault := _described(run(_training(stopped), hook), False):
                return fault
            return _resumed(stopped, whole)

        return Case(f"disk {name} at operation {at}", inject)

    return [case(name, at) for name in actions for at in range(1, count + 1, 2)]


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
            if fault := _described(resumed, False):
                return f"resume {fault}"
            evaluated = run(_evaluation(copy, folder / "results"))
            if fault := _described(evaluated, False):
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
            if fault := _described(ending, False):
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


def counts(every: int = 1) -> dict[str, dict[str, int]]:
    """Return cases and faults found, by kind; prints each fault."""
    table = {}
    for kind in KINDS:
        found: Counter[str] = Counter()
        for case, fault in campaign(kind, every):
            found["cases"] += 1
            found["faults"] += fault is not None
            if fault is not None:
                print(f"{kind}: {case.name}: {fault}", flush=True)
        table[kind] = dict(found)
        print(kind, table[kind], flush=True)
    return table


if __name__ == "__main__":
    from lssvwm.agent.files import write_json

    share = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    result = {"every": share, "kinds": counts(share)}
    write_json(Path(sys.argv[1]), result)
    print(json.dumps(result, indent=1))
