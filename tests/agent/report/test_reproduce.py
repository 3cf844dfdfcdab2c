"""Commands compose exactly the settings that they come from."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from lssvwm.agent.config.composition import compose, from_checkpoint, to_dict
from lssvwm.agent.config.settings import CheckpointConfig
from lssvwm.agent.evaluation.origin import used_settings
from lssvwm.agent.report.reproduce import differences, result_command, train_command
from lssvwm.agent.report.settings_table import setting_rows


@pytest.mark.parametrize(
    "settings",
    [
        ["experiment=tmaze", "env.length=32", "seed=3"],
        ["env=recall", "model=gru", "planner=mppi", "train=quick"],
        ["experiment=memory17", "train.collect.mix={cells: 0.5, seek: 0.5}"],
        ["experiment=custom", "env.factory=my corridor.py:make"],
    ],
)
def test_train_command_composes_the_settings(settings: list[str]) -> None:
    config = compose(settings)
    line = train_command(config, Path("runs/a b"))
    assert line is not None
    words = shlex.split(line)
    assert words[:2] == ["lssvwm", "train"] and words[-1] == "output=runs/a b"
    again = to_dict(compose(words[2:-1]))
    assert again == to_dict(config)


def test_result_command_has_the_changed_settings() -> None:
    run = compose(["experiment=tmaze"])
    settings = ["checkpoint=tmaze", "planner.kind=mppi", "env.length=64"]
    config = from_checkpoint(to_dict(run), settings, CheckpointConfig)
    found = {"settings": used_settings(config), "origin": {"checkpoint": "tmaze"}}
    line = result_command("evaluate", run, found)
    assert line is not None
    again = from_checkpoint(to_dict(run), shlex.split(line)[2:], CheckpointConfig)
    assert used_settings(again) == used_settings(config)
    assert "env.length=64" in differences(run, found["settings"])


def test_unknown_settings_have_no_command() -> None:
    run = compose(["experiment=tmaze"])
    found = {"settings": {"env": {"kind": "gone"}}, "origin": {"checkpoint": "tmaze"}}
    assert result_command("evaluate", run, found) is None
    assert result_command("evaluate", run, {}) is None


def test_settings_that_differ_come_first() -> None:
    runs = [compose(["experiment=smoke"]), compose(["experiment=smoke", "seed=5"])]
    rows = setting_rows(runs)
    assert (rows[0].name, rows[0].values) == ("seed", ["0", "5"])
    assert rows[1].changed and not rows[1].differs
    assert not rows[-1].first
