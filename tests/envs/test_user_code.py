"""Test the mistakes of a user's environment: one line each that names the call and the place."""

from __future__ import annotations

import gc
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from lssvwm.envs.gymnasium_env import GymConfig
from lssvwm.envs.user_code import EnvironmentFault

from tests.envs.faulty_env import RAISING, RESETS, STEPS

FILE = Path(__file__).with_name("faulty_env.py")


def faulty(name: str = "Faulty", size: int = 16, **settings) -> GymConfig:
    return GymConfig(factory=f"{FILE}:{name}", size=size, **settings)


@pytest.mark.parametrize("fault", [*RAISING, *STEPS, *RESETS])
def test_faulty_environment_is_named_in_one_line(fault, start):
    with pytest.raises(EnvironmentFault) as caught:
        start(faulty(kwargs={"fault": fault}), 2).step(np.zeros(2, np.int64))
    message = str(caught.value)
    assert message.startswith(f"{FILE}:Faulty: ")
    assert "\n" not in message
    resets = fault == "reset" or fault in RESETS
    call = "making it" if fault == "init" else "reset()" if resets else "step()"
    assert call in message
    if fault in RAISING:
        line = int(message.split(f"{FILE.name}:")[-1].split(":")[0])
        text = FILE.read_text().splitlines()[line - 1]
        assert "raise" in text or "assert" in text


def test_faulty_module_is_named_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\nraise OSError('no licence')\n")
    (tmp_path / "wrong.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(1)\n")
    (tmp_path / "number.py").write_text("make = 3\n")
    for name, said in {
        "broken": r"broken.py:2: OSError: no licence",
        "wrong": r"wrong.py:2: SyntaxError",
        "leaves": r"leaves.py:1: SystemExit",
        "number": "make is int, no function",
    }.items():
        with pytest.raises(ValueError, match=said):
            GymConfig(factory=f"{tmp_path}/{name}.py:make").build(1)


def test_factory_that_returns_one_environment_is_named(tmp_path):
    text = FILE.read_text() + "\nONE = Faulty()\ndef one():\n    return ONE\n"
    (tmp_path / "one.py").write_text(text)
    config = GymConfig(factory=f"{tmp_path}/one.py:one", size=16)
    assert config.build(1).batch == 1
    with pytest.raises(EnvironmentFault, match="returned the same environment twice"):
        config.build(2)


def test_factory_that_makes_something_else_is_named():
    with pytest.raises(ValueError, match="makes OrderedDict, no Gymnasium environment"):
        GymConfig(factory="collections:OrderedDict").build(1)


@pytest.mark.parametrize("layout", ["stack", "stack_last"])
def test_stack_of_four_frames_is_refused(layout):
    pictures = FILE.with_name("picture_env.py")
    config = GymConfig(factory=f"{pictures}:PictureEnv", kwargs={"layout": layout})
    with pytest.raises(ValueError, match=r"no image.*not a stack of frames"):
        config.build(1)


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 204), ("int64", 204), ("float32", 0.8), ("float64", 0.8)],
)
def test_rendered_pictures_are_converted(dtype, value, side, start):
    kwargs = {"dtype": dtype, "value": value, "side": side}
    env = start(faulty("Painted", 64, kwargs=kwargs, render=True), 1)
    assert (env.frames() == 204).all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int64", 300), ("int64", -1), ("float32", 204.0), ("float32", np.nan)],
)
def test_rendered_pictures_out_of_range_are_refused(dtype, value, start):
    kwargs = {"dtype": dtype, "value": value}
    with pytest.raises(EnvironmentFault, match=r"the image after reset\(\).*0 to 255"):
        start(faulty("Painted", 64, kwargs=kwargs, render=True), 1)


def test_rendered_alpha_is_dropped(start):
    env = start(faulty("Painted", 64, kwargs={"channels": 4}, render=True), 1)
    assert (env.frames() == 204).all()


class Arm(gymnasium.Env):
    """Take actions whose second dimension is fixed."""

    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def __init__(self, low, high):
        self.action_space = spaces.Box(np.float32(low), np.float32(high))
        self.taken = []

    def reset(self, *, seed=None, options=None):
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.taken.append(action)
        return np.zeros((16, 16, 3), np.uint8), 0.0, False, False, {}


def arm(low, high) -> GymConfig:
    kwargs = {"low": low, "high": high}
    return GymConfig(factory=f"{__file__}:Arm", size=16, kwargs=kwargs)


def test_fixed_action_dimension_is_left_out(start):
    env = start(arm([-1.0, 0.25, -2.0], [1.0, 0.25, 3.0]), 2)
    assert env.actions.low == (-1.0, -2.0)
    random = env.explorer("random", 0).act()
    env.step(random)
    (taken,) = env.envs[1].taken
    assert taken.tolist() == [random[1, 0], 0.25, random[1, 1]]


@pytest.mark.parametrize(
    ("low", "high"),
    [([0.0], [0.0]), ([-3e38], [3e38]), ([-np.inf], [1.0])],
)
def test_action_bounds_without_use_are_refused(low, high):
    with pytest.raises(ValueError, match="bounded float Box"):
        arm(low, high).build(1)


def test_environments_are_closed(start):
    env = start(faulty("Simulator"), 3)
    helpers = env.envs[0].helpers
    assert [helper.poll() for helper in helpers[-3:]] == [None] * 3
    env.close()
    env.close()
    assert None not in [helper.poll() for helper in helpers]
    env = start(faulty("Simulator"), 2)
    assert helpers[-1].poll() is None
    del env
    gc.collect()
    assert None not in [helper.poll() for helper in helpers]
