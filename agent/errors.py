"""The error that the console script shows as one line, without a traceback."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Report in one line a mistake that the user can correct, and its remedy."""
