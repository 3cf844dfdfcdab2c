"""Tasks in blocks and in processes: neither changes a decision or a result."""

import dataclasses

import numpy as np
import pytest
import torch
from lssvwm.agent.config.settings import CheckpointConfig, TasksConfig
from lssvwm.agent.evaluation import evaluate as evaluation
from lssvwm.agent.evaluation.evaluate import Play, measure, summary
from lssvwm.agent.evaluation.results import ARRAYS
from lssvwm.agent.objective import ObjectiveConfig
from lssvwm.envs import MiniGridConfig, TMazeConfig

from tests.agent.conftest import MPC, PLANNER, TINY, random_model

ARMS = ("retained", "erased", "swapped", "policy", "random", "seek", "oracle")


PLANNER = dataclasses.replace(PLANNER, horizon=3)


def config(env, **more) -> CheckpointConfig:
    """Return settings with a small model and planner."""
    return CheckpointConfig(env, TINY, PLANNER, mpc=MPC, threads=1, **more)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def actions(monkeypatch):
    """Return the actions of each arm and task, as they are taken."""
    found = {}
    begin, step = evaluation.play_arm, Play._step

    def begun(env, seeds, arm, *rest):
        play = begin(env, seeds, arm, *rest)
        play.name = arm
        return play

    def stepped(play, action):
        for slot in np.flatnonzero(play.running):
            task = int(play.result.task_seed[slot])
            found.setdefault((play.name, task), []).append(action[slot].item())
        step(play, action)

    monkeypatch.setattr(evaluation, "play_arm", begun)
    monkeypatch.setattr(Play, "_step", stepped)
    return found


@pytest.mark.parametrize(("arms", "samples"), [(ARMS, 1), (("retained",), 2)])
def test_decisions_do_not_depend_on_the_block(arms, samples, actions, monkeypatch):
    """Planning starts at different steps here. In float64, rounding decides nothing."""
    env = MiniGridConfig(actions=4, budget=3)
    objective = ObjectiveConfig(samples=samples)
    setting = config(env, tasks=TasksConfig(count=3), objective=objective)
    model = random_model().double().eval()
    played = []
    for block in (3, 1):
        monkeypatch.setattr(evaluation, "BLOCK", block)
        actions.clear()
        measure(setting, model, arms)
        played.append(dict(actions))
    one, other = played
    assert len(one) == len(other) == 3 * len(arms)
    assert [key for key, way in one.items() if other[key] != way] == []
    assert len({tuple(way) for (arm, _), way in one.items() if arm == "retained"}) > 1


@pytest.mark.parametrize("arm", ["retained", "policy", "random"])
def test_decisions_depend_on_the_task_and_the_run(arm, actions, monkeypatch):
    setting = config(TMazeConfig(length=5, budget=4), tasks=TasksConfig(count=4))
    model = random_model().eval()
    seen = []
    for seed in (0, 0, 1):
        actions.clear()
        measure(dataclasses.replace(setting, seed=seed), model, (arm,))
        seen.append(dict(actions))
    assert seen[0] == seen[1]
    assert (seen[0] == seen[2]) == (arm == "random")
    assert len({tuple(way) for way in seen[0].values()}) > 1


def test_workers_change_no_result(monkeypatch):
    monkeypatch.setattr(evaluation, "BLOCK", 2)
    model = random_model().eval()
    found = []
    for workers in (1, 2):
        tasks = TasksConfig(count=5, window=2, workers=workers)
        setting = config(TMazeConfig(length=5, budget=4), tasks=tasks)
        outcomes = measure(setting, model, ARMS)
        result = summary(setting, outcomes).to_dict()
        for row in result["arms"].values():
            row.pop("seconds_per_decision")
        arrays = [getattr(o, key).tolist() for o in outcomes.values() for key in ARRAYS]
        memories = torch.stack(outcomes["retained"].memories)
        found.append((str(result), arrays, memories))
    assert found[0][:2] == found[1][:2]
    assert (found[0][2].diff(found[1][2]) == 0).all()
    assert list(outcomes) == ["retained", "erased", "swapped", *ARMS[3:]]
