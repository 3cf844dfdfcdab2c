"""Select the implementation of a scan: by name, or the fastest on a device.

There are two update rules, `ssd` and `delta`. All backends of a rule take the same inputs and give equal results. Those
that need another package are loaded on first use. A backend that cannot be used raises an error with the reason. It is
never replaced silently.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from lssvwm.worldmodel.scan import chunked as ssd
from lssvwm.worldmodel.scan import delta
from lssvwm.worldmodel.scan.chunked import ScanInputs
from lssvwm.worldmodel.scan.delta import DeltaInputs
from torch import Tensor
from torch.nn import functional as F

RuleName = Literal["ssd", "delta"]
Inputs = Any
"""`ScanInputs` or `DeltaInputs`."""
Scan = Callable[[ScanInputs], tuple[Tensor, ...]]
DeltaScan = Callable[[DeltaInputs], tuple[Tensor, ...]]

FUSED = {
    "mamba_ssm": "lssvwm.worldmodel.scan.mamba_ssm",
    "fla": "lssvwm.worldmodel.scan.fla",
}
"""Modules of Triton kernels of other packages, in order of preference."""
NAMES = ("reference", "chunked", *FUSED)
"""All backends."""


class Rule(NamedTuple):
    """Describe an update rule."""

    module: ModuleType
    """Holds the backends `reference` and `chunked`."""

    kernels: dict[str, str]
    """Function of each fused backend that has the rule; it does not peek."""

    strength: str
    """Field of the inputs that says how strongly a token writes; a token with 0 only reads."""

    key: str
    query: str


RULES: dict[RuleName, Rule] = {
    "ssd": Rule(ssd, {"mamba_ssm": "scan", "fla": "scan"}, "dt", "B", "C"),
    "delta": Rule(delta, {"fla": "delta_scan"}, "beta", "K", "Q"),
}


class BackendUnavailable(RuntimeError):
    """Report that a backend cannot be used here. The message gives the reason."""


def select_backend(
    name: str, device: torch.device | str, rule: RuleName = "ssd"
) -> tuple[str, Callable[[Inputs], tuple[Tensor, ...]]]:
    """Return name and function of a backend of an update rule for a device.

    `auto` is the first usable of mamba_ssm, fla, chunked on CUDA, and chunked elsewhere. Raises ValueError for an
    unknown name. Raises BackendUnavailable for a backend that cannot run on the device, or has not got the rule.
    """
    device = torch.device(device)
    if name == "auto":
        name = _fastest(device, rule)
    if name in FUSED:
        reason = unavailable_reason(name, device, rule)
        if reason is not None:
            raise BackendUnavailable(f"backend={name} cannot be used: {reason}")
        function = RULES[rule].kernels[name]
        return name, with_peek(
            getattr(importlib.import_module(FUSED[name]), function), rule
        )
    if name not in NAMES:
        raise ValueError(
            f"backend={name} is not known; there are auto, {', '.join(NAMES)}"
        )
    return name, getattr(RULES[rule].module, name)


def _fastest(device: torch.device, rule: RuleName) -> str:
    if device.type == "cuda":
        for name in FUSED:
            if unavailable_reason(name, device, rule) is None:
                return name
    return "chunked"


def unavailable_reason(
    name: str, device: torch.device | str, rule: RuleName = "ssd"
) -> str | None:
    """Return why a backend of an update rule cannot be used on a device.

    None: it can.
    """
    if name not in FUSED:
        return None
    if name in RULES["ssd"].kernels and name not in RULES[rule].kernels:
        return f"it has no kernel of the rule {rule}"
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


def with_peek(
    scan: Callable[[Inputs], tuple[Tensor, ...]], rule: RuleName = "ssd"
) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """Wrap a scan without `peek`, so that it peeks.

    Those queries become tokens before their frame that do not write.
    """

    def wrapped(inputs: Inputs) -> tuple[Tensor, ...]:
        strength = getattr(inputs, RULES[rule].strength)
        inputs = inputs._replace(X=inputs.X.to(strength.dtype))
        if inputs.peek is None:
            return scan(inputs)
        frames = inputs.peek.shape[1:3]
        Y, S = scan(_interleaved(inputs, RULES[rule]))
        by_frame = Y.unflatten(1, (frames[0], 2, frames[1]))
        peeked, Y = (y.flatten(1, 2) for y in by_frame.unbind(2))
        return Y, S, peeked

    return wrapped


def _interleaved(inputs: Inputs, rule: Rule) -> Inputs:
    """Put a copy of each frame that only peeks before the frame itself."""
    peek = inputs.peek
    frames = peek.shape[1:3]

    def join(before: Tensor, frame: Tensor) -> Tensor:
        return torch.stack((before, frame), 2).flatten(1, 3)

    names = ("X", rule.strength, rule.key, rule.query)
    X, strength, key, query = (getattr(inputs, n).unflatten(1, frames) for n in names)
    joined = {
        "X": join(X, X),
        rule.strength: join(torch.zeros_like(strength), strength),
        rule.key: join(key, key),
        rule.query: join(peek, query),
        "peek": None,
    }
    if inputs.reset is not None:
        reset = inputs.reset.unflatten(1, frames)
        joined["reset"] = join(reset, torch.zeros_like(reset))
    return inputs._replace(**joined)


def relative_error(
    name: str, device: torch.device | str, rule: RuleName = "ssd", seed: int = 0
) -> float:
    """Return the largest relative error of a backend against `reference`.

    It is measured on a small scan that resets and peeks.
    """
    inputs = _random_inputs(seed, rule)
    kind = type(inputs)
    exact = RULES[rule].module.reference(
        kind(*(v.double() if v.is_floating_point() else v for v in inputs))
    )
    _, scan = select_backend(name, device, rule)
    found = scan(kind(*(v.to(device) for v in inputs)))
    errors = [
        (true - value.cpu()).abs().max() / true.abs().max()
        for true, value in zip(exact, found)
    ]
    return max(float(error) for error in errors)


def _random_inputs(seed: int, rule: RuleName) -> Inputs:
    """Return the inputs of a scan of two sequences of 20 frames of 5 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    b, frames, tokens, h, p, n = 2, 20, 5, 2, 16, 32
    length = frames * tokens
    X, keys, queries = (
        normal(b, length, h, p),
        normal(b, length, n),
        normal(b, length, n),
    )
    strength = uniform(b, length, h)
    A, S = -uniform(h), normal(b, h, p, n)
    peek = normal(b, frames, tokens, n)
    first_token = torch.arange(tokens) == 0
    reset = ((uniform(b, frames, 1) < 0.1) & first_token).flatten(1)
    if rule == "ssd":
        return ScanInputs(X, strength, A, keys, queries, S, reset, peek)
    keys = F.normalize(keys, dim=-1)
    return DeltaInputs(
        X.flatten(2), strength[..., 0], keys, queries, S.flatten(1, 2), reset, peek
    )
