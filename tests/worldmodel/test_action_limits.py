"""Test that walls clip continuous actions: measured from frames, predicted, integrated."""

import dataclasses

import numpy as np
import pytest
import torch
from lssvwm.envs import PointMazeConfig, make
from lssvwm.worldmodel import (
    Batch,
    Masks,
    Memory,
    ModelConfig,
    WorldModel,
    action_limits,
    imagination,
    memory_map,
)
from lssvwm.worldmodel.imagination import StepOptions
from lssvwm.worldmodel.migration import migrate_weights
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from lssvwm.worldmodel.motion_calibration import calibrate

SPEED = 3.0


def walks(explorer: str, seed: int, slots=16, length=80) -> tuple[Batch, torch.Tensor]:
    """Return sequences, and the true executed fraction of every action."""
    env = make(PointMazeConfig(view="around", goal="none", speed=SPEED), slots)
    env.reset(np.arange(slots), np.arange(slots) + 1000 * seed)
    walker, frames, actions, parts = env.explorer(explorer, seed), [], [], []
    before = env.position.copy()
    for _ in range(length):
        frames.append(env.frames().copy())
        actions.append(env.last_action())
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(((env.position - before) / SPEED / actions[-1]).clip(0, 1))
        before = env.position.copy()
        env.step(walker.act())
    first = torch.zeros(slots, length, dtype=torch.bool)
    first[:, 0] = True
    pixels, action, part = (
        torch.from_numpy(np.stack(v, 1)) for v in (frames, actions, parts)
    )
    return Batch(
        pixels, action, torch.zeros(slots, length), first & False, first & False, first
    ), part


def small(**changes) -> WorldModel:
    torch.manual_seed(0)
    config = ModelConfig(
        **{
            "width": 16,
            "patch": 16,
            "mixer": TiledSSDConfig(tiles=(4, 1), state=16, head_dim=8),
        }
        | changes
    )
    return WorldModel(config, (3, 64, 64), 2, discrete=False)


def test_executed_fraction_is_measured_from_frames():
    model, known = small(), walks("walk", 0)[0]
    calibrate(model, known)
    batch, true = walks("momentum", 1)
    before, after, action = (
        batch.pixels[:, :-1],
        batch.pixels[:, 1:],
        batch.action[:, 1:],
    )
    part, clear = action_limits.executed_fraction(
        *(v.flatten(0, 1) for v in (before, after, action)),
        action_limits.view_shift(model),
    )
    action, true = action.flatten(0, 1).abs(), true[:, 1:].flatten(0, 1)
    confident, free, held = clear > 0, true > 0.99, true < 0.9
    assert (
        confident[action > 0.3].float().mean() > 0.5
        and 0.2 < held[confident].float().mean() < 0.8
    )
    assert ((part - true).abs() * action)[confident & held].mean() < 0.02
    assert (part[confident & free & (action > 0.05)] < 1).float().mean() < 0.08
    few = slice(0, 50)
    # one dimension only; and three, which two directions of the view cannot distinguish
    only, _ = action_limits.executed_fraction(
        before[0, few],
        after[0, few],
        action[few, :1],
        action_limits.view_shift(model)[:, :1],
    )
    assert only.shape == (50, 1)
    three = torch.rand(50, 3)
    assert not action_limits.executed_fraction(
        before[0, few], after[0, few], three, torch.ones(2, 3)
    )[1].any()


def test_limits_are_learned_from_frame_before():
    model = small()
    calibrate(model, walks("walk", 0)[0])
    assert torch.equal(model.action_limits.scale, torch.ones(2))
    batch, (held_out, part) = walks("momentum", 1)[0], walks("momentum", 2)
    model.patches.fit(batch.pixels)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for seed in range(150):
        optimizer.zero_grad()
        tokens = model.embedding.frames(model.patches.patchify(batch.pixels))
        action_limits.loss(
            model, tokens, batch, torch.Generator().manual_seed(seed)
        ).backward()
        optimizer.step()
    with torch.no_grad():
        limits = model.action_limits(
            model.embedding.frames(model.patches.patchify(held_out.pixels))
        )[:, :-1]
    action, part = held_out.action[:, 1:], part[:, 1:]
    wrong = (action_limits.clipped(action, limits) - part * action).abs()
    free, held = part > 0.99, part < 0.9
    assert (
        wrong[free].mean() < 0.08
        and wrong[held].mean() < 0.15
        and action[held].abs().mean() > 0.5
    )


def test_unknown_motion_has_no_limits_and_no_loss():
    model, (batch, _) = small(), walks("momentum", 0, slots=2, length=6)
    tokens = model.embedding.frames(model.patches.patchify(batch.pixels))
    assert float(action_limits.loss(model, tokens, batch)) == 0
    memory, _ = model.observe(
        model.initial(2), batch.pixels, batch.action, batch.is_first
    )
    assert memory.action_limits.isinf().all()
    calibrate(model, walks("walk", 0)[0])
    memory, _ = model.observe(
        model.initial(2), batch.pixels, batch.action, batch.is_first
    )
    assert (
        torch.isfinite(memory.action_limits).all() and (memory.action_limits > 3).all()
    )  # large until training finds walls


@pytest.fixture
def walled() -> WorldModel:
    """Return a model with known motions, and walls in all frames."""
    model = small().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.dim() > 1 else 0)
        for block in model.layers:
            integrator = block.mixer.path_integrator
            integrator.action.weight[:, :2] = torch.tensor(
                [[0.0, 0.0], [0.0, -0.4], [0.4, 0.0]]
            )
            integrator.known[:2] = True
        model.action_limits.layers[-1].bias.fill_(-0.5)
    return model


def test_clipped_limits_both_directions_of_each_axis():
    limits = torch.tensor([0.3, 5.0, 0.2, 0.7])  # down along x and y, up along x and y
    for action, led in (
        ((0.5, 0.5), (0.2, 0.5)),
        ((-0.5, 0.9), (-0.3, 0.7)),
        ((0.1, -1.0), (0.1, -1.0)),
    ):
        assert torch.equal(
            action_limits.clipped(torch.tensor(action), limits), torch.tensor(led)
        )


def test_limits_agree_in_observation_and_imagination(walled, tmp_path):
    (batch, _), parts = walks("momentum", 0, slots=2, length=9), (4, 5)
    frames, action, first = batch.pixels, batch.action.double(), batch.is_first
    whole, _ = walled.observe(walled.initial(2), frames, action, first)
    memory = walled.initial(2)
    for piece in zip(*(v.split(parts, 1) for v in (frames, action, first))):
        memory, _ = walled.observe(memory, *piece)
    assert whole.diff(memory).max() < 1e-9 and (whole.action_limits < 1).any()
    pose = memory_map.agent_pose(walled, whole)
    assert (
        pose[:, 1:].abs() < 0.4 * action.abs().sum(1).flip(-1) - 0.1
    ).any()  # something was clipped
    memory.write(tmp_path / "memory.safetensors")
    memory = Memory.read(tmp_path / "memory.safetensors")
    assert whole.diff(memory).max() < 1e-9
    future = torch.rand(2, 1, 5, 2, dtype=torch.float64) * 2 - 1
    imagined = walled.imagine(memory, future, decode=True)
    for h in range(5):
        readout, memory, frames = imagination.imagine_one(
            walled, memory, future[:, 0, h], decode=True
        )
        assert torch.equal(frames, imagined.frames[:, 0, h])
        assert torch.allclose(readout.reward, imagined.reward[:, 0, h], atol=1e-9)
    assert torch.allclose(
        memory_map.predicted_routes(walled, whole, future)[:, 0, -1],
        memory_map.agent_pose(walled, memory),
        atol=1e-9,
    )


def test_hidden_frames_give_no_limits(walled):
    batch, _ = walks("momentum", 0, slots=2, length=6)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[:, 3:5] = True
    other = batch.pixels.clone()
    other[:, 3:5] = 255 - other[:, 3:5]
    first, second = (
        walled.observe(
            walled.initial(2), frames, batch.action.double(), batch.is_first, hidden
        )[0]
        for frames in (batch.pixels, other)
    )
    assert torch.equal(first.action_limits, second.action_limits)
    assert torch.equal(
        memory_map.agent_pose(walled, first), memory_map.agent_pose(walled, second)
    )


def test_every_forcing_trains_limits(walled):
    model, (batch, _) = walled.float().train(), walks("momentum", 0, slots=4, length=24)
    hidden, forget = torch.rand(2, 4, 24) < 0.1
    masks = Masks(hidden, state_reset=forget)
    for forcing in ("teacher", "diffusion"):
        model.config = dataclasses.replace(
            model.config, forcing=forcing, self_forcing_prob=0.3
        )
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            total, metrics, memory = model.loss(batch[:12], masks=masks[:12])
            more, _, memory = model.loss(
                batch[12:],
                memory,
                masks=masks[12:],
            )
        (total + more).backward()
        assert metrics["loss/action_limits"] > 0 and memory.action_limits.shape == (
            4,
            4,
        )
        assert all(
            torch.isfinite(p.grad).all()
            for p in model.parameters()
            if p.grad is not None
        )
        assert model.action_limits.layers[0].weight.grad.abs().sum() > 0


def test_selected_candidates_keep_limits(walled):
    batch, _ = walks("momentum", 0, slots=2, length=6)
    memory, _ = walled.observe(
        walled.initial(2), batch.pixels, batch.action.double(), batch.is_first
    )
    state = imagination.start(walled, memory, 3, 2)
    which = torch.tensor([[2, 0], [1, 1]])
    first, second = torch.rand(2, 2, 3, 2, dtype=torch.float64) * 2 - 1
    sampled = StepOptions(2, generator=torch.Generator().manual_seed(0))
    imagination.step(walled, state, first, sampled)
    left = state.action_limits
    imagination.select(state, which)
    assert torch.equal(
        state.action_limits, torch.stack([left[i, w] for i, w in enumerate(which)])
    )
    assert torch.isfinite(
        imagination.step(walled, state, second[:, :2])[0].reward
    ).all()


def test_format1_weights_without_limits_load():
    model = small()
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("action_limits")
    }
    for i, tile in enumerate((4, 1)):
        state[f"blocks.{i}.mixer.path_integrator.frame.weight"] = torch.zeros(
            4, 16 * tile**2
        )
        state[f"blocks.{i}.mixer.path_integrator.frame.bias"] = torch.zeros(4)
    other = small()
    other.load_state_dict(migrate_weights(state, other.state_dict(), 1))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.action_limits.parameters(), other.action_limits.parameters()
        )
    )
    half = {
        name: value
        for name, value in model.state_dict().items()
        if name != "action_limits.layers.0.bias"
    }
    with pytest.raises(RuntimeError, match="layers"):
        other.load_state_dict(migrate_weights(half, other.state_dict(), 1))
