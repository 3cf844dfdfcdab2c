"""Which implementation of the scan runs: by name, or the fastest that works on a device.

All have the signature of `ssm.chunked` and give equal results. Those that need another package are loaded when they are
asked for; one that cannot be used is named with the reason, and never replaced silently.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import torch
from lssvwm.worldmodel.scan import chunked as ssm
from torch import Tensor

Scan = Callable[..., tuple[Tensor, ...]]

FUSED = {
    "mamba_ssm": "lssvwm.worldmodel.scan.mamba_ssm",
    "fla": "lssvwm.worldmodel.scan.fla",
}
"""Triton kernels of other packages, in order of preference."""
NAMES = ("reference", "chunked", *FUSED)


class Unavailable(RuntimeError):
    """A backend that was asked for cannot be used here; the message says why and what to install."""


def pick(name: str, device: torch.device | str) -> tuple[str, Scan]:
    """The backend `name` for a device; `auto` is the first usable of mamba_ssm, fla, chunked on CUDA, else chunked.

    Raises ValueError for an unknown name and Unavailable for a backend that cannot run on the device.
    """
    device = torch.device(device)
    if name == "auto":
        name = next(
            (n for n in FUSED if device.type == "cuda" and why_not(n, device) is None),
            "chunked",
        )
    if name in FUSED:
        reason = why_not(name, device)
        if reason is not None:
            raise Unavailable(f"backend={name} cannot be used: {reason}")
        return name, ssm.interleaved(importlib.import_module(FUSED[name]).scan)
    if name not in NAMES:
        raise ValueError(
            f"backend={name} is not known; there are auto, {', '.join(NAMES)}"
        )
    return name, getattr(ssm, name)


def why_not(name: str, device: torch.device | str) -> str | None:
    """Why a backend cannot be used on a device; None if it can."""
    if name not in FUSED:
        return None
    try:
        importlib.import_module(FUSED[name])
    except Exception as error:  # a broken installation may raise anything
        return in_a_line(error)
    if (
        torch.device(device).type != "cuda"
        and os.environ.get("TRITON_INTERPRET") != "1"
    ):
        return "its kernels need an NVIDIA GPU"
    return None


def in_a_line(error: Exception) -> str:
    """The kind of an error and the last line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]])


def error(name: str, device: torch.device | str, seed: int = 0) -> float:
    """Largest relative error of a backend on a small scan with resets and `peek`, against `reference`."""
    make = torch.Generator().manual_seed(seed)
    b, length, h, p, n = 2, 100, 2, 16, 32
    X, B, C = (
        torch.randn(b, length, *shape, generator=make) for shape in ((h, p), (n,), (n,))
    )
    dt = torch.rand(b, length, h, generator=make)
    A, S = -torch.rand(h, generator=make), torch.randn(b, h, p, n, generator=make)
    peek = torch.randn(b, length // 5, 5, n, generator=make)
    reset = (torch.rand(b, length // 5, 1, generator=make) < 0.1) & (
        torch.arange(5) == 0
    )
    inputs = X, dt, A, B, C, S, reset.flatten(1), peek
    oracle: Scan = ssm.reference
    true = oracle(*(v.double() if v.is_floating_point() else v for v in inputs))
    given = pick(name, device)[1](*(v.to(device) for v in inputs))
    return max(
        float((a - b.cpu()).abs().max() / a.abs().max()) for a, b in zip(true, given)
    )
