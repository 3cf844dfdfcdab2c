"""Test that frames, rewards and ends equal MiniGrid's own."""

import time

import pytest
from lssvwm.envs.minigrid.env import MiniGridConfig

LOOKS = [
    MiniGridConfig(size=9),
    MiniGridConfig(view=5, tile=12, kwargs={"random_length": True}, size=13),
    MiniGridConfig(id="MiniGrid-DoorKey-6x6-v0", actions=7),
    MiniGridConfig(id="MiniGrid-KeyCorridorS3R2-v0", actions=7),
    MiniGridConfig(id="MiniGrid-MultiRoom-N4-S5-v0", actions=7),
    MiniGridConfig(id="MiniGrid-ObstructedMaze-1Dlhb-v0", actions=7),
    MiniGridConfig(id="MiniGrid-Dynamic-Obstacles-6x6-v0"),
    MiniGridConfig(id="MiniGrid-LavaCrossingS9N2-v0", view=9, tile=7),
    MiniGridConfig(id="MiniGrid-FourRooms-v0"),
    MiniGridConfig(id="MiniGrid-Empty-8x8-v0", view=3, tile=8),
    MiniGridConfig(id="BabyAI-GoToLocal-v0", actions=7),
]


@pytest.mark.parametrize("config", LOOKS, ids=lambda config: config.id)
def test_minigrid_equals_minigrid_bit_for_bit(config, start, twin):
    env, other = start(config, [10, 11]), twin(config)
    pixels = config.view * config.tile
    explorer = env.explorer("momentum" if config.actions == 7 else "random", 1)
    expected, _ = other.reset(seed=11)
    for _ in range(60):
        frame = env.frames()[1]
        image = expected["image"].transpose(2, 0, 1)
        assert (frame[:, :pixels, :pixels] == image).all()
        assert not frame[:, pixels:].any()
        assert not frame[:, :, pixels:].any()
        action = explorer.act()
        step = env.step(action)
        expected, reward, terminated, truncated, _ = other.step(action[1])
        assert step.reward[1] == (1 if terminated and reward > 0 else reward)
        assert (step.terminated[1], step.truncated[1]) == (terminated, truncated)
        if terminated or truncated:
            break


@pytest.mark.slow
def test_minigrid_speed(start):
    env = start(MiniGridConfig(size=17, max_steps=10_000), 16)
    noop = env.explorer("noop", 0)
    began = time.perf_counter()
    for _ in range(200):
        env.step(noop.act())
        env.frames()
    assert 200 * 16 / (time.perf_counter() - began) > 5_000
