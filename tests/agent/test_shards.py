"""Shards notice damage and frames of other environments, and run nothing when they are read."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import write_checksums
from lssvwm.agent.replay import Replay, as_replay_buffer
from lssvwm.agent.shard_writer import ShardWriter
from lssvwm.agent.shards import KEYS, Format, Shard, describe_environment
from lssvwm.agent.training import loop
from lssvwm.agent.training.collection import build_collection, gather
from lssvwm.envs import CountingConfig, GymConfig, TMazeConfig, make
from lssvwm.envs.maze.tour_mazes import RecallConfig
from tensordict import TensorDict

from tests.agent.training.conftest import collecting, short_run
from tests.hostile import Shout, flipped

SHARD = "shard-000000"
"""Name of the shard, as versions with one writer chose it."""
FILES = (
    "pixels.memmap",
    "is_first.memmap",
    "meta.json",
    "provenance.json",
    "checksums.json",
)


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    """Return a data folder with one shard of the counting environment."""
    config = short_run(CountingConfig())
    collection = build_collection(config.env, config.train.collect)
    folder = tmp_path_factory.mktemp("collected")
    replay = Replay(folder, environment=collection.environment)
    gather(collection, replay, 60, seed=0)
    return folder


@pytest.fixture
def data(collected, tmp_path) -> Path:
    """Return a copy of the data folder."""
    data = Path(shutil.copytree(collected, tmp_path / "data"))
    (shard,) = data.glob("shard-*")
    shard.rename(data / SHARD)
    return data


def described(config) -> dict:
    """Describe an environment by its settings."""
    return describe_environment(config, make(config, 1))


def as_format2(data: Path) -> None:
    """Turn a data folder into one of format 2."""
    (data / SHARD / "checksums.json").unlink()
    (data / "format.json").write_text('{"format_version": 2}')


@pytest.mark.parametrize("name", FILES)
def test_open_notices_flipped_bits(data, name):
    file = data / SHARD / name
    for place in (0, file.stat().st_size // 2, -3):
        whole = file.read_bytes()
        flipped(file, place)
        with pytest.raises(UserError, match=r"(damaged|changed).*: restore it, or del"):
            Replay(data)
        with pytest.raises(UserError, match=f"{name}"):
            as_replay_buffer(data)
        file.write_bytes(whole)
    assert len(Replay(data)) >= 60


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("version", [2, 3])
def test_open_notices_cut_and_missing_files(data, name, version):
    if version == 2:
        as_format2(data)
        if name in ("provenance.json", "checksums.json"):
            return
    file = data / SHARD / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{name} (is damaged|has changed)"):
        Replay(data)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing: restore it, or delete"):
        Replay(data)
    shutil.rmtree(file.parent)  # the other remedy
    assert len(Replay(data)) == 0


def test_open_checks_shards_that_were_copied_into_a_folder(data, tmp_path):
    other = TMazeConfig(length=5)
    config = short_run(other)
    collection = build_collection(other, config.train.collect)
    replay = Replay(tmp_path / "tmaze", environment=collection.environment)
    gather(collection, replay, 60, seed=0)
    foreign = replay.shards[0].path
    shutil.copytree(foreign, data / foreign.name)
    with pytest.raises(UserError, match=f"{foreign.name} are of another environment"):
        Replay(data, environment=described(CountingConfig()))
    (data / "shard.tar.gz").touch()
    shutil.rmtree(data / foreign.name)
    assert len(Replay(data)) >= 60


def test_open_checks_shards_without_their_format_file(data):
    rows = Shard.open(data / SHARD, verify=False).rows
    (data / "format.json").unlink()
    flipped(data / SHARD / "reward.memmap", 0)
    for _ in range(2):
        with pytest.raises(UserError, match=r"reward.memmap is damaged"):
            Replay(data)
        ShardWriter(data).write({key: rows[key].numpy() for key in KEYS}, {})


def test_open_runs_nothing_of_a_shard(data, tmp_path):
    path, shout = data / SHARD, tmp_path / "shout"
    rows = TensorDict.load_memmap(path).clone()
    shutil.rmtree(path)
    rows.set_non_tensor("extra", Shout(shout))
    rows.memmap(path)
    write_checksums(path)
    found = Replay(data).shards[0].rows
    assert "extra" not in set(found.keys())
    assert not shout.exists()
    TensorDict.load_memmap(path, allow_pickle=True)  # the shard is dangerous elsewhere
    assert shout.exists()


def test_open_refuses_arrays_of_other_lengths(data):
    path = data / SHARD
    meta = json.loads((path / "meta.json").read_text())
    meta["reward"]["shape"] = [3]
    (path / "meta.json").write_text(json.dumps(meta))
    as_format2(data)
    with pytest.raises(UserError, match=r"meta\.json is damaged"):
        Replay(data)


def test_opened_rows_change_no_file(data):
    rows = Replay(data).shards[0].rows
    rows["reward"].fill_(5.0)
    assert not (Replay(data).shards[0].rows["reward"] == 5.0).any()


def test_replay_upgrades_folders_of_earlier_formats(data):
    as_format2(data)
    config = short_run(CountingConfig())
    collection = build_collection(config.env, config.train.collect)
    replay = Replay(data, environment=collection.environment)
    gather(collection, replay, 60, seed=1)
    assert len(replay.shards) == 2
    assert Format.read(data) == Format(3, collection.environment)
    flipped(data / SHARD / "pixels.memmap", 100)
    with pytest.raises(UserError, match="damaged"):
        Replay(data)


def test_replay_reads_formats_up_to_its_own(data):
    frames = len(Replay(data))
    as_format2(data)
    (data / "format.json").unlink()  # as in format 1
    assert len(Replay(data)) == frames
    (data / "format.json").write_text('{"format_version": 4}')
    with pytest.raises(UserError, match=r"have format 4, .* up to 3"):
        Replay(data)
    (data / "format.json").write_text("{")
    with pytest.raises(UserError, match=r"format\.json is damaged"):
        Replay(data)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TMazeConfig(), r"env is {kind: counting}, here {kind: tmaze}"),
        (CountingConfig(episode_length=9), None),
    ],
)
def test_replay_refuses_frames_of_other_environments(data, other, message):
    here = described(other)
    if message is None:
        assert len(Replay(data, environment=here)) >= 60
        return
    with pytest.raises(UserError, match=f"{message}.*; choose another folder by data="):
        Replay(data, environment=here)


def test_replay_refuses_frames_with_other_actions(data):
    here = described(CountingConfig())
    here["actions"]["names"][0] = "jump"
    with pytest.raises(UserError, match=r"actions is {n: .*jump"):
        Replay(data, environment=here)


def test_replay_compares_shapes_of_earlier_formats(data):
    as_format2(data)
    here = described(CountingConfig())
    assert len(Replay(data, environment=here)) >= 60
    here["frame_shape"][1] = 32
    with pytest.raises(
        UserError, match=r"frame_shape is \[3,64,64\], here \[3,32,64\]"
    ):
        Replay(data, environment=here)


def test_replay_forgets_the_environment_of_deleted_frames(data):
    shutil.rmtree(data / SHARD)
    config = short_run(TMazeConfig(length=5))
    collection = build_collection(config.env, config.train.collect)
    gather(collection, Replay(data, environment=collection.environment), 20, 0)
    assert Format.read(data).environment == collection.environment


def test_train_refuses_frames_of_another_maze(tmp_path):
    first = loop.train(short_run(TMazeConfig(length=5)), tmp_path / "one")
    recall = short_run(RecallConfig(), data=str(first / "data"))
    with pytest.raises(UserError, match=r"here {kind: recall}"):
        loop.train(recall, tmp_path / "two")


def test_collection_refuses_variants_with_other_actions():
    factory = "tests.envs.picture_env:PictureEnv"
    config = short_run(GymConfig(factory=factory))
    config = collecting(config, vary={"size": (32, 64)})
    with pytest.raises(UserError, match=r"collect\.vary: frames or actions differ"):
        build_collection(config.env, config.train.collect)


def test_describe_names_what_makes_another_environment():
    config = GymConfig(factory="tests.envs.picture_env:PictureEnv", size=32)
    env = make(config, 1)
    here = describe_environment(config, env)
    assert here["env"]["factory"] == config.factory and here["action_shape"] == []
    moved = dataclasses.replace(config, factory="somewhere/else/file.py:make")
    assert describe_environment(moved, env)["env"]["factory"] == "file.py:make"
    level = dataclasses.replace(config, kwargs={"level": 2})
    assert describe_environment(level, env) != here
    assert torch.tensor(here["frame_shape"]).tolist() == [3, 32, 32]
