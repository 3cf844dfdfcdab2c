"""Read results of evaluations and sweeps, in the present format or an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lssvwm.agent.config.migration import RENAMED_VALUES
from lssvwm.agent.errors import UserError

FORMAT_VERSION = 2
"""Format of `evaluation.json` and `planning.json`. Format 1 has no `format_version` and other names of arms."""


def read(file: Path) -> dict[str, Any]:
    """Read a result file in the present format."""
    return migrate(json.loads(file.read_text()))


def migrate(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result in the present format.

    Raises UserError for a format that is newer than this version of the package.
    """
    version = found.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise UserError(
            f"the result has format {version}, this version reads up to {FORMAT_VERSION}: update"
        )
    renamed = _renamed_arms(found) if version == 1 else found
    return renamed | {"format_version": FORMAT_VERSION}


def _renamed_arms(part: Any) -> Any:
    """Rename the arms in every mapping or list called `arms`."""
    names = RENAMED_VALUES["tasks.arms"]
    if isinstance(part, list):
        return [_renamed_arms(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    inner = {key: _renamed_arms(value) for key, value in part.items()}
    arms = inner.get("arms")
    if isinstance(arms, dict):
        inner["arms"] = {names.get(arm, arm): row for arm, row in arms.items()}
    elif isinstance(arms, list):
        inner["arms"] = [names.get(arm, arm) for arm in arms]
    return inner
