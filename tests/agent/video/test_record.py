"""The command: files of each task, repeatable data, clear errors."""

from __future__ import annotations

import json
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import RecordConfig, RecordRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import MPCConfig
from lssvwm.agent.video.record import record
from lssvwm.agent.video.rendering import IMAGINED
from lssvwm.envs import CountingConfig, TMazeConfig
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import ModelConfig, WorldModel, save
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from PIL import Image
from pydantic import ValidationError

SMALL = ModelConfig(
    width=16,
    mixer=TiledSSDConfig(tiles=(1,), state=8, head_dim=16),
    attention_heads=2,
)
PLANNER = CEMConfig(
    horizon=4,
    candidates=8,
    iterations=1,
    elites=2,
    keep_elites=1,
)
MPC = MPCConfig(replan=2, proposals=0)


@pytest.fixture
def config(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save(WorldModel(SMALL, (3, 64, 64), 4), folder)
    config = RecordRunConfig(
        env=TMazeConfig(length=5),
        planner=PLANNER,
        mpc=MPC,
        record=RecordConfig(episodes=1, scale=1, horizon=6),
        checkpoint=str(folder),
    )
    composition.save(config, folder / "config.yaml")
    return config


def read_back(path):
    frames = imageio_ffmpeg.read_frames(str(path))
    columns, rows = next(frames)["size"]
    pictures = [np.frombuffer(frame, np.uint8) for frame in frames]
    return [picture.reshape(rows, columns, 3) for picture in pictures]


@pytest.mark.parametrize("mode", ["open_loop", "plan"])
def test_record_writes_video_data_and_still(config, tmp_path, mode):
    config = replace(config, record=replace(config.record, mode=mode, gif=True))
    paths = record(config, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        f"{mode}-0.{kind}" for kind in ("mp4", "json", "png", "gif")
    ]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    data = json.loads(paths[1].read_text())
    pictures = read_back(paths[0])
    count = data["context_frames"] + data["imagined_frames"]
    assert len(pictures) == len(data["frames"]) == count
    assert pictures[0].shape[0] % 2 == pictures[0].shape[1] % 2 == 0
    assert Image.open(paths[2]).size == pictures[0].shape[1::-1]
    assert Image.open(paths[3]).n_frames == len(pictures)  # type: ignore[attr-defined]
    last = data["frames"][-1]
    assert last["kind"] == IMAGINED
    assert 0 < last["psnr"] < 40
    assert last["action_name"] in data["action_names"]
    assert data["outcome"] != "running"
    if mode == "open_loop":
        assert data["outcome"] == "success"


def described(paths) -> list[dict]:
    """Read the data of recorded videos, without the date."""
    found = [json.loads(path.read_text()) for path in paths if path.suffix == ".json"]
    for data in found:
        del data["origin"]["date"]
    return found


def test_record_repeats_data_with_equal_seeds(config, tmp_path):
    config = replace(config, record=replace(config.record, mode="plan", episodes=2))
    first, again = (record(config, tmp_path / name) for name in ("a", "b"))
    data = described(first)
    assert data == described(again)
    seeds = {found["task"]["seed"] for found in data}
    assert len(seeds) == 2
    other = replace(config, tasks=replace(config.tasks, seed=1))
    data = json.loads(record(other, tmp_path / "c")[1].read_text())
    assert data["task"]["seed"] not in seeds


@pytest.mark.parametrize(
    "setting", [{"mode": "openloop"}, {"episodes": 0}, {"scale": 40}, {"horizon": 0}]
)
def test_record_settings_have_ranges(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        RecordConfig(**setting)


def test_record_refuses_bad_output_and_checkpoint(config, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot write videos into"):
        record(config, tmp_path / "file")
    with pytest.raises(UserError, match="checkpoint="):
        record(replace(config, checkpoint=None), tmp_path)
    with pytest.raises(UserError, match="checkpoint is for frames"):
        record(replace(config, env=CountingConfig(size=32)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
