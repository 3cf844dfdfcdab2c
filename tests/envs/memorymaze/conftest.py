"""Skip tests of Memory Maze where it is not installed; share its environments."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from lssvwm.envs import MemoryMazeConfig

# Importing the package itself fails without the old gym.
INSTALLED = all(find_spec(name) for name in ("mujoco", "labmaze", "memory_maze"))


STEPS = 50


@pytest.fixture(scope="package")
def kept():
    """Return two environments for all tests: a simulator takes a second to build."""
    if not INSTALLED:
        pytest.skip("Memory Maze is not installed")
    env = MemoryMazeConfig(steps=STEPS).build(2)
    yield env
    env.close()


@pytest.fixture
def begin(kept):
    """Return `begin(seed, other)`: two environments at the start of these episodes."""

    def begun(seed, other):
        kept.reset(np.arange(2), np.array([seed, other]))
        return kept

    return begun
