"""Frames, actions and rewards stay aligned from the environment to training batches."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.replay import KEYS, Replay, as_replay_buffer
from lssvwm.agent.shards import shard_number, shard_paths
from lssvwm.agent.training.collection import Collection, build_collection, gather
from lssvwm.envs import CountingConfig
from lssvwm.envs.counting import decode

from tests.agent.training.conftest import short_run


def counting() -> Collection:
    """Build counting environments to collect in."""
    config = short_run(CountingConfig())
    return build_collection(config.env, config.train.collect)


def counted(folder: Path, frames: int = 400, rounds: int = 1, **settings) -> Replay:
    """Collect frames of the counting environment, one shard per round."""
    replay = Replay(folder, **settings)
    for seed in range(rounds):
        gather(counting(), replay, frames, seed)
    return replay


def check_counting(rows) -> None:
    """Check that frame, action, reward and flags of consecutive rows belong together."""
    _, step, action = decode(rows["pixels"])
    first = np.asarray(rows["is_first"])
    assert (step[first] == 0).all()
    follows = ~first[1:]
    assert (np.diff(step)[follows] == 1).all() and first[1:].any()
    assert (action[~first] == np.asarray(rows["action"])[~first]).all()
    assert np.allclose(np.asarray(rows["reward"])[~first], 0.01 * step[~first])
    ends = np.asarray(rows["terminated"]) | np.asarray(rows["truncated"])
    assert (first[1:] == ends[:-1]).all()
    assert (step[ends] == step.max()).all()  # the frame that ends an episode is there


def test_replay_aligns_rows_of_training_sequences(tmp_path):
    replay = counted(tmp_path)
    rows = replay.shards[0].rows
    check_counting({key: value.numpy() for key, value in rows.items()})
    batch = replay.sample(3, 30, 0.5, np.random.default_rng(0))
    for i in range(3):
        check_counting({key: getattr(batch, key)[i].numpy() for key in KEYS})
    aligned = replay.sample(8, 20, 1.0, np.random.default_rng(0))
    assert aligned.is_first[:, 0].all()


def test_replay_refuses_a_shard_without_space(tmp_path, monkeypatch):
    full = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="No space left"):
        counted(tmp_path)
    assert not list(tmp_path.iterdir())


def test_replay_reopens_and_retires_the_oldest(tmp_path):
    replay = counted(tmp_path, 300)
    again = Replay(tmp_path, keep=900)
    assert len(again) == len(replay)
    gather(counting(), again, 300, seed=1)
    assert len(again.shards) == 2 and len(again) > 900
    gather(counting(), again, 300, seed=2)
    assert list(map(shard_number, shard_paths(tmp_path))) == [0, 1, 2]
    assert again.names == [path.name for path in shard_paths(tmp_path)[1:]]
    again.refresh()
    assert len(again.names) == 2  # a checkpoint may need the oldest
    again.delete_retired()
    assert Replay(tmp_path).names == again.names


def test_replay_uses_only_named_shards_and_keeps_others(tmp_path):
    replay = counted(tmp_path, 100, rounds=3)
    kept = [replay.names[0], replay.names[2]]
    replay.use_only(kept)
    replay.refresh()
    assert replay.names == kept
    assert len(Replay(tmp_path).names) == 3


def test_replay_never_writes_into_a_given_folder(tmp_path):
    counted(tmp_path / "given", 300)
    before = sorted((tmp_path / "given").rglob("*"))
    replay = Replay(tmp_path / "own", keep=500, given=tmp_path / "given")
    assert [name.startswith("data:shard-000000-") for name in replay.names] == [True]
    for seed in (1, 2, 3):
        gather(counting(), replay, 300, seed=seed)
    replay.refresh()
    replay.delete_retired()
    assert sorted((tmp_path / "given").rglob("*")) == before
    assert replay.names == Replay(tmp_path / "own").names
    assert len(replay) >= 500
    replay = Replay(tmp_path / "own", given=tmp_path / "given")
    some = [replay.names[0], replay.names[-1]]
    replay.use_only(some)
    assert replay.names == some
    other = Replay(tmp_path / "own", given=tmp_path / "given")
    other.follow(some)
    assert other.names == some


def test_replay_refuses_its_own_folder_as_a_given_one(tmp_path):
    counted(tmp_path / "data", 300)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(UserError, match="is the run's own folder"):
        Replay(tmp_path / "data", given=tmp_path / "link")


def test_replay_uses_a_folder_that_was_given_later(tmp_path):
    own = counted(tmp_path / "own", 300).names
    counted(tmp_path / "given", 300)
    replay = Replay(tmp_path / "own", given=tmp_path / "given")
    assert replay.use_only(own) == []
    assert len(replay.names) == 2


def test_replay_finds_new_frames_in_a_given_folder(tmp_path):
    counted(tmp_path / "given", 300)
    replay = Replay(tmp_path / "own", given=tmp_path / "given")
    counted(tmp_path / "given", 300)
    replay.refresh()
    assert len(replay.names) == 2
    assert len(replay) == len(Replay(tmp_path / "given"))


def test_check_refuses_missing_frames(tmp_path):
    with pytest.raises(UserError, match="no data in"):
        Replay(tmp_path / "empty").check()


def test_sample_refuses_sequences_longer_than_shards(tmp_path):
    replay = counted(tmp_path, 50)
    with pytest.raises(UserError, match=r"lower train.length or collect more"):
        replay.sample(2, 5000, 0.5, np.random.default_rng(0))


def test_as_replay_buffer_samples_aligned_transitions(tmp_path):
    replay = counted(tmp_path, 100, rounds=2)
    batch = as_replay_buffer(tmp_path, batch_size=64).sample()
    assert batch.shape == (64,)
    _, step, _ = decode(batch["pixels"].numpy())
    _, next_step, next_action = decode(batch["next", "pixels"].numpy())
    assert (next_step == step + 1).all()
    assert (next_action == batch["action"].numpy()).all()
    assert torch.equal(batch["action"], batch["next", "last_action"])
    assert torch.equal(batch["is_first"][:, 0], torch.from_numpy(step == 0))
    assert not batch["next", "is_first"].any()
    rewards = batch["next", "reward"][:, 0].numpy()
    assert np.allclose(rewards, 0.01 * next_step)
    ends = batch["next", "terminated"] | batch["next", "truncated"]
    assert torch.equal(batch["next", "done"], ends)
    transitions = len(replay) - replay.episodes
    assert len(as_replay_buffer(tmp_path)) == transitions


def test_as_replay_buffer_samples_slices_of_episodes(tmp_path):
    counted(tmp_path, 100, rounds=2)
    buffer = as_replay_buffer(tmp_path, batch_size=32, slice_len=4)
    slices = buffer.sample().reshape(8, 4)
    _, step, _ = decode(slices["pixels"].flatten(0, 1).numpy())
    assert (np.diff(step.reshape(8, 4)) == 1).all()


def test_as_replay_buffer_is_read_only(tmp_path):
    counted(tmp_path, 50)
    buffer = as_replay_buffer(tmp_path, batch_size=4)
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        buffer.extend(buffer.sample())
    with pytest.raises(UserError, match="no data in"):
        as_replay_buffer(tmp_path / "nowhere")


def test_as_replay_buffer_reads_integers_and_slices(tmp_path):
    counted(tmp_path, 100, rounds=2)
    buffer = as_replay_buffer(tmp_path)
    last = len(buffer) - 1
    assert buffer[3].shape == () and buffer[2:6].shape == (4,)
    mixed = buffer[[last, 3, last]]  # shards are read in another order
    assert torch.equal(mixed["pixels"][1], buffer[3]["pixels"])
    assert torch.equal(mixed["pixels"][0], mixed["pixels"][2])
