"""Define Gymnasium environments with one fault each; tests load them by the path of this file."""

from __future__ import annotations

import os
import subprocess
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

SIDE = 16
FRAME = np.full((SIDE, SIDE, 3), 90, np.uint8)
STEPS = {
    "four_values": (FRAME, 0.0, False, {}),
    "nothing": None,
    "reward_array": (FRAME, np.zeros(1), False, False, {}),
    "reward_nan": (FRAME, float("nan"), False, False, {}),
    "reward_inf": (FRAME, float("inf"), False, False, {}),
    "reward_huge": (FRAME, 1e300, False, False, {}),
    "reward_text": (FRAME, "1", False, False, {}),
    "flag_nan": (FRAME, 0.0, float("nan"), False, {}),
    "flag_text": (FRAME, 0.0, False, "no", {}),
    "flag_array": (FRAME, 0.0, np.zeros(2, bool), False, {}),
    "info_none": (FRAME, 0.0, False, False, None),
    "success_array": (FRAME, 0.0, False, False, {"is_success": np.zeros(2)}),
    "frame_none": (None, 0.0, False, False, {}),
    "frame_flat": (FRAME.ravel(), 0.0, False, False, {}),
    "frame_nan": (FRAME * np.nan, 0.0, False, False, {}),
    "frame_large": (FRAME * np.int64(3), 0.0, False, False, {}),
    "frame_text": ("picture", 0.0, False, False, {}),
}
"""Results of `step` that are wrong, by name."""
RESETS = {"reset_frame_only": FRAME, "reset_none": None}
"""Results of `reset` that are wrong, by name."""
RAISING = ("init", "reset", "step", "exit", "assert")
"""Calls that raise an error."""


class Faulty(gymnasium.Env):
    """Show a flat picture for four steps, with the fault `fault`."""

    def __init__(self, fault: str = "none", prize: float = 1.0):
        self.observation_space = spaces.Box(0, 255, FRAME.shape, np.uint8)
        self.action_space = spaces.Discrete(2)
        self.fault = fault
        self.prize = prize
        if fault == "init":
            raise RuntimeError("no simulator")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        if self.fault == "reset":
            raise KeyError("level")
        return RESETS.get(self.fault, (FRAME, {}))

    def step(self, action):
        self.count += 1
        if self.fault == "step":
            raise ZeroDivisionError("of my code")
        if self.fault == "exit":
            raise SystemExit(3)
        assert self.fault != "assert", "my check"
        ends = self.count == 4
        frame = FRAME + np.uint8(10 * self.count + int(action))
        result = (frame, self.prize * ends, ends, False, {})
        return STEPS.get(self.fault, result)


class Endless(Faulty):
    """Never end an episode."""

    def step(self, action):
        return FRAME, 0.0, False, False, {}


class Simulator(Faulty):
    """Hold a process until it is closed."""

    helpers: ClassVar[list[subprocess.Popen]] = []

    def __init__(self):
        super().__init__()
        self.helper = subprocess.Popen(["sleep", "600"])
        self.helpers.append(self.helper)
        self._note("open")

    def _note(self, what):
        if log := os.environ.get("HELPER_LOG"):
            with open(log, "a") as file:
                file.write(f"{what} {self.helper.pid}\n")

    def close(self):
        self._note("close")
        self.helper.kill()
        self.helper.wait()


class Walk(gymnasium.Env, EzPickle):
    """Show the sum of all actions; a copy by pickle starts again, as that of MuJoCo does."""

    def __init__(self, steady: bool = True):
        EzPickle.__init__(self, steady)
        self.observation_space = spaces.Box(0, 255, FRAME.shape, np.uint8)
        self.action_space = spaces.Discrete(3)
        self.steady = steady
        self.total = 0

    def _observe(self):
        noise = 0 if self.steady else np.random.default_rng().integers(200)
        return np.full(FRAME.shape, 10 * self.total + noise, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        self.total = 1
        return self._observe(), {}

    def step(self, action):
        self.count += 1
        self.total += int(action)
        return self._observe(), 0.0, False, self.count == 24, {}


class Painted(Walk):
    """Render a flat picture of a given type; observe numbers."""

    render_mode = "rgb_array"

    def __init__(self, dtype="uint8", side=64, value=204, channels=3, render_mode=None):
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        shape = (side, side, channels)
        self.picture = np.full(shape, value, np.dtype(dtype))

    def _observe(self):
        return np.zeros(3, np.float32)

    def render(self):
        return self.picture
