"""The assembled agent: alignment through the whole loop, resume, planning from what was observed."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.settings import (
    ActorCriticConfig,
    CollectConfig,
    Config,
    TasksConfig,
    TrainConfig,
)
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import measure, summary
from lssvwm.agent.mpc import MPCConfig
from lssvwm.agent.replay import Replay
from lssvwm.agent.training import loop as training
from lssvwm.agent.training.collection import gather
from lssvwm.envs import CountingConfig, GymConfig, TMazeConfig, make
from lssvwm.envs.counting import decode
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import ModelConfig, WorldModel, save
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

TINY = ModelConfig(
    width=16,
    mixer=TiledSSDConfig(state=16, head_dim=16),
    attention_heads=2,
)
PLANNER = CEMConfig(
    horizon=5,
    candidates=12,
    iterations=2,
    elites=4,
    keep_elites=2,
)
MPC = MPCConfig(proposals=4, replan=2)


@pytest.fixture(autouse=True)
def short_logs(monkeypatch):
    """Write a row of the log every second step; runs here are short."""
    monkeypatch.setattr(training, "LOG_EVERY", 2)


def config(env, **changes) -> Config:
    collect = CollectConfig(envs=4, frames=400, mix={"random": 1.0})
    train = TrainConfig(
        steps=4, batch=2, length=16, min_length=8, save_every=2, collect=collect
    )
    tasks = TasksConfig(count=6, batch=4, window=3)
    return dataclasses.replace(
        Config(env, TINY, PLANNER, mpc=MPC, train=train, tasks=tasks, threads=1),
        **changes,
    )


def check_counting(rows) -> None:
    """Frame, action, reward and flags of consecutive rows belong together."""
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


def test_alignment_from_environment_to_training_batch(tmp_path):
    replay = Replay(tmp_path)
    gather(config(CountingConfig()), replay, 400, seed=0)
    check_counting({key: value.numpy() for key, value in replay.shards[0].items()})
    batch = replay.sample(3, 30, 0.5, np.random.default_rng(0))
    for i in range(3):
        rows = {key: value[i].numpy() for key, value in vars(batch).items()}
        check_counting(rows)
    aligned = replay.sample(8, 20, 1.0, np.random.default_rng(0))
    assert aligned.is_first[:, 0].all()


def test_a_shard_without_room_on_disk_is_refused(tmp_path, monkeypatch):
    replay = Replay(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000)
    )
    with pytest.raises(OSError, match="No space left"):
        gather(config(CountingConfig()), replay, 400, seed=0)
    assert not list(tmp_path.iterdir())


def test_replay_reopens_grows_and_forgets_the_oldest(tmp_path):
    replay = Replay(tmp_path)
    gather(config(CountingConfig()), replay, 300, seed=0)
    (tmp_path / "draft-000009").mkdir()  # what a killed process left behind
    again = Replay(tmp_path, keep=900)
    assert len(again) == len(replay) and not (tmp_path / "draft-000009").exists()
    gather(config(CountingConfig()), again, 300, seed=1)
    assert len(again.paths) == 2 and len(again) > 900
    gather(config(CountingConfig()), again, 300, seed=2)
    assert len(again.paths) == 2 and again.paths[0].name == "shard-000001"


def metrics(folder):
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


@pytest.mark.parametrize("dreams", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, dreams):
    setting = config(TMazeConfig(length=5), seed=3)
    setting = dataclasses.replace(
        setting,
        train=dataclasses.replace(
            setting.train, actor_critic=ActorCriticConfig(walks=dreams)
        ),
    )
    whole = training.train(setting, tmp_path / "whole")
    short = dataclasses.replace(
        setting, train=dataclasses.replace(setting.train, steps=4)
    )
    stop = {"at": 2}
    original = training.step

    def interrupted(run):
        if run.step == stop["at"]:
            raise KeyboardInterrupt
        return original(run)

    training.step = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            training.train(short, tmp_path / "cut")
    finally:
        training.step = original
    training.resume(tmp_path / "cut", [])
    assert metrics(whole) == metrics(tmp_path / "cut")
    a, b = (
        torch.load(f / "checkpoints" / "last.pt", weights_only=False)["ema"]
        for f in (whole, tmp_path / "cut")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_of_another_version_is_not_resumed(tmp_path):
    folder = training.train(config(TMazeConfig(length=5), seed=3), tmp_path / "run")
    file = folder / "checkpoints" / "last.pt"
    state = torch.load(file, weights_only=False)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(
        1
    )  # as many parameters, but others
    torch.save(state, file)
    with pytest.raises(
        UserError, match="of another version: begin a run from its weights"
    ):
        training.resume(folder, ["train.steps=9"])


def test_a_run_killed_before_its_first_checkpoint_resumes_on_the_data_of_another(
    tmp_path,
):
    setting = config(TMazeConfig(length=5), seed=3)
    training.train(setting, tmp_path / "one")
    setting = dataclasses.replace(setting, data=str(tmp_path / "one" / "data"))
    (tmp_path / "two").mkdir()
    configuration.save(setting, tmp_path / "two" / "config.yaml")
    before = sorted((tmp_path / "one" / "data").iterdir())
    training.resume(tmp_path / "two", [])
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    assert before == sorted((tmp_path / "one" / "data").iterdir())


def test_segments_and_burn_in_carry_memory_into_what_is_trained(tmp_path, monkeypatch):
    setting = config(
        TMazeConfig(length=5), model=dataclasses.replace(TINY, context_noise=0.0)
    )
    precise = dataclasses.replace(
        setting.train, tbptt_length=10, burn_in=4, precision="float32"
    )
    setting = dataclasses.replace(setting, train=precise)
    run = training.prepare(setting, tmp_path)
    gather(setting, run.replay, 400, 0)
    sequences = run.replay.sample(2, 24, 0.0, np.random.default_rng(0))
    seen = []
    loss = run.model.loss

    def spy(batch, memory=None, *rest):
        seen.append(
            (
                batch.is_first.shape[1],
                None if memory is None else memory.detach().clone(),
            )
        )
        return loss(batch, memory, *rest)

    monkeypatch.setattr(run.model, "loss", spy)
    found = training.gradient(run, sequences, burn_in=4)
    assert [frames for frames, _ in seen] == [10, 10] and torch.isfinite(
        found["loss/total"]
    )
    with torch.no_grad():
        for end, (_, memory) in zip((4, 14), seen):
            part = sequences[:end]
            truth, _ = run.model.eval().observe(
                run.model.initial(2), part.pixels, part.action, part.is_first
            )
            assert memory is not None and memory.diff(truth).max() < 1e-4


def test_a_run_too_short_to_log_ends_well(tmp_path):
    short = config(TMazeConfig(length=5))
    short = dataclasses.replace(short, train=dataclasses.replace(short.train, steps=1))
    training.train(short, tmp_path / "run")
    assert (
        metrics(tmp_path / "run") == [] and (tmp_path / "run" / "curves.png").exists()
    )


def test_planning_policy_collects_in_rounds(tmp_path):
    mix = {"random": 0.4, "plan": 0.4, "policy": 0.2}
    setting = collecting(config(TMazeConfig(length=5)), mix=mix, every=2, more=100)
    folder = training.train(setting, tmp_path / "run")
    assert len(Replay(folder / "data").paths) >= 3


def collecting(setting: Config, **changes) -> Config:
    collect = dataclasses.replace(setting.train.collect, **changes)
    return dataclasses.replace(
        setting, train=dataclasses.replace(setting.train, collect=collect)
    )


def test_variants_of_an_environment_share_the_frames(tmp_path):
    replay = Replay(tmp_path)
    setting = collecting(
        config(TMazeConfig()), mix={"noop": 1.0}, vary={"steps": (4, 9)}
    )
    gather(setting, replay, 400, seed=0)
    lengths = [
        np.diff(np.append(starts, len(shard)))
        for starts, shard in zip(replay.starts, replay.shards)
    ]
    assert [set(found) for found in lengths] == [{5}, {10}]
    assert all(200 <= len(shard) < 400 for shard in replay.shards)
    with pytest.raises(
        UserError,
        match=r"vary: env=tmaze has no setting 'size'; it has \['length', 'arm'",
    ):
        training.train(collecting(setting, vary={"size": (7,)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def make_blinker():
    """A user's own environment, 20 x 20 pixels."""
    import gymnasium

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (20, 20, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros((20, 20, 3), np.uint8), {}

        def step(self, action):
            self.t += 1
            return (
                np.full((20, 20, 3), 30 * self.t, np.uint8),
                float(action == 1),
                self.t == 6,
                False,
                {},
            )

    return Env()


def test_a_custom_gymnasium_environment_trains_and_evaluates(tmp_path):
    setting = config(GymConfig(factory="tests.agent.training.test_loop:make_blinker"))
    folder = training.train(setting, tmp_path / "run")
    assert len(metrics(folder)) == 2
    run = training.prepare(setting, tmp_path / "again")
    results = measure(
        setting,
        run.ema,
        ("retained", "erased", "swapped", "window", "policy", "random", "oracle"),
    )
    found = summary(setting, results)
    assert set(found.arms) == {
        "retained",
        "erased",
        "swapped",
        "window",
        "policy",
        "random",
    }
    assert found.arms["retained"].n == 6


def test_mistakes_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no explorer 'walll' here; there are oracle"):
        gather(
            collecting(config(TMazeConfig(length=5)), mix={"walll": 1.0}),
            Replay(tmp_path),
            10,
            0,
        )
    with pytest.raises(UserError, match="plan need a trained agent"):
        gather(
            collecting(config(TMazeConfig(length=5)), mix={"plan": 1.0}),
            Replay(tmp_path),
            10,
            0,
        )
    with pytest.raises(UserError, match="no data in"):
        Replay(tmp_path / "empty").check((3, 64, 64))
    with pytest.raises(UserError, match="device=cuuda"):
        checkpoint.pick_device("cuuda")
    setting = config(TMazeConfig(length=5))
    folder = training.train(setting, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        training.train(setting, folder)
    last = folder / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        training.resume(folder, [])
    with pytest.raises(UserError, match="no run in"):
        training.resume(tmp_path / "nowhere", [])


def test_a_run_begins_from_weights_of_the_same_model_and_heads_that_they_lack_are_new(
    tmp_path,
):
    setting = config(TMazeConfig(length=5))
    env, old = make(setting.env, 1), WorldModel(TINY, (3, 64, 64), 4)
    save(old, tmp_path)
    configuration.save(setting, tmp_path / "config.yaml")

    def begun(**changes) -> WorldModel:
        model = dataclasses.replace(TINY, **changes)
        train = dataclasses.replace(setting.train, init=str(tmp_path))
        return training.build_model(
            dataclasses.replace(setting, model=model, train=train), env
        )

    more = begun(loss=dataclasses.replace(TINY.loss, surprise=1.0, distance=1.0))
    assert more.heads.error is not None and more.distance is not None
    save(more, tmp_path)
    for model in (more, begun()):  # with what is more, and without it again
        assert all(
            torch.equal(model.state_dict()[key], value)
            for key, value in old.state_dict().items()
        )
    with pytest.raises(
        UserError,
        match=r"another model \(act.weight is \[16, 5\], here \[32, 5\]\): set env",
    ):
        begun(width=32)
    with pytest.raises(UserError, match=r"another model .* here missing"):
        begun(kind="gru")
