"""Several processes write shards into one folder: names, drafts and claimed numbers."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from lssvwm.agent import shard_writer, shards
from lssvwm.agent.errors import UserError
from lssvwm.agent.replay import Replay
from lssvwm.agent.shard_writer import ShardWriter, remove_abandoned
from lssvwm.agent.shards import shard_paths

from tests.agent.test_processes import wait_until

ENVIRONMENT = {"frame_shape": [3, 2, 2], "action_shape": []}


def episode(number: int, length: int = 3) -> dict[str, np.ndarray]:
    """Return the rows of an episode whose pixels hold its number."""
    return {
        "pixels": np.full((length, 3, 2, 2), number, np.uint8),
        "action": np.zeros(length, np.int64),
        "reward": np.zeros(length, np.float32),
        "terminated": np.zeros(length, bool),
        "truncated": np.arange(length) == length - 1,
        "is_first": np.arange(length) == 0,
    }


def write_and_stop(folder: Path) -> None:
    """Write a shard, and stop before it is complete."""
    shards.write_checksums = lambda draft: time.sleep(60)
    ShardWriter(folder).write(episode(7), {})


@pytest.fixture
def stopped(tmp_path):
    """Return a process that is in the middle of a shard."""
    process = get_context("fork").Process(target=write_and_stop, args=(tmp_path,))
    process.start()
    wait_until(lambda: list(tmp_path.glob("draft-shard-*/provenance.json")))
    yield process
    process.kill()
    process.join()


def test_killed_writer_leaves_nothing_visible(tmp_path, stopped):
    own = ShardWriter(tmp_path)
    own.write(episode(1), {})
    drafts = list(tmp_path.glob("draft-*"))
    assert [draft.name.rpartition("-")[2] for draft in drafts] == [str(stopped.pid)]
    stopped.kill()  # SIGKILL
    stopped.join()
    assert stopped.exitcode == -signal.SIGKILL
    assert len(Replay(tmp_path)) == 3
    own.write(episode(2), {})
    assert not list(tmp_path.glob("draft-*"))
    pixels = [
        shard.rows["pixels"].unique().tolist() for shard in Replay(tmp_path).shards
    ]
    assert pixels == [[1], [2]]


def test_abandoned_drafts_of_other_machines_are_old(tmp_path):
    new, old = (tmp_path / f"draft-shard-00000{i}-00c0ffee-1" for i in (0, 1))
    unnamed = tmp_path / "draft-shard-000009"  # by an earlier version
    for draft in (new, old, unnamed):
        draft.mkdir()
    letter = tmp_path / "draft-letter.txt"
    letter.touch()
    long_ago = time.time() - 2 * shard_writer.ABANDONED
    for path in (old, unnamed, letter):
        os.utime(path, (long_ago, long_ago))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, letter])


def test_writers_choose_different_names_by_age(tmp_path, monkeypatch):
    paths = []
    for name in ("b-1", "a-2", "b-1"):
        monkeypatch.setattr(shard_writer, "writer_id", lambda: name)  # noqa: B023
        paths.append(ShardWriter(tmp_path).write(episode(0), {"seed": len(paths)}))
    assert [path.name for path in paths] == [
        "shard-000000-b-1",
        "shard-000001-a-2",
        "shard-000002-b-1",
    ]
    found = Replay(tmp_path).shards
    assert [shard.provenance()["seed"] for shard in found] == [0, 1, 2]


def test_claimed_numbers_are_never_given_twice(tmp_path):
    writers = [ShardWriter(tmp_path), ShardWriter(tmp_path)]
    claimed = [writer.claim() for writer in writers * 2]
    assert claimed == [0, 1, 2, 3]
    for _ in range(5):
        writers[0].write(episode(0), {})
    assert writers[1].claim() == 5


def test_writer_refuses_frames_of_another_environment(tmp_path):
    early = ShardWriter(tmp_path, {"frame_shape": [3, 4, 4]})
    ShardWriter(tmp_path, ENVIRONMENT).write(episode(0), {})
    with pytest.raises(UserError, match=r"frame_shape is \[3,2,2\], here \[3,4,4\]"):
        early.write(episode(0), {})
    with pytest.raises(UserError, match="choose another folder"):
        ShardWriter(tmp_path, {"frame_shape": [3, 4, 4]})


def test_refresh_takes_in_shards_of_other_writers(tmp_path):
    writer = ShardWriter(tmp_path, ENVIRONMENT)
    reader = Replay(tmp_path, environment=ENVIRONMENT)
    owner = Replay(tmp_path, keep=6, environment=ENVIRONMENT)
    for number in range(3):
        writer.write(episode(number), {})
        reader.refresh()
        assert reader.names == [path.name for path in shard_paths(tmp_path)]
    reader.refresh()
    assert len(reader) == 9
    owner.refresh()  # it no longer uses the oldest shard
    owner.delete_retired()
    reader.refresh()
    names = [path.name for path in shard_paths(tmp_path)]
    assert len(names) == 2 and owner.names == reader.names == names


def test_refresh_leaves_out_unusable_shards(tmp_path, capsys):
    reader = Replay(tmp_path, environment=ENVIRONMENT)
    writer = ShardWriter(tmp_path)
    damaged = writer.write(episode(0), {})
    (damaged / "reward.memmap").write_bytes(b"short")
    other = writer.write(episode(1), {"environment": {"frame_shape": [3, 9, 9]}})
    good = writer.write(episode(2), {})
    for _ in range(2):
        reader.refresh()
        assert reader.names == [good.name]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"goes on without {damaged.name}" in lines[0]
    assert f"goes on without {other.name}" in lines[1]
