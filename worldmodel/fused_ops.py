"""Compute operations on the largest tensors of training, with explicit backward passes.

On a CPU, training is bound by passes over memory. Autograd derives more passes from many small steps. It also leaves
gradients of products transposed in memory, where the next pass is slow. The numbers are the same.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd import Function


def inner(A: Tensor, B: Tensor) -> Tensor:
    """Return A B^T.

    A [..., m, n], B [..., l, n], of one type -> [..., m, l]
    """
    return cast("Tensor", _Inner.apply(A, B))


def outer(A: Tensor, B: Tensor) -> Tensor:
    """Return A^T B.

    A [..., l, m], B [..., l, n], of one type -> [..., m, n]
    """
    return cast("Tensor", _Outer.apply(A, B))


def addcmul(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a + b * c, broadcast."""
    return cast("Tensor", _AddProduct.apply(a, b, c))


def squared_errors(
    predicted: Tensor, true: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return means over frames of squared errors: weighted, and not weighted.

    predicted, true, weight (default: 1) [..., S, n] -> [...], [...]
    The second has no gradient. Only `predicted` gets one.
    """
    return cast("tuple[Tensor, Tensor]", _SquaredErrors.apply(predicted, true, weight))


def carry(added: Tensor, kept: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Carry states from chunk to chunk.

    added [b, k, q, n]   what each of k chunks adds to the state
    kept [b, k, h]       fraction of the state that each chunk keeps, by head
    S [b, q, n]          state before the first chunk
    -> states before each chunk [b, k, q, n], state after the last [b, q, n]
    """
    return cast("tuple[Tensor, Tensor]", _Carry.apply(added, kept, S))


def delta_carry(
    UX: Tensor, UK: Tensor, K: Tensor, S: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry states of the delta rule from chunk to chunk.

    UX [b, k, c, m], UK [b, k, c, n]  changes that tokens make, given the state S before their chunk: U = UX - UK S^T
    K [b, k, c, n]                    keys of tokens that reach the end of their chunk, zero for others
    S [b, m, n]                       state before the first chunk
    kept [b, k, 1]                    0 where a chunk forgets the state before it, else 1
    -> U [b, k, c, m], states before each chunk [b, k, m, n], state after the last [b, m, n]
    """
    return cast("tuple[Tensor, Tensor, Tensor]", _DeltaCarry.apply(UX, UK, K, S, kept))


def unit(v: Tensor) -> Tensor:
    """Return vectors v [..., n] scaled to length 1."""
    return cast("Tensor", _Unit.apply(v))


def rotate(V: Tensor, angle: Tensor) -> Tensor:
    """Rotate the leading pairs of V [..., n] by angle [..., r], r <= n / 2.

    Entry i is paired with entry r + i. The rest stays as it is.
    """
    if not angle.shape[-1]:
        return V
    return cast("Tensor", _Rotation.apply(V, angle))


def host_may_read(v: Tensor) -> bool:
    """Return whether Python may read values of v: on CPUs. Elsewhere it would wait for the device."""
    return v.device.type == "cpu"


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
    def backward(ctx, grad: Tensor):
        # autograd itself sums over the axes that were broadcast
        b, c = ctx.saved_tensors
        needs_a, needs_b, needs_c = ctx.needs_input_grad
        grad_a = grad if needs_a else None
        grad_b = grad * c if needs_b else None
        grad_c = grad * b if needs_c else None
        return grad_a, grad_b, grad_c


class _SquaredErrors(Function):
    @staticmethod
    def forward(ctx, predicted: Tensor, true: Tensor, weight: Tensor | None):
        error = (predicted.to(true.dtype) - true).flatten(-2)
        weighted = error if weight is None else error * weight.flatten(-2)
        ctx.save_for_backward(weighted)
        ctx.shape = predicted.shape
        size = error.shape[-1]
        mean = (weighted * error).sum(-1) / size
        plain = torch.linalg.vector_norm(error, dim=-1).square() / size
        ctx.mark_non_differentiable(plain)
        return mean, plain

    @staticmethod
    def backward(ctx, grad: Tensor, _):
        (weighted,) = ctx.saved_tensors
        scale = 2 / weighted.shape[-1] * grad
        grad = weighted * scale.unsqueeze(-1)
        return grad.view(ctx.shape), None, None


class _Carry(Function):
    @staticmethod
    def forward(ctx, added: Tensor, kept: Tensor, S: Tensor):
        before = torch.empty_like(added)
        kept_rows = _by_row(kept, S)
        for i in range(added.shape[1]):
            before[:, i] = S
            S = torch.addcmul(added[:, i], kept_rows[:, i], S)
        ctx.save_for_backward(before, kept)
        return before, S

    @staticmethod
    def backward(ctx, grad_before: Tensor, grad: Tensor):
        before, kept = ctx.saved_tensors
        grad_added = torch.empty_like(before)
        kept_rows = _by_row(kept, grad)
        for i in range(before.shape[1] - 1, -1, -1):
            grad_added[:, i] = grad
            grad = torch.addcmul(grad_before[:, i], kept_rows[:, i], grad)
        heads = kept.shape[-1]
        added_by_head = grad_added.unflatten(2, (heads, -1)).flatten(3)
        before_by_head = before.unflatten(2, (heads, -1)).flatten(3)
        grad_kept = torch.linalg.vecdot(added_by_head, before_by_head)
        return grad_added, grad_kept, grad


class _DeltaCarry(Function):
    """Products have the type of UX, the carried state and its gradient keep their own."""

    @staticmethod
    def forward(ctx, UX: Tensor, UK: Tensor, K: Tensor, S: Tensor, kept: Tensor):
        chunks, width = UX.shape[1], UX.shape[3]
        U = torch.empty_like(UX)
        before = UX.new_empty(len(UX), chunks, width, S.shape[-1])
        for i in range(chunks):
            before[:, i] = S
            torch.baddbmm(UX[:, i], UK[:, i], before[:, i].mT, alpha=-1, out=U[:, i])
            S = _plus_product(S * kept[:, i, :, None], U[:, i].mT, K[:, i])
        ctx.save_for_backward(UK, K, kept, U, before)
        return U, before, S

    @staticmethod
    def backward(ctx, grad_U: Tensor, grad_before: Tensor, grad: Tensor):
        UK, K, kept, U, before = ctx.saved_tensors
        grad_UX, grad_UK, grad_K = (torch.empty_like(v) for v in (U, UK, K))
        for i in range(U.shape[1] - 1, -1, -1):
            low = grad.to(U.dtype)
            torch.bmm(U[:, i], low, out=grad_K[:, i])
            change = torch.baddbmm(grad_U[:, i], K[:, i], low.mT)
            grad_UX[:, i] = change
            torch.bmm(change, before[:, i], out=grad_UK[:, i])
            grad = grad * kept[:, i, :, None] + grad_before[:, i]
            grad = _plus_product(grad, change.mT, UK[:, i], -1)
        return grad_UX, grad_UK.neg_(), grad_K, grad, None


def _plus_product(S: Tensor, A: Tensor, B: Tensor, sign: int = 1) -> Tensor:
    """Return S + sign * A B, in the type of S."""
    if A.dtype == S.dtype:
        return torch.baddbmm(S, A, B, alpha=sign)
    return S.add(torch.bmm(A, B), alpha=sign)


def _by_row(kept: Tensor, S: Tensor) -> Tensor:
    """Repeat numbers [b, k, h] of heads for the rows of a state S [b, q, n]. Returns [b, k, q, 1]."""
    rows = S.shape[1] // kept.shape[-1]
    return kept.repeat_interleave(rows, -1).unsqueeze(-1)


class _Unit(Function):
    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(1e-12)
        out = v / length
        ctx.save_for_backward(out, length)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, length = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, out).unsqueeze(-1)
        return torch.addcmul(grad, out, along, value=-1).div_(length)


class _Rotation(Function):
    @staticmethod
    def forward(ctx, V: Tensor, angle: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        out = _rotated(V, cos, sin)
        ctx.save_for_backward(out, cos, sin)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out, cos, sin = ctx.saved_tensors
        grad_angle = None
        if ctx.needs_input_grad[1]:
            # a rotating point (x, y) moves along (-y, x)
            x, y = _pairs(out, cos.shape[-1])
            grad_x, grad_y = _pairs(grad, cos.shape[-1])
            grad_angle = torch.addcmul(x * grad_y, y, grad_x, value=-1)
        return _rotated(grad, cos, -sin), grad_angle


def _pairs(V: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return first and second entries of the leading r pairs of V [..., n]."""
    return V[..., :r], V[..., r : 2 * r]


def _rotated(V: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = V.clone()
    x, y = _pairs(V, cos.shape[-1])
    out_x, out_y = _pairs(out, cos.shape[-1])
    out_x.mul_(cos).addcmul_(y, sin, value=-1)
    out_y.mul_(cos).addcmul_(x, sin)
    return out
