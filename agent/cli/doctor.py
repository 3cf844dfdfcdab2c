"""Report versions, devices, and the accuracy of each backend of the scan."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from lssvwm.agent.checkpoint import pick_backend, pick_device
from lssvwm.agent.config.settings import Config
from lssvwm.worldmodel.scan import backends

PACKAGES = (
    "lssvwm",
    "torch",
    "torchrl",
    "tensordict",
    "gymnasium",
    "minigrid",
    "numpy",
    "moviepy",
)
OPTIONAL = ("triton", "mamba-ssm", "fla-core")
EXACT = 1e-3
"""Relative error of a float32 scan above which a backend is wrong."""


def report(config: Config) -> str:
    """Return the report of `lssvwm doctor`.

    Raises UserError if the configured device or backend cannot be used.
    """
    device = pick_device(config.device)
    name, _ = pick_backend(config.backend, device)
    lines = ["versions", _row("python", platform.python_version())]
    lines += [_row(package, _version(package)) for package in PACKAGES + OPTIONAL]
    lines += ["devices", *(_row(*pair) for pair in _devices())]
    lines += [
        f"backends of the scan on {device}",
        *(_row(*pair) for pair in _backends(device)),
    ]
    lines += ["in use", _row("device", str(device)), _row("backend", name)]
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"  {name:<12} {text}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    """Return the name and a description of each device."""
    cores, threads = os.cpu_count(), torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    found = [("cpu", f"{cores} cores, {threads} threads, {instructions}")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        found.append((f"cuda:{index}", f"{gpu.name}, {memory}"))
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: this torch is built for CPUs"
        found.append(("cuda", f"no GPU found (CUDA of torch: {built})"))
    if torch.backends.mps.is_available():
        found.append(("mps", "available"))
    return found


def _backends(device: torch.device) -> list[tuple[str, str]]:
    """Return the name and the state of each backend."""
    return [(name, _states(name, device)) for name in backends.NAMES]


def _states(name: str, device: torch.device) -> str:
    """Return the state of a backend for each update rule; once, if they agree."""
    states = {rule: _state(name, device, rule) for rule in backends.RULES}
    if len(set(states.values())) == 1:
        return states["ssd"]
    return "; ".join(f"{state} ({rule})" for rule, state in states.items())


def _state(name: str, device: torch.device, rule: backends.RuleName) -> str:
    """Return the error of a backend for one update rule, or why it cannot run.

    The reference is the recurrence in float64.
    """
    if reason := backends.unavailable_reason(name, device, rule):
        return f"cannot be used: {reason}"
    try:
        error = backends.relative_error(name, device, rule)
    except Exception as broken:  # a kernel that does not compile may raise anything
        return f"broken: {backends.one_line(broken)}"
    too_large = "" if error < EXACT else " - TOO LARGE"  # also if the error is NaN
    return f"works, relative error {error:.1e}{too_large}"
