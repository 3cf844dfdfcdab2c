"""Test that the chunked scan equals the recurrence."""

import pytest
import torch
from lssvwm.worldmodel.scan import chunked as ssm
from lssvwm.worldmodel.scan.backends import with_peek
from lssvwm.worldmodel.scan.chunked import ScanInputs

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


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
def test_scan_gradients_equal_those_of_the_recurrence(frame, strength):
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


def test_scan_under_autocast_carries_float32_states():
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


def test_fused_kernels_get_one_type_under_autocast():
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
