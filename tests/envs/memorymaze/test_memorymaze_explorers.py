"""Memory decides: who knows the targets' places fetches many, others few."""

import numpy as np
import pytest
from lssvwm.envs import MemoryMazeConfig


@pytest.mark.slow
def test_targets_are_fetched_from_memory(kept):
    """Play a whole episode with each explorer."""
    env = MemoryMazeConfig().build(1)
    total = {}
    for name in ("oracle", "noisy", "seek", "walk", "random"):
        env.reset(np.array([0]), np.array([101]))
        explorer = env.explorer(name, 0)
        steps = [env.step(explorer.act()) for _ in range(1000)]
        total[name] = sum(step.reward[0] for step in steps)
    env.close()
    assert total["oracle"] > 25
    assert total["oracle"] > total["noisy"] > 10
    assert total["seek"] > 10
    assert total["walk"] < 10
    assert total["random"] <= 3


@pytest.mark.slow
def test_walkers_leave_their_room(begin):
    env = begin(0, 1)
    walker = env.explorer("walk", 0)
    cells = [set(), set()]
    for _ in range(50):
        env.step(walker.act())
        for slot, (up, right) in enumerate(env.poses[:, 1:]):
            cells[slot].add((int(up), int(right)))
    assert min(map(len, cells)) >= 6


def test_unknown_explorer_error_lists_known_ones(kept):
    with pytest.raises(ValueError, match=r"no explorer 'rando'; it has random, noop"):
        kept.explorer("rando", 0)
