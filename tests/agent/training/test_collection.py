"""Policies of the mix and variants of the environment get their fractions of the frames."""

from pathlib import Path

import numpy as np
import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.replay import Replay
from lssvwm.agent.training import loop
from lssvwm.agent.training.collection import UNFINISHED, build_collection, fill, gather
from lssvwm.envs import TMazeConfig

from tests.agent.training.conftest import collecting, short_run


def built(config):
    """Build the environments that a run collects in."""
    return build_collection(config.env, config.train.collect)


def test_gather_lets_the_agent_collect_in_rounds(tmp_path):
    mix = {"random": 0.4, "plan": 0.4, "policy": 0.2}
    config = collecting(short_run(TMazeConfig(length=5)), mix=mix, every=2, more=100)
    folder = loop.train(config, tmp_path / "run")
    assert len(Replay(folder / "data").shards) >= 3


def test_gather_shares_frames_among_variants(tmp_path):
    replay = Replay(tmp_path)
    vary = {"steps": (4, 9)}
    config = collecting(short_run(TMazeConfig()), mix={"noop": 1.0}, vary=vary)
    gather(built(config), replay, 400, seed=0)
    lengths = [np.diff(np.append(s.starts, len(s))) for s in replay.shards]
    assert [set(found) for found in lengths] == [{5}, {10}]
    assert all(200 <= len(shard) < 400 for shard in replay.shards)


def test_gather_collects_nothing_for_no_frames(tmp_path):
    config = short_run(TMazeConfig(length=5, steps=200))
    replay = Replay(tmp_path)
    gather(built(config), replay, 0, seed=0)
    assert len(replay) == 0


def test_gather_completes_an_episode_of_small_shares(tmp_path):
    vary = {"steps": (100, 200)}
    config = collecting(short_run(TMazeConfig()), mix={"noop": 1.0}, vary=vary)
    replay = Replay(tmp_path)
    gather(built(config), replay, 1, seed=0)  # less than a frame for each variant
    lengths = [np.diff(np.append(s.starts, len(s))) for s in replay.shards]
    assert [set(found) for found in lengths] == [{101}, {201}]


def test_train_refuses_unknown_variants_before_writing(tmp_path):
    config = collecting(short_run(TMazeConfig()), vary={"size": (7,)})
    message = r"vary: env=tmaze has no setting 'size'; it has \['length', 'delay'"
    with pytest.raises(UserError, match=message):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"walll": 1.0}, "no explorer 'walll' here; there are oracle"),
        ({"plan": 1.0}, "plan need a trained agent"),
        ({"random": 0.0}, "has no policy to collect with"),
    ],
)
def test_gather_refuses_mistakes_in_the_mix(tmp_path, mix, message):
    config = collecting(short_run(TMazeConfig(length=5)), mix=mix)
    with pytest.raises(UserError, match=message):
        gather(built(config), Replay(tmp_path), 10, 0)


def test_fill_collects_only_missing_frames(tmp_path):
    config = short_run(TMazeConfig(length=5))
    replay = Replay(tmp_path)
    fill(built(config), replay, config.seed)
    frames = len(replay)
    assert frames >= 400
    fill(built(config), replay, config.seed)
    assert len(replay) == frames


def test_fill_after_a_kill_replaces_its_own_frames_only(tmp_path, monkeypatch):
    config = short_run(TMazeConfig(length=5))
    killed = Replay(tmp_path)

    def kill(self, missing_ok: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", kill)  # of the file that marks the collection
        fill(built(config), killed, config.seed)
    others = Replay(tmp_path)
    gather(built(config), others, 60, seed=77)
    (theirs,) = {*others.names} - {*killed.names}
    fill(built(config), others, config.seed)
    assert theirs in others.names
    assert not {*killed.names} & {*others.names}
    assert not (tmp_path / UNFINISHED).exists()
