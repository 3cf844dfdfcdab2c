"""Refuse code that a file names and the user does not.

Two settings run code: a factory, and an id with a colon, whose module is imported first. They may stand in `env`, in
`train.collect.vary` and in the settings of a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lssvwm.agent.errors import UserError

WRAPPERS = ("GymV21Environment", "GymV26Environment")
"""Registered ids that make the environment which an argument names, from any module."""


def named_code(plain: Any, name: str = "") -> list[tuple[str, str]]:
    """Return name and value of all settings that run code.

    plain: settings as plain data, nested or with dotted names
    """
    found = []
    if isinstance(plain, Mapping):
        for key, inner in plain.items():
            found += named_code(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(plain, (list, tuple)):
        for inner in plain:
            found += named_code(inner, name)
    elif isinstance(plain, str) and _runs_code(name.rpartition(".")[2], plain):
        found.append((name, plain))
    return found


def _runs_code(setting: str, value: str) -> bool:
    if setting == "id":
        return ":" in value or value.startswith(WRAPPERS)
    return setting == "factory" and value != ""


def check_consent(plain: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raise UserError if settings run code that the user did not name.

    plain: all settings
    typed: settings of the command line by name
    """
    allowed = {value for _, value in named_code(typed)}
    refused = {
        f"{name}={value!r}": None
        for name, value in named_code(plain)
        if value not in allowed
    }
    if not refused:
        return
    kwargs = plain["env"].get("kwargs")
    arguments = f" with env.kwargs={kwargs!r}" if kwargs else ""
    raise UserError(
        f"the saved settings run code that is not part of this package: "
        f"{', '.join(refused)}{arguments}; if you trust their author, add trust=true"
    )
