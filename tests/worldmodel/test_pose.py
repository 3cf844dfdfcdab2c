"""Test models of given poses, and of frames conditioned on a pose."""

import pytest
import torch
from lssvwm.worldmodel import Batch, RolloutPolicy
from lssvwm.worldmodel.data import Trajectory

USES = ["keys", "condition"]


def draw_poses(batch: int, frames: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("use", USES)
def test_given_poses_are_the_same_in_pieces(use, tiny, sequences, delta_config):
    model = tiny(pose="given", pose_use=use, mixer=delta_config((3, 1)))
    frames, action, first = sequences()
    pose = draw_poses(2, 13)
    whole, heads = model.observe(model.initial(2), frames, action, first, pose=pose)
    memory = model.initial(2)
    rewards = []
    for inputs in zip(*(x.split([5, 1, 7], 1) for x in (frames, action, first, pose))):
        memory, found = model.observe(memory, *inputs[:3], pose=inputs[3])
        rewards.append(found.reward)
    assert whole.diff(memory).max() < 1e-8
    assert torch.allclose(torch.cat(rewards, 1), heads.reward)


@pytest.mark.parametrize("use", USES)
def test_imagined_frames_read_their_pose(use, tiny, sequences):
    model = tiny(pose="given", pose_use=use)
    frames, action, first = sequences()
    memory, _ = model.observe(
        model.initial(2), frames, action, first, pose=draw_poses(2, 13)
    )
    actions = torch.zeros(2, 2, 3, dtype=torch.int64)
    pose = draw_poses(4, 3).view(2, 2, 3, 3)
    rollout = model.imagine(memory, RolloutPolicy.along(actions, pose))
    same = model.imagine(memory, RolloutPolicy.along(actions, pose.flip(1)))
    assert torch.allclose(rollout.reward, same.reward.flip(1))
    assert (rollout.reward[:, 0] - rollout.reward[:, 1]).abs().max() > 1e-6
    # the first imagined frame equals a masked frame of a sequence at its pose
    blank = model.embedding.blank(2, 1)[:, :, None]
    none = torch.zeros(2, 1, dtype=torch.bool)
    trajectory = Trajectory(actions[:, 0, :1], none, none, pose=pose[:, 0, :1])
    x = model.run(blank, torch.zeros_like(blank[..., 0, 0]), trajectory, memory).tokens
    assert torch.allclose(model.heads(x[:, 0, 0]).reward, rollout.reward[:, 0, 0])


def test_missing_pose_is_named(tiny, sequences):
    model = tiny(pose="given")
    frames, action, first = sequences()
    with pytest.raises(ValueError, match=r"model\.pose=given needs the pose"):
        model.observe(model.initial(2), frames, action, first)


def test_loss_trains_on_given_poses(tiny, sequences):
    model = tiny(torch.float32, pose="given", pose_use="condition").train()
    frames, action, first = sequences()
    never = torch.zeros_like(first)
    batch = Batch(
        frames, action, first.float(), never, never, first, draw_poses(2, 13).float()
    )
    loss, _, _ = model.loss(batch)
    loss.backward()
    assert model.pose_embed is not None
    assert model.pose_embed.out.weight.grad.abs().max() > 0
