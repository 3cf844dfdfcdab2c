"""Test that the motion model learns steps from poses, and how sure it is of them."""

import math

import pytest
import torch
from lssvwm.worldmodel import Batch, memory_map, motion
from lssvwm.worldmodel.mixers.base import SequenceInputs
from lssvwm.worldmodel.motion import MotionModel, steps_between


def rolling_walks(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Return actions [B, T, 3], frames [B, T, 1, 1] and poses of a ball that rolls on.

    Actions: push ahead, rest. Half of the pushes fail; only frames show which.
    """
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 2, (batch, length), generator=g)
    works = torch.rand(batch, length, generator=g) < 0.5
    action = torch.nn.functional.one_hot(chosen, 3).float()
    speed = torch.zeros(batch)
    speeds = []
    for t in range(length):
        speed = 0.5 * speed + ((chosen[:, t] == 0) & works[:, t])
        speeds.append(speed)
    shown = torch.stack(speeds, 1)
    place = shown.cumsum(1)
    pose = torch.stack((torch.zeros_like(place), place, torch.zeros_like(place)), -1)
    return action, shown[..., None, None], pose


def inputs(action: torch.Tensor, writes: torch.Tensor) -> SequenceInputs:
    reset = torch.zeros_like(writes)
    return SequenceInputs(action, writes, reset, visible=writes, seen=action)


def test_learned_steps_follow_a_rolling_ball():
    torch.manual_seed(0)
    model = MotionModel(width=1, tokens=1, actions=3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    never = torch.zeros(16, 24, dtype=torch.bool)
    for step in range(150):
        action, x, pose = rolling_walks(16, 24, step)
        found, _ = model(x[:, :, None], inputs(action, ~never), model.initial(16, x))
        loss, _ = motion.loss(found, pose, never)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    action, x, pose = rolling_walks(16, 24, 10_000)
    found, memory = model(x[:, :, None], inputs(action, ~never), model.initial(16, x))
    true = steps_between(pose)[..., 1]
    corrected = (found.corrected.mean[:, 1:, 1] - true).abs().mean()
    predicted = (found.predicted.mean[:, 1:, 1] - true).abs().mean()
    assert corrected < 0.15 < 0.2 < predicted  # whether a push failed is seen later
    _, blind = model(x[:, :, None], inputs(action, never), model.initial(16, x))
    assert (blind["variance"] > 4 * memory["variance"]).float().mean() > 0.6


def test_steps_are_seen_from_the_new_heading():
    pose = torch.tensor(
        [[[0.0, 0.0, 0.0], [math.pi / 2, 0.0, 2.0], [2 * math.pi, 0.0, 2.0]]]
    )
    steps = steps_between(pose)
    assert torch.allclose(steps[0, 0], torch.tensor([math.pi / 2, 2.0, 0.0]), atol=1e-6)
    assert torch.allclose(
        steps[0, 1], torch.tensor([-math.pi / 2, 0.0, 0.0]), atol=1e-6
    )


@pytest.mark.parametrize("given", [True, False], ids=["poses", "frames"])
def test_poses_or_frames_train_the_motion_model(given, tiny, sequences, delta_config):
    model = tiny(torch.float32, pose="learned", mixer=delta_config((3, 1))).train()
    frames, action, first = sequences()
    never = torch.zeros_like(first)
    pose = torch.randn(2, 13, 3) if given else None
    batch = Batch(frames, action, first.float(), never, never, first, pose)
    loss, metrics, memory = model.loss(batch)
    loss.backward()
    assert ("loss/motion" in metrics) == given
    assert model.motion is not None
    last = model.motion.predict[-1].weight.grad
    assert last[:3].abs().max() > 0
    assert memory_map.pose_std(model, memory).shape == (2, 3)
