"""Processes collect while a run trains: no frame is lost or collected twice."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.replay import Replay
from lssvwm.agent.shards import Shard, shard_paths
from lssvwm.agent.training import loop
from lssvwm.agent.training.collector_pool import CollectorPool, Round, RoundCollector
from lssvwm.agent.training.run import ACTING, build
from lssvwm.envs import CountingConfig, TMazeConfig
from lssvwm.envs.counting import decode

from tests.agent.conftest import TINY
from tests.agent.test_processes import wait_until
from tests.agent.training.conftest import collecting, metrics, short_run, training

SLOTS, STEPS = 16, 100
"""Environments of a stream, and steps of an episode: more than a collector takes at once."""

FIRST = 3
"""Number of the first episode that is collected: environment and collector reset before it."""


def counting_run():
    """Return settings of a run whose frames count episodes and steps."""
    env = CountingConfig(size=24, episode_length=STEPS)
    config = short_run(env, model=dataclasses.replace(TINY, patch=8))
    return collecting(config, envs=SLOTS)


def check_streams(shards: list[Shard]) -> dict[int, int]:
    """Check that every stream holds each of its episodes once and whole.

    Return the number of episodes of each slot by the seed of the stream.
    """
    episodes: dict[int, Counter[int]] = {}
    for shard in shards:
        number, step, _ = decode(shard.rows["pixels"].numpy())
        assert (step.reshape(-1, STEPS + 1) == np.arange(STEPS + 1)).all()
        assert (np.flatnonzero(step == 0) == shard.starts).all()
        found = episodes.setdefault(shard.provenance()["seed"], Counter())
        found.update(number[shard.starts].tolist())
    for found in episodes.values():
        assert found == {FIRST + i: SLOTS for i in range(len(found))}
    return {seed: len(found) for seed, found in episodes.items()}


def test_unfinished_episodes_go_on_in_the_next_round(tmp_path):
    collector = RoundCollector(counting_run(), tmp_path)
    for _ in range(3):  # each ends within an episode
        assert collector(Round(SLOTS * (STEPS + 1))) > 0
    collector.close()
    assert check_streams(Replay(tmp_path).shards) == {0: 3}


def test_rounds_collect_no_more_than_their_sum(tmp_path):
    config = short_run(CountingConfig(size=8, episode_length=3))
    collector = RoundCollector(config, tmp_path)
    written = [collector(Round(100)) for _ in range(6)]  # 256 steps come at once
    collector.close()
    assert written[0] > 300 and written[1] == 0
    assert 600 <= sum(written) < 1000


def test_shards_say_how_they_were_collected(tmp_path):
    config = short_run(TMazeConfig(), seed=5)
    mix = {"random": 0.25, "noop": 0.25, "policy": 0.5}
    config = collecting(config, mix=mix, vary={"length": (4, 5)})
    run = build(config, tmp_path / "run")
    checkpoint.export(run.ema, config, tmp_path / ACTING)
    collector = RoundCollector(config, tmp_path / "data")
    collector(Round(40))
    collector(Round(40, str(tmp_path / ACTING)))
    collector.close()
    found = [
        Shard.open(path, True).provenance() for path in shard_paths(tmp_path / "data")
    ]
    assert {shard["environment"]["env"]["kind"] for shard in found} == {"tmaze"}
    lengths = {shard["seed"]: shard["settings"]["length"] for shard in found}
    assert lengths == {5: 4, 6: 5, 7: 4, 8: 5}
    explorers = {"random": 0.25, "noop": 0.25}
    policies = {shard["seed"]: shard["policy"] for shard in found}
    assert policies == {5: explorers, 6: explorers, 7: {"policy": 1}, 8: {"policy": 1}}
    weights = {shard["seed"]: shard["weights"] for shard in found}
    acting = weights_hash(str(tmp_path / ACTING))
    assert weights == {5: None, 6: None, 7: acting, 8: acting}


def test_agents_act_with_new_weights(tmp_path):
    config = collecting(short_run(TMazeConfig(length=4)), mix={"policy": 1.0})
    run = build(config, tmp_path / "run")
    folder = tmp_path / ACTING
    checkpoint.export(run.ema, config, folder)
    collector = RoundCollector(config, tmp_path / "data")
    collector(Round(20, str(folder)))
    with torch.no_grad():
        next(run.ema.parameters()).add_(1.0)
    checkpoint.export(run.ema, config, folder)
    collector(Round(20, str(folder)))
    collector.close()
    assert collector.model is not None
    acting = collector.streams[0, "policy"].collector.policy.agent.model
    assert acting is collector.model
    expected = run.ema.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in acting.state_dict().items())


def test_pool_names_the_extra_of_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lssvwm.agent.ray_workers", raising=False)
    config = collecting(counting_run(), workers=1, engine="ray")
    with pytest.raises(UserError, match=r"pip install 'lssvwm\[ray\]', or use"):
        CollectorPool(config, tmp_path)


@pytest.mark.slow
def test_run_trains_on_frames_of_two_workers(tmp_path):
    config = collecting(counting_run(), workers=2, every=2, more=2000)
    folder = loop.train(training(config, steps=6), tmp_path / "run")
    streams = check_streams(Replay(folder / "data").shards)
    assert len(streams) == 2
    rows = metrics(folder)
    assert all(row["collect/waited"] >= 0 for row in rows[1:])


@pytest.mark.slow
def test_killed_worker_is_replaced(tmp_path, capsys):
    config = collecting(counting_run(), workers=1)
    with CollectorPool(config, tmp_path) as pool:
        pool.request(200_000)
        wait_until(lambda: shard_paths(tmp_path))
        (worker,) = pool.workers.workers
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        wait_until(lambda: pool.poll() or pool.workers.workers != [worker])
        (other,) = pool.workers.workers
        pid = other.process.pid
        wait_until(lambda: any(str(pid) in p.name for p in shard_paths(tmp_path)))
    assert (
        "a worker was killed (SIGKILL); its job starts again" in capsys.readouterr().err
    )
    assert not list(tmp_path.glob("draft-*"))
    assert len(check_streams(Replay(tmp_path).shards)) == 2


@pytest.mark.slow
def test_trainer_refreshes_from_two_collectors(tmp_path):
    data = tmp_path / "data"
    command = [
        sys.executable, "-m", "lssvwm", "collect", "env=counting", "env.size=24",
        f"env.episode_length={STEPS}", f"train.collect.envs={SLOTS}", "threads=1",
        "train.collect.frames=50000", f"output={data}",
    ]  # fmt: skip
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    collectors = [subprocess.Popen(command, env=environment) for _ in range(2)]
    wait_until(lambda: shard_paths(data))
    config = dataclasses.replace(counting_run(), data=str(data))
    run = build(config, tmp_path / "run")
    seen = []
    while any(collector.poll() is None for collector in collectors):
        loop.step(run)
        run.refresh()
        seen.append(len(run.replay))
    run.refresh()
    assert [collector.returncode for collector in collectors] == [0, 0]
    streams = check_streams(run.replay.shards)
    assert len(streams) == 2 and len(set(seen)) > 2
    assert run.replay.names == [path.name for path in shard_paths(data)]
    assert len(run.replay) == SLOTS * (STEPS + 1) * sum(streams.values())
