"""Test the scripted explorers of the mazes."""

import numpy as np
import pytest
from lssvwm.envs import RecallConfig, ReturnConfig, ScavengeConfig, TMazeConfig

SMALL = (
    TMazeConfig(length=6, delay=3),
    ReturnConfig(n=7, objects=2, tour=20),
    RecallConfig(n=7, objects=2, tour=20, delay=5, budget=20),
    ScavengeConfig(n=7, objects=2, steps=60),
)


def by_kind(config):
    return config.kind


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_walk_does_not_depend_on_other_slots(config, start):
    for name in config.build(1).explorers:
        alone, among = start(config, [5]), start(config, [5, 6, 7])
        one, three = alone.explorer(name, 1), among.explorer(name, 1)
        for t in range(50):
            action, actions = one.act(), three.act()
            assert action[0] == actions[0], (name, t)
            alone.step(action)
            among.step(actions)
            if t % 7 == 0:  # the others stand elsewhere in their episodes
                among.reset(np.array([1 + t % 2]), np.array([t]))


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_every_maze_explorer_runs(config, start):
    env = start(config, 4)
    for name in env.explorers:
        explorer = env.explorer(name, 0)
        for _ in range(40):
            action = explorer.act()
            assert action.shape == (4,) and action.dtype == np.int64
            env.step(action)
        env.reset(np.arange(4), np.arange(4))
    with pytest.raises(ValueError, match="oracle"):
        env.explorer("orcale", 0)


def test_wall_follower_keeps_its_hand_on_the_wall(start):
    env = start(ScavengeConfig(n=9, objects=2, steps=400, loops=0.0), [0])
    explorer = env.explorer("wall", 0)
    visited = set()
    for _ in range(400):
        env.step(explorer.act())
        visited.add((int(env.row[0]), int(env.col[0])))
    assert len(visited) == env.floor[0].sum()
