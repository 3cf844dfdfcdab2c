"""Compare the adapter with the package itself: frames, rewards and truth."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from lssvwm.envs import MemoryMazeConfig
from lssvwm.envs.base import TIMEOUT
from lssvwm.envs.memorymaze import env as adapter
from lssvwm.envs.memorymaze import simulator
from lssvwm.envs.memorymaze.explorers import wrap
from lssvwm.envs.torchrl_env import TorchRLEnv
from torchrl.envs.utils import check_env_specs

NOOP, FORWARD, LEFT, RIGHT = range(4)
STEPS = 50
"""Steps of an episode in these tests."""
SEED = 11
"""Seed of an episode in which the oracle needs few steps to the first target."""


@pytest.fixture(params=["quick", pytest.param("plain", marks=pytest.mark.slow)])
def package(request, monkeypatch):
    """Return the package's own maze; `quick` loads its wall textures once, not ten times."""
    tasks = simulator._import_without_init("memory_maze.tasks")
    if request.param == "quick":
        textures = tasks.labmaze_textures
        monkeypatch.setattr(textures, "WallTextures", cache(textures.WallTextures))
    theirs = tasks.memory_maze_9x9(global_observables=True, seed=SEED)
    yield theirs
    theirs.close()


def test_all_is_as_in_the_package(begin, package):
    """Follow the oracle past a target; the package gets the same actions."""
    env = begin(3, SEED)
    seen = package.reset()
    oracle = env.explorer("oracle", 0)
    rewards = 0
    ages = []
    for _ in range(45):
        shown = seen.observation
        heading = env.poses[1, 0]
        assert (env.frames()[1] == shown["image"].transpose(2, 0, 1)).all()
        assert (env.layout()[1] == shown["maze_layout"]).all()
        assert env.poses[1, 1:] == pytest.approx(shown["agent_pos"][::-1])
        direction = [np.sin(heading), np.cos(heading)]
        assert direction == pytest.approx(shown["agent_dir"])
        assert env.objects()[1] == pytest.approx(shown["targets_vec"], abs=1e-4)
        cued = env.targets[1, env.target[1]]
        assert cued == pytest.approx(shown["target_pos"][::-1])
        ages.append(env.truth()["evidence_age"][1] if not rewards else -1)
        action = oracle.act()
        reward = env.step(action).reward[1]
        seen = package.step(int(action[1]))
        assert reward == seen.reward
        rewards += reward
    assert rewards == 1
    assert env.truth()["success"][1]
    # The target was in view when it was touched, and grew older out of view before.
    assert all(age in (0, last + 1) for last, age in pairwise(ages) if age > -1)
    assert 0 in ages


@pytest.mark.slow
def test_torchrl_accepts_the_environment(begin):
    check_env_specs(TorchRLEnv(begin(0, 1), seed=1))


def test_time_limit_truncates_and_reset_goes_on(begin):
    env = begin(4, 5)
    env.clock[:] = STEPS - 3
    for _ in range(2):
        assert not env.step(np.full(2, FORWARD)).truncated.any()
    step = env.step(np.full(2, FORWARD))
    assert step.truncated.all() and not step.terminated.any()
    assert (env.truth()["outcome"] == TIMEOUT).all()
    frames, poses = env.frames(), env.poses.copy()
    again = env.step(np.full(2, FORWARD))
    assert again.truncated.all() and not again.reward.any()
    assert (env.poses == poses).all() and (env.frames() == frames).all()
    env.reset(np.array([1]), np.array([5]))
    assert env.last_action().tolist() == [FORWARD, NOOP]
    assert env.step(np.zeros(2, np.int64)).truncated.tolist() == [True, False]


def test_episode_and_walks_depend_on_the_seed_alone(begin):
    """Repeat an episode in another slot, next to another one, with every explorer."""

    def played(env, slot):
        rows = []
        for name in env.explorers:
            explorer = env.explorer(name, 3)
            for _ in range(4):
                action = explorer.act()
                env.step(action)
                rows.append((action[slot], *env.poses[slot]))
        return rows, env.frames()[slot]

    rows, frame = played(begin(7, 5), 0)
    again, frame_again = played(begin(6, 7), 1)
    assert rows == again
    assert (frame == frame_again).all()


def test_actions_move_the_pose(begin):
    env = begin(SEED, SEED)
    before = env.poses[0].copy()
    env.step(np.full(2, RIGHT))
    assert np.degrees(env.poses[0, 0] - before[0]) == pytest.approx(14, abs=1)
    env.step(np.full(2, NOOP))
    assert np.degrees(env.poses[0, 0] - before[0]) == pytest.approx(17, abs=1)
    start = env.poses[0].copy()
    env.step(np.full(2, FORWARD))
    up, right = env.poses[0, 1:] - start[1:]
    assert np.hypot(up, right) == pytest.approx(0.11, abs=0.01)
    assert np.arctan2(right, up) == pytest.approx(wrap(start[0]), abs=0.05)


def test_closed_environment_holds_no_physics(kept):
    env = kept.renewed()
    assert (env.batch, env.limit) == (1, STEPS)
    env.reset(np.array([0]), np.array([1]))
    env.close()
    assert env.simulators[0].physics is None
    env.close()


@pytest.mark.parametrize(("size", "steps"), [(9, 1000), (15, 4000)])
def test_episodes_last_as_published(size, steps, monkeypatch):
    monkeypatch.setattr(adapter, "Simulator", lambda size: None)
    env = MemoryMazeConfig(size=size).build(1)
    env._finalizer.detach()
    assert env.limit == steps
    assert env.targets.shape == (1, {9: 3, 15: 6}[size], 2)


def test_way_back_rolls_to_the_start(begin):
    env = begin(SEED, SEED + 1)
    walker = env.explorer("walk", 0)
    places = []
    for _ in range(20):
        env.step(walker.act())
        places.append(env.poses[:, 1:].copy())
    back = env.way_back(np.stack(places, 1))
    farthest = np.linalg.norm(places[-1] - places[0], axis=-1)
    for _ in range(29):
        env.step(back.act())
    apart = np.linalg.norm(env.poses[:, 1:] - places[0], axis=-1)
    assert (apart < np.maximum(0.8, farthest / 2)).all()
