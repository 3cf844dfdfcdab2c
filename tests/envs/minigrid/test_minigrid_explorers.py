"""Test the scripted explorers of MiniGrid."""

from itertools import pairwise

import pytest
from lssvwm.envs.base import SUCCESS, WRONG
from lssvwm.envs.minigrid.env import MiniGridConfig


@pytest.mark.parametrize("size", [7, 17, 33])
def test_memory_oracle_wins_and_seek_guesses(size, start, run):
    last = run(start(MiniGridConfig(size=size), 64), "oracle")[-1]
    assert (last["outcome"] == SUCCESS).all()
    assert last["success"].all()
    assert (last["goal_distance"] == 0).all()
    assert last["evidence_age"].min() >= size - 2
    blind = run(start(MiniGridConfig(size=size), 64), "seek")[-1]
    assert set(blind["outcome"].tolist()) == {SUCCESS, WRONG}
    assert 0.3 < blind["success"].mean() < 0.7
    assert 0.3 < last["goal"].mean() < 0.7


def test_memory_distance_falls_along_the_oracle(start, run):
    rows = run(start(MiniGridConfig(size=13), 8), "oracle")
    for before, after in pairwise(rows):
        walking = ~before["context"] & (before["outcome"] == 0)
        expected = before["goal_distance"] - 1
        assert (after["goal_distance"] == expected)[walking].all()


@pytest.mark.parametrize(
    ("size", "name", "limit", "shown"),
    [(7, "cells", 300, 1.0), (17, "cells", 300, 1.0), (17, "stumble", 900, 0.95)],
)
def test_strolling_explorers_show_the_cue(size, name, limit, shown, start, run):
    env = start(MiniGridConfig(size=size), 64)
    last = run(env, name, limit)[-1]
    assert (last["evidence_age"] >= 0).mean() >= shown
    assert (last["outcome"] > 0).all()
    assert 0.25 < last["success"].mean() < 0.7
    assert len(set(env.steps.tolist())) > 10


def test_goal_oracle_takes_a_shortest_path(start, run):
    env = start(MiniGridConfig(id="MiniGrid-FourRooms-v0"), 8)
    least = env.truth()["goal_distance"]
    assert run(env, "oracle")[-1]["success"].all()
    assert (env.steps == least).all()


def test_minigrid_offers_no_oracle_behind_doors(start):
    config = MiniGridConfig(id="MiniGrid-DoorKey-5x5-v0", actions=7)
    env = start(config, 1)
    assert env.explorers == ("random", "noop", "momentum")
    assert env.truth()["goal_distance"] == -1
