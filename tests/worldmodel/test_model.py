"""Properties of the world model: every way of computing it gives the same numbers, and memory leaks nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lssvwm.worldmodel import Batch, Memory, ModelConfig, WorldModel
from lssvwm.worldmodel import corruption as noise
from lssvwm.worldmodel.heads import lambda_returns
from lssvwm.worldmodel.mixers import attention
from lssvwm.worldmodel.mixers.attention import AttentionConfig
from lssvwm.worldmodel.mixers.gru import GRUConfig
from lssvwm.worldmodel.mixers.tiled_ssd import StateCache, TiledSSDConfig, TokenCache
from lssvwm.worldmodel.prefix_tree import levels
from lssvwm.worldmodel.scan import chunked as ssm
from lssvwm.worldmodel.scan.backends import with_peek
from lssvwm.worldmodel.scan.chunked import ScanInputs

from lssvwm import worldmodel

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def ssd(tiles: tuple[int, ...] = (1, 3, 1), **changes) -> TiledSSDConfig:
    return TiledSSDConfig(**{"tiles": tiles, "state": 16, "head_dim": 16} | changes)


KINDS = {
    "lssvwm": {},
    "mamba2": {"mixer": ssd((3, 3), rope_fraction=0.0), "attention_window": 0},
    "window": {"mixer": AttentionConfig(window=5, heads=2), "attention_window": 0},
    "attention": {"mixer": AttentionConfig(window=30, heads=2), "attention_window": 0},
    "attention_odometer": {
        "mixer": AttentionConfig(window=6, heads=2, path_integration=True),
        "attention_window": 0,
    },
    "gru": {"mixer": GRUConfig(layers=3, state=30)},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request, monkeypatch) -> dict:
    """Settings of a model, ours or a baseline: what holds for one holds for all."""
    monkeypatch.setattr(attention, "SEGMENT", 4)
    return request.param


def tiny(dtype=torch.float64, **changes) -> WorldModel:
    torch.manual_seed(0)
    fields = {
        "width": 32,
        "patch": 8,
        "mixer": ssd(),
        "attention_heads": 2,
    }
    model = WorldModel(ModelConfig(**fields | changes), (3, 24, 24), 4).to(dtype).eval()
    with (
        torch.no_grad()
    ):  # away from the quiet initial weights, so that every path matters
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.dim() > 1 else 0)
    return model


def sequences(b=2, t=13, seed=1):
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (b, t, 3, 24, 24), dtype=torch.uint8, generator=g)
    action = torch.randint(0, 4, (b, t), generator=g)
    first = torch.zeros(b, t, dtype=torch.bool)
    first[:, 0] = True
    first[1, 5] = True
    return frames, action, first


@pytest.mark.parametrize("few", [2, 4], ids=["many alike", "most differ"])
def test_beginnings_that_candidates_share_are_imagined_once_and_give_the_same_numbers(
    kind, few, monkeypatch
):
    model, (frames, action, first) = tiny(**kind), sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    actions = torch.randint(
        0, few, (2, 40, 8), generator=torch.Generator().manual_seed(0)
    )
    widths, step = [], model.step
    monkeypatch.setattr(
        model,
        "step",
        lambda fork, action, **rest: (
            widths.append(action.shape[1]) or step(fork, action, **rest)
        ),
    )
    shared = model.imagine(memory, actions, decode=True)
    monkeypatch.undo()
    apart = model.imagine(memory, actions, decode=True, share=False)
    distinct = [
        max(len({tuple(a[: h + 1]) for a in some.tolist()}) for some in actions)
        for h in range(8)
    ]
    apart_from = next(
        h for h in range(8) if distinct[h] > 32
    )  # then nothing is saved any more
    assert widths == distinct[:apart_from] + [40] * (8 - apart_from)
    for name in ("actions", "reward", "cont", "value", "policy"):
        assert torch.allclose(
            getattr(shared, name), getattr(apart, name), atol=1e-9, rtol=1e-9
        )
    assert (shared.frames.int() - apart.frames.int()).abs().max() <= 1


def test_the_tree_of_candidates_holds_every_candidate():
    for seed in range(5):
        actions = torch.randint(
            0, 3, (3, 20, 5), generator=torch.Generator().manual_seed(seed)
        )
        actions[1] = actions[1, :1]  # all alike
        path = torch.zeros(3, 1, 0, dtype=torch.int64)
        for h, level in enumerate(levels(actions, 3)):
            path = (
                path
                if level.parents is None
                else path.gather(1, level.parents[..., None].expand(-1, -1, h))
            )
            path = torch.cat([path, level.action[..., None]], 2)
            whole = path.gather(1, level.of[..., None].expand(-1, -1, h + 1))
            assert torch.equal(whole, actions[:, :, : h + 1])


def close(a: Memory, b: Memory, dtype=torch.float64) -> bool:
    return bool(a.diff(b).max() < TOLERANCE[dtype] * 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [1, 4, 32, 128])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("frame", [0, 1, 7])
@pytest.mark.parametrize(
    "strength", [1, 30]
)  # a chunk of 32 tokens forgets more than float32 can undo
def test_chunked_scan_is_the_recurrence(dtype, chunk, resets, frame, strength):
    g = torch.Generator().manual_seed(0)
    b, length, h, p, n = 3, 77, 2, 4, 6
    X = torch.randn(b, length, h, p, generator=g, dtype=dtype)
    dt = torch.rand(b, length, h, generator=g, dtype=dtype) * (
        torch.rand(b, length, 1, generator=g) > 0.4
    )
    A = -torch.rand(h, generator=g, dtype=dtype) * strength - 0.1
    B, C = torch.randn(2, b, length, n, generator=g, dtype=dtype)
    S = torch.randn(b, h, p, n, generator=g, dtype=dtype)
    reset = torch.rand(b, length, generator=g) < 0.06 if resets else None
    peek = (
        torch.randn(b, length // frame, frame, n, generator=g, dtype=dtype)
        if frame
        else None
    )
    if reset is not None and frame:
        reset &= torch.arange(length) % frame == 0
    inputs = ScanInputs(X, dt, A, B, C, S, reset, peek)
    slow = ssm.reference(inputs)
    others = ssm.chunked(inputs, chunk), with_peek(ssm.reference)(inputs)
    for fast in others:
        for a, b_ in zip(slow, fast):
            assert torch.allclose(a, b_, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("strength", [0.1, 30.0])
@pytest.mark.parametrize("frame", [0, 3])
def test_gradients_of_the_scan_reach_inputs_and_initial_state(frame, strength):
    g = torch.Generator().manual_seed(0)
    shapes = [
        (2, 9, 2, 3),
        (2, 9, 2),
        (2,),
        (2, 9, 4),
        (2, 9, 4),
        (2, 2, 3, 4),
        *([(2, 3, 3, 4)] if frame else []),
    ]
    X, dt, A, *rest = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes
    )
    inputs = [x.requires_grad_() for x in (X, dt.abs(), -strength * A.abs(), *rest)]
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 3] = reset[1, 6] = True
    scans = ssm.reference, ssm.chunked, lambda given: ssm.chunked(given, chunk=3)
    outs = [scan(ScanInputs(*inputs[:6], reset, *inputs[6:])) for scan in scans]
    true, *others = (
        torch.autograd.grad(sum(o.square().sum() for o in out), inputs) for out in outs
    )
    for grads in others:
        for a, b in zip(true, grads):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9) and a.abs().sum() > 0


def test_scan_under_autocast_carries_decays_and_states_in_float32():
    g = torch.Generator().manual_seed(0)
    X, B, C = (
        torch.rand(1, 2000, *shape, generator=g) for shape in ((2, 4), (6,), (6,))
    )
    dt, A, S = (
        torch.rand(1, 2000, 2, generator=g),
        torch.tensor([-0.002, -0.02]),
        torch.rand(1, 2, 4, 6, generator=g),
    )
    true = [v.double().requires_grad_() for v in (X, dt, A, B, C, S)]
    given = [
        v.requires_grad_() for v in (X.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), S)
    ]
    Y, last = ssm.chunked(ScanInputs(*true))
    with torch.autocast("cpu", torch.bfloat16):
        low, rough = ssm.chunked(ScanInputs(*given))
    assert low.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert (rough - last).norm() < 1e-3 * last.norm() and (
        low - Y
    ).norm() < 1e-2 * Y.norm()
    grads = (
        torch.autograd.grad(y.double().mean() + s.double().mean(), v)
        for y, s, v in ((Y, last, true), (low, rough, given))
    )
    for of, a, b in zip(given, *grads):
        assert b.dtype == of.dtype and (a - b).norm() < 1e-2 * a.norm()


def test_fused_kernels_are_given_values_of_one_type_under_autocast():
    seen = []

    def kernel(inputs):
        seen.append({v.dtype for v in (inputs.X, inputs.dt, inputs.B, inputs.C)})
        return inputs.X, inputs.S

    X, dt, B, C = (
        torch.rand(1, 6, 2, 4).bfloat16(),
        torch.rand(1, 6, 2),
        torch.rand(1, 6, 5),
        torch.rand(1, 6, 5),
    )
    for peek in (None, torch.rand(1, 3, 2, 5)):
        A, S = -torch.rand(2), torch.rand(1, 2, 4, 5)
        with_peek(kernel)(ScanInputs(X, dt, A, B, C, S, None, peek))
    assert seen == [{torch.float32}] * 2


@pytest.mark.parametrize("length", [1, 2, 9])
def test_lambda_returns(length):
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 8, length, generator=g, dtype=torch.float64)
    ends, first = torch.rand(2, 8, length, generator=g) < 0.2
    true = value.clone()
    for t in range(length - 2, -1, -1):
        rest = 0.1 * value[:, t + 1] + 0.9 * true[:, t + 1]
        going = reward[:, t + 1] + 0.97 * (~ends[:, t + 1]) * rest
        true[:, t] = torch.where(first[:, t + 1], value[:, t], going)
    assert torch.allclose(lambda_returns(reward, ends, first, value, 0.97, 0.9), true)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 8], [2, 1, 7, 3]])
def test_any_way_of_cutting_a_sequence_gives_the_same(dtype, cuts, kind):
    model, (frames, action, first) = tiny(dtype, **kind), sequences()
    whole, heads = model.observe(model.initial(2), frames, action, first)
    memory, policy, at = model.initial(2), [], 0
    for n in cuts:
        memory, out = model.observe(
            memory,
            frames[:, at : at + n],
            action[:, at : at + n],
            first[:, at : at + n],
        )
        policy.append(out.policy)
        at += n
    assert close(memory, whole, dtype)
    assert torch.allclose(
        torch.cat(policy, 1), heads.policy, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    assert memory.frames.tolist() == whole.frames.tolist() == [13, 8]


def test_a_reset_inside_a_sequence_equals_separate_sequences(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    memory, heads = model.observe(model.initial(2), frames, action, first)
    alone, heads_alone = model.observe(
        model.initial(1), frames[1:, 5:], action[1:, 5:], first[1:, 5:]
    )
    assert torch.allclose(heads.policy[1:, 5:], heads_alone.policy, atol=1e-9)
    actions = torch.randint(0, 4, (1, 3, 5))
    a, b = model.imagine(memory[1:], actions), model.imagine(alone, actions)
    assert torch.allclose(a.policy, b.policy, atol=1e-9)


def test_causality(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    _, before = model.observe(model.initial(2), frames, action, first)
    changed = frames.clone()
    changed[:, 9] = 255 - changed[:, 9]
    _, after = model.observe(model.initial(2), changed, action, first)
    assert torch.equal(before.policy[:, :9], after.policy[:, :9])
    assert not torch.allclose(before.policy[:, 9:], after.policy[:, 9:])


def test_noisy_copies_never_change_what_clean_copies_compute(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    zeros = torch.zeros(2, 13, dtype=torch.float64)
    batch = Batch(frames, action, zeros, first & False, first & False, first)
    seen, _ = model.observe(model.initial(2), frames, action, first)
    for seed in (0, 1):
        _, _, memory = model.loss(batch, generator=torch.Generator().manual_seed(seed))
        assert close(memory, seen)


def test_hidden_frames_leave_no_trace(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    hidden = torch.zeros(2, 13, dtype=torch.bool)
    hidden[:, 3:5] = True
    changed = frames.clone()
    changed[:, 3:5] = 255 - changed[:, 3:5]
    a, heads_a = model.observe(model.initial(2), frames, action, first, hidden)
    b, heads_b = model.observe(model.initial(2), changed, action, first, hidden)
    assert torch.equal(heads_a.policy[:, 5:], heads_b.policy[:, 5:])
    assert a.diff(b).max() == 0
    c, _ = model.observe(model.initial(2), changed, action, first)
    assert not close(a, c)


@pytest.mark.parametrize(
    "changes", [{"mixer": ssd((3, 3))}, {"mixer": ssd((1, 1))}, *KINDS.values()]
)
def test_imagining_with_the_frames_that_came_is_observing(changes):
    """RolloutState: the dual form over imagined frames equals the scan over the same frames."""
    model, (frames, action, first) = tiny(**changes), sequences()
    memory, _ = model.observe(
        model.initial(2), frames[:, :8], action[:, :8], first[:, :8]
    )
    actions = action[:, None, 8:].expand(-1, 3, -1)
    fork = model.fork(memory, 3, 5)
    _, truth = model.observe(memory, frames[:, 8:], action[:, 8:], first[:, 8:] & False)
    for t in range(5):
        action = model._plain(actions[:, :, t], torch.zeros(2, 3, dtype=torch.bool))
        tokens = model._embed_frames(
            model.patches.cut(frames[:, None, 8 + t].expand(-1, 3, -1, -1, -1))
        )
        model._recall(
            fork, model._blank(action), 0.0, action, commit=False
        )  # reading changes nothing
        x = model._recall(fork, tokens, 1.0, action, commit=True)
        fork.seen = torch.nn.functional.pad(fork.seen, (0, 1), value=True)[..., 1:]
        heads = model.heads(x)
        assert torch.allclose(
            heads.policy, truth.policy[:, None, t].expand(-1, 3, -1), atol=1e-9
        )


@torch.no_grad()
def test_a_fork_takes_the_form_that_is_smaller_and_both_forms_agree():
    model, (frames, action, first) = tiny(mixer=ssd((1, 3))), sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    before = memory.clone()
    small, large = (model.fork(memory, 3, 5).traces[i].mixer for i in (0, 1))
    assert isinstance(small, TokenCache) and isinstance(large, StateCache)
    for i, layer in enumerate(model.layers):
        shared = memory.layers[str(i)]["mixer"]
        forms = (
            TokenCache(shared, 3, 5 * layer.mixer.side**2),
            StateCache(shared, 3),
        )
        for _ in range(5):
            u, act = torch.randn(2, 3, 9, 32).double(), torch.rand(2, 3, 5).double()
            for commit in (False, True):
                a, b = (
                    layer.mixer.rollout_step(u, act, form, commit) for form in forms
                )
                assert torch.allclose(a, b, atol=1e-9)
    assert memory.diff(before).max() == 0


def test_imagining_leaves_the_memory_as_it_is_and_candidates_apart(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    before, actions = memory.clone(), torch.randint(0, 4, (2, 5, 6))
    many = model.imagine(memory, actions, decode=True)
    assert memory.diff(before).max() == 0
    one = model.imagine(memory[1:], actions[1:, 2:3])
    assert torch.allclose(many.policy[1, 2], one.policy[0, 0], atol=1e-9)
    assert many.frames is not None and many.frames.shape == (2, 5, 6, 3, 24, 24)


def test_what_was_observed_changes_what_is_imagined(kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    a, _ = model.observe(model.initial(2), frames, action, first)
    changed = frames.clone()
    changed[:, 7] = (
        255 - changed[:, 7]
    )  # out of reach of local attention: only the state can tell
    b, _ = model.observe(model.initial(2), changed, action, first)
    actions = torch.randint(0, 4, (2, 1, 3))
    assert (
        model.imagine(a, actions).policy - model.imagine(b, actions).policy
    ).abs().max() > 1e-6


def test_samples_differ_and_repeat_with_the_seed():
    model, (frames, action, first) = tiny(), sequences()
    memory, _ = model.observe(model.initial(2), frames, action, first)
    actions = torch.zeros(2, 1, 2, dtype=torch.int64)
    draws = [
        model.imagine(
            memory,
            actions,
            denoise=3,
            decode=True,
            generator=torch.Generator().manual_seed(s),
        ).policy
        for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_memory_is_constant_in_size_and_survives_a_file(tmp_path, kind):
    model, (frames, action, first) = tiny(**kind), sequences()
    memory, _ = model.observe(
        model.initial(2), frames[:, :6], action[:, :6], first[:, :6]
    )
    assert memory.nbytes() == model.initial(2).nbytes()
    memory.write(tmp_path / "memory.pt")
    back = Memory.read(tmp_path / "memory.pt")
    a, _ = model.observe(memory, frames[:, 6:], action[:, 6:], first[:, 6:] & False)
    b, _ = model.observe(back, frames[:, 6:], action[:, 6:], first[:, 6:] & False)
    assert a.diff(b).max() == 0


def test_a_memory_saved_in_mid_episode_goes_on_to_the_same_numbers_in_another_process(
    tmp_path,
):
    model, (frames, action, first) = tiny(torch.float32), sequences()
    worldmodel.save(model, tmp_path)
    memory, _ = model.observe(
        model.initial(2), frames[:, :7], action[:, :7], first[:, :7]
    )
    memory.write(tmp_path / "memory.pt")
    torch.save((frames[:, 7:], action[:, 7:], first[:, 7:]), tmp_path / "rest.pt")
    code = """if True:
        import sys, torch, worldmodel
        model = worldmodel.load(sys.argv[1])
        rest = torch.load(sys.argv[1] + "/rest.pt")
        memory, heads = model.observe(worldmodel.Memory.read(sys.argv[1] + "/memory.pt"), *rest)
        memory.write(sys.argv[1] + "/after.pt")"""
    environment = os.environ | {"PYTHONPATH": str(Path(worldmodel.__file__).parents[1])}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, env=environment
    )
    after, _ = model.observe(memory, frames[:, 7:], action[:, 7:], first[:, 7:])
    assert Memory.read(tmp_path / "after.pt").diff(after).max() < 1e-6


@pytest.fixture
def blank_only(monkeypatch) -> None:
    """Predict every frame from memory alone."""
    monkeypatch.setattr(noise, "DENOISING_FRACTION", 0.0)


def test_segments_with_carried_memory_give_the_same_loss(kind, blank_only):
    model = tiny(**kind, rare_colour_power=0.0, pixel_fraction=1.0)
    frames, action, first = sequences()
    zeros = torch.zeros(2, 13, dtype=torch.float64)
    whole = Batch(frames, action, zeros, first & False, first & False, first)
    _, _, memory = model.loss(whole)
    carried = None
    for part in (slice(0, 5), slice(5, 13)):
        _, _, carried = model.loss(
            Batch(*(v[:, part] for v in vars(whole).values())), carried
        )
    assert carried is not None and close(carried, memory)


def test_training_lowers_the_loss_and_learns_to_recall():
    """A coloured frame, three blank ones, then the colour again with a reward that depends on it."""
    torch.manual_seed(0)
    model = WorldModel(
        ModelConfig(
            width=32,
            patch=8,
            mixer=ssd((1, 1)),
            attention_heads=2,
            attention_window=2,
        ),
        (3, 8, 8),
        2,
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    g = torch.Generator().manual_seed(0)

    def batch(n=32):
        red = torch.rand(n, generator=g) < 0.5
        frames = torch.full((n, 6, 3, 8, 8), 40, dtype=torch.uint8)
        frames[red, 0, 0], frames[~red, 0, 1] = 250, 250
        first = torch.zeros(n, 6, dtype=torch.bool)
        first[:, 0] = True
        reward = torch.zeros(n, 6)
        reward[:, 5] = red.float()
        ends = torch.zeros(n, 6, dtype=torch.bool)
        ends[:, 5] = True
        return Batch(
            frames,
            torch.zeros(n, 6, dtype=torch.int64),
            reward,
            ends,
            ends & False,
            first,
        )

    for _ in range(400):
        loss, _, _ = model.loss(batch(), generator=g)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    _, metrics, _ = model.eval().loss(batch(64), generator=g)
    assert metrics["event_accuracy"] > 0.95


def batch_of(frames, action, first) -> Batch:
    none = torch.zeros_like(first)
    return Batch(frames, action, torch.rand(first.shape).double(), none, none, first)


def test_frames_remembered_as_foreseen_leak_nothing_of_what_they_showed(blank_only):
    model = tiny(
        self_forcing_prob=0.4,
        self_forcing_span=4,
        context_noise=0.0,
        rare_colour_power=0.0,
    ).train()
    frames, action, first = sequences(b=2, t=24)
    span = noise.spans(first, 0.4, 4, torch.Generator().manual_seed(3))
    assert 0.2 < span.double().mean() < 0.7 and not (span & first).any()
    copies = []
    for seen in (
        frames,
        torch.where(span[..., None, None, None], 255 - frames, frames),
    ):
        x, level = model._copies(model.patches.cut(seen), None)
        clean = torch.ones_like(first)
        x, level = model._with_foreseen(
            x, level, span, batch_of(seen, action, first), clean, model.initial(2), None
        )
        copies.append(x)
        assert (level[:, :, 1] < 1).equal(span)
    assert torch.equal(copies[0], copies[1])
    loss, _, _ = model.loss(
        batch_of(frames, action, first), generator=torch.Generator().manual_seed(3)
    )
    loss.backward()
    assert all(
        p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters()
    )


def test_continuous_actions_and_bad_sizes():
    model = WorldModel(
        ModelConfig(
            width=32,
            patch=8,
            mixer=TiledSSDConfig(tiles=(1,), state=16),
            attention_heads=2,
        ),
        (3, 8, 8),
        2,
        False,
    )
    memory, heads = model.observe(
        model.initial(1),
        torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 2, 2),
        torch.tensor([[True, False]]),
    )
    assert heads.policy.shape == (1, 2, 2)
    assert model.imagine(memory, torch.zeros(1, 4, 3, 2)).reward.shape == (1, 4, 3)
    with pytest.raises(ValueError, match="tile 2 does not divide"):
        tiny(mixer=ssd((2,)))


def test_saved_model_is_the_same_and_damage_is_reported(tmp_path):
    model, (frames, action, first) = tiny(torch.float32), sequences()
    file = worldmodel.save(model, tmp_path)
    again = worldmodel.load(tmp_path)
    a, _ = model.observe(model.initial(2), frames, action, first)
    b, _ = again.observe(again.initial(2), frames, action, first)
    assert a.diff(b).max() == 0
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        worldmodel.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model"):
        worldmodel.load(tmp_path / "nowhere")


def test_blocks_that_run_again_going_backward_give_the_same_gradient():
    model, batch, grads = tiny(), batch_of(*sequences()), []
    for model.recompute in (False, True):
        loss, _, _ = model.loss(batch, generator=torch.Generator().manual_seed(0))
        grads.append(
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        )
    pairs = [(a, b) for a, b in zip(*grads) if a is not None]
    assert len(pairs) > 20 and all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs
    )


def test_noise_drawn_as_tokens_is_what_white_noise_in_pixels_embeds_to():
    model, g = tiny(), torch.Generator().manual_seed(0)
    tokens = noise.noise(model.embed, torch.zeros(20000, 1), g)
    pixels = (
        torch.randn(20000, model.patches.size, generator=g).double()
        @ model.embed.weight.T
    )
    a, b = (x.T @ x / len(x) for x in (tokens, pixels))
    assert (a - b).abs().max() < 0.05 * b.diagonal().max() and (
        tokens.mean(0).abs() < 0.05
    ).all()


def test_diffusion_forcing_remembers_what_it_denoises_and_a_clean_prefix_is_not_counted():
    model = tiny(
        forcing="diffusion_prefix", context_noise=0.0, rare_colour_power=0.0
    ).train()
    frames, action, first = sequences(b=2, t=24)
    patches = model.patches.cut(frames)
    clean = model._embed_frames(patches)
    x, level, counted = noise.equally(
        model.embed, clean, 1.0, torch.Generator().manual_seed(0)
    )
    assert ((~counted).sum(1) >= 12).all() and counted.any()
    assert (
        torch.equal(x[:, :, 1][~counted], clean[~counted])
        and (level[:, :, 1][~counted] == 1).all()
    )
    assert torch.equal(x[:, :, 0][counted], x[:, :, 1][counted])
    losses = []
    for shown in (
        frames,
        torch.where(counted[..., None, None, None], frames, 255 - frames),
    ):
        with torch.no_grad():
            out = torch.zeros(2, 24, 9, 32).double()
            losses.append(
                model._frame_loss(
                    out, model.patches.cut(shown), counted, counted, torch.Generator()
                )[0]
            )
    assert losses[0] == losses[1]  # what the prefix shows is nobody's target
    loss, metrics, _ = model.loss(
        batch_of(frames, action, first), generator=torch.Generator().manual_seed(0)
    )
    loss.backward()
    assert torch.isfinite(loss) and metrics["loss/reward"] > 0
    with pytest.raises(ValueError, match=r"'teacher', 'diffusion' or"):
        ModelConfig(forcing="both")


def test_training_in_bf16_counts_turns_and_decays_in_float32():
    model = tiny(torch.float32, mixer=ssd(rope_fraction=0.5)).train()
    frames, action, first = sequences(t=200)
    zeros = torch.zeros(2, 200)
    batch = Batch(frames, action, zeros, first & False, first & False, first)
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss, _, memory = model.loss(
                batch, generator=torch.Generator().manual_seed(0)
            )
        loss.backward()
        found.append((loss.detach(), memory.detach()))
    (a, exact), (b, rough) = found
    assert b == pytest.approx(a.item(), rel=0.01) and all(
        torch.isfinite(p.grad).all() for p in model.parameters()
    )
    for exact_layer, rough_layer in zip(exact.layers.values(), rough.layers.values()):
        one, other = exact_layer["mixer"], rough_layer["mixer"]
        assert torch.equal(
            one["pose"][..., 0], other["pose"][..., 0]
        )  # headings, after 200 turns
        assert all(kept.dtype == other[name].dtype for name, kept in one.items())
        assert (one["state"] - other["state"]).norm() < 0.05 * one["state"].norm()
