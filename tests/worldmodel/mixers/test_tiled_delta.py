"""Test that the delta rule's memory does not fade, and that its write gate closes."""

import pytest
import torch
from lssvwm.worldmodel import ModelConfig, WorldModel
from lssvwm.worldmodel.data import Trajectory
from lssvwm.worldmodel.mixers.tiled import WriteGate, write_strength
from lssvwm.worldmodel.mixers.tiled_delta import TiledDeltaConfig


@torch.no_grad()
def test_looking_at_the_same_view_keeps_the_state(tiny, sequences, delta_config):
    model = tiny(mixer=delta_config((1, 3, 1)))
    for integrator in model.path_integrators:
        integrator.set_motion(0, (0.0, 0.0, 0.0))
    frames, action, first = sequences(length=13)
    memory, _ = model.observe(model.initial(2), frames, action, first)
    last = frames[:, -1:].expand(-1, 500, -1, -1, -1)
    still = torch.zeros(2, 500, dtype=torch.int64)
    never = torch.zeros(2, 500, dtype=torch.bool)
    norms = []
    for _ in range(6):
        memory, _ = model.observe(memory, last, still, never)
        norms.append(_norm(memory.layers["0", "mixer"]))
    assert abs(norms[-1] / norms[0] - 1) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_walking_on_past_the_same_view_keeps_the_state(seed):
    torch.manual_seed(seed)
    config = ModelConfig(mixer=TiledDeltaConfig(), patch=22)
    model = WorldModel(config, (3, 66, 66), 3).eval()
    for integrator in model.path_integrators:
        integrator.set_motion(0, (0.0, 1.0, 0.0))
    frames = torch.randint(0, 256, (1, 1, 3, 66, 66), dtype=torch.uint8)
    corridor = frames.expand(-1, 64, -1, -1, -1)
    ahead = torch.zeros(1, 64, dtype=torch.int64)
    never = torch.zeros(1, 64, dtype=torch.bool)
    memory = model.initial(1)
    norms = []
    for _ in range(16):
        memory, _ = model.observe(memory, corridor, ahead, never)
        norms.append(_norm(memory.layers["0", "mixer"]))
    assert abs(norms[-1] / norms[3] - 1) < 0.1


def _norm(states) -> float:
    found = [value for name, value in states.items() if name != "pose"]
    return float(sum(value.square().sum() for value in found).sqrt())


def test_price_closes_the_write_gate_exactly():
    torch.manual_seed(0)
    gate = WriteGate(8, 1)
    useless = torch.randn(64, 8)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    assert write_strength(gate(useless)).min() > 0
    for _ in range(300):
        optimizer.zero_grad()
        write_strength(gate(useless)).mean().backward()
        optimizer.step()
    assert not write_strength(gate(useless)).any()


@torch.no_grad()
def test_write_gates_look_at_frames_and_not_at_memory(tiny, sequences, delta_config):
    model = tiny(mixer=delta_config((1, 3)))
    memory, _ = model.observe(model.initial(2), *sequences())
    frames, action, first = sequences(seed=2)
    never = torch.zeros_like(first)
    tokens = model.embedding.frames(model.patches.patchify(frames))[:, :, None]
    trajectory = Trajectory(action, never, ~never)
    level = torch.ones_like(tokens[..., 0, 0])
    new, old = (
        model.run(tokens, level, trajectory, start)
        for start in (model.initial(2), memory)
    )
    assert (new.tokens - old.tokens).abs().max() > 1e-6
    assert torch.equal(new.gates, old.gates)
