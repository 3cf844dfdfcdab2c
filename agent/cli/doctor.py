"""`lssvwm doctor`: what is installed, which devices there are, which backends of the scan work there, how exactly."""

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
"""Relative error of a float32 scan above which a backend is not to be trusted."""


def report(config: Config) -> str:
    """Everything as text; raises UserError if the device or the backend that is asked for cannot be used."""
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
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    found = [("cpu", threads)]
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found.append(
            (f"cuda:{i}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
        )
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: this torch is built for CPUs"
        found.append(("cuda", f"no GPU found (CUDA of torch: {built})"))
    if torch.backends.mps.is_available():
        found.append(("mps", "there"))
    return found


def _backends(device: torch.device) -> list[tuple[str, str]]:
    """Each backend, and its error against the recurrence in float64, or why it cannot run."""
    found = []
    for name in backends.NAMES:
        reason = backends.unavailable_reason(name, device)
        if reason is None:
            try:
                error = backends.relative_error(name, device)
                reason = f"works, relative error {error:.1e}" + (
                    " - TOO LARGE" if not error < EXACT else ""
                )
            except (
                Exception
            ) as broken:  # a kernel that does not compile may raise anything
                reason = f"broken: {backends.one_line(broken)}"
        else:
            reason = f"cannot be used: {reason}"
        found.append((name, reason))
    return found
