"""Test `lssvwm benchmark agents`: the adapter of recurrent PPO, budgets, tests and results."""

import builtins
import json
import sys

import numpy as np
import pytest
from lssvwm.agent.benchmarks import agents as comparison
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.envs.base import NoopExplorer
from lssvwm.envs.counting import CountingConfig, CountingEnv, decode

COMMAND = ["benchmark", "agents", "experiment=smoke", "threads=1", "tasks.count=4"]
BUDGET = "benchmark.hours=0.005"


class GuidedEnv(CountingEnv):
    """Guide the first two steps of every episode by action 0."""

    def in_context(self):
        return self._step < 2

    def guide(self, seed):
        return NoopExplorer(self)


class ConstantPlayer:
    """Move ahead in every task."""

    memory_bytes = 0
    memories = ()

    def __init__(self, batch):
        self.batch = batch

    def observe(self, env, starts, acting):
        pass

    def act(self, chosen):
        return np.full(self.batch, 2)


class Constant:
    """Learn nothing; an update takes ten frames and a second."""

    built = 0
    time = 0.0

    def __init__(self, config):
        self.frames = 0
        Constant.built += 1

    def update(self, show):
        self.frames += 10
        Constant.time += 1.0
        show()

    def player(self, batch):
        return ConstantPlayer(batch)

    def close(self):
        pass


@pytest.fixture
def constant(monkeypatch):
    """Compare with an agent that learns nothing, in place of the others."""
    monkeypatch.setattr(comparison, "LEARNERS", {"constant": Constant})
    monkeypatch.setattr(comparison, "EVALUATIONS", 2)
    clocks = dict.fromkeys(comparison.CLOCKS, lambda: Constant.time)
    monkeypatch.setattr(comparison, "CLOCKS", clocks)


@pytest.fixture
def ppo():
    pytest.importorskip("sb3_contrib")
    from lssvwm.agent.benchmarks import recurrent_ppo

    return recurrent_ppo


def test_vec_env_restarts_and_guides(ppo):
    env = GuidedEnv(CountingConfig(episode_length=3), 2)
    tasks = ppo.TaskVecEnv(env, 0)
    episode, step, _ = decode(tasks.reset())
    assert episode.tolist() == [1, 1] and step.tolist() == [0, 0]
    executed = []
    for number in range(1, 7):
        frames, reward, done, infos = tasks.step(np.array([3, 4]))
        assert (env.seeds < 2**31).all()
        if number % 3:
            executed.append(decode(frames)[2].tolist())
            assert not done.any() and infos == [{}, {}]
            continue
        last = decode(np.stack([info["terminal_observation"] for info in infos]))
        assert last[1].tolist() == [3, 3] and last[2].tolist() == [3, 4]
        assert [info["TimeLimit.truncated"] for info in infos] == [number == 3] * 2
        assert done.all() and reward == pytest.approx([0.03, 0.03])
        episode, step, action = decode(frames)
        assert episode.tolist() == [1 + number // 3] * 2
        assert step.tolist() == action.tolist() == [0, 0]
    assert executed == [[0, 0]] * 4


def test_vec_env_seeds_depend_on_the_run(ppo):
    drawn = []
    for seed in (0, 0, 1):
        env = CountingEnv(CountingConfig(), 4)
        ppo.TaskVecEnv(env, seed).reset()
        drawn.append(env.seeds.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_recurrent_ppo_trains_and_plays(ppo, monkeypatch):
    monkeypatch.setattr(ppo, "ENVIRONMENTS", 1)
    config = compose(["experiment=smoke", "tasks.count=3"], BenchmarkRunConfig)
    learner = ppo.RecurrentPPOLearner(config)
    assert learner.model.n_epochs == 10 and learner.model.n_steps == 128
    learner.model.n_epochs = 1
    before = learner.model.policy.action_net.weight.clone()
    shown = []
    learner.update(lambda: shown.append(learner.frames))
    assert learner.frames == 128 and len(shown) == 129
    assert not (learner.model.policy.action_net.weight == before).all()
    tasks = comparison.HeldOut(config)
    points = [tasks.play(learner.player) for _ in range(2)]
    assert points[0] == points[1] and points[0]["n"] == 3
    learner.close()


def test_recurrent_ppo_refuses_small_frames(ppo):
    config = compose(["env=counting", "env.size=32"], BenchmarkRunConfig)
    with pytest.raises(UserError, match="at least 36 x 36 pixels"):
        ppo.RecurrentPPOLearner(config)


def test_missing_extra_is_one_line(tmp_path, monkeypatch, capsys):
    name = "lssvwm.agent.benchmarks.recurrent_ppo"
    monkeypatch.delitem(sys.modules, name, raising=False)
    real = builtins.__import__

    def without(module, *rest, **named):
        if module.startswith("sb3_contrib"):
            raise ImportError(module)
        return real(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main([*COMMAND, BUDGET, f"output={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "pip install 'lssvwm[baselines]'" in message and message.count("\n") == 1


def test_agents_continue_with_missing_seeds(constant, tmp_path, capsys):
    command = [*COMMAND, f"output={tmp_path}"]
    Constant.built = 0
    assert cli.main([*command, BUDGET, "benchmark.seeds=[0]"]) == 0
    assert cli.main([*command, BUDGET, "benchmark.seeds=[0,1]"]) == 0
    assert Constant.built == 2
    found = json.loads((tmp_path / "agents.json").read_text())
    assert [row["frames"] for row in found["rows"]] == [90, 180]
    assert found["rows"][0]["n"] == 4
    assert len(found["rows"][0]["success"]["seeds"]) == 2
    assert "| constant | 2 | 0.01 | 180 |" in (tmp_path / "agents.md").read_text()
    assert (tmp_path / "agents.png").stat().st_size > 0
    assert cli.main([*command, "benchmark.hours=0.01", "benchmark.seeds=[0]"]) == 2
    assert "holds results of other settings" in capsys.readouterr().err


def test_agents_compare_with_runs(constant, tmp_path, capsys):
    sizes = ["train.steps=20", "train.batch=2", "train.length=12"]
    settings = [*sizes, "train.collect.frames=300"]
    run = tmp_path / "run"
    command = ["train", "experiment=smoke", "threads=1", *settings]
    assert cli.main([*command, f"output={run}"]) == 0
    output = tmp_path / "output"
    command = [*COMMAND, *settings, f"benchmark.runs=[{run}]", BUDGET]
    assert cli.main([*command, "benchmark.seeds=[0]", f"output={output}"]) == 0
    found = json.loads((output / "agents.json").read_text())
    last = found["rows"][-1]
    assert (last["agent"], last["frames"], last["n"]) == ("lssvwm", 300, 4)
    assert 0 < last["hours"] < 0.1
    config = compose([*COMMAND[2:], *settings, BUDGET], BenchmarkRunConfig)
    assert comparison.budget(config, [run]) == 0.005
    capsys.readouterr()
    other = [*COMMAND, "train.steps=21", f"benchmark.runs=[{run}]"]
    assert cli.main([*other, f"output={output}"]) == 2
    assert "was trained with other settings" in capsys.readouterr().err


def test_budget_is_needed(tmp_path, capsys):
    assert cli.main([*COMMAND, f"output={tmp_path}"]) == 2
    assert "for how long? e.g. benchmark.hours=0.5" in capsys.readouterr().err


def test_collected_frames_count_every_round():
    rounds = ["train.collect.every=10", "train.collect.more=50", "train.steps=30"]
    for settings, more in ((["train.steps=30"], 0), (rounds, 100)):
        config = compose(["train.collect.frames=300", *settings])
        assert comparison.collected_frames(config) == 300 + more
