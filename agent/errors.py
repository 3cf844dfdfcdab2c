"""Define the error that the console script shows as one line, and its hints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "did_you_mean"]


class UserError(Exception):
    """Report in one line a mistake that the user can correct, and its remedy."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest name; empty where none is near."""
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else ""
