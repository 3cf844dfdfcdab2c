"""Select the implementation of the scan: by name, or the fastest on a device.

All take `ScanInputs` and give equal results. Those that need another package are loaded on first use. A backend that
cannot be used raises an error with the reason. It is never replaced silently.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import torch
from lssvwm.worldmodel.scan import chunked as ssm
from lssvwm.worldmodel.scan.chunked import ScanInputs
from torch import Tensor

Scan = Callable[[ScanInputs], tuple[Tensor, ...]]

FUSED = {
    "mamba_ssm": "lssvwm.worldmodel.scan.mamba_ssm",
    "fla": "lssvwm.worldmodel.scan.fla",
}
"""Triton kernels of other packages, in order of preference. Their modules have a `scan` that does not peek."""
NAMES = ("reference", "chunked", *FUSED)
"""All backends."""


class BackendUnavailable(RuntimeError):
    """Report that a backend cannot be used here. The message gives the reason."""


def select_backend(name: str, device: torch.device | str) -> tuple[str, Scan]:
    """Return name and function of a backend for a device.

    `auto` is the first usable of mamba_ssm, fla, chunked on CUDA, and chunked elsewhere. Raises ValueError for an
    unknown name. Raises BackendUnavailable for a backend that cannot run on the device.
    """
    device = torch.device(device)
    if name == "auto":
        name = _fastest(device)
    if name in FUSED:
        reason = unavailable_reason(name, device)
        if reason is not None:
            raise BackendUnavailable(f"backend={name} cannot be used: {reason}")
        return name, with_peek(importlib.import_module(FUSED[name]).scan)
    if name not in NAMES:
        raise ValueError(
            f"backend={name} is not known; there are auto, {', '.join(NAMES)}"
        )
    return name, getattr(ssm, name)


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        for name in FUSED:
            if unavailable_reason(name, device) is None:
                return name
    return "chunked"


def unavailable_reason(name: str, device: torch.device | str) -> str | None:
    """Return why a backend cannot be used on a device; None if it can."""
    if name not in FUSED:
        return None
    try:
        importlib.import_module(FUSED[name])
    except Exception as error:  # a broken installation may raise anything
        return one_line(error)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if torch.device(device).type != "cuda" and not interpreted:
        return "its kernels need an NVIDIA GPU"
    return None


def one_line(error: Exception) -> str:
    """Return the class of an error and the last line of its message."""
    last_line = str(error).strip().splitlines()[-1:]
    return ": ".join([type(error).__name__, *last_line])


def with_peek(scan: Scan) -> Scan:
    """Wrap a scan without `peek`, so that it peeks.

    Those queries become tokens of step size zero before their frame.
    """

    def wrapped(inputs: ScanInputs) -> tuple[Tensor, ...]:
        inputs = inputs._replace(X=inputs.X.to(inputs.dt.dtype))
        if inputs.peek is None:
            return scan(inputs)
        frames = inputs.peek.shape[1:3]
        Y, S = scan(_interleaved(inputs, inputs.peek))
        by_frame = Y.unflatten(1, (frames[0], 2, frames[1]))
        peeked, Y = (y.flatten(1, 2) for y in by_frame.unbind(2))
        return Y, S, peeked

    return wrapped


def _interleaved(inputs: ScanInputs, peek: Tensor) -> ScanInputs:
    """Put a copy of each frame that only peeks before the frame itself."""
    frames = peek.shape[1:3]

    def join(before: Tensor, frame: Tensor) -> Tensor:
        return torch.stack((before, frame), 2).flatten(1, 3)

    X, dt, B, C = (
        v.unflatten(1, frames) for v in (inputs.X, inputs.dt, inputs.B, inputs.C)
    )
    reset = inputs.reset
    if reset is not None:
        reset = reset.unflatten(1, frames)
        reset = join(reset, torch.zeros_like(reset))
    return ScanInputs(
        X=join(X, X),
        dt=join(torch.zeros_like(dt), dt),
        A=inputs.A,
        B=join(B, B),
        C=join(peek, C),
        S=inputs.S,
        reset=reset,
    )


def relative_error(name: str, device: torch.device | str, seed: int = 0) -> float:
    """Return the largest relative error of a backend against `reference`.

    It is measured on a small scan that resets and peeks.
    """
    inputs = _random_inputs(seed)
    exact = ssm.reference(
        ScanInputs(*(v.double() if v.is_floating_point() else v for v in inputs))
    )
    _, scan = select_backend(name, device)
    found = scan(ScanInputs(*(v.to(device) for v in inputs)))
    errors = [
        (true - value.cpu()).abs().max() / true.abs().max()
        for true, value in zip(exact, found)
    ]
    return max(float(error) for error in errors)


def _random_inputs(seed: int) -> list[Tensor]:
    """Return the fields of `ScanInputs` for two sequences of 20 frames of 5 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    b, frames, tokens, h, p, n = 2, 20, 5, 2, 16, 32
    length = frames * tokens
    X, B, C = normal(b, length, h, p), normal(b, length, n), normal(b, length, n)
    dt = uniform(b, length, h)
    A, S = -uniform(h), normal(b, h, p, n)
    peek = normal(b, frames, tokens, n)
    first_token = torch.arange(tokens) == 0
    reset = (uniform(b, frames, 1) < 0.1) & first_token
    return [X, dt, A, B, C, S, reset.flatten(1), peek]
