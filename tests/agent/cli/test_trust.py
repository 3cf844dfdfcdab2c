"""No command runs code that only the files of a checkpoint name."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from lssvwm.agent.cli.main import main
from lssvwm.agent.config import composition
from lssvwm.agent.config.presets import config_dir

import lssvwm

PROBE = """
from pathlib import Path

Path({marker!r}).touch()


def make(**kwargs):
    raise ValueError("the probe was called")
"""
"""A module that leaves a file when it is imported."""
SMALL = ["tasks.count=2", "tasks.arms=[random]", "threads=1"]
COLLECT = ["train.collect.frames=40", "train.collect.envs=2"]
COMMANDS = {
    "evaluate": ["evaluate", "checkpoint=model", *SMALL, "output=out"],
    "record": ["record", "checkpoint=model", "record.episodes=1", "output=out"],
    "collect": ["collect", "checkpoint=model", *COLLECT, "output=out"],
    "planning": ["benchmark", "planning", "checkpoint=model", *SMALL, "output=out"],
    "resume": ["resume", "model", "threads=1"],
}


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """Return the file that an imported probe leaves; the probe is importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "probe", raising=False)
    found = tmp_path / "marker"
    (tmp_path / "probe.py").write_text(PROBE.format(marker=str(found)))
    return found


def checkpoint(env: dict, **more) -> Path:
    """Make the folder `model`: packaged weights, and a configuration from elsewhere."""
    folder = Path("model")
    shutil.copytree(config_dir() / "pretrained" / "tmaze", folder)
    own = {"env": env, "train": {}, "stages": None} | more
    config = composition.read(folder / "config.yaml") | own
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


ENVIRONMENTS = {
    "factory": {"kind": "gym", "factory": "probe:make", "kwargs": {"size": 3}},
    "id": {"kind": "gym", "id": "probe:Env-v0"},
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("named", ENVIRONMENTS)
def test_command_runs_no_code_of_a_checkpoint(command, named, marker, capsys):
    checkpoint(ENVIRONMENTS[named])
    if command == "resume":  # a run that has not begun: it would build the environment
        Path("model", "weights.safetensors").unlink()
    assert main(COMMANDS[command]) == 2
    assert "add trust=true" in capsys.readouterr().err
    assert not marker.exists()
    assert main([*COMMANDS[command], "trust=true"]) == 2  # the probe gives nothing
    assert "add trust=true" not in capsys.readouterr().err
    assert marker.exists()


def test_play_runs_no_code_of_a_checkpoint(marker, capsys):
    checkpoint(ENVIRONMENTS["factory"])
    assert main(["play", "checkpoint=model"]) == 2
    assert "add trust=true" in capsys.readouterr().err
    assert not marker.exists()


def test_collect_runs_no_code_of_saved_variants(marker, capsys):
    collect = {"vary": {"id": [None], "factory": ["probe:make"]}}
    checkpoint({"kind": "gym", "id": "CartPole-v1"}, train={"collect": collect})
    assert main(COMMANDS["collect"]) == 2
    assert "train.collect.vary.factory='probe:make'" in capsys.readouterr().err
    assert not marker.exists()


def test_resume_runs_no_code_of_saved_stages(marker, capsys):
    stages = {"one": {"env": {"kind": "gym", "factory": "probe:make"}}}
    folder = checkpoint({"kind": "tmaze"}, stages=stages)
    (folder / "weights.safetensors").unlink()
    assert main(COMMANDS["resume"]) == 2
    assert "stages.one.env.factory='probe:make'" in capsys.readouterr().err
    assert not marker.exists()


def test_resume_keeps_stages_inside_the_run(marker, capsys):
    folder = checkpoint({"kind": "tmaze"}, stages={"/../../../victim": {}})
    (folder / "weights.safetensors").unlink()
    kept = Path("victim", "data", "letter.txt")
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert main(COMMANDS["resume"]) == 2
    assert "cannot be the name of a folder" in capsys.readouterr().err
    assert kept.exists()


def test_python_functions_run_no_code_of_a_checkpoint(marker):
    checkpoint(ENVIRONMENTS["factory"])
    calls = (
        lambda *settings: lssvwm.load("model", *settings),
        lambda *settings: lssvwm.make_env("checkpoint=model", *settings),
        lambda *settings: lssvwm.evaluate("model", "output=out", *settings),
        lambda *settings: lssvwm.record("model", "output=out", *settings),
    )
    for call in calls:
        with pytest.raises(lssvwm.UserError, match="add trust=true"):
            call()
    assert not marker.exists()
    with pytest.raises(lssvwm.UserError, match="the probe was called"):
        calls[0]("trust=true")
    assert marker.exists()


def test_command_line_names_code_that_may_run(marker, capsys):
    checkpoint({"kind": "tmaze"})
    typed = ["env=gym", "env.factory=probe:make"]
    assert main([*COMMANDS["evaluate"], *typed]) == 2
    assert "the probe was called" in capsys.readouterr().err
    assert marker.exists()


def test_trust_is_offered_where_it_is_needed(marker):
    folder = checkpoint(ENVIRONMENTS["factory"])
    assert composition.trust_setting(folder) == " trust=true"
    shutil.rmtree(folder)
    folder = checkpoint({"kind": "tmaze"})
    assert composition.trust_setting(folder) == ""
    assert composition.trust_setting(folder / "nowhere") == ""
