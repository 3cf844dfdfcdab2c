"""Test Return and Recall: the way home, the delay in the dark, the query."""

import numpy as np
import pytest
from lssvwm.envs import RecallConfig, ReturnConfig
from lssvwm.envs.base import RUNNING, SUCCESS, TIMEOUT
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.layout import STAY


def pose(env):
    """Return row, column and heading of every slot, int64 [B, 3]."""
    return np.stack([env.row, env.col, env.heading], -1)


def put_agents(env, poses):
    for slot, (row, col, heading) in enumerate(poses.tolist()):
        env.put_agent(slot, row, col, heading)


def test_return_starts_its_query_at_the_start(start):
    env = start(ReturnConfig(n=7, objects=3, tour=12), 8)
    first, distance = env.frames().copy(), env.truth()["goal_distance"]
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert env.in_context().all()
        env.step(rng.integers(4, size=8))
    assert not env.in_context().any()
    now = env.frames()
    assert np.array_equal(now[:, :, 2:-2, 2:-2], first[:, :, 2:-2, 2:-2])
    assert np.array_equal(now[:, :, 0, 0], rendering.COLOURS[env.cue])
    budget = np.ceil(1.5 * distance).astype(int)
    for t in range(1, budget.max() + 1):
        step = env.step(np.full(8, STAY))
        assert np.array_equal(step.truncated, t >= budget)
        assert not step.terminated.any()


@pytest.mark.parametrize(
    "config", [ReturnConfig(tour=30), RecallConfig(n=9, objects=3, tour=30)]
)
@pytest.mark.parametrize("walker", ["cells", "random", "noop"])
def test_tour_leads_home_without_a_jump(config, walker, start):
    env = start(config, 24)
    home = env.home.copy()
    explorer = env.explorer(walker, 0)
    led = 0
    for _ in range(30):
        before = pose(env)
        wanted = explorer.act()
        env.step(wanted)
        now = pose(env)
        executed = env.last_action()
        led += int((executed != wanted).sum())
        put_agents(env, before)
        heading, row, col = env.next_pose(executed)
        assert np.array_equal(now, np.stack([row, col, heading], -1))
        put_agents(env, now)
    assert np.array_equal(now, home)
    assert walker == "noop" or led > 24


def test_recall_delay_is_dark_and_frozen(start):
    config = RecallConfig(n=7, objects=3, tour=10, delay=6, budget=9)
    env = start(config, 8)
    headings = env.heading.copy()
    rng = np.random.default_rng(0)
    for t in range(1, 17):
        before = pose(env)
        env.step(rng.integers(3, size=8))
        if t > 10:
            assert (env.last_action() == STAY).all()
        if 10 <= t < 16:
            assert not env.frames().any()
            assert env.in_context().all()
        if 10 < t < 16:
            assert np.array_equal(pose(env), before)
    assert not env.in_context().any()
    assert np.array_equal(env.start[:, 0], env.row)
    assert (env.heading != headings).any()
    assert env.disguise.all()
    ends = [env.step(np.full(8, STAY)).truncated for _ in range(9)]
    assert ends[-1].all()
    assert not ends[-2].any()


@pytest.mark.parametrize("coloured", [False, True])
def test_recall_balls_are_grey_unless_coloured(coloured, start):
    config = RecallConfig(n=7, objects=3, tour=1, delay=0, coloured_query=coloured)
    env = start(config, 40)
    env.step(np.full(40, STAY))
    balls = range(rendering.GREY, rendering.PANEL)
    shown = set(np.unique(env._view)) & set(balls)
    first = rendering.OBJECT
    colours = {first, first + 1, first + 2}
    assert shown == (colours if coloured else {rendering.GREY})


def test_recall_ends_at_the_first_ball(play):
    config = RecallConfig(n=9, objects=3, tour=4, delay=0)
    outcome, reward = play(config, "seek", 200)
    assert (outcome != RUNNING).all()
    assert (outcome == TIMEOUT).mean() < 0.02
    assert np.array_equal(reward, outcome == SUCCESS)
    assert 0.23 < reward.mean() < 0.44


@pytest.mark.parametrize("config", [ReturnConfig(), RecallConfig()])
def test_guide_shows_almost_every_ball(config, start):
    env = start(config, 64)
    guide = env.explorer("guide", 0)
    while env.in_context().all():
        env.step(guide.act())
    assert (env.seen_at >= 0).all(1).mean() > 0.93


@pytest.mark.parametrize(
    "config", [ReturnConfig(tour=10**6), RecallConfig(n=9, tour=40, delay=4)]
)
def test_goal_set_by_a_person_begins_the_query(config, start):
    env = start(config, 2)
    for _ in range(3):
        env.step(np.full(2, 0))  # turns: the agent stands on no ball
    before, ages = pose(env)[0], env.clock[0] - env.seen_at[0]
    known = env.seen_at[0] >= 0
    env.set_goal(0, 2)
    env.step(np.full(2, STAY))
    assert not env.in_context()[0] and env.in_context()[1]
    assert np.array_equal(pose(env)[0], before)  # no jump
    assert np.array_equal(env.frames()[0, :, 0, 0], rendering.COLOURS[2])
    seen_now = env.seen_at[0] == env.clock[0]
    aged = env.clock[0] - env.seen_at[0] - 1
    assert np.array_equal(aged[known & ~seen_now], ages[known & ~seen_now])
    oracle = env.explorer("oracle", 0)
    while env.outcome[0] == RUNNING:
        step = env.step(oracle.act())
    assert env.outcome[0] == SUCCESS and step.reward[0] == 1
    assert env.at(env.objects)[0, 2]


def test_moved_ball_stands_out_of_view(start):
    env = start(ReturnConfig(n=9, objects=3), 1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, frame = env.objects.copy(), env.frames().copy()
        moved = int(rng.integers(3))
        seen = rendering.OBJECT + moved in env.view()
        row, col = before[0, moved]
        if env._cells_in_view(0)[row, col]:
            with pytest.raises(ValueError, match="in view"):
                env.move_object(0, moved, rng)
        else:
            assert not seen
            env.move_object(0, moved, rng)
            env._look()
            assert np.array_equal(env.frames(), frame)
            others = np.arange(3) != moved
            assert np.array_equal(env.objects[0, others], before[0, others])
            assert (env.objects[0, moved] != before[0, moved]).any()
            tiles = env.tiles[0, 2:-2, 2:-2]
            assert (tiles == rendering.OBJECT + moved).sum() == 1
            row, col = env.objects[0, moved]
            assert (
                env.floor[0, row, col] and tiles[row, col] == rendering.OBJECT + moved
            )
        env.step(rng.integers(3, size=1))
