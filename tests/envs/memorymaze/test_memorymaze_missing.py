"""Memory Maze is optional: without it, one line says how to install it."""

import sys

import pytest
from lssvwm.agent.build import build_env
from lssvwm.agent.errors import UserError
from lssvwm.envs import MemoryMazeConfig
from lssvwm.envs.memorymaze import simulator


@pytest.fixture(autouse=True)
def forget_imports():
    """Let modules be imported again."""
    simulator._load.cache_clear()
    yield
    simulator._load.cache_clear()


def error_without(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as raised:
        build_env(MemoryMazeConfig(), 1)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("package", ["memory_maze", "mujoco", "labmaze"])
def test_missing_package_error_is_the_pip_command(package, monkeypatch):
    message = error_without(package, monkeypatch)
    assert "pip install 'mujoco" in message
    assert "pip install --no-deps memory-maze==" in message


def test_missing_renderer_error_names_the_remedy(monkeypatch):
    pytest.importorskip("dm_control")
    message = error_without("dm_control._render", monkeypatch)
    assert "cannot render" in message
    assert "MUJOCO_GL=egl" in message and "libegl1" in message
