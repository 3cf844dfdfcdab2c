"""Test Scavenge: rewards, changing cues, reference scores."""

import numpy as np
import pytest
from lssvwm.envs import ScavengeConfig
from lssvwm.envs.base import TIMEOUT
from lssvwm.envs.maze import rendering


def test_scavenge_pays_repeatedly_with_changing_cues(start):
    env = start(ScavengeConfig(n=7, objects=3, steps=80), 8)
    oracle = env.explorer("oracle", 0)
    total = np.zeros(8)
    for t in range(80):
        cue = env.cue.copy()
        step = env.step(oracle.act())
        paid = step.reward > 0
        total += step.reward
        assert np.array_equal(env.cue != cue, paid)
        assert np.array_equal(env.truth()["success"], paid)
        assert not step.terminated.any()
        assert step.truncated.all() == (t == 79)
    assert total.min() >= 2
    assert (env.truth()["outcome"] == TIMEOUT).all()


# Reference: oracle 41 and 22, wall-following 6.2 and 2.7, "random" 2.3 and 0.9. The
# last fits a walk with momentum; uniformly random actions find about 0.5 and 0.2.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name", "low", "high"),
    [
        (ScavengeConfig(), "oracle", 36, 44),
        (ScavengeConfig(), "wall", 5.2, 7.6),
        (ScavengeConfig(), "momentum", 1.5, 2.6),
        (ScavengeConfig(n=15, objects=6), "oracle", 20, 25),
        (ScavengeConfig(n=15, objects=6), "wall", 2.2, 3.4),
        (ScavengeConfig(n=15, objects=6), "momentum", 0.6, 1.1),
    ],
)
def test_scavengers_reach_reference_rewards(config, name, low, high, play):
    _, reward = play(config, name, 256)
    assert low <= reward.mean() <= high


def test_goal_set_by_a_person_is_shown_at_once(start):
    env = start(ScavengeConfig(n=7, objects=3), 1)
    for k in (2, 0, 1):
        env.set_goal(0, k)
        assert (env.frames()[0, :, 0, 0] == rendering.COLOURS[k]).all()
        assert env.truth()["goal"][0] == k
