"""Test the explicit backward passes in float64, against the plain formulas."""

import pytest
import torch
from lssvwm.worldmodel import fused_ops


def drawn(*shapes):
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def test_products_equal_plain_formulas():
    A, B = drawn((2, 3, 5), (2, 4, 5))
    assert torch.equal(fused_ops.inner(A, B), A @ B.mT)
    assert torch.autograd.gradcheck(fused_ops.inner, (A, B))
    A, B = drawn((2, 5, 3), (2, 5, 4))
    assert torch.equal(fused_ops.outer(A, B), A.mT @ B)
    assert torch.autograd.gradcheck(fused_ops.outer, (A, B))


def test_gradients_of_products_are_contiguous():
    for f, shapes in (
        (fused_ops.inner, ((2, 3, 5), (2, 4, 5))),
        (fused_ops.outer, ((2, 5, 3), (2, 5, 4))),
    ):
        A, B = drawn(*shapes)
        assert all(
            grad.is_contiguous()
            for grad in torch.autograd.grad(f(A, B).sin().sum(), (A, B))
        )


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3, 4)] * 3,
        [(2, 1, 4), (2, 3, 4), (2, 1, 4)],
        [(2, 3, 4), (3, 1), (2, 3, 4)],
    ],
)
def test_addcmul_equals_torch(shapes):
    a, b, c = drawn(*shapes)
    assert torch.equal(fused_ops.addcmul(a, b, c), torch.addcmul(a, b, c))
    assert torch.autograd.gradcheck(fused_ops.addcmul, (a, b, c))


@pytest.mark.parametrize("weighted", [False, True])
def test_squared_errors_are_means_over_frames(weighted):
    predicted, true, weight = drawn((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 4, 5))
    true, weight = true.detach(), weight.detach().abs() if weighted else None
    mean, plain = fused_ops.squared_errors(predicted, true, weight)
    error = (predicted - true).square()
    assert torch.allclose(plain, error.mean((-1, -2))) and not plain.requires_grad
    assert torch.allclose(
        mean, (error * (1 if weight is None else weight)).mean((-1, -2))
    )
    assert torch.autograd.gradcheck(
        lambda x: fused_ops.squared_errors(x, true, weight)[0], (predicted,)
    )


def test_squared_errors_stay_in_float32_under_autocast():
    predicted, true = (x.detach().float() for x in drawn((2, 3, 4, 50), (2, 3, 4, 50)))
    with torch.autocast("cpu", torch.bfloat16):
        low = fused_ops.squared_errors(predicted, true, true)
    for a, b in zip(low, fused_ops.squared_errors(predicted, true, true)):
        assert torch.equal(a, b)


def test_carry_equals_recurrence():
    added, kept, S = drawn((2, 3, 4, 5), (2, 3, 2), (2, 4, 5))
    before, last = fused_ops.carry(added, kept, S)
    state = S
    for i in range(3):
        assert torch.allclose(before[:, i], state)
        state = added[:, i] + kept[:, i].repeat_interleave(2, -1)[..., None] * state
    assert torch.allclose(last, state)
    assert torch.autograd.gradcheck(fused_ops.carry, (added, kept, S))


@pytest.mark.parametrize("shape", [(2, 5, 3), (5, 1)])
def test_rotate_turns_leading_pairs(shape):
    V, angle = drawn((2, 5, 8), shape)
    out, r = fused_ops.rotate(V, angle), shape[-1]
    pairs, turned = (torch.complex(x[..., :r], x[..., r : 2 * r]) for x in (V, out))
    assert torch.allclose(turned, pairs * torch.polar(torch.ones_like(angle), angle))
    assert torch.equal(out[..., 2 * r :], V[..., 2 * r :])
    assert torch.autograd.gradcheck(fused_ops.rotate, (V, angle))
