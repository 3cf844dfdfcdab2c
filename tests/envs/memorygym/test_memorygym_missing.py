"""Memory Gym is optional: without it, one line says how to install it."""

import sys

import pytest
from lssvwm.agent.build import build_env
from lssvwm.agent.errors import UserError
from lssvwm.envs import MemoryGymConfig


@pytest.mark.parametrize("package", ["memory_gym", "pygame"])
def test_missing_package_error_is_the_pip_command(package, monkeypatch):
    for name in list(sys.modules):
        if name.split(".")[0] == "memory_gym":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as raised:
        build_env(MemoryGymConfig(), 1)
    message = str(raised.value)
    assert "\n" not in message
    assert "pip install 'pygame-ce" in message
    assert "pip install --no-deps memory-gym==" in message


def test_unknown_id_error_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean MortarMayhem-Grid-v0\?"):
        build_env(MemoryGymConfig(id="MortarMayhem-Grid"), 1)
