"""Test the T-maze: its cue, its delay, the ends of context and episode."""

import numpy as np
import pytest
from lssvwm.envs import TMazeConfig, make
from lssvwm.envs.base import SUCCESS, TIMEOUT, WRONG
from lssvwm.envs.maze.layout import AHEAD, LEFT, STAY


def test_tmaze_shows_its_cue_at_the_foot_only(start):
    env = start(TMazeConfig(length=8, delay=4), 16)
    ages, dark, actions = [], [], []
    for _ in range(14):
        ages.append(env.truth()["evidence_age"])
        dark.append((env.frames() == 0).all((1, 2, 3)))
        actions.append(env.last_action())
        env.step(np.full(16, AHEAD))
    ages_of_one = np.array([0, 0, *range(1, 13)])
    expected_ages = ages_of_one[:, None].repeat(16, 1)
    assert np.array_equal(ages, expected_ages)
    all_dark = [bool(x.all()) for x in dark]
    assert all_dark == [2 <= t < 6 for t in range(14)]
    expected_actions = [0, AHEAD, AHEAD, *[STAY] * 4, *[AHEAD] * 7]
    assert [int(x[0]) for x in actions] == expected_actions
    assert set(env.truth()["goal"]) == {0, 1}


def test_tmaze_budget_runs_from_below_the_junction(start):
    env = start(TMazeConfig(length=6, budget=5), [0])
    flags = []
    for _ in range(5):
        flags.append(bool(env.in_context()[0]))
        env.step(np.array([AHEAD]))
    assert flags == [True] * 5
    assert not env.in_context()[0] and env.row[0] == 2
    ends = [env.step(np.array([STAY])) for _ in range(5)]
    truncated = [bool(end.truncated[0]) for end in ends]
    assert truncated == [False] * 4 + [True]
    assert not ends[-1].terminated[0]
    assert env.truth()["outcome"][0] == TIMEOUT


def test_tmaze_arms_pay_by_the_cue(start):
    env = start(TMazeConfig(length=4), 12)
    for action in [AHEAD] * 4 + [LEFT] + [AHEAD] * 2:
        step = env.step(np.full(12, action))
    is_left = env.cue == 0
    assert step.terminated.all()
    assert np.array_equal(step.reward, is_left.astype(np.float32))
    assert np.array_equal(env.truth()["outcome"], np.where(is_left, SUCCESS, WRONG))
    # No frame shows which arm paid.
    assert len(np.unique(env.frames(), axis=0)) == 1


def test_tmaze_frames_hide_the_cue_ahead(start):
    env = start(TMazeConfig(length=6), 16)
    for _ in range(5):
        env.step(np.full(16, AHEAD))
    assert set(env.cue) == {0, 1}
    assert (env.frames() == env.frames()[:1]).all()


def test_autonomous_tmaze_rewards_looking_for_the_cue():
    env = make(TMazeConfig(length=12, autonomous=True), 64)
    env.reset(np.arange(64), np.arange(64))
    assert not env.in_context().any()
    assert (env.truth()["evidence_age"] == -1).all()
    assert len(set(env.row.tolist())) > 3
    explorers = {"look": 1.0, "oracle": 1.0, "seek": 0.5}
    for name, expected in explorers.items():
        env.reset(np.arange(64), np.arange(64))
        walker = env.explorer(name, 0)
        seen = np.zeros(64, bool)
        for _ in range(env.steps):
            env.step(walker.act())
            seen |= env.truth()["evidence_age"] >= 0
        assert abs(env.truth()["success"].mean() - expected) < 0.15
        assert seen.all() == (name == "look")


def test_autonomous_tmaze_refuses_short_corridors():
    with pytest.raises(ValueError, match="autonomous T-maze needs length >= 7"):
        TMazeConfig(length=5, autonomous=True)
