"""Test that the motions of actions are found from frames alone."""

import math

import numpy as np
import pytest
import torch
from lssvwm.envs import (
    MiniGridConfig,
    PointMazeConfig,
    RecallConfig,
    ReturnConfig,
    TMazeConfig,
    make,
)
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel
from lssvwm.worldmodel.migration import migrate_weights
from lssvwm.worldmodel.motion_calibration import calibrate


def walks(config, explorer="cells", slots=32, length=40):
    env = make(config, slots, 0)
    walker = env.explorer(explorer, 0)
    frames, actions, first = [], [], []
    begins = np.ones(slots, bool)
    for t in range(length):
        frames.append(env.frames().copy())
        actions.append(env.last_action())
        first.append(begins)
        step = env.step(walker.act())
        begins = step.terminated | step.truncated
        env.reset(np.flatnonzero(begins), np.flatnonzero(begins) + slots * (t + 1))
    zeros = torch.zeros(slots, length)
    pixels, action, is_first = (
        torch.from_numpy(np.stack(v, 1)) for v in (frames, actions, first)
    )
    return Batch(pixels, action, zeros, is_first & False, is_first & False, is_first)


def integrators(model: WorldModel):
    return [block.mixer.path_integrator for block in model.layers]


@pytest.mark.parametrize(
    ("config", "actions", "patch"),
    [
        (ReturnConfig(tour=100), 4, 22),
        (TMazeConfig(length=8), 4, 22),
        (MiniGridConfig(id="MiniGrid-MemoryS13-v0", view=3, tile=21, frame=63), 3, 21),
    ],
)
def test_calibrate_finds_discrete_motions(config, actions, patch):
    batch = walks(config)
    model = WorldModel(
        ModelConfig(patch=patch, width=16), tuple(batch.pixels.shape[2:]), actions
    )
    motions = calibrate(model, batch)
    assert motions[0] == (-90, 0, 0)
    assert motions[1] == (90, 0, 0)
    assert motions[2] == (0, 1, 0)
    turns = integrators(model)[0].action.weight[0]
    assert torch.allclose(turns[:3], torch.tensor([-math.pi / 2, math.pi / 2, 0.0]))
    for integrator in integrators(model):
        assert integrator.known[:3].all()
        # an episode's first frame has no motion
        assert integrator.known[-1] and not integrator.action.weight[:, -1].any()


def test_calibrate_finds_that_staying_moves_nothing():
    """Few frames change around it: where it becomes dark, and light again."""
    batch = walks(RecallConfig(n=7, objects=2, tour=12, delay=16), slots=32, length=60)
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    assert calibrate(model, batch)[3] == (0, 0, 0)
    for integrator in integrators(model):
        assert integrator.known[3] and not integrator.action.weight[:, 3].any()


@pytest.mark.parametrize(
    ("view", "explorer"),
    [("around", "walk"), ("around", "momentum"), ("above", "walk")],
)
def test_calibrate_finds_continuous_motions(view, explorer):
    """Check that only the view counts.

    Seen from above, the dot moves and the view does not. Neither do a border that changes colour at the end, and a
    walker that pushes against walls.
    """
    config = PointMazeConfig(view=view, goal="spot", objects=3, tour=60)
    batch = walks(config, explorer, slots=16, length=80)
    step = 2.0 * (64 - 4) / 30 / 22
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 2, discrete=False)
    motions = calibrate(model, batch)
    integrator = integrators(model)[0]
    if view == "above":
        assert not any(map(any, motions.values()))
        assert not integrator.known[:2].any()
        assert not integrator.action.weight[:, :2].any()
    else:  # x is to the right, y down, which is backward
        assert motions[0] == pytest.approx((0, 0, step), abs=0.03 * step)
        assert motions[1] == pytest.approx((0, -step, 0), abs=0.03 * step)
        assert integrator.known[0] and integrator.known[1]


def test_calibrate_accepts_tiny_frames():
    batch = walks(PointMazeConfig(goal="none"), "walk", slots=2, length=5)
    batch.pixels = batch.pixels[..., :6, :6]
    model = WorldModel(ModelConfig(width=16, patch=2), (3, 6, 6), 2, discrete=False)
    assert calibrate(model, batch) == {0: (0, 0, 0), 1: (0, 0, 0)}


def test_calibrate_finds_standing_still():
    batch = walks(ReturnConfig(tour=100), "stumble")
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    assert calibrate(model, batch)[3] == (0, 0, 0)
    assert integrators(model)[0].known[3]


def test_known_motions_are_not_trained():
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4).train()
    batch = walks(ReturnConfig(tour=100), slots=4)
    integrator = integrators(model)[0]
    integrator.known[:2] = True
    model.loss(batch)[0].backward()
    moved = integrator.action.weight.grad.abs().sum(0) > 0
    assert not moved[:2].any() and moved[2:].any()


def test_format1_weights_without_known_motions_load():
    model, other = (WorldModel(ModelConfig(width=16), (3, 64, 64), 4) for _ in range(2))
    integrators(other)[0].known[:2] = True
    state = model.state_dict()
    name = "blocks.0.mixer.path_integrator.known"
    del state[name]  # the first releases did not save it
    other.load_state_dict(migrate_weights(state, other.state_dict(), 1))
    assert not integrators(other)[0].known.any()
    assert name not in state


def test_calibrate_finds_nothing_in_noise():
    batch = walks(ReturnConfig())
    batch.pixels = torch.randint(0, 255, batch.pixels.shape, dtype=torch.uint8)
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    assert calibrate(model, batch) == {}
    assert not integrators(model)[0].known[:-1].any()


def test_calibrate_ignores_continuous_actions_without_motion():
    """Check an action that accompanies others, and noise."""
    batch = walks(
        PointMazeConfig(view="around", goal="none"), "walk", slots=4, length=30
    )
    moving = batch.action
    batch.action = torch.rand(*moving.shape[:2], 3) * 2 - 1
    batch.action[..., :2] = moving
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 3, discrete=False)
    found = calibrate(model, batch)
    assert any(found[0]) and any(found[1]) and not any(found[2])
    known = integrators(model)[0].known
    assert known.tolist() == [True, True, False, True]
    batch.pixels = torch.randint(0, 255, batch.pixels.shape, dtype=torch.uint8)
    assert not any(map(any, calibrate(model, batch).values()))
    assert not known[:-1].any()
