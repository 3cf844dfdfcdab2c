"""Split tokens into the queries, keys and values of attention heads."""

from __future__ import annotations

from torch import Tensor, nn


def project_heads(
    qkv: nn.Linear, u: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of u [..., R, S, D], each [..., h, R, S, d], laid out in this order."""
    x = qkv(u).unflatten(-1, (3, heads, -1))  # [..., R, S, 3, h, d]
    n = x.dim()
    order = (n - 3, *range(n - 5), n - 2, n - 5, n - 4, n - 1)
    q, k, v = x.permute(order).contiguous().unbind(0)
    return q, k, v
