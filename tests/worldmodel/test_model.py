"""Test that all ways of computing the model agree, and that memory leaks nothing."""

import pytest
import torch
from lssvwm.worldmodel import Batch, Memory, ModelConfig, WorldModel

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def close(a: Memory, b: Memory, dtype: torch.dtype = torch.float64) -> bool:
    return bool(a.diff(b).max() < TOLERANCE[dtype] * 10)


def inverted(frames: torch.Tensor, at: int | slice) -> torch.Tensor:
    """Invert the colours of some frames."""
    changed = frames.clone()
    changed[:, at] = 255 - changed[:, at]
    return changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 8], [2, 1, 7, 3]])
def test_observe_is_the_same_in_pieces(dtype, cuts, kind, tiny, sequences):
    model = tiny(dtype, **kind)
    frames, action, first = sequences()
    whole, heads = model.observe(model.initial(2), frames, action, first)
    memory = model.initial(2)
    policy = []
    pieces = zip(*(x.split(cuts, 1) for x in (frames, action, first)))
    for piece in pieces:
        memory, out = model.observe(memory, *piece)
        policy.append(out.policy)
    assert close(memory, whole, dtype)
    tolerance = TOLERANCE[dtype]
    joined = torch.cat(policy, 1)
    assert torch.allclose(joined, heads.policy, rtol=tolerance, atol=tolerance)
    assert memory.frames.tolist() == whole.frames.tolist() == [13, 8]


def test_observe_resets_memory_at_first_frames(kind, tiny, sequences):
    model = tiny(**kind)
    frames, action, first = sequences()
    memory, heads = model.observe(model.initial(2), frames, action, first)
    second = (x[1:, 5:] for x in (frames, action, first))
    alone, heads_alone = model.observe(model.initial(1), *second)
    assert torch.allclose(heads.policy[1:, 5:], heads_alone.policy, atol=1e-9)
    actions = torch.randint(0, 4, (1, 3, 5))
    a, b = model.imagine(memory[1:], actions), model.imagine(alone, actions)
    assert torch.allclose(a.policy, b.policy, atol=1e-9)


def test_observe_is_causal(kind, tiny, sequences):
    model = tiny(**kind)
    frames, action, first = sequences()
    _, before = model.observe(model.initial(2), frames, action, first)
    _, after = model.observe(model.initial(2), inverted(frames, 9), action, first)
    assert torch.equal(before.policy[:, :9], after.policy[:, :9])
    assert not torch.allclose(before.policy[:, 9:], after.policy[:, 9:])


def test_observe_leaves_no_trace_of_masked_frames(kind, tiny, sequences):
    model = tiny(**kind)
    frames, action, first = sequences()
    changed = inverted(frames, slice(3, 5))
    mask = torch.zeros(2, 13, dtype=torch.bool)
    mask[:, 3:5] = True
    a, heads_a = model.observe(model.initial(2), frames, action, first, mask)
    b, heads_b = model.observe(model.initial(2), changed, action, first, mask)
    assert torch.equal(heads_a.policy[:, 5:], heads_b.policy[:, 5:])
    assert a.diff(b).max() == 0
    c, _ = model.observe(model.initial(2), changed, action, first)
    assert not close(a, c)


def test_loss_writes_the_memory_of_observe(kind, tiny, sequences):
    """Noisy copies never change what clean copies compute."""
    model = tiny(**kind)
    frames, action, first = sequences()
    zeros = torch.zeros(2, 13, dtype=torch.float64)
    batch = Batch(frames, action, zeros, first & False, first & False, first)
    observed, _ = model.observe(model.initial(2), frames, action, first)
    for seed in (0, 1):
        _, _, memory = model.loss(batch, generator=torch.Generator().manual_seed(seed))
        assert close(memory, observed)


def test_loss_carries_memory_across_segments(kind, tiny, sequences, blank_only):
    model = tiny(**kind, rare_colour_power=0.0, pixel_fraction=1.0)
    frames, action, first = sequences()
    zeros = torch.zeros(2, 13, dtype=torch.float64)
    whole = Batch(frames, action, zeros, first & False, first & False, first)
    _, _, memory = model.loss(whole)
    carried = None
    for part in (slice(0, 5), slice(5, 13)):
        _, _, carried = model.loss(whole[part], carried)
    assert carried is not None and close(carried, memory)


def recall_task(n: int, g: torch.Generator) -> Batch:
    """Show a colour, three blank frames, and then a reward that depends on the colour."""
    is_red = torch.rand(n, generator=g) < 0.5
    frames = torch.full((n, 6, 3, 8, 8), 40, dtype=torch.uint8)
    frames[is_red, 0, 0] = 250
    frames[~is_red, 0, 1] = 250
    first = torch.zeros(n, 6, dtype=torch.bool)
    first[:, 0] = True
    reward = torch.zeros(n, 6)
    reward[:, 5] = is_red.float()
    ends = torch.zeros(n, 6, dtype=torch.bool)
    ends[:, 5] = True
    action = torch.zeros(n, 6, dtype=torch.int64)
    return Batch(frames, action, reward, ends, ends & False, first)


def test_loss_trains_the_model_to_recall(ssd_config):
    torch.manual_seed(0)
    config = ModelConfig(
        width=32,
        patch=8,
        mixer=ssd_config((1, 1)),
        attention_heads=2,
        attention_window=2,
    )
    model = WorldModel(config, (3, 8, 8), 2).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(400):
        loss, _, _ = model.loss(recall_task(32, g), generator=g)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    _, metrics, _ = model.eval().loss(recall_task(64, g), generator=g)
    assert metrics["event_accuracy"] > 0.95


def test_model_takes_continuous_actions(ssd_config):
    config = ModelConfig(
        width=32, patch=8, mixer=ssd_config((1,), head_dim=32), attention_heads=2
    )
    model = WorldModel(config, (3, 8, 8), 2, discrete=False)
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    first = torch.tensor([[True, False]])
    memory, heads = model.observe(model.initial(1), frames, torch.zeros(1, 2, 2), first)
    assert heads.policy.shape == (1, 2, 2)
    assert model.imagine(memory, torch.zeros(1, 4, 3, 2)).reward.shape == (1, 4, 3)


def test_model_refuses_tiles_that_do_not_fit(tiny, ssd_config):
    with pytest.raises(ValueError, match="tile 2 does not divide"):
        tiny(mixer=ssd_config((2,)))


def test_activation_checkpointing_gives_the_same_gradient(tiny, sequences, batch_of):
    model = tiny()
    batch = batch_of(*sequences())
    grads = []
    for model.activation_checkpointing in (False, True):
        loss, _, _ = model.loss(batch, generator=torch.Generator().manual_seed(0))
        parameters = list(model.parameters())
        grads.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    pairs = [(a, b) for a, b in zip(*grads) if a is not None]
    assert len(pairs) > 20
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_bf16_training_keeps_poses_and_decays_exact(tiny, sequences, ssd_config):
    model = tiny(torch.float32, mixer=ssd_config(rope_fraction=0.5)).train()
    frames, action, first = sequences(length=200)
    never = first & False
    batch = Batch(frames, action, torch.zeros(2, 200), never, never, first)
    losses, memories = [], []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss, _, memory = model.loss(
                batch, generator=torch.Generator().manual_seed(0)
            )
        loss.backward()
        losses.append(loss.item())
        memories.append(memory.detach())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    exact, rough = (memory.layers for memory in memories)
    for name in exact.keys():  # noqa: SIM118
        one, other = exact[name]["mixer"], rough[name]["mixer"]
        headings = one["pose"][..., 0], other["pose"][..., 0]  # after 200 turns
        assert torch.equal(*headings)
        assert all(kept.dtype == other[key].dtype for key, kept in one.items())
        assert (one["state"] - other["state"]).norm() < 0.05 * one["state"].norm()
