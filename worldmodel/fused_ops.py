"""Operations on the largest tensors of training, with their backward passes written out.

On a CPU, training is bound by passes over memory. What autograd derives from many small steps makes more of them, and
leaves gradients of products transposed in memory, where the next pass is slow. The numbers are the same.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd import Function


def inner(A: Tensor, B: Tensor) -> Tensor:
    """A [..., m, n], B [..., l, n], of one type -> A B^T [..., m, l]"""
    return cast("Tensor", _Inner.apply(A, B))


def outer(A: Tensor, B: Tensor) -> Tensor:
    """A [..., l, m], B [..., l, n], of one type -> A^T B [..., m, n]"""
    return cast("Tensor", _Outer.apply(A, B))


def addcmul(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a + b * c, broadcast"""
    return cast("Tensor", _AddProduct.apply(a, b, c))


def squares(
    predicted: Tensor, true: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Means [...] over frames [..., S, n] of the squared errors times `weight` (of the same shape, or 1), and of the
    squared errors alone; the second has no gradient, and only `predicted` gets one."""
    return cast("tuple[Tensor, Tensor]", _Squares.apply(predicted, true, weight))


def carry(added: Tensor, kept: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each of k chunks [b, k, q, n] and after the last [b, q, n]: S [b, q, n] at first, of which each
    chunk keeps a share by head, [b, k, h], and to which it adds [b, k, q, n]."""
    return cast("tuple[Tensor, Tensor]", _Carry.apply(added, kept, S))


def rotate(V: Tensor, angle: Tensor) -> Tensor:
    """Turn the leading pairs of `V` [..., n] by `angle` [..., r], r <= n / 2; the rest stays as it is."""
    return cast("Tensor", _Rotation.apply(V, angle)) if angle.shape[-1] else V


def at_least_float32(v: Tensor) -> Tensor:
    """Cast bfloat16 to float32. Other types stay as they are."""
    return v.float() if v.dtype == torch.bfloat16 else v


class _Inner(Function):
    @staticmethod
    def forward(ctx, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(A, B)
        return A @ B.transpose(-1, -2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        A, B = ctx.saved_tensors
        return grad @ B, grad.transpose(-1, -2) @ A


class _Outer(Function):
    @staticmethod
    def forward(ctx, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(A, B)
        return A.transpose(-1, -2) @ B

    @staticmethod
    def backward(ctx, grad: Tensor):
        A, B = ctx.saved_tensors
        return B @ grad.transpose(-1, -2), A @ grad


class _AddProduct(Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(b, c)
        return torch.addcmul(a, b, c)

    @staticmethod
    def backward(ctx, grad: Tensor):  # autograd itself sums over what was broadcast
        b, c = ctx.saved_tensors
        of_a, of_b, of_c = ctx.needs_input_grad
        return (
            grad if of_a else None,
            grad * c if of_b else None,
            grad * b if of_c else None,
        )


class _Squares(Function):
    @staticmethod
    def forward(ctx, predicted: Tensor, true: Tensor, weight: Tensor | None):
        error = (predicted.to(true.dtype) - true).flatten(-2)
        weighted = error if weight is None else error * weight.flatten(-2)
        ctx.save_for_backward(weighted)
        ctx.shape, size = predicted.shape, error.shape[-1]
        mean, plain = (
            (weighted * error).sum(-1) / size,
            torch.linalg.vector_norm(error, dim=-1).square() / size,
        )
        ctx.mark_non_differentiable(plain)
        return mean, plain

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        (weighted,) = ctx.saved_tensors
        grad = weighted * (2 / weighted.shape[-1] * grad)[..., None]
        return grad.view(ctx.shape), None, None


class _Carry(Function):
    @staticmethod
    def forward(ctx, added: Tensor, kept: Tensor, S: Tensor):
        before, rows = torch.empty_like(added), _rows(kept, S)
        for i in range(added.shape[1]):
            before[:, i] = S
            S = torch.addcmul(added[:, i], rows[:, i], S)
        ctx.save_for_backward(before, kept)
        return before, S

    @staticmethod
    def backward(ctx, each: Tensor, grad: Tensor):
        before, kept = ctx.saved_tensors
        added, rows = torch.empty_like(before), _rows(kept, grad)
        for i in range(before.shape[1] - 1, -1, -1):
            added[:, i] = grad
            grad = torch.addcmul(each[:, i], rows[:, i], grad)
        share = torch.linalg.vecdot(
            *(v.unflatten(2, (kept.shape[-1], -1)).flatten(3) for v in (added, before))
        )
        return added, share, grad


def _rows(kept: Tensor, S: Tensor) -> Tensor:
    """A number for each head [b, k, h] -> for each row of the state [b, k, q, 1]"""
    return kept.repeat_interleave(S.shape[1] // kept.shape[-1], -1)[..., None]


class _Rotation(Function):
    @staticmethod
    def forward(ctx, V: Tensor, angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        out = _turned(V, cos, sin)
        ctx.save_for_backward(out, cos, sin)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, cos, sin = ctx.saved_tensors
        r, angle = cos.shape[-1], None
        if ctx.needs_input_grad[
            1
        ]:  # a point on a circle moves at a right angle to where it is
            angle = torch.addcmul(
                out[..., :r] * grad[..., r : 2 * r],
                out[..., r : 2 * r],
                grad[..., :r],
                value=-1,
            )
        return _turned(grad, cos, -sin), angle


def _turned(V: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r, out = cos.shape[-1], V.clone()
    out[..., :r].mul_(cos).addcmul_(V[..., r : 2 * r], sin, value=-1)
    out[..., r : 2 * r].mul_(cos).addcmul_(V[..., :r], sin)
    return out
