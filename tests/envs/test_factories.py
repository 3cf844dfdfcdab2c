"""Test factories from modules and from files of a user's project."""

import sys
import textwrap

import numpy as np
import pytest
from lssvwm.envs import GymConfig, make
from lssvwm.envs.factories import load_factory

ENVIRONMENT = """
    import gymnasium
    import numpy as np
    from gymnasium import spaces


    class Squares(gymnasium.Env):
        def __init__(self, shade):
            self.observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
            self.action_space = spaces.Discrete(2)
            self.shade = shade

        def reset(self, *, seed=None, options=None):
            return np.full((16, 16, 3), self.shade, np.uint8), {}

        def step(self, action):
            frame = np.full((16, 16, 3), self.shade + action, np.uint8)
            return frame, 0.0, False, False, {}
"""
FACTORY = """
    from agent import SHADE
    from envs import Squares


    def make(more=0):
        from planners import EXTRA  # imports inside the function work too

        return Squares(SHADE + EXTRA + more)
"""
OWN = ("envs", "envs.squares", "planners", "agent")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a user's project whose modules have the names of our packages."""
    files = {
        "envs/__init__.py": "from envs.squares import Squares",
        "envs/squares.py": ENVIRONMENT,
        "planners/__init__.py": "EXTRA = 3",
        "agent.py": "SHADE = 40",
        "my_env.py": FACTORY,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    for name in OWN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in OWN:
        sys.modules.pop(name, None)


def first_shade(factory, **kwargs):
    env = make(GymConfig(factory=factory, size=16, kwargs=kwargs), 2)
    assert env.frames().shape == (2, 3, 16, 16)
    assert len(np.unique(env.frames())) == 1
    return int(env.frames()[0, 0, 0, 0])


def test_factory_file_imports_the_users_packages(project):
    before = list(sys.path)
    assert first_shade(f"{project}/my_env.py:make") == 43
    assert first_shade(f"{project}/my_env.py:make", more=7) == 50
    assert sys.path == before
    assert sys.modules["envs"].__file__ == str(project / "envs" / "__init__.py")


def test_factory_file_leaves_our_packages_alone(project):
    first_shade(f"{project}/my_env.py:make")
    assert make is sys.modules["lssvwm.envs"].make
    assert not hasattr(sys.modules["lssvwm.envs"], "Squares")


def test_factory_path_starts_at_the_current_directory(project, monkeypatch):
    monkeypatch.chdir(project)
    assert first_shade("my_env.py:make") == 43
    assert first_shade("./my_env.py:make") == 43


def test_factory_path_expands_the_home_directory(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    assert first_shade("~/my_env.py:make") == 43


def test_factory_file_is_imported_once(project):
    (project / "counted.py").write_text("made = []\ndef make(): return made\n")
    first = load_factory(f"{project}/counted.py:make")()
    assert load_factory(f"{project}/counted.py:make")() is first


def test_factory_file_that_fails_is_forgotten(project):
    path = project / "broken.py"
    path.write_text("import no_such_module_here\n")
    with pytest.raises(ValueError, match=r"No module named 'no_such_module_here'"):
        load_factory(f"{path}:make")
    path.write_text("def make(): return 5\n")
    assert load_factory(f"{path}:make")() == 5


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("json", '"package.module:callable" or "path/to/file.py:callable"'),
        ("jsonn:loads", "No module named 'jsonn'"),
        ("json:load_s", "has no 'load_s'; did you mean 'loads'"),
        ("no/such/file.py:make", "there is no file .*no/such/file.py"),
    ],
)
def test_factory_mistakes_are_named(factory, message):
    with pytest.raises(ValueError, match=message):
        load_factory(factory)


def test_factory_file_mistakes_are_named(project):
    with pytest.raises(ValueError, match="has no 'mak'; did you mean 'make'"):
        load_factory(f"{project}/my_env.py:mak")
