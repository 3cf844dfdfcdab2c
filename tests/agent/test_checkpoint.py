"""Models are found by their own folder or by that of their run."""

import shutil

import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import WorldModel

from tests.agent.conftest import TINY


def place(folder) -> None:
    """Make a folder look like a model."""
    folder.mkdir()
    (folder / "weights.safetensors").touch()
    (folder / "config.yaml").touch()


def test_resolve_prefers_selected_weights(tmp_path):
    place(tmp_path / "export")
    assert checkpoint.resolve(tmp_path) == tmp_path / "export"
    place(tmp_path / "best")
    assert checkpoint.resolve(tmp_path) == tmp_path / "best"
    assert checkpoint.resolve(tmp_path / "export") == tmp_path / "export"


def test_resolve_finds_the_latest_stage(tmp_path):
    tmaze = checkpoint.resolve("tmaze")
    for stage in ("1-walk", "9-own", "10-alone"):
        latest = tmp_path / "stages" / stage / "export"
        shutil.copytree(tmaze, latest)
    assert checkpoint.resolve(tmp_path) == latest


def test_resolve_finds_pretrained_names():
    assert checkpoint.resolve("tmaze").name == "tmaze"


def test_resolve_names_missing_parts(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at tmaz: .* mean tmaze"):
        checkpoint.resolve("tmaz")
    place(tmp_path / "best")
    (tmp_path / "best" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has weights but no config.yaml"):
        checkpoint.resolve(tmp_path)


def test_load_refuses_damaged_weights(tmp_path):
    place(tmp_path / "best")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path, "cpu")


def test_pick_device_refuses_unknown_devices():
    assert checkpoint.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device=cuuda"):
        checkpoint.pick_device("cuuda")


def test_check_fits_compares_frames_and_actions():
    model = WorldModel(TINY, (3, 64, 64), 4)
    checkpoint.check_fits(model, (3, 64, 64), 4, discrete=True)
    with pytest.raises(UserError, match=r"is for frames .* and 4 actions"):
        checkpoint.check_fits(model, (3, 64, 64), 5, discrete=True)
    with pytest.raises(UserError, match=r"has .* and actions of 4 dimensions"):
        checkpoint.check_fits(model, (3, 64, 64), 4, discrete=False)
