"""Test that backends equal the recurrence, or say why they cannot run.

The kernels of mamba-ssm also run without a GPU, interpreted (opt-in, slow; fla's do not run interpreted):

    pip install --no-deps triton==3.6.0 numpy==2.2.6      # and mamba-ssm, see worldmodel/scan/mamba_ssm.py
    TRITON_INTERPRET=1 pytest tests/worldmodel/scan/test_backends.py -m slow -k mamba_ssm
"""

import contextlib
import os
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lssvwm.agent.cli import doctor
from lssvwm.agent.cli import main as cli
from lssvwm.worldmodel import ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from lssvwm.worldmodel.scan import backends, delta
from lssvwm.worldmodel.scan import chunked as ssm
from lssvwm.worldmodel.scan.chunked import ScanInputs
from lssvwm.worldmodel.scan.delta import DeltaInputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch):
    """Run kernels interpreted: without a device, with the first of their configurations."""
    if DEVICE == "cuda":
        return
    autotuner = pytest.importorskip("triton.runtime.autotuner")
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=1),
    )
    monkeypatch.setattr(
        autotuner.Autotuner, "prune_configs", lambda self, kwargs: self.configs[:1]
    )
    monkeypatch.setattr(
        autotuner.Autotuner, "_bench", lambda self, *args, **kwargs: [0.0, 0.0, 0.0]
    )


def case(seed=0, b=2, length=70, h=2, p=16, n=32):
    make = torch.Generator().manual_seed(seed)
    X, B, C = (
        torch.randn(b, length, *shape, generator=make) for shape in ((h, p), (n,), (n,))
    )
    dt = torch.rand(b, length, h, generator=make) * (
        torch.rand(b, length, 1, generator=make) < 0.6
    )
    reset = torch.rand(b, length, generator=make) < 0.04
    reset[0, 0] = True  # one sequence that is reset and one that continues
    reset[1, 0] = False
    return [
        X,
        dt,
        -torch.rand(h, generator=make),
        B,
        C,
        torch.randn(b, h, p, n, generator=make),
    ], reset


def peeking(reset, frame=5, n=32, seed=1):
    """Return resets at first tokens of frames only, and queries that peek."""
    b, length = reset.shape
    reset = reset & (torch.arange(length) % frame == 0)
    return reset, torch.randn(
        b, length // frame, frame, n, generator=torch.Generator().manual_seed(seed)
    )


def results(scan, inputs, reset, peek):
    """Return outputs, final state and the gradients of all inputs, on CPU."""
    inputs = [v.detach().clone().requires_grad_() for v in (*inputs, peek)]
    Y, S, peeked = scan(ScanInputs(*inputs[:-1], reset, inputs[-1]))
    weight = torch.linspace(-1, 1, Y.numel(), dtype=Y.dtype, device=Y.device).view(
        Y.shape
    )
    grads = torch.autograd.grad(
        (Y * weight + peeked * weight).sum() + (S * S).sum(), inputs
    )
    return [v.detach().cpu() for v in (Y, S, peeked, *grads)]


@pytest.mark.parametrize(
    "name",
    ["chunked", *(pytest.param(n, marks=pytest.mark.slow) for n in backends.FUSED)],
)
@pytest.mark.parametrize("resets", [True, False])
def test_backend_equals_reference(name, resets, request):
    if name in backends.FUSED:
        request.getfixturevalue("kernels")
        reason = backends.unavailable_reason(name, DEVICE)
        if reason:
            pytest.skip(f"{name}: {reason}")
    inputs, reset = case()
    reset, peek = peeking(reset)
    true = results(
        ssm.reference,
        [v.double() for v in inputs],
        reset if resets else None,
        peek.double(),
    )
    there = (
        [v.to(DEVICE) for v in inputs],
        reset.to(DEVICE) if resets else None,
        peek.to(DEVICE),
    )
    mine = results(backends.select_backend(name, DEVICE)[1], *there)
    for what, a, b in zip(
        ("Y", "S", "peeked", "dX", "ddt", "dA", "dB", "dC", "dS", "dpeek"), true, mine
    ):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max(), what


@pytest.fixture
def adapter(monkeypatch):
    """Replace the fused kernels by the recurrence, so that their adapters run everywhere."""
    packages = ("fla", "fla.ops", "fla.ops.simple_gla", "fla.ops.gated_delta_rule")
    fake = {name: ModuleType(name) for name in packages}
    path = "mamba_ssm.ops.triton.ssd_combined"
    fake |= {
        name: ModuleType(name)
        for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", path)
    }
    calls = []

    def simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
        Y, final = torch.zeros_like(v), []
        for S, begin, end in zip(initial_state, cu_seqlens[:-1], cu_seqlens[1:]):
            for t in range(begin, end):
                S = (
                    S * g[0, t].exp()[:, None, None]
                    + k[0, t, :, :, None] * v[0, t, :, None, :]
                )
                Y[0, t] = torch.einsum("hk,hkv->hv", q[0, t], S)
            final.append(S)
        return Y, torch.stack(final)

    def gated_delta_rule(q, k, v, g, beta, initial_state, cu_seqlens, **_):
        Y, final = torch.zeros_like(v), []
        for S, begin, end in zip(initial_state, cu_seqlens[:-1], cu_seqlens[1:]):
            episode = slice(begin, end)
            rows = (x[:, episode, 0] for x in (v, beta, k, q))
            y, last = delta.reference(DeltaInputs(*rows, S.mT))
            Y[:, episode, 0] = y
            final.append(last.mT)
        assert not g.any()
        return Y, torch.stack(final)

    def combined(x, dt, A, B, C, chunk, initial_states, seq_idx, return_final_states):
        calls.append(len(x))
        reset = (
            None
            if seq_idx is None
            else torch.diff(seq_idx, dim=1, prepend=torch.zeros_like(seq_idx[:, :1]))
            > 0
        )
        return ssm.reference(
            ScanInputs(x, dt, A, B[:, :, 0], C[:, :, 0], initial_states, reset)
        )

    fake["fla.ops.simple_gla"].chunk_simple_gla = simple_gla
    fake["fla.ops.gated_delta_rule"].chunk_gated_delta_rule = gated_delta_rule
    fake[path].mamba_chunk_scan_combined = combined
    for name, module in fake.items():
        monkeypatch.setitem(sys.modules, name, module)
    for module in backends.FUSED.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield calls
    for module in backends.FUSED.values():
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", backends.FUSED)
@pytest.mark.parametrize("resets", [True, False])
def test_adapter_passes_states_and_resets(name, resets, adapter):
    inputs, reset = case(b=3, length=30)
    reset = reset if resets else None
    true, mine = (
        ssm.reference(ScanInputs(*inputs, reset)),
        backends.select_backend(name, "cpu")[1](ScanInputs(*inputs, reset)),
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(true, mine))
    begins, peek = peeking(case(b=3, length=30)[1])
    both = [
        scan(ScanInputs(*inputs, begins if resets else None, peek))
        for scan in (ssm.reference, backends.select_backend(name, "cpu")[1])
    ]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*both))


@pytest.mark.parametrize("peeks", [True, False])
def test_delta_adapter_passes_states_and_resets(peeks, adapter):
    inputs = backends._random_inputs(3, "delta")
    inputs.reset[0, 0] = True
    inputs.reset[1, 0] = False
    inputs = inputs if peeks else inputs._replace(peek=None)
    scan = backends.select_backend("fla", "cpu", "delta")[1]
    for true, mine in zip(delta.reference(inputs), scan(inputs), strict=True):
        assert torch.allclose(true, mine, atol=1e-5)


def test_select_backend_names_missing_rule(adapter):
    with pytest.raises(
        backends.BackendUnavailable, match="no kernel of the rule delta"
    ):
        backends.select_backend("mamba_ssm", "cpu", "delta")


def test_mamba_ssm_splits_large_batches(adapter, monkeypatch):
    scan = backends.select_backend("mamba_ssm", "cpu")[1]
    scan_mamba_ssm = sys.modules[backends.FUSED["mamba_ssm"]]
    inputs, reset = case(b=5, length=30)
    monkeypatch.setattr(scan_mamba_ssm, "INDEX_LIMIT", 2 * 64 * 64 + 1)
    true, mine = (
        ssm.reference(ScanInputs(*inputs, reset)),
        scan(ScanInputs(*inputs, reset)),
    )
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(true, mine))
    assert adapter == [2, 2, 1]
    monkeypatch.setattr(scan_mamba_ssm, "INDEX_LIMIT", 500)
    with pytest.raises(ValueError, match="30 tokens is too long"):
        scan(ScanInputs(*inputs, reset))


def test_auto_selects_chunked_on_cpu():
    assert backends.select_backend("auto", "cpu") == ("chunked", ssm.chunked)


def test_relative_error_is_small():
    for rule in backends.RULES:
        assert backends.relative_error("reference", "cpu", rule) < 1e-5
        assert 0 < backends.relative_error("chunked", "cpu", rule) < 1e-5


def test_select_backend_names_unknown_backend():
    with pytest.raises(
        ValueError,
        match=r"backend=mamba is not known; there are auto, reference, chunked",
    ):
        backends.select_backend("mamba", "cpu")


def test_select_backend_never_replaces_broken_backend(monkeypatch):
    monkeypatch.setitem(backends.FUSED, "broken", "lssvwm.worldmodel.no_such_file")
    with pytest.raises(
        backends.BackendUnavailable,
        match=r"backend=broken cannot be used: ModuleNotFoundError",
    ):
        backends.select_backend("broken", "cpu")


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on a CPU")
@pytest.mark.parametrize("name", backends.FUSED)
def test_fused_backend_explains_why_unavailable(name):
    if DEVICE == "cpu":
        assert backends.unavailable_reason(name, "cpu")
        with pytest.raises(backends.BackendUnavailable, match=name):
            backends.select_backend(name, "cpu")


def test_model_scans_by_selected_backend():
    model = WorldModel(
        ModelConfig(
            patch=4, width=16, mixer=TiledSSDConfig(tiles=(1,), state=8, head_dim=8)
        ),
        (3, 8, 8),
        3,
    ).eval()
    frames = torch.randint(0, 255, (1, 5, 3, 8, 8), dtype=torch.uint8)
    args = (
        frames,
        torch.zeros(1, 5, dtype=torch.long),
        torch.zeros(1, 5, dtype=torch.bool),
    )
    before, _ = model.observe(model.initial(1), *args)
    assert model.use_backend("reference").layers[0].mixer.scan is ssm.reference
    after, _ = model.observe(model.initial(1), *args)
    assert 0 < before.diff(after).max() < 1e-4


def test_doctor_lists_backends_and_selection(capsys):
    assert cli.main(["doctor", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"torch +\d", said) and re.search(
        r"chunked +works, relative error \d", said
    )
    if not INTERPRETED:
        assert re.search(r"mamba_ssm +cannot be used: ", said)
    assert re.search(r"in use\n +device +cpu\n +backend +chunked", said)


def test_doctor_reports_backend_with_large_error(monkeypatch):
    monkeypatch.setattr(
        ssm, "chunked", lambda *a, **k: tuple(1.01 * v for v in ssm.reference(*a, **k))
    )
    assert "TOO LARGE" in dict(doctor._backends(torch.device("cpu")))["chunked"]


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on a CPU")
@pytest.mark.parametrize(
    "command",
    [["doctor"], ["train", "experiment=smoke"], ["evaluate", "checkpoint=tmaze"]],
)
def test_unavailable_backend_is_reported_in_one_line(command, tmp_path, capsys):
    assert (
        cli.main(
            [*command, "device=cpu", "backend=mamba_ssm", f"output={tmp_path / 'out'}"]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "backend=mamba_ssm cannot be used: " in said
        and "lssvwm doctor" in said
    )
