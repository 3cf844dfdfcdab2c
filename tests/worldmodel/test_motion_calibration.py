"""Odometers: found from frames alone, and summed up like the maze's own poses."""

import math

import numpy as np
import pytest
import torch
from lssvwm.envs import MiniGridConfig, PointMazeConfig, ReturnConfig, TMazeConfig, make
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel
from lssvwm.worldmodel.motion_calibration import calibrate


def walks(config, explorer="cells", slots=32, length=40):
    env = make(config, slots, 0)
    walker, frames, actions, first, fresh = (
        env.explorer(explorer, 0),
        [],
        [],
        [],
        np.ones(slots, bool),
    )
    for t in range(length):
        frames.append(env.frames().copy())
        actions.append(env.last_action())
        first.append(fresh)
        step = env.step(walker.act())
        fresh = step.terminated | step.truncated
        env.reset(np.flatnonzero(fresh), np.flatnonzero(fresh) + slots * (t + 1))
    zeros = torch.zeros(slots, length)
    pixels, action, is_first = (
        torch.from_numpy(np.stack(v, 1)) for v in (frames, actions, first)
    )
    return Batch(pixels, action, zeros, is_first & False, is_first & False, is_first)


@pytest.mark.parametrize(
    ("config", "actions", "patch"),
    [
        (ReturnConfig(tour=100), 4, 22),
        (TMazeConfig(length=8), 4, 22),
        (MiniGridConfig(id="MiniGrid-MemoryS13-v0", view=3, tile=21, frame=63), 3, 21),
    ],
)
def test_frames_tell_how_actions_move_the_view(config, actions, patch):
    batch = walks(config)
    model = WorldModel(
        ModelConfig(patch=patch, width=16), tuple(batch.pixels.shape[2:]), actions
    )
    motions = calibrate(model, batch)
    assert (
        motions[0] == (-90, 0, 0)
        and motions[1] == (90, 0, 0)
        and motions[2] == (0, 1, 0)
    )
    turns = model.layers[0].mixer.path_integrator.action.weight[0]
    assert torch.allclose(turns[:3], torch.tensor([-math.pi / 2, math.pi / 2, 0.0]))
    assert all(block.mixer.path_integrator.known[:3].all() for block in model.layers)
    for odometer in (
        block.mixer.path_integrator for block in model.layers
    ):  # where an episode begins, nothing moves
        assert odometer.known[-1] and not odometer.action.weight[:, -1].any()


@pytest.mark.parametrize(
    ("view", "explorer"),
    [("around", "walk"), ("around", "momentum"), ("above", "walk")],
)
def test_pictures_tell_how_continuous_actions_move_the_view(view, explorer):
    """Seen from above, it is the dot that moves, not the view; a border that is coloured in the end does not, either,
    nor does a walker who runs into walls."""
    config = PointMazeConfig(view=view, goal="spot", objects=3, tour=60)
    batch, step = walks(config, explorer, slots=16, length=80), 2.0 * (64 - 4) / 30 / 22
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 2, discrete=False)
    motions, known = (
        calibrate(model, batch),
        model.layers[0].mixer.path_integrator.known,
    )
    if view == "above":
        assert not any(map(any, motions.values())) and not known[:2].any()
        assert not model.layers[0].mixer.path_integrator.action.weight[:, :2].any()
    else:  # x is to the right, y down, which is backward
        assert motions[0] == pytest.approx((0, 0, step), abs=0.03 * step) and known[0]
        assert motions[1] == pytest.approx((0, -step, 0), abs=0.03 * step) and known[1]


def test_pictures_too_small_to_tell_are_no_mistake():
    batch = walks(PointMazeConfig(goal="none"), "walk", slots=2, length=5)
    batch.pixels = batch.pixels[..., :6, :6]
    model = WorldModel(ModelConfig(width=16, patch=2), (3, 6, 6), 2, discrete=False)
    assert calibrate(model, batch) == {0: (0, 0, 0), 1: (0, 0, 0)}


def test_standing_still_is_a_motion_too():
    batch = walks(ReturnConfig(tour=100), "stumble")
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    assert (
        calibrate(model, batch)[3] == (0, 0, 0)
        and model.layers[0].mixer.path_integrator.known[3]
    )


def test_what_is_known_is_not_trained_and_the_rest_is():
    model, batch = (
        WorldModel(ModelConfig(width=16), (3, 64, 64), 4).train(),
        walks(ReturnConfig(tour=100), slots=4),
    )
    odometer = model.layers[0].mixer.path_integrator
    odometer.known[:2] = True
    model.loss(batch)[0].backward()
    moved = odometer.action.weight.grad.abs().sum(0) > 0
    assert not moved[:2].any() and moved[2:].any()
    state = model.state_dict()
    del state["blocks.0.mixer.path_integrator.known"]  # weights from before it was kept
    other = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    other.load_state_dict(state)
    assert (
        not other.layers[0].mixer.path_integrator.known.any()
        and "blocks.0.mixer.path_integrator.known" not in state
    )


def test_noise_tells_nothing():
    batch = walks(ReturnConfig())
    batch.pixels = torch.randint(0, 255, batch.pixels.shape, dtype=torch.uint8)
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    assert (
        calibrate(model, batch) == {}
        and not model.layers[0].mixer.path_integrator.known[:-1].any()
    )


def test_pictures_that_actions_do_not_move_tell_nothing():
    """Noise; and an action that comes along with others that do."""
    batch = walks(
        PointMazeConfig(view="around", goal="none"), "walk", slots=4, length=30
    )
    moving, batch.action = batch.action, torch.rand(*batch.action.shape[:2], 3) * 2 - 1
    batch.action[..., :2] = moving
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 3, discrete=False)
    found = calibrate(model, batch)
    assert any(found[0]) and any(found[1]) and not any(found[2])
    assert model.layers[0].mixer.path_integrator.known.tolist() == [
        True,
        True,
        False,
        True,
    ]
    batch.pixels = torch.randint(0, 255, batch.pixels.shape, dtype=torch.uint8)
    assert not any(map(any, calibrate(model, batch).values()))
    assert not model.layers[0].mixer.path_integrator.known[:-1].any()


def test_a_walk_in_a_circle_comes_back_to_the_same_phases():
    model = WorldModel(ModelConfig(width=16), (3, 64, 64), 4)
    odometer = model.layers[1].mixer.path_integrator
    with torch.no_grad():
        odometer.action.weight.zero_()
        odometer.action.weight[0, 0] = -math.pi / 2
        odometer.action.weight[1, 2] = 1.0
    walk = torch.tensor([[0, 2, 0, 2, 0, 2, 0, 2]])
    action = torch.nn.functional.one_hot(walk, 5).float()
    u, write = torch.zeros(1, 8, 1, 1, 1, 16), torch.ones(1, 8, dtype=torch.bool)
    poses, last = odometer(
        u, action, write, torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, 1, 3)
    )
    assert (
        torch.allclose(torch.cos(last - 0.0)[..., 0], torch.ones(1))
        and last[..., 1:].abs().max() < 1e-5
    )
    home = odometer.phases(torch.zeros(1, 1, 3))
    assert torch.allclose(odometer.phases(last).cos(), home.cos(), atol=1e-4)
    assert not torch.allclose(
        odometer.phases(poses[:, 3, 0]).cos(), home.cos(), atol=0.1
    )
