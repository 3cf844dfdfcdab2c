"""Test that imagination computes what observing would, and leaves the memory as it is."""

import pytest
import torch
from lssvwm.worldmodel import RolloutPolicy, imagination
from lssvwm.worldmodel.imagination import _Frame, _through_blocks
from lssvwm.worldmodel.mixers.base import RolloutInputs
from lssvwm.worldmodel.mixers.tiled_ssd import StateCache, TokenCache


def distinct_prefixes(actions: torch.Tensor, length: int) -> int:
    """Count the prefixes of candidates [B, N, H], in the memory that has most."""
    prefixes = [{tuple(a[:length]) for a in some.tolist()} for some in actions]
    return max(map(len, prefixes))


@pytest.mark.parametrize("choices", [2, 4], ids=["many equal", "most differ"])
def test_imagine_shares_prefixes_without_changing_numbers(
    kind, choices, monkeypatch, tiny, sequences
):
    model = tiny(**kind)
    memory, _ = model.observe(model.initial(2), *sequences())
    g = torch.Generator().manual_seed(0)
    actions = torch.randint(0, choices, (2, 40, 8), generator=g)
    widths = []
    step = imagination.step

    def counted(model, state, action, *rest):
        widths.append(action.shape[1])
        return step(model, state, action, *rest)

    monkeypatch.setattr(imagination, "step", counted)
    shared = model.imagine(memory, actions, decode=True)
    monkeypatch.undo()
    apart = RolloutPolicy(lambda at, _: actions[:, :, at], n=40, horizon=8)
    separate = model.imagine(memory, apart, decode=True)
    distinct = [distinct_prefixes(actions, at + 1) for at in range(8)]
    apart_from = next(at for at in range(8) if distinct[at] > 32)
    assert widths == distinct[:apart_from] + [40] * (8 - apart_from)
    for name in ("actions", "reward", "cont", "value", "policy"):
        a, b = getattr(shared, name), getattr(separate, name)
        assert torch.allclose(a, b, atol=1e-9, rtol=1e-9)
    assert (shared.frames.int() - separate.frames.int()).abs().max() <= 1


def test_rollout_of_true_frames_is_observing(any_tiling, tiny, sequences):
    """The dual form over imagined frames equals the scan over the same frames."""
    model = tiny(**any_tiling)
    frames, action, first = sequences()
    memory, _ = model.observe(
        model.initial(2), frames[:, :8], action[:, :8], first[:, :8]
    )
    _, truth = model.observe(memory, frames[:, 8:], action[:, 8:], first[:, 8:] & False)
    state = imagination.start(model, memory, 3, 5)
    not_first = torch.zeros(2, 3, dtype=torch.bool)
    for t in range(5):
        given = action[:, None, 8 + t].expand(-1, 3)
        numbers = model.embedding.action_numbers(given, not_first)
        true = frames[:, None, 8 + t].expand(-1, 3, -1, -1, -1)
        tokens = model.embedding.frames(model.patches.patchify(true))
        blank = _Frame(model.embedding.blank(2, 3), numbers, 0.0)
        _through_blocks(model, state, [blank])  # changes nothing
        observed = _Frame(tokens, numbers, 1.0)
        x = _through_blocks(model, state, [observed], write=True)
        expected = truth.policy[:, None, t].expand(-1, 3, -1)
        assert torch.allclose(model.heads(x).policy, expected, atol=1e-9)


@torch.no_grad()
def test_rollout_caches_agree_and_the_smaller_is_used(tiny, sequences, ssd_config):
    model = tiny(mixer=ssd_config((1, 3)))
    memory, _ = model.observe(model.initial(2), *sequences())
    before = memory.clone()
    caches = imagination.start(model, memory, 3, 5).caches
    assert isinstance(caches[0].mixer, TokenCache)
    assert isinstance(caches[1].mixer, StateCache)
    for i, layer in enumerate(model.layers):
        shared = memory.layers[str(i)]["mixer"]
        forms = (
            TokenCache(shared, 3, 5 * layer.mixer.side**2),
            StateCache(shared, 3),
        )
        for _ in range(5):
            u = torch.randn(2, 3, 2, 9, 32).double()
            action = torch.rand(2, 3, 2, 5).double()
            for write in (False, True):
                frame = RolloutInputs(action, memory.visible, u[:, :, 0], write)
                a, b = (layer.mixer.rollout_step(u, frame, form) for form in forms)
                assert torch.allclose(a, b, atol=1e-9)
    assert memory.diff(before).max() == 0


@torch.no_grad()
def test_write_and_read_in_one_pass_equal_two_passes(any_tiling, tiny, sequences):
    model = tiny(**any_tiling)
    memory, _ = model.observe(model.initial(2), *sequences())
    actions = torch.randint(0, 4, (2, 3, 6))
    state = imagination.start(model, memory, 3, 6)
    policies = []
    for h in range(6):
        heads, _ = imagination.step(model, state, actions[:, :, h])
        imagination.write(model, state)
        policies.append(heads.policy)
    together = model.imagine(memory, RolloutPolicy.along(actions)).policy
    assert torch.allclose(torch.stack(policies, 2), together, atol=1e-9)


def test_imagine_keeps_memory_and_candidates_apart(kind, tiny, sequences):
    model = tiny(**kind)
    memory, _ = model.observe(model.initial(2), *sequences())
    before, actions = memory.clone(), torch.randint(0, 4, (2, 5, 6))
    many = model.imagine(memory, actions, decode=True)
    assert memory.diff(before).max() == 0
    one = model.imagine(memory[1:], actions[1:, 2:3])
    assert torch.allclose(many.policy[1, 2], one.policy[0, 0], atol=1e-9)
    assert many.frames is not None and many.frames.shape == (2, 5, 6, 3, 24, 24)


def test_imagine_depends_on_what_was_observed(kind, tiny, sequences):
    model = tiny(**kind)
    frames, action, first = sequences()
    changed = frames.clone()
    changed[:, 7] = 255 - changed[:, 7]  # out of reach of local attention
    actions = torch.randint(0, 4, (2, 1, 3))
    found = []
    for shown in (frames, changed):
        memory, _ = model.observe(model.initial(2), shown, action, first)
        found.append(model.imagine(memory, actions).policy)
    assert (found[0] - found[1]).abs().max() > 1e-6


def test_samples_differ_and_repeat_with_the_seed(tiny, sequences):
    model = tiny()
    memory, _ = model.observe(model.initial(2), *sequences())
    actions = torch.zeros(2, 1, 2, dtype=torch.int64)
    draws = []
    for seed in (0, 0, 1):
        g = torch.Generator().manual_seed(seed)
        rollout = model.imagine(
            memory, actions, denoising_steps=3, decode=True, generator=g
        )
        draws.append(rollout.policy)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_policy_rollout_trains_the_heads_only(tiny, sequences):
    model = tiny()
    memory, _ = model.observe(model.initial(2), *sequences())
    policy = RolloutPolicy(
        lambda at, heads: torch.zeros(2, 3, dtype=torch.int64),
        n=3,
        horizon=2,
        heads_only=True,
    )
    model.imagine(memory, policy).value.sum().backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert {name.split(".")[0] for name in trained} == {"heads"}


def test_gradients_flow_through_imagined_frames(kind, tiny, sequences):
    """A graph that in-place changes break would raise here, and would never be freed."""
    model = tiny(**kind)
    memory, _ = model.observe(model.initial(2), *sequences())
    actions = torch.randint(0, 4, (2, 3, 4))
    rollout = model.imagine(memory.detach(), actions)
    rollout.reward[:, :, -1].sum().backward()
    gradient = model.embedding.patch_embed.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
