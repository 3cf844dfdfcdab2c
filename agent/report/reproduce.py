"""Write the commands that reproduce runs and results, from their saved settings.

A command is returned only if it composes exactly the saved settings.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lssvwm.agent.config.composition import (
    compose,
    from_checkpoint,
    overridden,
    parse,
    to_dict,
)
from lssvwm.agent.config.consent import named_code
from lssvwm.agent.config.presets import options
from lssvwm.agent.config.reference import text
from lssvwm.agent.config.settings import CheckpointConfig, Config, RecordRunConfig
from lssvwm.agent.config.validation import build
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.origin import used_settings

FREE = ("mix", "vary", "kwargs", "stages")
"""Settings whose value is a mapping."""
GROUPS = ("env", "model", "planner", "train")
UNCOMPARED = ("trust", "output")


def train_command(config: Config, folder: Path) -> str | None:
    """Return the command that starts a run with these settings; None if there is none."""
    wanted = to_dict(config)
    start = _start(config)
    try:
        base = to_dict(_composed(*start))
        changes = _differences(base, wanted)
        overrides = [parse(setting) for setting in changes]
        composed = to_dict(build(Config, overridden(base, overrides)))
    except UserError:
        return None
    if any(composed[k] != wanted[k] for k in composed if k not in UNCOMPARED):
        return None
    return command("train", *start, *changes, f"output={folder}")


@cache
def _composed(*settings: str) -> Config:
    return compose(settings)


def _start(config: Config) -> list[str]:
    """Choose the experiment of a run, or presets of the same kinds."""
    if config.name in options("experiment"):
        return [f"experiment={config.name}"]
    plain = to_dict(config)
    wanted = {"env": config.env.kind, "planner": config.planner.kind}
    found = [f"{group}={kind}" for group, kind in wanted.items()]
    mixer = plain["model"]["mixer"]["kind"]
    default = to_dict(_composed())["model"]["mixer"]["kind"]
    return found if mixer == default else [*found, f"model.mixer.kind={mixer}"]


def result_command(name: str, config: Config, found: Mapping[str, Any]) -> str | None:
    """Return the command `lssvwm evaluate` or `record` of a result; None if there is none.

    config: settings of the run, from which those of the result may differ
    """
    cls = RecordRunConfig if name == "record" else CheckpointConfig
    stored = found.get("settings") or {}
    checkpoint = (found.get("origin") or {}).get("checkpoint")
    if not checkpoint:
        return None
    start = [f"checkpoint={checkpoint}", "trust=true"]
    try:
        saved = to_dict(config)
        base = used_settings(from_checkpoint(saved, start, cls))
        changes = _differences(base, stored | {"checkpoint": checkpoint})
        composed = used_settings(from_checkpoint(saved, [*start, *changes], cls))
    except (UserError, KeyError, AttributeError):
        return None
    wanted = dict(stored) | {"checkpoint": checkpoint}
    if composed | {"checkpoint": checkpoint} != wanted:
        return None
    consent = ["trust=true"] if named_code(saved) else []
    return command(name, start[0], *changes, *consent)


def differences(config: Config, stored: Mapping[str, Any]) -> list[str]:
    """Return the settings `key=value` in which a result differs from its run."""
    plain = to_dict(config)
    shared = {key: stored[key] for key in plain if key in stored}
    return _differences({key: plain[key] for key in shared}, shared)


def _differences(
    base: Mapping[str, Any], other: Mapping[str, Any], above: str = ""
) -> list[str]:
    """Return the settings `key=value` that turn one configuration into another, kinds first."""
    changes = []
    for key in sorted(other, key=lambda key: (key != "kind", list(other).index(key))):
        name = f"{above}{key}"
        old, new = base.get(key), other[key]
        if name in UNCOMPARED or old == new:
            continue
        if isinstance(new, dict) and isinstance(old, dict) and key not in FREE:
            changes += _differences(old, new, f"{name}.")
        else:
            changes.append(f"{name}={text(new)}")
    return changes


def command(name: str, *settings: str) -> str:
    """Return a command of the console script as it is typed."""
    return shlex.join(["lssvwm", name, *settings])
