"""The console script: help, exit codes, one line for each mistake, and what reaches the work it starts."""

from __future__ import annotations

import errno
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lssvwm.agent.cli import main as cli
from lssvwm.agent.cli import manual
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.composition import compose, to_dict
from lssvwm.agent.config.settings import BenchmarkRunConfig, Config, RecordRunConfig
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


MODULES = {
    "train": "training.loop",
    "resume": "training.loop",
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


def fails(capsys, *arguments: str, code: int = cli.USER_ERROR) -> str:
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("lssvwm: ")
    assert error.count("\n") == 1
    return error


# ---- help


def test_help_does_not_load_torch() -> None:
    code = "import sys, lssvwm; sys.argv[1:] = ['train', '--help']; lssvwm.main(); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        == 0
    )


def test_the_overview_names_commands_and_experiments(capsys) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in cli.COMMANDS)
    assert "\n  tmaze  " in overview
    assert cli.main([]) == 0
    assert capsys.readouterr().out == overview


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_setting_on_a_help_page_exists_with_that_default(command: str) -> None:
    listed = re.findall(
        r"^  ([a-z_.]+)=(\{.*?\}|\S+)", manual.page(command), re.MULTILINE
    )
    assert len(listed) >= 4
    plain = to_dict(compose([], BenchmarkRunConfig)) | to_dict(
        compose([], RecordRunConfig)
    )
    for key, default in listed:
        value = plain
        for part in key.split("."):
            value = value[part]
        assert value == configuration.given([f"{key}={default}"], key), (
            f"{command} --help: {key}"
        )


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_pages_have_no_line_too_wide(command: str, capsys) -> None:
    assert cli.main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: lssvwm {command}")
    left = page
    sweeps = ("{env.delay: [32, 128], planner: [cem, mppi]}", "{env.delay: [32, 512]}")
    for meant in (
        "{}",
        "{random: 1.0}",
        "{tour: 0.5, cells: 0.5}",
        "{plan: 1.0}",
        "{length: [8, 16]}",
        *sweeps,
    ):
        left = left.replace(meant, "")
    assert "{" not in left
    assert max(map(len, page.splitlines())) <= 110


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"lssvwm \d+\.\d+\.\d+\n", capsys.readouterr().out)


# ---- what is called


def test_train_composes_and_says_what_comes_next(called, capsys) -> None:
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


def test_resume_passes_the_settings_on(called, run_folder) -> None:
    assert cli.main(["resume", "runs/mine", "train.steps=800"]) == 0
    assert called == [("resume", Path("runs/mine"), ["train.steps=800"])]


def test_evaluate_takes_the_settings_of_the_checkpoint(
    called, run_folder, capsys
) -> None:
    assert (
        cli.main(["evaluate", "checkpoint=runs/mine", "env.length=9", "tasks.count=5"])
        == 0
    )
    (_, config, output) = called[0]
    assert (config.env.length, config.tasks.count, config.model.width) == (9, 5, 16)
    assert (config.checkpoint, output) == ("runs/mine", Path("runs/mine/evaluation"))
    assert "on 5 tasks (seed 0) of tmaze length=9" in capsys.readouterr().out


def test_mode_is_short_for_record_mode(called, run_folder, capsys) -> None:
    assert cli.main(["record", f"checkpoint={run_folder}", "mode=plan"]) == 0
    (_, config, output) = called[0]
    assert (config.record.mode, output) == ("plan", Path("runs/mine/video"))
    assert "wrote runs/mine/video/plan-0.mp4" in capsys.readouterr().out


def test_show_prints_the_settings_and_stops(called, capsys, tmp_path) -> None:
    configuration.save(compose([]), tmp_path / "config.yaml")
    run = str(tmp_path)
    for command in (
        ["train"],
        ["benchmark", "envs"],
        ["benchmark", "planning", "checkpoint=tmaze"],
        ["resume", run],
    ):
        assert cli.main([*command, "env.length=9", "--show"]) == 0
        assert "  length: 9\n" in capsys.readouterr().out
    assert not called


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command trian; did you mean train?"),
        (["dance"], "there are: train, resume, evaluate, record, collect"),
        (
            ["train", "train.stepz=5"],
            "unknown setting train.stepz=5; did you mean train.steps?",
        ),
        (["train", "env=labyrinth"], "unknown env=labyrinth; there are:"),
        (["evaluate"], "which checkpoint? e.g. lssvwm evaluate checkpoint=runs/tmaze"),
        (["record", "checkpoint=nowhere"], "no checkpoint at nowhere"),
        (["resume"], "which run? e.g. lssvwm resume runs/tmaze"),
        (["resume", "train.steps=3"], "which run?"),
        (["resume", "nowhere"], "no run in nowhere"),
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
def test_a_mistake_is_one_line_and_exit_code_2(
    run_folder, capsys, arguments, message
) -> None:
    assert message in fails(capsys, *arguments)


def broken(monkeypatch, error: BaseException):
    """Make training fail with `error` after it has begun."""

    def work(config: Config, output: Path) -> Path:
        output.mkdir(parents=True)
        configuration.save(config, output / "config.yaml")
        raise error

    monkeypatch.setattr(
        importlib.import_module("lssvwm.agent.training.loop"), "train", work
    )


def test_an_error_of_the_user_has_no_traceback(monkeypatch, capsys) -> None:
    broken(monkeypatch, UserError("the data set\nis empty"))
    assert fails(capsys, "train") == "lssvwm: the data set is empty\n"


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys) -> None:
    broken(monkeypatch, KeyboardInterrupt("at step 7, saved"))
    error = fails(capsys, "train", code=cli.INTERRUPTED)
    assert "stopped at step 7, saved; continue with `lssvwm resume runs/tmaze`" in error


def test_a_full_disk_says_what_is_left(monkeypatch, capsys) -> None:
    broken(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    error = fails(capsys, "train", code=cli.FAILED)
    assert "the disk of runs/tmaze is full" in error
    assert "free some space, then continue with `lssvwm resume runs/tmaze`" in error


HINTS = (
    "PytorchStreamWriter failed writing file data/0: file write failed",
    "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
)


@pytest.mark.parametrize("hint", HINTS)
def test_a_full_disk_that_torch_only_hints_at(hint, monkeypatch, capsys) -> None:
    broken(monkeypatch, RuntimeError(hint))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert "is full" in fails(capsys, "train", code=cli.FAILED)


def test_an_error_of_ours_is_not_hidden(monkeypatch) -> None:
    broken(monkeypatch, RuntimeError("shape mismatch while writing to memory"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        cli.main(["train"])


def test_a_folder_that_cannot_be_written_is_named(capsys) -> None:
    Path("file").write_text("")
    assert "cannot write file/run" in fails(
        capsys, "train", "output=file/run", code=cli.FAILED
    )
