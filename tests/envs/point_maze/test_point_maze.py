"""The point maze: moves and walls, pictures, goals by image and by spot, explorers, floors."""

import numpy as np
import pytest
from lssvwm.envs import PointMazeConfig, make
from lssvwm.envs.base import SUCCESS, TIMEOUT
from lssvwm.envs.maze.rendering import COLOURS, MARGIN
from lssvwm.envs.point_maze.env import BORDER, NEAR, RADIUS, WALL
from lssvwm.envs.torchrl_env import TorchRLEnv
from torchrl.envs.utils import check_env_specs

IMAGE = PointMazeConfig(offset=20)
ROOMS = PointMazeConfig(rows=2, cols=3, size=100, random=True, offset=30)
SPOTS = PointMazeConfig(
    rows=2, cols=2, size=96, random=True, goal="spot", view="around", tour=200
)


def start(config, count):
    env = config.build(count)
    env.reset(np.arange(count), np.arange(count))
    return env


def play(config, name, count=200):
    """Play to the end; returns the environment and every position, [T, B, 2]."""
    env, track, ended = start(config, count), [], np.zeros(count, bool)
    explorer = env.explorer(name, 0)
    while not ended.all():
        track.append(env.position.copy())
        step = env.step(explorer.act())
        ended = step.terminated | step.truncated
    return env, np.stack(track)


def success(config, name, count=200):
    return float((play(config, name, count)[0].outcome == SUCCESS).mean())


@pytest.mark.parametrize("config", [IMAGE, ROOMS, SPOTS], ids=["two", "six", "spots"])
def test_the_oracle_arrives_in_about_as_many_steps_as_the_distance_says(config):
    env, _ = play(config, "oracle")
    assert (env.outcome == SUCCESS).all()
    fresh = start(config, 200)
    explorer = fresh.explorer("oracle", 0)
    while fresh.in_context().any():
        fresh.step(explorer.act())
    away = fresh.truth()["goal_distance"]
    assert (env.clock - env.context <= 1.5 * away + 4).all() and (
        env.clock - env.context >= away - 6
    ).all()


@pytest.mark.parametrize("config", [IMAGE, ROOMS], ids=["two", "six"])
def test_walls_are_never_entered_and_moves_are_as_long_as_the_action_says(config):
    env, rng = start(config, 100), np.random.default_rng(0)
    for _ in range(100):
        before, action = env.position.copy(), rng.uniform(-1.5, 1.5, size=(100, 2))
        env.step(action)
        assert (
            not (
                (env.position[:, None] > env.walls[..., :2])
                & (env.position[:, None] < env.walls[..., 2:])
            )
            .all(-1)
            .any()
        )
        moved, running = env.position - before, env.outcome == 0
        least, most = (
            np.minimum(0, action.clip(-1, 1) * 2),
            np.maximum(0, action.clip(-1, 1) * 2),
        )
        assert ((moved >= least - 1e-5) & (moved <= most + 1e-5))[running].all()
        free = running & (np.abs(before - config.size / 2).max(1) < 3 * WALL)
        inner = np.abs(before[:, 0] - env.lines[0][:, 0]) > WALL / 2 + RADIUS + 2
        if config is IMAGE:
            assert moved[free & inner] == pytest.approx(
                (action.clip(-1, 1) * 2)[free & inner], abs=1e-5
            )


def test_a_straight_line_through_the_wall_is_stopped_and_one_through_the_door_is_not():
    env = start(PointMazeConfig(goal="none"), 2)
    gate = env.gates[0, 0, 1]
    env.position[:] = [[20.0, gate[1]], [20.0, gate[1] + 20]]
    for _ in range(15):
        env.step(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert env.position[0, 0] > gate[0] + WALL
    assert env.position[1, 0] == pytest.approx(gate[0] - WALL / 2 - RADIUS, abs=1e-3)


def test_the_frame_shows_the_agent_where_it_is_and_the_goal_image_shows_it_at_the_goal():
    env = start(IMAGE, 50)
    for frames, where in ((env.frames(), env.position), (env.goals(), env.goal)):
        red = (frames[:, 0].astype(float) - frames[:, 1]).clip(0)
        weight = red / red.sum((1, 2), keepdims=True)
        x, y = (weight.sum(axis) @ (np.arange(64) + 0.5) for axis in (1, 2))
        assert np.stack([x, y], -1) == pytest.approx(where, abs=0.15)


def test_goals_by_image_are_reached_within_twice_the_offset_or_time_is_out():
    env, _ = play(IMAGE, "noop", 300)
    near = np.hypot(*(env.start - env.goal).T) < NEAR
    assert ((env.outcome == SUCCESS) == near).all()
    assert (env.clock[~near] == 40).all() and (env.outcome[~near] == TIMEOUT).all()
    assert (env.truth()["goal_distance"][near] == 0).all()


def test_longer_offsets_lie_farther_away_and_floors_are_low():
    away = [
        start(PointMazeConfig(offset=offset), 300).truth()["goal_distance"].mean()
        for offset in (25, 50, 100)
    ]
    assert away[0] < away[1] < away[2]
    assert success(PointMazeConfig(offset=25), "noop", 300) < 0.12
    assert success(PointMazeConfig(offset=50), "random", 300) < 0.35


def test_around_the_agent_spots_are_out_of_sight_when_their_colour_is_asked_for():
    env = start(SPOTS, 60)
    explorer = env.explorer("guide", 0)
    while env.in_context().any():
        assert (env.frames()[:, :, 0] == 0).all()
        env.step(explorer.act())
    assert np.abs(env.position - env.start).max() < 2.5
    frames = env.frames()
    assert (frames[:, :, 0, 5] == COLOURS[1 + env.cue]).all()
    inside = frames[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    shown = (inside == COLOURS[1 + env.cue][:, :, None, None]).all(1).any((1, 2))
    truth = env.truth()
    assert (
        not shown.any()
        and (truth["evidence_age"] > 0).all()
        and (truth["goal_distance"] > 5).all()
    )


def test_without_memory_spots_are_found_in_time_in_less_than_half_of_the_tasks():
    assert success(SPOTS, "seek") < 0.5 and success(SPOTS, "random") < 0.05


def test_the_seed_alone_decides_an_episode_in_any_slot_and_batch():
    for config in (ROOMS, SPOTS):
        many, one = start(config, 4), config.build(1)
        one.reset(np.array([0]), np.array([2]))
        walks = many.explorer("walk", 5), one.explorer("walk", 5)
        for _ in range(30):
            assert (many.frames()[2] == one.frames()[0]).all() and many.position[
                2
            ] == pytest.approx(one.position[0])
            many.step(walks[0].act())
            one.step(walks[1].act())


def test_an_ended_slot_stays_as_it_is():
    env = start(PointMazeConfig(goal="none", steps=3), 2)
    for _ in range(3):
        step = env.step(np.ones((2, 2)))
    assert step.truncated.all() and not step.terminated.any()
    where, action = env.position.copy(), env.last_action()
    step = env.step(-np.ones((2, 2)))
    assert (env.position == where).all() and (env.last_action() == action).all()
    assert step.truncated.all() and (step.reward == 0).all() and (env.clock == 3).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows=0 must be at least 1"),
        ({"rows": 4, "cols": 4}, "too small for 4 x 4 rooms"),
        ({"door": 1.0}, "needs door"),
        ({"goal": "spot", "objects": 9}, "objects must be 2 to 5"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PointMazeConfig(**changes).build(1)


def test_wrong_actions_and_explorers_are_refused():
    env = start(IMAGE, 2)
    with pytest.raises(ValueError, match="2 pairs of finite numbers"):
        env.step(np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="unknown explorer 'wall'"):
        env.explorer("wall", 0)


@pytest.mark.parametrize("config", [IMAGE, SPOTS], ids=["image", "spot"])
def test_it_is_a_torchrl_environment(config):
    check_env_specs(TorchRLEnv(make(config, 3)))


def test_the_picture_for_people_shows_agent_and_goal():
    env = start(SPOTS, 1)
    picture = env.top_view(0)
    assert (
        picture.dtype == np.uint8
        and (COLOURS[0] == picture.reshape(3, -1).T).all(1).any()
    )
    assert env.position.min() > BORDER
