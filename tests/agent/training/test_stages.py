"""Training in stages: each begins with the weights of the one before; a run resumes in any of them."""

import dataclasses

import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config import composition
from lssvwm.agent.config.composition import compose, stage_configs
from lssvwm.agent.errors import UserError
from lssvwm.agent.training import loop, stages
from lssvwm.envs import TMazeConfig

import lssvwm
from tests.agent.training.conftest import metrics, short_run


def staged():
    """Return a run of two stages, of 4 and 3 steps."""
    changes = {
        "first": {"train": {"steps": 4}},
        "second": {"train": {"steps": 3, "learning_rate": 0.01}},
    }
    return dataclasses.replace(short_run(TMazeConfig(length=5), seed=3), stages=changes)


@pytest.mark.parametrize("stopped", [(1, 2), (2, 0), (2, 2)])
def test_resume_continues_in_any_stage(tmp_path, monkeypatch, stopped):
    whole = stages.train(staged(), tmp_path / "whole")
    step, number = loop.step, stopped[0]

    def interrupted(run):
        if run.folder.name.startswith(f"{number}-") and run.step == stopped[1]:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"at step {stopped[1]}, saved"):
            stages.train(staged(), tmp_path / "cut")
    cut = stages.resume(tmp_path / "cut", [])
    for name in ("1-first", "2-second"):
        assert metrics(whole / "stages" / name) == metrics(cut / "stages" / name)
        assert not (cut / "stages" / name / "data").exists()
    a, b = (checkpoint.load(folder, "cpu").state_dict() for folder in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_last_weights_are_those_of_the_run(tmp_path):
    folder = stages.train(staged(), tmp_path / "run")
    own = checkpoint.load(folder, "cpu").state_dict()
    last = checkpoint.load(folder / "stages" / "2-second", "cpu").state_dict()
    assert all(torch.equal(own[key], last[key]) for key in own)
    saved = composition.read(checkpoint.resolve(folder) / "config.yaml")
    assert list(saved["stages"]) == ["first", "second"]


def test_resume_refuses_settings_without_a_stage_to_train(tmp_path):
    folder = stages.train(staged(), tmp_path / "run")
    assert stages.resume(folder, []) == folder
    with pytest.raises(UserError, match=r"all stages of .* have ended"):
        stages.resume(folder, ["train.steps=9"])


def test_train_in_python_trains_all_stages(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(loop, "train", lambda config, *_: begun.append(config.name))
    monkeypatch.setattr(stages, "finish", lambda stage: None)
    monkeypatch.setattr(stages, "_export", lambda *_: None)
    lssvwm.train("experiment=tmaze", f"output={tmp_path}/run")
    assert begun == ["walk", "stumble", "own"]


def test_frames_are_collected_as_in_the_first_or_last_stage():
    config = compose(["experiment=tmaze"])
    assert composition.collecting(config, begins=True).name == config.name
    first, last = (composition.collecting(config, begins=b) for b in (True, False))
    assert "plan" in last.train.collect.mix and "plan" not in first.train.collect.mix
    unstaged = compose(["experiment=recall7"])
    assert composition.collecting(unstaged, begins=True) == unstaged


def test_command_line_holds_for_all_stages():
    found = stage_configs(compose(["experiment=tmaze", "train.steps=7"]))
    assert [config.train.steps for config in found.values()] == [7, 7, 7]


def test_stage_replaces_mappings():
    walk = stage_configs(compose(["experiment=tmaze"]))["walk"]
    assert set(walk.train.collect.mix) == {"cells", "seek", "oracle"}


def test_mistake_in_a_stage_names_it(tmp_path):
    config = dataclasses.replace(staged(), stages={"one": {"train": {"stps": 3}}})
    with pytest.raises(UserError, match=r"stages.one: .* did you mean train.steps"):
        stages.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stage_ends_early_at_a_success_rate(tmp_path, monkeypatch):
    first = {"train": {"steps": 9, "evaluate_every": 2}, "until": 0.5}
    config = dataclasses.replace(staged(), stages={"first": first})
    successes = iter([0.25, 0.5, 1.0])
    monkeypatch.setattr(
        "lssvwm.agent.training.run.Run.validate", lambda run: next(successes)
    )
    folder = stages.train(config, tmp_path / "run")
    assert metrics(folder / "stages" / "1-first")[-1]["step"] == 4
    wrong = dataclasses.replace(config, stages={"first": first | {"until": 2}})
    with pytest.raises(UserError, match=r"stages.first.until=2 is wrong"):
        stages.train(wrong, tmp_path / "other")
    never = {"train": {"steps": 9}, "until": 0.5}
    wrong = dataclasses.replace(config, stages={"first": never})
    with pytest.raises(UserError, match=r"until needs .*set train.evaluate_every"):
        stages.train(wrong, tmp_path / "other")


def test_killed_stage_is_cleaned_up_later(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(stages, "remove", lambda path: exit(1))
        stages.train(staged(), tmp_path / "run")
    first = tmp_path / "run" / "stages" / "1-first"
    assert (first / "data").is_dir()
    stages.resume(tmp_path / "run", [])
    assert not (first / "data").exists()
