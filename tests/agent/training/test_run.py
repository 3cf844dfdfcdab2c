"""Runs are built from seeds and weights, saved, and restored."""

import dataclasses
import shutil

import pytest
import torch
from lssvwm.agent.config import composition
from lssvwm.agent.errors import UserError
from lssvwm.agent.replay import Replay
from lssvwm.agent.run_folder import saved_config
from lssvwm.agent.training import loop, stages
from lssvwm.agent.training.run import build, build_model, restore
from lssvwm.agent.training.state_file import read_state, write_state
from lssvwm.envs import TMazeConfig, make
from lssvwm.worldmodel import WorldModel, save
from lssvwm.worldmodel.mixers.attention import AttentionConfig
from lssvwm.worldmodel.mixers.gru import GRUConfig

from tests.agent.conftest import TINY
from tests.agent.training.conftest import collecting, short_run


@pytest.fixture
def trained(tmp_path):
    """Return the folder of a finished run."""
    config = short_run(TMazeConfig(length=5), seed=3)
    return loop.train(config, tmp_path / "run")


def test_build_model_takes_fitting_weights(tmp_path):
    config = short_run(TMazeConfig(length=5))
    env = make(config.env, 1)
    old = WorldModel(TINY, (3, 64, 64), 4)
    save(old, tmp_path)
    composition.save(config, tmp_path / "config.yaml")

    def started(**changes) -> WorldModel:
        model = dataclasses.replace(TINY, **changes)
        start = dataclasses.replace(config, model=model)
        return build_model(start, env, str(tmp_path))

    loss = dataclasses.replace(TINY.loss, surprise=1.0, distance=1.0)
    more = started(loss=loss)
    assert more.heads.error is not None and more.distance is not None
    save(more, tmp_path)
    for model in (more, started()):  # with optional heads, and without them again
        weights = model.state_dict()
        assert all(torch.equal(weights[k], v) for k, v in old.state_dict().items())
    differs = r"blocks.0.attention.out.weight is \[16, 16\], here \[32, 32\]"
    with pytest.raises(UserError, match=rf"another model \({differs}\): set env"):
        started(width=32)
    with pytest.raises(UserError, match=r"another model .* here missing"):
        started(mixer=GRUConfig())


@pytest.mark.parametrize(
    ("mixer", "says"),
    [
        (
            AttentionConfig(heads=2, path_integration=True, rope_fraction=0.0),
            r"path_integration=true rotates no pair of 8 numbers with .*rope_fraction=0",
        ),
        (GRUConfig(state=8), r"model\.mixer\.state=8 must be at least .* tokens, 9"),
    ],
)
def test_build_model_refuses_unusable_mixers(mixer, says):
    config = short_run(TMazeConfig(length=5))
    config = dataclasses.replace(config, model=dataclasses.replace(TINY, mixer=mixer))
    with pytest.raises(UserError, match=says) as error:
        build_model(config, make(config.env, 1))
    assert "\n" not in str(error.value)


def test_resume_needs_no_first_weights_and_takes_other_lengths(trained, tmp_path):
    config = dataclasses.replace(saved_config(trained), data=None)
    shutil.copytree(trained, tmp_path / "first")
    begun = dataclasses.replace(
        config, train=dataclasses.replace(config.train, init=str(tmp_path / "first"))
    )
    run = loop.train(begun, tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    lengths = ["train.length_augmentation=adversarial", "train.steps=5"]
    assert stages.resume(run, lengths) == run


def test_restore_refuses_another_version(trained):
    state = read_state(trained, {})
    moments = state["optimizer"]["state"][0]
    moments["exp_avg"] = torch.zeros(1)  # as many parameters, but others
    write_state(trained, state)
    message = "of another version: begin a run from its weights"
    with pytest.raises(UserError, match=message):
        stages.resume(trained, ["train.steps=9"])


def test_restore_keeps_but_ignores_frames_collected_later(trained):
    config = composition.from_checkpoint(composition.read(trained / "config.yaml"), [])
    run = build(config, trained)
    before = run.replay.names
    rows = run.replay.shards[0].rows
    run.replay.extend({key: value.numpy() for key, value in rows.items()})
    restore(run)
    assert run.replay.names == before and run.step == 4
    assert len(Replay(trained / "data").names) == 2


def test_restore_keeps_frames_of_workers(trained):
    config = composition.from_checkpoint(composition.read(trained / "config.yaml"), [])
    run = build(collecting(config, workers=1), trained)
    rows = run.replay.shards[0].rows
    run.replay.extend({key: value.numpy() for key, value in rows.items()})
    restore(run)
    assert len(run.replay.names) == 2 and run.step == 4


def test_restore_renames_unselected_best(trained):
    (trained / "export").rename(trained / "best")  # as format 1 named it
    stages.resume(trained, ["train.steps=6"])
    assert (trained / "export" / "weights.safetensors").is_file()
    assert not (trained / "best").exists()


def test_export_keeps_the_weights_with_most_success(tmp_path):
    run = build(short_run(TMazeConfig(length=5)), tmp_path)
    saved = tmp_path / "best" / "weights.safetensors"
    run.export_if_best(0.5)
    assert run.evaluated
    selected = saved.read_bytes()
    with torch.no_grad():
        next(run.ema.parameters()).add_(1.0)
    run.export_if_best(0.25)
    assert saved.read_bytes() == selected
    run.export_if_best(0.5)
    assert saved.read_bytes() != selected
