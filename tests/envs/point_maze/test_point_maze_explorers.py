"""Test the scripted explorers of point mazes: success of the oracle, floors."""

import pytest
from lssvwm.envs import PointMazeConfig
from lssvwm.envs.base import SUCCESS

IMAGE = PointMazeConfig(offset=20)
ROOMS = PointMazeConfig(rows=2, cols=3, size=100, random=True, offset=30)
SPOTS = PointMazeConfig(
    rows=2, cols=2, size=96, random=True, goal="spot", view="around", tour=200
)


@pytest.fixture
def success(play):
    """Return a function that computes an explorer's success, a number in 0..1."""

    def mean(config, name, count=200):
        outcome, _ = play(config, name, count)
        return float((outcome == SUCCESS).mean())

    return mean


@pytest.mark.parametrize("config", [IMAGE, ROOMS, SPOTS], ids=["two", "six", "spots"])
def test_point_oracle_needs_about_the_distance(config, start):
    env = start(config, 200)
    oracle = env.explorer("oracle", 0)
    while (env.outcome == 0).any():
        env.step(oracle.act())
    assert (env.outcome == SUCCESS).all()
    fresh = start(config, 200)
    explorer = fresh.explorer("oracle", 0)
    while fresh.in_context().any():
        fresh.step(explorer.act())
    away = fresh.truth()["goal_distance"]
    steps = env.clock - env.context
    assert (steps <= 1.5 * away + 4).all()
    assert (steps >= away - 6).all()


def test_image_goal_floors_are_low(success):
    assert success(PointMazeConfig(offset=25), "noop", 300) < 0.12
    assert success(PointMazeConfig(offset=50), "random", 300) < 0.35


def test_spots_need_memory(success):
    assert success(SPOTS, "seek") < 0.5
    assert success(SPOTS, "random") < 0.05


def test_point_maze_refuses_unknown_explorers(start):
    with pytest.raises(ValueError, match="no explorer 'wall'; it has oracle"):
        start(IMAGE, 2).explorer("wall", 0)
