"""Test point mazes: pictures, goals by image and by spot, seeds, error messages."""

import numpy as np
import pytest
from lssvwm.envs import PointMazeConfig, make
from lssvwm.envs.base import SUCCESS, TIMEOUT
from lssvwm.envs.maze.rendering import COLOURS, MARGIN
from lssvwm.envs.point_maze.env import NEAR
from lssvwm.envs.point_maze.geometry import BORDER, RADIUS
from lssvwm.envs.point_maze.rendering import Canvas
from lssvwm.envs.torchrl_env import TorchRLEnv
from torchrl.envs.utils import check_env_specs

IMAGE = PointMazeConfig(offset=20)
ROOMS = PointMazeConfig(rows=2, cols=3, size=100, random=True, offset=30)
SPOTS = PointMazeConfig(
    rows=2, cols=2, size=96, random=True, goal="spot", view="around", tour=200
)


def finish(env, name):
    """Let an explorer play to the end of every episode."""
    explorer = env.explorer(name, 0)
    while (env.outcome == 0).any():
        env.step(explorer.act())
    return env


def test_point_frame_shows_agent_and_goal_image(start):
    env = start(IMAGE, 50)
    for frames, where in ((env.frames(), env.position), (env.goals(), env.goal)):
        red = (frames[:, 0].astype(float) - frames[:, 1]).clip(0)
        weight = red / red.sum((1, 2), keepdims=True)
        centres = np.arange(64) + 0.5
        x, y = (weight.sum(axis) @ centres for axis in (1, 2))
        assert np.stack([x, y], -1) == pytest.approx(where, abs=0.15)


def test_image_goal_allows_twice_the_offset(start):
    env = finish(start(IMAGE, 300), "noop")
    near = np.hypot(*(env.start - env.goal).T) < NEAR
    assert ((env.outcome == SUCCESS) == near).all()
    assert (env.clock[~near] == 40).all()
    assert (env.outcome[~near] == TIMEOUT).all()
    assert (env.truth()["goal_distance"][near] == 0).all()


def test_longer_offsets_lie_farther_away(start):
    offsets = (25, 50, 100)
    envs = [start(PointMazeConfig(offset=offset), 300) for offset in offsets]
    away = [env.truth()["goal_distance"].mean() for env in envs]
    assert away[0] < away[1] < away[2]


def test_spots_are_out_of_sight_at_the_query(start):
    env = start(SPOTS, 60)
    explorer = env.explorer("guide", 0)
    while env.in_context().any():
        assert (env.frames()[:, :, 0] == 0).all()
        env.step(explorer.act())
    assert np.abs(env.position - env.start).max() < 2.5
    frames = env.frames()
    colour = COLOURS[1 + env.cue]
    assert (frames[:, :, 0, 5] == colour).all()
    inside = frames[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    shown = (inside == colour[:, :, None, None]).all(1).any((1, 2))
    assert not shown.any()
    assert (env.truth()["evidence_age"] > 0).all()
    assert (env.truth()["goal_distance"] > 5).all()


@pytest.mark.parametrize("config", [ROOMS, SPOTS], ids=["rooms", "spots"])
def test_point_episode_depends_on_its_seed_alone(config, start):
    many, one = start(config, 4), start(config, [2])
    walk, same = many.explorer("walk", 5), one.explorer("walk", 5)
    for _ in range(30):
        assert (many.frames()[2] == one.frames()[0]).all()
        assert many.position[2] == pytest.approx(one.position[0])
        many.step(walk.act())
        one.step(same.act())


def test_point_maze_keeps_ended_slots(start):
    env = start(PointMazeConfig(goal="none", steps=3), 2)
    for _ in range(3):
        step = env.step(np.ones((2, 2)))
    assert step.truncated.all()
    assert not step.terminated.any()
    where, action = env.position.copy(), env.last_action()
    step = env.step(-np.ones((2, 2)))
    assert (env.position == where).all()
    assert (env.last_action() == action).all()
    assert step.truncated.all()
    assert (step.reward == 0).all()
    assert (env.clock == 3).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows\n.*greater than or equal to 1"),
        ({"rows": 4, "cols": 4}, "too small for 4 x 4 rooms"),
        ({"door": 1.0}, "door\n.*greater than 2"),
        ({"goal": "spot", "objects": 9}, "objects\n.*less than or equal to 5"),
    ],
)
def test_point_config_refuses_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        PointMazeConfig(**changes)


def test_point_maze_refuses_unknown_actions(start):
    with pytest.raises(ValueError, match="2 pairs of finite numbers"):
        start(IMAGE, 2).step(np.full((2, 2), np.nan))


@pytest.mark.parametrize("config", [IMAGE, SPOTS], ids=["image", "spot"])
def test_torchrl_accepts_the_point_maze(config):
    check_env_specs(TorchRLEnv(make(config, 3)))


def test_point_top_view_shows_agent_and_goal(start):
    env = start(SPOTS, 1)
    picture = env.top_view(0)
    pixels = picture.reshape(3, -1).T
    assert picture.dtype == np.uint8
    assert (pixels == COLOURS[0]).all(1).any()
    assert env.bearing(0) is None
    assert env.position.min() > BORDER


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_agent_is_drawn_at_every_edge(size):
    canvas = Canvas(4, size, around=False)
    near, far = RADIUS, size - RADIUS
    position = np.array([[near, near], [near, far], [far, near], [far, far]])
    frames = canvas.frames(position, np.zeros((4, 3), np.uint8))
    assert frames.shape == (4, 3, 64, 64)
    assert (frames != canvas.picture).any((1, 2, 3)).all() or size > 256
