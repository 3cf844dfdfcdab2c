"""Test the console script: help, exit codes, messages, and the work it starts."""

from __future__ import annotations

import errno
import importlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.shell_completion import ShellComplete
from lssvwm.agent.cli import main as cli
from lssvwm.agent.cli import reference_pages
from lssvwm.agent.cli.failures import FAILED, INTERRUPTED, USER_ERROR
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.composition import compose, to_dict
from lssvwm.agent.config.reference import describe
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def called(monkeypatch) -> list:
    """Replaces the work of every command; holds what each was called with."""
    calls: list = []

    def stand_in(command: str, result):
        def work(*arguments):
            calls.append((command, *arguments))
            arguments[1].mkdir(parents=True, exist_ok=True) if isinstance(
                arguments[1], Path
            ) else None
            return result(arguments)

        monkeypatch.setattr(
            importlib.import_module(f"lssvwm.agent.{MODULES[command]}"), command, work
        )

    stand_in("train", lambda a: a[1])
    stand_in("resume", lambda a: a[0])
    stand_in("evaluate", lambda a: {})
    stand_in("record", lambda a: [a[1] / "plan-0.mp4"])
    stand_in("collect", lambda a: None)
    return calls


COMMANDS = (
    "train",
    "resume",
    "evaluate",
    "record",
    "play",
    "collect",
    "benchmark",
    "doctor",
)
MODULES = {
    "train": "training.stages",
    "resume": "training.stages",
    "evaluate": "evaluation.evaluate",
    "record": "video.record",
    "collect": "training.collection",
}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A trained run, as far as the command line looks at it."""
    folder = tmp_path / "runs" / "mine"
    (folder / "best").mkdir(parents=True)
    config = compose(["experiment=smoke"])
    configuration.save(config, folder / "config.yaml")
    configuration.save(config, folder / "best" / "config.yaml")
    (folder / "best" / "weights.safetensors").write_bytes(b"")
    return folder


def fails(capsys, *arguments: str, code: int = USER_ERROR) -> str:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("lssvwm: ")
    assert error.count("\n") == 1
    return error


# ---- help


HEAVY = ("torch", "pydantic", "hydra", "yaml", "matplotlib", "numpy")


def test_overview_is_quick_and_imports_little() -> None:
    code = (
        "import sys, lssvwm; sys.argv[1:] = ['--help']; code = lssvwm.main();"
        f"sys.exit(code or ','.join(name for name in {HEAVY} if name in sys.modules) or 0)"
    )
    started = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert time.perf_counter() - started < 3  # 0.2 s on an idle machine


def test_overview_names_commands_and_experiments(capsys) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in COMMANDS)
    assert "\n  tmaze  " in overview
    for arguments in ([], ["help"], ["-h"]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == overview


@pytest.mark.parametrize("command", reference_pages.PAGES)
def test_help_lists_documented_settings(command: str, capsys) -> None:
    page = reference_pages.PAGES[command]
    arguments = [command, "envs"] if command == "benchmark" else [command]
    assert cli.main([*arguments, "--help"]) == 0
    written = capsys.readouterr().out
    assert written.startswith(f"Usage: lssvwm {command}")
    assert max(map(len, written.splitlines())) <= cli.WIDTH
    flat = " ".join(written.split())
    for setting in describe(page.cls):
        if setting.group in page.sections:
            assert f"{setting.name}=" in flat
            assert " ".join(setting.about.split())[:40] in flat


def test_help_follows_the_presets_given(capsys) -> None:
    cli.main(["train", "env=recall", "planner=mppi", "--help"])
    page = capsys.readouterr().out
    assert "env.delay=" in page and "planner.temperature=" in page
    assert "env.arm=" not in page


@pytest.mark.parametrize(
    ("setting", "listed", "left_out"),
    [
        ("planner.kind=mppi", "planner.temperature=", "planner.width="),
        ("model.mixer.kind=attention", "model.mixer.window=", "model.mixer.tiles="),
        ("env.kind=recall", "env.delay=", "env.length="),
    ],
)
def test_help_follows_the_kinds_given(setting, listed, left_out, capsys) -> None:
    assert cli.main(["train", setting, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"\n  {listed}" in page
    assert f"\n  {left_out}" not in page


def test_help_of_every_command_exists(capsys) -> None:
    for command in [*COMMANDS, *(f"benchmark {name}" for name in cli.BENCHMARKS)]:
        assert cli.main([*command.split(), "-h"]) == 0
        assert f"Usage: lssvwm {command} " in capsys.readouterr().out


def test_version_is_printed(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"lssvwm \d+\.\d+\.\d+\n", capsys.readouterr().out)


# ---- what is called


def test_train_composes_and_names_next_commands(called, capsys) -> None:
    assert cli.main(["train", "experiment=smoke", "train.steps=7"]) == 0
    (command, config, output) = called[0]
    assert (command, config.train.steps, config.env.length, output) == (
        "train",
        7,
        6,
        Path("runs/smoke"),
    )
    assert "next: lssvwm evaluate checkpoint=runs/smoke" in capsys.readouterr().out


def test_output_and_name_choose_the_folder(called) -> None:
    cli.main(["train", "output=here/now"])
    cli.main(["train", "name=other"])
    cli.main(["collect", "env=recall"])
    assert [call[2] for call in called] == [
        Path("here/now"),
        Path("runs/other"),
        Path("data/recall"),
    ]


def test_resume_passes_settings_on(called, run_folder) -> None:
    assert cli.main(["resume", "runs/mine", "train.steps=800"]) == 0
    assert called == [("resume", Path("runs/mine"), ["train.steps=800"])]


def test_folder_may_look_like_a_setting(called, run_folder) -> None:
    folder = run_folder.rename(run_folder.with_name("lr=0.1"))
    assert cli.main(["resume", str(folder)]) == 0
    assert called == [("resume", folder, [])]


def test_evaluate_starts_from_saved_settings(called, run_folder, capsys) -> None:
    assert (
        cli.main(["evaluate", "checkpoint=runs/mine", "env.length=9", "tasks.count=5"])
        == 0
    )
    (_, config, output) = called[0]
    assert (config.env.length, config.tasks.count, config.model.width) == (9, 5, 16)
    assert (config.checkpoint, output) == ("runs/mine", Path("runs/mine/evaluation"))
    assert "on 5 tasks (seed 0) of tmaze length=9" in capsys.readouterr().out


def test_record_mode_has_a_short_form(called, run_folder, capsys) -> None:
    assert cli.main(["record", f"checkpoint={run_folder}", "mode=plan"]) == 0
    (_, config, output) = called[0]
    assert (config.record.mode, output) == ("plan", run_folder / "video")
    assert f"wrote {run_folder}/video/plan-0.mp4" in capsys.readouterr().out


def test_results_of_a_run_join_its_report(called, run_folder, capsys) -> None:
    checkpoint = "checkpoint=runs/mine"
    for arguments in (
        ["evaluate", checkpoint],
        ["record", checkpoint, "output=runs/mine/clips"],
        ["record", f"{checkpoint}/best", "output=runs/mine/other"],
        ["report", "runs/mine"],
    ):
        assert cli.main(arguments) == 0
        assert "report: runs/mine/report.html\n" in capsys.readouterr().out
    assert cli.main(["record", checkpoint, "output=elsewhere"]) == 0
    assert "no report: no results in elsewhere" in capsys.readouterr().out
    assert cli.main(["report", "runs/mine", "output=mine.html"]) == 0
    assert Path("mine.html").is_file()


def test_show_prints_settings_and_stops(called, capsys, tmp_path) -> None:
    configuration.save(compose([]), tmp_path / "config.yaml")
    run = str(tmp_path)
    for command in (
        ["train"],
        ["benchmark", "envs"],
        ["benchmark", "planning", "checkpoint=tmaze"],
        ["resume", run],
    ):
        assert cli.main([*command, "env.length=9", "--show"]) == 0
        shown = capsys.readouterr().out
        assert yaml.safe_load(shown)["env"]["length"] == 9
        assert re.search(r"  length: 9 +# command line \(default 16\)\n", shown)
    assert not called


def test_show_names_the_source_of_changes(capsys) -> None:
    assert cli.main(["train", "experiment=tmaze_alone", "planner=mppi", "--show"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"  length: 13 +# experiment=tmaze_alone \(default 16\)\n", shown)
    assert re.search(r"  min_length: 64 +# experiment=tmaze \(default 32\)\n", shown)
    assert re.search(r"  kind: mppi\n", shown)
    assert "\n  batch: 8\n" in shown
    config = compose(["experiment=tmaze_alone", "planner=mppi"])
    assert yaml.safe_load(shown) == to_dict(config)


def test_show_names_the_checkpoint(run_folder, capsys) -> None:
    arguments = ["checkpoint=runs/mine", "planner=icem", "tasks.count=3", "--show"]
    assert cli.main(["evaluate", *arguments]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"  width: 16 +# checkpoint runs/mine \(default 64\)\n", shown)
    assert re.search(r"  count: 3 +# command line \(default 300\)\n", shown)


def completions(words: list[str], incomplete: str) -> list[str]:
    """Return what the shell offers after complete words."""
    found = ShellComplete(cli.lssvwm, {}, "lssvwm", "_LSSVWM_COMPLETE")
    return [item.value for item in found.get_completions(words, incomplete)]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "tr", ["train"]),
        (["benchmark"], "pl", ["planners", "planning"]),
        (["train"], "exp", ["experiment="]),
        (["train"], "train.learn", ["train.learning_rate="]),
        (["train"], "planner=cem", ["planner=cem"]),
        (["train", "planner", "="], "ce", ["cem"]),
        (["train", "env=recall", "planner"], "", ["beam", "cem", "icem"]),
        (
            ["evaluate"],
            "checkpoint=tma",
            ["checkpoint=tmaze", "checkpoint=tmaze_alone"],
        ),
        (["record", "checkpoint=tmaze"], "mode=o", ["mode=open_loop"]),
    ],
)
def test_completion_offers_names_and_values(words, incomplete, expected) -> None:
    found = completions(words, incomplete)
    assert found[: len(expected)] == expected


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command trian; did you mean train?"),
        (["dance"], "there are: train, resume, evaluate, record, report"),
        (
            ["train", "train.stepz=5"],
            "unknown setting train.stepz=5; did you mean train.steps?",
        ),
        (["train", "env=labyrinth"], "unknown env=labyrinth; there are:"),
        (["evaluate"], "which checkpoint? e.g. lssvwm evaluate checkpoint=runs/tmaze"),
        (["record", "checkpoint=nowhere"], "no checkpoint at nowhere"),
        (["report"], "which runs? e.g. lssvwm report runs/tmaze"),
        (["report", "nowhere"], "no results in nowhere: give folders of runs"),
        (["report", "runs/mine", "x=1"], "the only setting of a report is output="),
        (["report", "runs/mine", "output=no/x.html"], "no/x.html: there is no folder"),
        (["resume"], "which run? e.g. lssvwm resume runs/tmaze"),
        (["resume", "train.steps=3"], "which run?"),
        (["resume", "nowhere"], "no run in nowhere"),
        (
            ["resume", "runs/mine", "model.width=9"],
            "model.width=9 cannot change trained weights",
        ),
        (
            ["evaluate", "checkpoint=runs/mine", "model.width=9"],
            "model.width=9 cannot change trained weights",
        ),
        (
            ["evaluate", "checkpoint=runs/mine", "env.lenght=9"],
            "did you mean env.length?",
        ),
        (
            ["train", "output=runs/mine"],
            "runs/mine holds a run already: use `lssvwm resume runs/mine`",
        ),
    ],
)
def test_mistake_is_one_line_and_code_2(run_folder, capsys, arguments, message) -> None:
    assert message in fails(capsys, *arguments)


def broken(monkeypatch, error: BaseException):
    """Make training fail with `error` after it has begun."""

    def work(config: Config, output: Path) -> Path:
        output.mkdir(parents=True, exist_ok=True)
        configuration.save(config, output / "config.yaml")
        raise error

    monkeypatch.setattr(
        importlib.import_module("lssvwm.agent.training.loop"), "train", work
    )


def test_user_error_has_no_traceback(monkeypatch, capsys) -> None:
    broken(monkeypatch, UserError("the data set\nis empty"))
    assert fails(capsys, "train") == "lssvwm: the data set is empty\n"


def test_interrupt_names_the_command_to_continue(monkeypatch, capsys) -> None:
    broken(monkeypatch, KeyboardInterrupt("at step 7, saved"))
    error = fails(capsys, "train", code=INTERRUPTED)
    assert "stopped at step 7, saved; continue with `lssvwm resume runs/tmaze`" in error


def test_full_disk_names_the_remedy(monkeypatch, capsys) -> None:
    broken(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    error = fails(capsys, "train", code=FAILED)
    assert "the disk of runs/tmaze is full" in error
    assert "free some space, then continue with `lssvwm resume runs/tmaze`" in error


HINTS = (
    "PytorchStreamWriter failed writing file data/0: file write failed",
    "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
)


@pytest.mark.parametrize("hint", HINTS)
def test_full_disk_is_found_behind_torch_errors(hint, monkeypatch, capsys) -> None:
    broken(monkeypatch, RuntimeError(hint))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "is full" in fails(capsys, "train", code=FAILED)


def test_unexpected_error_names_a_log_file(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken(monkeypatch, RuntimeError("shape mismatch while writing to memory"))
    line = fails(capsys, "train", "train.steps=3", code=FAILED)
    (log,) = tmp_path.glob("lssvwm-*.log")
    assert "RuntimeError: shape mismatch" in line and str(log) in line
    text = log.read_text()
    assert "Traceback" in text and "lssvwm train train.steps=3" in text


def test_too_little_memory_names_the_remedy(monkeypatch, capsys) -> None:
    broken(monkeypatch, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert "lower train.batch" in fails(capsys, "train", code=FAILED)


def test_denied_folder_is_named(capsys) -> None:
    Path("file").write_text("")
    assert "cannot write file/run" in fails(
        capsys, "train", "output=file/run", code=FAILED
    )


def test_tmaze_run_shows_at_most_95_settings(capsys) -> None:
    assert cli.main(["train", "experiment=tmaze", "--show"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert leaves(shown) <= 95


def leaves(shown: dict) -> int:
    """Count settings; a mapping whose names the user chooses counts as one."""
    free = ("mix", "vary", "stages")
    nested = {k: v for k, v in shown.items() if isinstance(v, dict) and k not in free}
    return len(shown) - len(nested) + sum(leaves(part) for part in nested.values())
