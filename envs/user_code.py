"""Call a user's environment: check what it returns, and report its mistakes in one line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    *(str(PACKAGE / name) for name in ("agent", "envs", "planners", "worldmodel")),
    "<frozen",
)
"""Starts of the paths of files that are no code of the user."""
RESET = "reset() must return (observation, info)"
STEP = "step() must return (observation, reward, terminated, truncated, info)"


class EnvironmentFault(ValueError):
    """Report in one line which call of which environment failed, and where."""


class GymStep(NamedTuple):
    """Hold the checked result of one `step`."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


def guarded(name: str, action: str, function: Callable[..., T], *given: Any) -> T:
    """Return `function(*given)`.

    action: what it does, for the message
    Raises EnvironmentFault with the line of the user's file for any error.
    """
    try:
        return function(*given)
    except EnvironmentFault:
        raise
    except (Exception, SystemExit) as error:
        raise EnvironmentFault(
            f"{name}: {action} failed{place(error)}: {type(error).__name__}: {error}"
        ) from error


def place(error: BaseException) -> str:
    """Return " at FILE:LINE" of the innermost line of the user's code, else an empty text."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def checked_reset(name: str, result: Any) -> Any:
    """Return the observation of a reset; raises EnvironmentFault for anything else."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise EnvironmentFault(f"{name}: {RESET}, got {_described(result)}")
    return result[0]


def checked_step(name: str, result: Any) -> GymStep:
    """Return the parts of a step; raises EnvironmentFault for anything else."""
    if not (isinstance(result, tuple) and len(result) == 5):
        raise EnvironmentFault(f"{name}: {STEP}, got {_described(result)}")
    observation, reward, terminated, truncated, info = result
    if not isinstance(info, Mapping):
        raise EnvironmentFault(
            f"{name}: step() must return a dictionary as info, got {_described(info)}"
        )
    return GymStep(
        observation=observation,
        reward=_reward(name, reward),
        terminated=flag(name, "terminated", terminated),
        truncated=flag(name, "truncated", truncated),
        info=info,
    )


def _reward(name: str, reward: Any) -> float:
    """Return a reward that is one finite number in float32."""
    value = np.asarray(reward)
    if value.ndim == 0 and value.dtype.kind in "fiub":
        with np.errstate(over="ignore"):
            finite = np.isfinite(value.astype(np.float32))
        if finite:
            return float(value)
    raise EnvironmentFault(
        f"{name}: step() must return one finite number as reward, "
        f"got {_described(reward)}"
    )


def succeeded(name: str, value: Any) -> bool:
    """Return the success that the info of a step holds.

    Raises EnvironmentFault for anything without a truth value.
    """
    try:
        return bool(value)
    except (ValueError, TypeError):
        raise EnvironmentFault(
            f"{name}: the success in the info of step() must be true or false, "
            f"got {_described(value)}"
        ) from None


def flag(name: str, what: str, value: Any) -> bool:
    """Return a flag that is true, false, 1 or 0; raises EnvironmentFault for others."""
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "iub" and int(array) in (0, 1):
        return bool(array)
    raise EnvironmentFault(
        f"{name}: step() must return {what} as true or false, got {_described(value)}"
    )


def _described(value: Any) -> str:
    """Return a short text that shows the type, and the shape or the value."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)}"
    return f"{kind} {str(value)[:40]}"
