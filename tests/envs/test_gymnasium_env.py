"""Test Gymnasium environments: images, actions, ends of episodes, error messages."""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium
import minigrid  # noqa: F401  registers its ids
import numpy as np
import pytest
from gymnasium import spaces
from lssvwm.envs.base import SUCCESS, TIMEOUT, Box, Discrete
from lssvwm.envs.gymnasium_env import GymConfig
from lssvwm.envs.gymnasium_spaces import resize, to_actions

PICTURES = f"{Path(__file__).with_name('picture_env.py')}:PictureEnv"


def picture_env(size: int = 32, **kwargs) -> GymConfig:
    return GymConfig(factory=PICTURES, size=size, kwargs=kwargs)


@pytest.mark.parametrize("layout", ["hwc", "chw", "grey", "dict"])
@pytest.mark.parametrize("size", [32, 16, 48])
def test_gym_finds_the_image_and_resizes_it(layout, size, start):
    env = start(picture_env(layout=layout, size=size), 2)
    shade = [one.shade for one in env.envs]
    env.step(np.array([0, 2]))
    frames = env.frames()
    assert frames.shape == (2, 3, size, size) and frames.dtype == np.uint8
    for slot in range(2):
        assert (frames[slot] == shade[slot] + 10).all()


def test_resize_averages_when_it_shrinks():
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = 200
    assert (resize(board, 32) == 50).all()


def test_gym_shifts_discrete_actions_and_notes_success(start):
    env = start(picture_env(), 1)
    results = [env.step(np.array([action])) for action in (0, 1, 2, 0)]
    assert env.envs[0].taken == [-1, 0, 1, -1]
    assert [float(step.reward[0]) for step in results] == [0, 0, 0, 1]
    assert results[-1].terminated[0]
    assert not results[-1].truncated[0]
    assert env.truth()["outcome"] == SUCCESS


def test_gym_takes_continuous_actions_and_a_limit(start):
    config = GymConfig(factory=PICTURES, kwargs={"box": True}, max_steps=2)
    env = start(config, 2)
    assert env.actions == Box((-1.0, -1.0), (2.0, 2.0))
    random = env.explorer("random", 0)
    env.step(random.act())
    last = random.act()
    step = env.step(last)
    assert last.dtype == np.float32
    assert (env.last_action() == last).all()
    assert step.truncated.all()
    assert not step.terminated.any()
    assert (env.truth()["outcome"] == TIMEOUT).all()


@pytest.mark.parametrize(
    ("space", "combinations", "last"),
    [
        (spaces.MultiDiscrete([2, 3]), 6, [1, 2]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), 6, [6, 1]),
        (spaces.MultiDiscrete([[2, 2], [3, 1]]), 12, [[1, 1], [2, 0]]),
        (spaces.MultiBinary(3), 8, [1, 1, 1]),
    ],
)
def test_gym_numbers_combinations_of_choices(space, combinations, last, start):
    env = start(picture_env(space=space), 1)
    assert isinstance(env.actions, Discrete)
    assert env.actions.n == combinations == len(set(env.actions.names))
    for action in (0, combinations - 1):
        env.step(np.array([action]))
    assert env.envs[0].taken[-1].tolist() == last
    assert env.last_action().tolist() == [combinations - 1]


def test_gym_shows_the_robots_point_maze(monkeypatch, start):
    if "DISPLAY" not in os.environ:
        monkeypatch.setenv("MUJOCO_GL", "egl")  # read when it is imported
    pytest.importorskip("gymnasium_robotics")
    config = GymConfig(
        id="gymnasium_robotics:PointMaze_UMaze-v3",
        kwargs={"continuing_task": False},
        render=True,
        max_steps=20,
    )
    env = start(config, 1)
    assert env.actions == Box((-1.0, -1.0), (1.0, 1.0))
    before = env.frames()
    for _ in range(20):
        step = env.step(np.array([[1.0, 0.0]]))
    assert step.truncated.all()
    assert before.std() > 1
    assert (env.frames() != before).any()


def test_gym_renders_when_there_is_no_image(start):
    env = start(GymConfig(id="CartPole-v1", render=True), 1)
    assert env.actions == Discrete(2, ("action 0", "action 1"))
    before = env.frames()
    assert before.std() > 1
    for _ in range(5):
        env.step(np.array([1]))
    assert (env.frames() != before).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"id": "CartPool-v1"},
            "unknown environment 'CartPool-v1'; nearest: CartPole-v1",
        ),
        ({"id": "CartPole-v1"}, "CartPole-v1 observes Box.*no image.*env.render=true"),
        ({"id": "MiniGrid-Empty-5x5-v0"}, "no image"),
        (
            {"id": "Pendulum-v1", "kwargs": {"colour": 1}},
            "Pendulum-v1: making it with colour failed: TypeError",
        ),
        ({}, "set either env.factory=FILE"),
        ({"id": "CartPole-v1", "factory": PICTURES}, "set either env.factory=FILE"),
        ({"factory": "json"}, '"package.module:callable"'),
        ({"factory": "jsonn:loads"}, "No module named 'jsonn'"),
        ({"factory": "json:load_s"}, "has no 'load_s'; did you mean 'loads'"),
        ({"factory": PICTURES, "kwargs": {"layout": "words"}}, "no image"),
        (
            {"id": "CartPole-v1", "render": True, "size": 0},
            "size\n.*greater than or equal to 8",
        ),
    ],
)
def test_gym_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GymConfig(**settings).build(1)


def test_gym_refuses_actions_without_translation():
    env = gymnasium.make("CartPole-v1").unwrapped
    env.action_space = spaces.MultiDiscrete([20, 20])
    with pytest.raises(ValueError, match=r"acts through MultiDiscrete.*up to 256"):
        to_actions(env, "toy")
    env.action_space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match="bounded float Box"):
        to_actions(env, "toy")
