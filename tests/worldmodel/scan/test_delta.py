"""Test the delta rule: all ways of computing it agree, and what is known changes nothing."""

import pytest
import torch
from lssvwm.worldmodel.scan import delta
from lssvwm.worldmodel.scan.backends import with_peek
from lssvwm.worldmodel.scan.delta import DeltaInputs
from torch.nn import functional as F


def draw(dtype, tokens=3, frames=29, b=2, m=5, n=7, seed=0):
    """Return inputs whose second sequence holds four episodes; every fifth token only reads."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    length = frames * tokens
    beta = torch.rand(b, length, generator=generator, dtype=torch.float64)
    beta[:, ::5] = 0
    reset = torch.zeros(b, frames, dtype=torch.bool)
    reset[0, 0] = reset[1, 2] = reset[1, 9] = reset[1, 10] = True
    reset = F.pad(reset[..., None], (0, tokens - 1)).flatten(1)
    keys = F.normalize(normal(b, length, n), dim=-1)
    fields = [normal(b, length, m), beta, keys, normal(b, length, n), normal(b, m, n)]
    fields = [v.to(dtype).requires_grad_() for v in fields]
    peek = normal(b, frames, tokens, n).to(dtype).requires_grad_()
    return DeltaInputs(*fields, reset, peek)


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("peeks", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 36, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_chunked_delta_is_the_recurrence(resets, peeks, chunk, dtype):
    inputs = draw(dtype)
    if not resets:
        inputs = inputs._replace(reset=None)
    if not peeks:
        inputs = inputs._replace(peek=None)
    needed = [v for v in inputs if v is not None and v.requires_grad]
    true = delta.reference(inputs)
    weights = [torch.linspace(-1, 1, v.numel()).to(dtype).view_as(v) for v in true]
    gradients = torch.autograd.grad(true, needed, weights)
    bound = 1e-9 if dtype == torch.float64 else 1e-4
    others = [delta.chunked(inputs, chunk), with_peek(delta.reference, "delta")(inputs)]
    for found in others:
        pairs = [*zip(true, found, strict=True)]
        pairs += zip(
            gradients, torch.autograd.grad(found, needed, weights), strict=True
        )
        for a, b in pairs:
            assert (a - b).abs().max() <= bound * a.abs().max()


@torch.no_grad()
def test_known_values_change_nothing():
    inputs = draw(torch.float64, tokens=1, frames=12)._replace(reset=None, peek=None)
    once, state = inputs, inputs.S
    for _ in range(200):
        _, state = delta.chunked(once._replace(S=state))
    _, later = delta.chunked(once._replace(S=state))
    assert (later - state).abs().max() < 1e-3 * state.abs().max()


@torch.no_grad()
def test_tokens_without_strength_leave_no_trace():
    inputs = draw(torch.float64)._replace(reset=None)
    silent = inputs._replace(beta=torch.zeros_like(inputs.beta))
    assert torch.equal(delta.chunked(silent)[1], inputs.S)
    assert torch.equal(delta.reference(silent)[1], inputs.S)
