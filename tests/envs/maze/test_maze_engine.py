"""Test rules that all mazes share: seeds, ended slots, distances, ages of evidence."""

import numpy as np
import pytest
from lssvwm.envs import RecallConfig, ReturnConfig, ScavengeConfig, TMazeConfig, make
from lssvwm.envs.base import SUCCESS
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.layout import AHEAD, LEFT

SMALL = (
    TMazeConfig(length=6, delay=3),
    ReturnConfig(n=7, objects=2, tour=20),
    RecallConfig(n=7, objects=2, tour=20, delay=5, budget=20),
    ScavengeConfig(n=7, objects=2, steps=60),
)


def by_kind(config):
    return config.kind


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_maze_episode_depends_on_its_seed_alone(config, start):
    alone = start(config, [5])
    among = start(config, [9, 5, 2])
    rng = np.random.default_rng(0)
    explorers = alone.explorer("cells", 1), among.explorer("cells", 1)
    among.reset(np.array([2]), np.array([8]))
    for _ in range(60):
        assert np.array_equal(alone.frames()[0], among.frames()[1])
        one, three = explorers[0].act(), explorers[1].act()
        assert one[0] == three[1]
        actions = rng.integers(4, size=3)
        actions[1] = one[0]
        step, steps = alone.step(one), among.step(actions)
        assert [x[0] for x in step] == [x[1] for x in steps]
        truths = among.truth()
        for key, value in alone.truth().items():
            assert value[0] == truths[key][1]


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_maze_keeps_ended_slots_as_they_are(config, start):
    env = start(config, [0, 1])
    explorer = env.explorer("oracle", 0)
    for _ in range(200):
        step = env.step(explorer.act())
    frames, truth = env.frames().copy(), env.truth()
    assert (step.terminated ^ step.truncated).all()
    again = env.step(np.array([AHEAD, LEFT]))
    assert not again.reward.any()
    assert np.array_equal(again.terminated, step.terminated)
    assert np.array_equal(again.truncated, step.truncated)
    assert np.array_equal(env.frames(), frames)
    assert all(np.array_equal(env.truth()[key], truth[key]) for key in truth)


@pytest.mark.parametrize(
    "config", [TMazeConfig(), ReturnConfig(), RecallConfig(delay=8)], ids=by_kind
)
def test_goal_distance_falls_along_the_oracle(config, start):
    env = start(config, 8)
    oracle = env.explorer("oracle", 0)
    while env.in_context().any():
        env.step(oracle.act())
    running = np.ones(8, bool)
    while running.any():
        before = env.truth()["goal_distance"]
        step = env.step(oracle.act())
        after = env.truth()["goal_distance"]
        assert np.array_equal(after[running], before[running] - 1)
        running = ~step.terminated & ~step.truncated
    assert (env.truth()["outcome"] == SUCCESS).all()
    assert (env.truth()["goal_distance"] == 0).all()


def test_evidence_age_counts_from_the_last_sight(start):
    env = start(ReturnConfig(), 16)
    explorer = env.explorer("cells", 0)
    last = np.full(16, -1)
    for _ in range(50):
        cued = rendering.OBJECT + env.cue[:, None, None]
        seen = (env._view == cued).any((1, 2))
        last = np.where(seen, env.clock, last)
        age = np.where(last < 0, -1, env.clock - last)
        assert np.array_equal(env.truth()["evidence_age"], age)
        env.step(explorer.act())
    assert (last >= 0).any()


def test_maze_step_refuses_unknown_actions():
    with pytest.raises(ValueError, match="0 to 3"):
        make(TMazeConfig(), 2).step(np.array([0, 4]))


@pytest.mark.parametrize(
    ("config_type", "changes", "message"),
    [
        (TMazeConfig, {"length": 1}, "length\n.*greater than or equal to 4"),
        (ReturnConfig, {"n": 8}, "n must be odd and at least 5, got n=8"),
        (ReturnConfig, {"objects": 7}, "objects\n.*less than or equal to 6"),
        (ReturnConfig, {"slack": 0.5}, "slack\n.*greater than or equal to 1"),
        (RecallConfig, {"tour": 0}, "tour\n.*greater than or equal to 1"),
        (RecallConfig, {"n": 5, "objects": 6}, "n=5 is too small for objects=6"),
    ],
)
def test_maze_config_refuses_impossible_sizes(config_type, changes, message):
    with pytest.raises(ValueError, match=message):
        config_type(**changes)


# Bounds: reference scores of the explorers, plus or minus 3 standard errors of 640
# episodes (n = 11: 1.000, .255, .227, .108; n = 15: 1.000, .161, .156, .070; T-maze:
# 1.000, .492).
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name", "low", "high"),
    [
        (TMazeConfig(length=64), "oracle", 1.0, 1.0),
        (TMazeConfig(length=64), "seek", 0.44, 0.56),
        (ReturnConfig(), "oracle", 1.0, 1.0),
        (RecallConfig(), "oracle", 1.0, 1.0),
        (RecallConfig(), "seek", 0.205, 0.305),
        (RecallConfig(), "wall", 0.16, 0.28),
        (RecallConfig(), "random", 0.07, 0.145),
        (RecallConfig(n=15, objects=6), "oracle", 1.0, 1.0),
        (RecallConfig(n=15, objects=6), "seek", 0.118, 0.204),
        (RecallConfig(n=15, objects=6), "wall", 0.113, 0.199),
        (RecallConfig(n=15, objects=6), "random", 0.04, 0.1),
    ],
)
def test_explorers_reach_reference_success(config, name, low, high, play):
    outcome, _ = play(config, name, 640)
    assert low <= (outcome == SUCCESS).mean() <= high
