"""Held-out tasks: arms are paired, interventions change memory, stopped runs keep results."""

import dataclasses

import numpy as np
import pytest
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import CheckpointConfig, TasksConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import evaluate as evaluation
from lssvwm.agent.evaluation import results
from lssvwm.agent.evaluation.evaluate import (
    balanced_seeds,
    measure,
    offered,
    play_arm,
    summary,
    swap_partners,
    task_seeds,
)
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.evaluation.results import Outcome
from lssvwm.agent.mpc import MPCConfig
from lssvwm.envs import CountingConfig, TMazeConfig, make
from lssvwm.envs.maze.tmaze import TMazeEnv
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import ModelConfig, WorldModel, save
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

TINY = ModelConfig(
    width=16,
    mixer=TiledSSDConfig(tiles=(1, 3), state=16, head_dim=16),
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


def config(length: int, **tasks) -> CheckpointConfig:
    """Return settings of a T-maze with a small model and planner."""
    return CheckpointConfig(
        TMazeConfig(length=length),
        TINY,
        PLANNER,
        mpc=MPC,
        tasks=TasksConfig(**tasks),
        threads=1,
    )


def tiny_model(env) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(TINY, env.frame_shape, 4).eval()


def note_frames(agent) -> list[list[int]]:
    """Return a list to which the agent adds the frames in its memories, at every step."""
    observe = agent.observe
    held = []

    def note(*args, **more):
        state = observe(*args, **more)
        held.append(state.memory.frames.tolist())
        return state

    agent.observe = note
    return held


def test_measure_pairs_arms_on_the_same_tasks(monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK", 15)
    setting = config(6, count=40, window=4)
    model = tiny_model(make(setting.env, 1))
    outcomes = measure(setting, model, ("retained", "noop", "seek", "oracle"))
    retained = outcomes["retained"]
    oracle = outcomes["oracle"]
    assert oracle.success.all()
    assert not outcomes["noop"].success.any()
    assert 0.2 < outcomes["seek"].success.mean() < 0.8
    for key in ("goal_distance", "evidence_age", "goal"):
        assert (getattr(oracle, key) == getattr(retained, key)).all()
    assert retained.memory_bytes > 0
    assert len(retained.memories) == 40


@pytest.mark.parametrize("window", [1, 4])
def test_always_window_never_remembers_more_frames(window):
    setting = config(8, count=3, window=window)
    env = make(setting.env, 3)
    agent = build_agent(setting, tiny_model(env), env)
    observe = agent.observe
    held = {}
    for arm in ("always_window", "retained"):
        held[arm] = []

        def note(*args, arm=arm, **more):
            state = observe(*args, **more)
            held[arm].append(int(state.memory.frames.max()))
            return state

        agent.observe = note
        play_arm(env, task_seeds(0, 3), arm, agent, window).run()
    assert max(held["always_window"]) == window
    assert held["always_window"][-1] == window
    assert max(held["retained"]) > 8


@pytest.mark.parametrize(("arm", "frames"), [("erased", 1), ("window", 3)])
def test_arm_limits_memory_at_planning_start(arm, frames):
    setting = config(8, count=2)
    env = make(setting.env, 2)
    agent = build_agent(setting, tiny_model(env), env)
    held = note_frames(agent)
    play_arm(env, task_seeds(0, 2), arm, agent, window=3).run()
    assert held[0] == [frames, frames]


@pytest.mark.parametrize("piece", [2, 3, 100])
def test_context_is_remembered_as_well_in_pieces(piece, monkeypatch):
    setting = config(8, count=3)
    env = make(setting.env, 3)
    model = tiny_model(env)

    def played(size):
        monkeypatch.setattr(evaluation, "PIECE", size)
        agent = build_agent(setting, model, env)
        return play_arm(env, task_seeds(0, 3), "retained", agent).run()

    whole, single = played(piece), played(1)
    for one, other in zip(whole.memories, single.memories, strict=True):
        assert one.frames == other.frames > 3
        assert one.diff(other).item() < 1e-5
    assert (whole.outcome == single.outcome).all()


@pytest.mark.parametrize(("arm", "frames"), [("erased", 1), ("retained", 6)])
def test_arm_intervenes_at_another_attempt(arm, frames, monkeypatch):
    env = make(CountingConfig(episode_length=8), 2)

    def retries():
        return np.array([True, False]) & (env.truth()["evidence_age"] == 5)

    monkeypatch.setattr(env, "retries", retries)
    setting = dataclasses.replace(config(8, count=2), env=env.config)
    torch.manual_seed(0)
    model = WorldModel(TINY, env.frame_shape, env.actions.n).eval()
    agent = build_agent(setting, model, env)
    held = note_frames(agent)
    outcome = play_arm(env, task_seeds(0, 2), arm, agent).run()
    assert held[5] == [frames, 6]
    if arm == "retained":
        assert [len(memory) for memory in outcome.memories] == [1, 1]
        assert all(int(memory.frames) == 0 for memory in outcome.memories)


def test_evaluate_keeps_finished_arms_when_stopped(tmp_path, monkeypatch):
    setting = config(5, count=6, arms=("random", "noop", "oracle"))
    save(tiny_model(make(setting.env, 1)), tmp_path)
    composition.save(setting, tmp_path / "config.yaml")
    monkeypatch.setattr(evaluation, "BLOCK", 4)
    played = evaluation.BlockPlayer.__call__

    def stopped(player, block):
        if block.arm == "oracle":
            raise KeyboardInterrupt
        return played(player, block)

    monkeypatch.setattr(evaluation.BlockPlayer, "__call__", stopped)
    setting = dataclasses.replace(setting, checkpoint=str(tmp_path))
    with pytest.raises(KeyboardInterrupt, match="random, noop saved in"):
        evaluation.evaluate(setting, tmp_path / "out")
    found = results.read(tmp_path / "out" / "evaluation.json")
    assert list(found["arms"]) == ["random", "noop"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.BlockPlayer, "__call__", played)
        evaluation.evaluate(setting, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt, match=r"earlier results in .* stay"):
        evaluation.evaluate(setting, tmp_path / "out")
    assert results.arms_in(tmp_path / "out") == 3


def test_evaluate_writes_results_with_their_origin(tmp_path):
    setting = config(5, count=6, arms=("retained", "window", "policy", "oracle"))
    save(tiny_model(make(setting.env, 1)), tmp_path)
    composition.save(setting, tmp_path / "config.yaml")
    setting = dataclasses.replace(setting, checkpoint=str(tmp_path))
    found = evaluation.evaluate(setting, tmp_path / "out")
    written = results.read(tmp_path / "out" / "evaluation.json")
    assert list(written["arms"]) == list(found["arms"])
    assert written["origin"]["weights"] == weights_hash(str(tmp_path))
    assert written["settings"]["tasks"]["window"] == setting.tasks.window
    tables = (tmp_path / "out" / "evaluation.md").read_text()
    assert "with its memory (retained)" in tables
    assert "last 8 frames only (window)" in tables
    rows = (tmp_path / "out" / "tasks.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 6
    assert (tmp_path / "out" / "success.png").stat().st_size > 0


@pytest.mark.parametrize(
    "env", ["tmaze", "recall", "minigrid", "pointmaze", "counting"]
)
def test_balanced_seeds_hold_every_answer_equally_often(env):
    settings = {
        "pointmaze": ["env.goal=spot", "env.objects=3"],
        "recall": ["env.n=7", "env.objects=3"],
    }
    built = make(composition.compose([f"env={env}", *settings.get(env, [])]).env, 7)
    count = 12 * built.answers
    seeds = balanced_seeds(built, 0, count)
    assert len(seeds) == len(set(seeds.tolist())) == count
    answers = []
    for some in seeds.reshape(-1, built.answers):
        built.reset(np.arange(len(some)), some)
        answers += built.answer()[: len(some)].tolist()
    assert np.bincount(answers).tolist() == [12] * built.answers


def test_task_seeds_are_never_training_seeds():
    assert task_seeds(0, 1000).min() >= 2**31
    assert (task_seeds(0, 5) == task_seeds(0, 5)).all()
    assert (task_seeds(0, 5) != task_seeds(1, 5)).any()


def test_swap_partners_have_another_goal():
    goal = np.array([0, 0, 1, 1, 0])
    assert (goal[swap_partners(goal)] != goal).all()
    assert swap_partners(np.zeros(3)).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("retained", "erase"), "there is no arm 'erase'"),
        (("prior",), "the arm 'prior' is called 'policy'"),
        (("short",), "the arm 'short' is called 'always_window'"),
        (("still",), "the arm 'still' is called 'noop'"),
    ],
)
def test_offered_names_unknown_and_renamed_arms(arms, message):
    with pytest.raises(UserError, match=message):
        offered(make(TMazeConfig(), 1), arms)


def test_offered_leaves_out_absent_explorers_and_repetitions():
    arms = ("retained", "forage", "oracle", "retained")
    assert offered(make(TMazeConfig(), 1), arms) == ("retained", "oracle")
    with pytest.raises(UserError, match="has none of them; there are retained, "):
        offered(make(TMazeConfig(), 1), ("forage",))


def test_measure_refuses_swapped_without_retained():
    setting = config(5, count=2)
    model = tiny_model(make(setting.env, 1))
    with pytest.raises(UserError, match="swapped needs retained"):
        measure(setting, model, ("swapped",))
    one = config(5, count=1)
    with pytest.raises(UserError, match="swapped needs the memory of another task"):
        measure(one, model, ("retained", "swapped"))


def test_measure_refuses_swapped_if_tasks_end_in_the_context(monkeypatch):
    monkeypatch.setattr(TMazeEnv, "in_context", lambda env: np.ones(env.batch, bool))
    setting = config(5, count=2)
    model = tiny_model(make(setting.env, 1))
    with pytest.raises(UserError, match="2 of 2 ended before: give more steps"):
        measure(setting, model, ("retained", "swapped"))


def test_summary_leaves_out_tasks_solved_at_start():
    n = 8
    success = np.array([True, True, False, True, True, False, True, True])
    outcome = Outcome(
        task_seed=np.arange(n),
        success=success,
        outcome=success * 1,
        steps=np.zeros(n),
        total_reward=np.zeros(n),
        goal_distance=np.array([0, 5, 9, 0, 4, 9, 8, 3]),
        evidence_age=np.array([10, 20, 30, 40, 50, 60, 70, -1]),
        goal=np.zeros(n),
    )
    found = summary(config(8, count=n), {"retained": outcome})
    assert found.tasks.solved_at_start == 2
    row = found.arms["retained"]
    assert row.n == 6
    assert row.success["mean"] == pytest.approx(4 / 6)
    cells = row.by_both
    assert sum(cell["n"] for cell in cells) == 5  # the age of one task is unknown
    for cell in cells:
        assert cell["distance"] <= cell["to_distance"]
        assert cell["age"] <= cell["to_age"]
    rates = [cell["success"]["mean"] for cell in cells]
    assert (min(rates), max(rates)) == (0, 1)
