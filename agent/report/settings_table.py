"""Compare the settings of runs, those that differ first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lssvwm.agent.config.composition import to_dict
from lssvwm.agent.config.reference import describe, text
from lssvwm.agent.config.settings import Config

UNSHOWN = ("trust", "output", "name")
"""Settings that say nothing about the content of a run."""
MISSING = "-"
"""Cell of a run that has no such setting."""


@dataclass(frozen=True)
class SettingRow:
    """Hold one setting: its name and documentation, its default, and its value in every run."""

    name: str
    about: str
    default: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Return whether the runs have different values."""
        return len(set(self.values)) > 1

    @property
    def changed(self) -> bool:
        """Return whether a run has another value than the default."""
        return any(value not in (self.default, MISSING) for value in self.values)

    @property
    def first(self) -> bool:
        """Return whether the row stands above those at their defaults."""
        return self.differs or self.changed


def setting_rows(configs: Sequence[Config | None]) -> list[SettingRow]:
    """Return all settings: different ones first, then those not at their default."""
    found: dict[str, SettingRow] = {}
    for place, config in enumerate(configs):
        if config is None:
            continue
        plain = to_dict(config)
        for setting in describe(type(config), plain):
            if setting.name in UNSHOWN:
                continue
            value = plain
            for part in setting.name.split("."):
                value = value[part]
            row = found.setdefault(
                setting.name,
                SettingRow(
                    setting.name,
                    setting.about,
                    text(setting.default),
                    [MISSING] * len(configs),
                ),
            )
            row.values[place] = text(value)
    return sorted(found.values(), key=lambda row: (not row.differs, not row.changed))
