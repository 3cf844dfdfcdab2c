"""The folder of a failed run can be used again; steps, weights and frames of others are kept."""

import dataclasses

import pytest
from lssvwm.agent.config import composition
from lssvwm.agent.errors import UserError
from lssvwm.agent.replay import Replay
from lssvwm.agent.run_folder import refuse_existing_run
from lssvwm.agent.shards import shard_paths
from lssvwm.agent.training import loop, stages
from lssvwm.envs import TMazeConfig

from tests.agent.training.conftest import collecting, short_run, training


def failed(monkeypatch, config, output, shards: int) -> None:
    """Start a run whose environment breaks after some shards."""
    written, extend = [], Replay.extend

    def breaking(replay, rows, provenance):
        if len(written) == shards:
            raise UserError("the environment is broken")
        written.append(rows)
        extend(replay, rows, provenance)

    with monkeypatch.context() as patch:
        patch.setattr(Replay, "extend", breaking)
        with pytest.raises(UserError, match="is broken"):
            stages.train(config, output)
    assert (output / "config.yaml").is_file()


@pytest.fixture
def config():
    return training(short_run(TMazeConfig(length=5)), steps=0)


@pytest.mark.parametrize("in_stages", [False, True])
def test_folder_of_a_failed_run_is_used_again(tmp_path, monkeypatch, config, in_stages):
    if in_stages:
        config = dataclasses.replace(config, stages={"one": {"train": {"batch": 1}}})
    failed(monkeypatch, config, tmp_path / "run", shards=0)
    corrected = dataclasses.replace(config, env=TMazeConfig(length=6))
    folder = stages.train(corrected, tmp_path / "run")
    assert composition.read(folder / "config.yaml")["env"]["length"] == 6


def test_frames_of_the_same_settings_are_kept(tmp_path, monkeypatch, config):
    config = collecting(config, vary={"length": (4, 5)})
    failed(monkeypatch, config, tmp_path / "run", shards=1)
    before = shard_paths(tmp_path / "run" / "data")
    more_steps = training(config, steps=1)
    folder = stages.train(more_steps, tmp_path / "run")
    assert shard_paths(folder / "data")[:1] == before


def test_frames_of_other_settings_are_refused(tmp_path, monkeypatch, config):
    config = collecting(config, vary={"length": (4, 5)})
    failed(monkeypatch, config, tmp_path / "run", shards=1)
    other = collecting(config, mix={"noop": 1.0})
    message = r"run/data holds frames that other settings collected: delete it, or"
    with pytest.raises(UserError, match=message):
        stages.train(other, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("[")
    with pytest.raises(UserError, match=message):
        stages.train(config, tmp_path / "run")


def test_saved_steps_and_weights_are_refused(tmp_path, config):
    folder = loop.train(config, tmp_path / "run")
    for part in ("checkpoints", "export"):
        with pytest.raises(UserError, match="holds a run already"):
            refuse_existing_run(folder, config)
        (folder / part).rename(tmp_path / part)
    refuse_existing_run(folder, config)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()  # as earlier formats named it
    with pytest.raises(UserError, match="holds a run already"):
        refuse_existing_run(folder, config)


def test_resume_refuses_exported_weights(tmp_path, config):
    folder = loop.train(config, tmp_path / "run")
    before = sorted(folder.rglob("*"))
    message = rf"export holds exported weights, no run: use `lssvwm resume {folder}`"
    with pytest.raises(UserError, match=message):
        stages.resume(folder / "export", [])
    assert sorted(folder.rglob("*")) == before
    (folder / "export").rename(tmp_path / "alone")
    with pytest.raises(UserError, match=r"train train\.init=.*alone"):
        stages.resume(tmp_path / "alone", [])
