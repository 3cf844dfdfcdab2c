"""Define a Gymnasium environment for tests; they load it by the path of this file."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

SHAPES = {"hwc": (32, 32, 3), "chw": (3, 32, 32), "grey": (32, 32), "dict": (32, 32, 1)}
SHAPES |= {"stack": (4, 32, 32), "stack_last": (32, 32, 4)}


class PictureEnv(gymnasium.Env):
    """Show the step count as a flat picture; end after 4 steps with reward 1.

    `layout`: one of SHAPES; any other has no image.
    """

    def __init__(self, layout: str = "hwc", box: bool = False, space=None):
        self.layout = layout
        self.picture = spaces.Box(0, 255, SHAPES.get(layout, (5,)), np.uint8)
        self.observation_space = self.picture
        if layout == "dict":
            words = spaces.Box(0, 255, (5,), np.uint8)
            entries = {"words": words, "camera": self.picture}
            self.observation_space = spaces.Dict(entries)
        default = spaces.Box(-1.0, 2.0, (2,)) if box else spaces.Discrete(3, start=-1)
        self.action_space = default if space is None else space

    def _observe(self):
        shade = 10 * self.count + self.shade
        picture = np.full(self.picture.shape, shade, np.uint8)
        if self.layout == "dict":
            return {"words": np.zeros(5, np.uint8), "camera": picture}
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shade = int(self.np_random.integers(100))
        self.count = 0
        self.taken = []
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        self.taken.append(action)
        ends = self.count == 4
        return self._observe(), float(ends), ends, False, {}
