"""Training from collection to export; a stopped run continues as if it had not stopped."""

import itertools
import os
import re
import signal

import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.cli.failures import Stop, saved
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import ActorCriticConfig, Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import measure, summary
from lssvwm.agent.replay import Replay
from lssvwm.agent.report import page
from lssvwm.agent.training import loop, optimization, stages
from lssvwm.agent.training import run as run_module
from lssvwm.agent.training.run import Run, build
from lssvwm.agent.training.state_file import read_state, write_state
from lssvwm.envs import GymConfig, TMazeConfig, make

from tests.agent.training.conftest import collecting, metrics, short_run, training


@pytest.mark.parametrize("walks", [0, 2])
def test_resume_equals_the_uninterrupted_run(tmp_path, monkeypatch, walks):
    config = short_run(TMazeConfig(length=5), seed=3)
    config = training(config, actor_critic=ActorCriticConfig(walks=walks))
    whole = loop.train(config, tmp_path / "whole")
    step = loop.step

    def interrupted(run):
        if run.step == 2:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="at step 2, saved"):
            loop.train(config, tmp_path / "cut")
    cut = stages.resume(tmp_path / "cut", [])
    assert metrics(whole) == metrics(cut)
    a, b = (read_state(folder, {})["ema"] for folder in (whole, cut))
    assert all(torch.equal(a[key], b[key]) for key in a)


INTERRUPTIONS = {
    "in a step": (optimization.Learner, "step", 2, signal.SIGINT),
    "terminated": (optimization.Learner, "gradient", 4, signal.SIGTERM),
    "hung up": (Replay, "sample", 3, signal.SIGHUP),
    "while collecting": (Run, "collect_more", 1, signal.SIGTERM),
    "while validating": (Run, "validate", 1, signal.SIGINT),
    "while saving": (run_module, "write_state", 2, signal.SIGINT),
    "at the first frames": (run_module, "fill", 1, signal.SIGTERM),
}
"""Owner and name of a function, and the signal that arrives at the end of a call of it."""


def eventful_run() -> Config:
    """Return settings of a run that collects and validates between its steps."""
    config = short_run(TMazeConfig(length=5), seed=3)
    config = training(config, steps=6, save_every=3, evaluate_every=4)
    return collecting(config, every=2, more=100)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the folder of `eventful_run`, trained without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 2)
        return loop.train(eventful_run(), tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("where", INTERRUPTIONS)
def test_resume_after_signals_equals_the_uninterrupted_run(
    tmp_path, monkeypatch, where, uninterrupted
):
    owner, name, call, number = INTERRUPTIONS[where]
    whole = uninterrupted
    function = getattr(owner, name)
    calls = itertools.count(1)

    def signalled(*arguments, **settings):
        result = function(*arguments, **settings)
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return result

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Stop, match="stopped"), saved(cut, resumable=True):
            loop.train(eventful_run(), cut)
    stages.resume(cut, [])
    assert metrics(whole) == metrics(cut)
    a, b = (read_state(folder, {}) for folder in (whole, cut))
    assert all(torch.equal(a["ema"][key], b["ema"][key]) for key in a["ema"])
    assert a["rng"] == b["rng"]


def test_interrupt_in_a_step_saves_that_step(tmp_path, monkeypatch):
    step = loop.step

    def interrupted(run):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run)

    monkeypatch.setattr(loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="at step 3, saved"):
        loop.train(short_run(TMazeConfig(length=5)), tmp_path / "run")


def test_resume_after_a_kill_at_the_end_logs_no_step_twice(tmp_path, monkeypatch):
    config = training(short_run(TMazeConfig(length=5)), steps=3, save_every=3)
    whole = loop.train(config, tmp_path / "whole")
    states = itertools.count(1)

    def killed(*arguments):
        if next(states) == 3:
            raise SystemExit
        write_state(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_state", killed)
        with pytest.raises(SystemExit):
            loop.train(config, tmp_path / "cut")
    stages.resume(tmp_path / "cut", [])
    assert metrics(whole) == metrics(tmp_path / "cut")


def test_second_interrupt_ends_a_step_at_once(tmp_path, monkeypatch):
    config = short_run(TMazeConfig(length=5), seed=3)

    def endless(run):
        while True:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "step", endless)
    with pytest.raises(KeyboardInterrupt, match="at step 0, saved"):
        loop.train(config, tmp_path / "run")
    assert read_state(tmp_path / "run", {})["step"] == 0


def test_resume_starts_a_run_without_checkpoint(tmp_path):
    config = short_run(TMazeConfig(length=5), seed=3)
    one = loop.train(config, tmp_path / "one")
    data = one / "data"
    config = short_run(TMazeConfig(length=5), seed=3, data=str(data))
    two = tmp_path / "two"  # killed before its first checkpoint
    two.mkdir()
    composition.save(config, two / "config.yaml")
    before = sorted(data.iterdir())
    stages.resume(two, [])
    assert metrics(one) == metrics(two)
    assert before == sorted(data.iterdir())


def test_train_logs_nothing_without_steps(tmp_path):
    config = training(short_run(TMazeConfig(length=5)), steps=0)
    folder = loop.train(config, tmp_path / "run")
    assert metrics(folder) == [] and (folder / "curves.png").exists()


def test_train_logs_an_incomplete_last_group(tmp_path, capsys):
    config = training(short_run(TMazeConfig(length=5)), steps=3)
    folder = loop.train(config, tmp_path / "run")
    assert [row["step"] for row in metrics(folder)] == [2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("train 3/3 steps") and "left" not in lines[-1]


def test_train_builds_every_environment_once(tmp_path, monkeypatch):
    built = []

    def counted(env, batch):
        built.append((env.length, batch))
        return make(env, batch)

    monkeypatch.setattr("lssvwm.agent.build.make_env", counted)
    config = short_run(TMazeConfig(length=5))
    mix = {"random": 0.5, "plan": 0.5}
    vary = {"length": (4, 6)}
    config = collecting(config, mix=mix, vary=vary, every=1, more=20)
    loop.train(training(config, evaluate_every=2), tmp_path / "run")
    assert built == [(4, 4), (6, 4), (5, 1), (5, 64)]


def test_train_exports_weights_by_selection(tmp_path):
    config = training(short_run(TMazeConfig(length=5)), steps=2)
    folder = loop.train(config, tmp_path / "unselected")
    assert checkpoint.resolve(folder) == folder / "export"
    assert not (folder / "best").exists()
    config = training(config, evaluate_every=2)
    folder = loop.train(config, tmp_path / "selected")
    assert checkpoint.resolve(folder) == folder / "best"
    assert not (folder / "export").exists()
    assert "evaluate/success" in metrics(folder)[-1]


def test_train_refuses_to_overwrite_a_run(tmp_path):
    config = training(short_run(TMazeConfig(length=5)), steps=0)
    folder = loop.train(config, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        loop.train(config, folder)
    with pytest.raises(UserError, match="no run in"):
        stages.resume(tmp_path / "nowhere", [])


def test_train_names_the_remedy_for_divergence(tmp_path, monkeypatch):
    def diverge(*_):
        raise FloatingPointError

    config = short_run(TMazeConfig(length=5))
    monkeypatch.setattr("lssvwm.agent.training.optimization.Learner.step", diverge)
    with pytest.raises(
        UserError, match=r"at step 0: .* resume .* train\.learning_rate=0.0005"
    ):
        loop.train(config, tmp_path / "run")


def make_blinker():
    """Make a user's own environment with frames of 20 x 20 pixels."""
    import gymnasium
    import numpy as np

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (20, 20, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros((20, 20, 3), np.uint8), {}

        def step(self, action):
            self.t += 1
            frame = np.full((20, 20, 3), 30 * self.t, np.uint8)
            return frame, float(action == 1), self.t == 6, False, {}

    return Env()


def test_train_and_measure_accept_custom_environments(tmp_path):
    factory = "tests.agent.training.test_loop:make_blinker"
    config = short_run(GymConfig(factory=factory))
    folder = loop.train(config, tmp_path / "run")
    assert len(metrics(folder)) == 2
    run = build(config, tmp_path / "again")
    arms = ("retained", "erased", "swapped", "window", "policy", "random")
    results = measure(config, run.ema, (*arms, "oracle"))
    evaluation = summary(config, results)
    assert set(evaluation.arms) == set(arms)
    assert evaluation.arms["retained"].n == 6


def test_resume_goes_on_on_another_kind_of_device(tmp_path, capsys):
    folder = loop.train(short_run(TMazeConfig(length=5)), tmp_path / "run")
    state = read_state(folder, {})
    state["generator"] = torch.zeros(16, dtype=torch.uint8)  # as of a GPU
    write_state(folder, state)
    stages.resume(folder, ["train.steps=6"])
    assert "another kind of device" in capsys.readouterr().out
    assert read_state(folder, {})["step"] == 6


def test_loss_that_is_not_finite_names_a_command_that_works(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    step = optimization.Learner.step

    def explodes(learner, batch, at):
        if at == 3 and learner.config.learning_rate == 0.5:
            raise FloatingPointError
        return step(learner, batch, at)

    monkeypatch.setattr(optimization.Learner, "step", explodes)
    config = training(short_run(TMazeConfig(length=5)), learning_rate=0.5)
    with pytest.raises(UserError, match=r"not finite at step 3: .* step 2") as caught:
        loop.train(config, folder)
    command = re.search("`lssvwm resume (.*)`", str(caught.value))
    assert command is not None
    run, *settings = command[1].split()
    assert run == str(folder) and settings == ["train.learning_rate=0.125"]
    stages.resume(folder, settings)
    assert read_state(folder, {})["step"] == 4


def test_rewards_that_are_not_finite_are_named(tmp_path):
    folder = loop.train(short_run(TMazeConfig(length=5)), tmp_path / "run")
    rows = Replay(folder / "data").shards[0].rows
    arrays = {key: value.numpy().copy() for key, value in rows.items()}
    arrays["reward"][20] = float("nan")
    Replay(tmp_path / "bad").extend(arrays)
    config = short_run(TMazeConfig(length=5), data=str(tmp_path / "bad"))
    with pytest.raises(UserError, match=r"shard-000000\S*, episode \d+: the reward"):
        loop.train(config, tmp_path / "other")


def test_run_keeps_its_report_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    config = short_run(TMazeConfig(length=5))
    loop.train(config, tmp_path / "run")
    assert "training step" in (tmp_path / "run" / "report.html").read_text()


def test_failing_report_ends_no_run(tmp_path, monkeypatch):
    def broken(folders):
        raise RuntimeError("no template")

    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    monkeypatch.setattr(page, "write_report", broken)
    run = loop.train(short_run(TMazeConfig(length=5)), tmp_path / "run")
    assert (run / "export" / "weights.safetensors").is_file()
    assert not (run / "report.html").exists()
