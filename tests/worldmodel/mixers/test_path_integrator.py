"""Test that poses sum up to a closed walk."""

import math

import torch
from lssvwm.worldmodel.mixers.base import MixerContext, SequenceInputs
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator

LEFT, AHEAD = 0, 2

CONTEXT = MixerContext(
    layer=0, width=16, grid=(3, 3), actions=5, pose="integrated", walls=True
)


def test_circular_walk_returns_to_same_phases():
    torch.manual_seed(0)
    integrator = PathIntegrator(CONTEXT, side=3, phases=48)
    with torch.no_grad():
        integrator.action.weight.zero_()
        integrator.action.weight[0, LEFT] = -math.pi / 2
        integrator.action.weight[1, AHEAD] = 1.0
    walk = torch.tensor([[LEFT, AHEAD] * 4])
    action = torch.nn.functional.one_hot(walk, 5).float()
    u = torch.zeros(1, 8, 1, 1, 1, 16)
    writes = torch.ones(1, 8, dtype=torch.bool)
    start = torch.zeros(1, 1, 3)
    frames = SequenceInputs(action, writes, ~writes, writes, seen=u)
    poses, last = integrator(u, frames, start)
    heading, position = last[..., 0], last[..., 1:]
    assert torch.allclose(torch.cos(heading), torch.ones(1))
    assert position.abs().max() < 1e-5
    home = integrator.phases(start)
    away = integrator.phases(poses[:, 3, 0])
    assert torch.allclose(integrator.phases(last).cos(), home.cos(), atol=1e-4)
    assert not torch.allclose(away.cos(), home.cos(), atol=0.1)
