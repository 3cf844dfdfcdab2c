"""Share functions that start and play episodes."""

from __future__ import annotations

import numpy as np
import pytest


def _start(config, seeds):
    """Build an environment with one episode per seed; a number means seeds from 0."""
    seeds = np.arange(seeds) if isinstance(seeds, int) else np.asarray(seeds)
    env = config.build(len(seeds))
    env.reset(np.arange(len(seeds)), seeds)
    return env


@pytest.fixture
def start():
    """Return `start(config, seeds)`, which builds an environment and starts episodes."""
    return _start


@pytest.fixture
def play():
    """Return `play(config, name, count)`, which plays episodes to their ends.

    It returns outcomes and sums of rewards, one per episode.
    """

    def played(config, name, count):
        env = _start(config, count)
        explorer = env.explorer(name, 0)
        done = np.zeros(count, bool)
        total = np.zeros(count)
        while not done.all():
            step = env.step(explorer.act())
            total += step.reward
            done = step.terminated | step.truncated
        return env.truth()["outcome"], total

    return played
