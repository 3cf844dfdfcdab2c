"""Test the interface that all environments share, mixtures of explorers, and `make`."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from lssvwm.envs import (
    CountingConfig,
    GymConfig,
    MiniGridConfig,
    ScavengeConfig,
    TMazeConfig,
    make,
)
from lssvwm.envs.base import Mixture
from lssvwm.envs.maze.layout import STAY
from lssvwm.envs.torchrl_env import TorchRLEnv
from pydantic import TypeAdapter, ValidationError
from torchrl.envs.utils import check_env_specs

from lssvwm import envs

PICTURES = f"{Path(__file__).with_name('picture_env.py')}:PictureEnv"
CONFIGS = [
    CountingConfig(),
    MiniGridConfig(max_steps=9),
    GymConfig(factory=PICTURES, size=32),
]


def by_kind(config):
    return config.kind


@pytest.mark.parametrize("config", CONFIGS, ids=by_kind)
def test_torchrl_accepts_the_environment(config):
    check_env_specs(TorchRLEnv(config.build(2), seed=1))


@pytest.mark.parametrize("config", CONFIGS, ids=by_kind)
def test_ended_slot_stays_until_it_is_reset(config, start):
    env = start(config, 2)
    random = env.explorer("random", 0)
    for _ in range(9):
        step = env.step(random.act())
    assert (step.terminated ^ step.truncated).all()
    frames, action = env.frames(), env.last_action()
    again = env.step(random.act())
    assert (again.reward == 0).all()
    assert (again.terminated == step.terminated).all()
    assert (again.truncated == step.truncated).all()
    assert (env.frames() == frames).all()
    assert (env.last_action() == action).all()
    env.reset(np.array([1]), np.array([5]))
    after = env.step(np.zeros(2, np.int64))
    assert (after.terminated | after.truncated).tolist() == [True, False]
    assert env.episode.tolist() == [1, 2]


@pytest.mark.parametrize("config", CONFIGS[1:], ids=by_kind)
def test_episode_depends_on_its_seed_alone(config, start):
    one, many = start(config, [7]), start(config, 3)
    many.step(np.zeros(3, np.int64))
    many.reset(np.array([2]), np.array([7]))
    for _ in range(3):
        assert (one.frames()[0] == many.frames()[2]).all()
        one.step(np.full(1, 1))
        many.step(np.full(3, 1))


@pytest.mark.parametrize("kind", envs.ENV_CONFIGS)
def test_walks_depend_on_the_episode_alone(kind, start):
    """Give two explorers the same seed; one sees the episode between two others."""
    if kind == "memorygym":
        pytest.importorskip("memory_gym")
    if kind == "memorymaze":
        pytest.skip("its simulators are slow to build: see its own tests")
    pictures = {"gym": GymConfig(factory=PICTURES, size=32)}
    config = pictures.get(kind) or envs.ENV_CONFIGS[kind]()
    for name in start(config, 1).explorers:
        one, many = start(config, [7]), start(config, [5, 7, 6])
        alone, among = one.explorer(name, 3), many.explorer(name, 3)
        for _ in range(12):
            action, actions = alone.act(), among.act()
            assert (action[0] == actions[1]).all()
            one.step(action)
            many.step(actions)


@pytest.mark.parametrize("config", CONFIGS, ids=by_kind)
def test_unknown_explorer_error_lists_known_ones(config):
    with pytest.raises(ValueError, match=r"no explorer 'rando'; it has random, noop"):
        config.build(1).explorer("rando", 0)


@pytest.mark.parametrize("kind", envs.ENV_CONFIGS)
def test_config_survives_plain_data(kind):
    config_type = envs.ENV_CONFIGS[kind]
    config = config_type()
    assert config.kind == kind
    plain = dataclasses.asdict(config)
    assert TypeAdapter(config_type).validate_python(plain) == config
    assert config_type(**plain) == config


@pytest.mark.parametrize("kind", envs.ENV_CONFIGS)
def test_config_refuses_unknown_settings(kind):
    with pytest.raises(ValidationError, match="lenght"):
        envs.ENV_CONFIGS[kind](lenght=3)


@pytest.mark.parametrize("kind", envs.ENV_CONFIGS)
def test_config_describes_every_setting(kind):
    fields = envs.ENV_CONFIGS[kind].__pydantic_fields__
    assert all(field.description for field in fields.values())


def test_make_refuses_anything_but_a_configuration():
    with pytest.raises(TypeError, match="tmaze"):
        make("tmaze", 1)
    with pytest.raises(ValueError, match="batch"):
        make(TMazeConfig(), 0)


def test_mixture_keeps_one_explorer_per_episode(start):
    env = start(ScavengeConfig(n=7, objects=2, steps=30), 64)
    mixture = Mixture(env, {"noop": 1.0, "momentum": 1.0}, seed=0)
    acted = np.stack([mixture.act() for _ in range(10)])
    noop = (acted == STAY).all(0)
    assert 16 < noop.sum() < 48
    assert not (acted[:, ~noop] == STAY).any()


def test_mixture_refuses_weights_without_odds(start):
    env = start(ScavengeConfig(n=7, objects=2, steps=30), 64)
    with pytest.raises(ValueError, match="weights"):
        Mixture(env, {"noop": 0.0}, seed=0)
