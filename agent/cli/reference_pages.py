"""Write help pages of commands from the definitions of their settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import click
from lssvwm.agent.config.composition import overridden, parse, presets
from lssvwm.agent.config.presets import GROUPS, options, pretrained
from lssvwm.agent.config.reference import Setting, describe, text
from lssvwm.agent.config.settings import (
    BenchmarkRunConfig,
    CheckpointConfig,
    Config,
    PlayRunConfig,
    RecordRunConfig,
    SavedRunConfig,
)


@dataclass(frozen=True)
class Page:
    """Choose what a help page lists: a settings class, sections of it, groups of presets."""

    cls: type[Config]
    sections: tuple[str, ...]
    groups: tuple[str, ...] = ()


LONG = 24
"""Characters of a default above which it does not stand next to the name."""
PLAYED = ("tasks", "planner", "objective", "mpc", "env")
"""Sections that an evaluation reads."""
PAGES = {
    "train": Page(
        Config,
        ("", "train", "model", "env", "planner", "objective", "mpc", "tasks"),
        GROUPS,
    ),
    "resume": Page(SavedRunConfig, ("", "train")),
    "evaluate": Page(CheckpointConfig, ("", *PLAYED), ("planner",)),
    "record": Page(RecordRunConfig, ("", "record", *PLAYED), ("planner",)),
    "collect": Page(
        CheckpointConfig, ("", "train.collect", "env"), ("env", "experiment")
    ),
    "play": Page(PlayRunConfig, ("", "play", "env")),
    "benchmark": Page(BenchmarkRunConfig, ("", "benchmark")),
    "doctor": Page(Config, ("",)),
}
"""Help pages by command; the section "" is the top level."""


def write(
    command: str, settings: Sequence[str], formatter: click.HelpFormatter
) -> None:
    """Write the page of a command.

    `settings` may choose presets, as in env=recall, and kinds, as in planner.kind=mppi. The page lists the settings
    of the chosen environment, model and planner. Raises UserError for a preset that does not exist.
    """
    page = PAGES[command]
    if "checkpoint" in {setting.name for setting in describe(page.cls)}:
        with formatter.section("Pretrained models (checkpoint=NAME)"):
            formatter.write_text(", ".join(pretrained()))
    for group in page.groups:
        with formatter.section(f"Presets {group}=NAME"):
            formatter.write_dl(list(options(group).items()))
    for section, found in _by_section(page, settings).items():
        with formatter.section(f"Settings {section}".strip()):
            formatter.write_dl([_row(setting) for setting in found], col_max=36)


def _by_section(page: Page, settings: Sequence[str]) -> dict[str, list[Setting]]:
    """Return the settings of each section of a page, inner sections included."""
    overrides = [parse(setting) for setting in settings]
    choices = {o.key: str(o.value) for o in overrides if o.key in GROUPS}
    found: dict[str, list[Setting]] = {section: [] for section in page.sections}
    chosen_kinds = [o for o in overrides if o.key.endswith(".kind")]
    for setting in describe(page.cls, overridden(presets(choices), chosen_kinds)):
        inside = [
            section
            for section in page.sections
            if setting.group == section or setting.name.startswith(f"{section}.")
        ]
        if inside:
            found[inside[-1]].append(setting)
    return {section: rows for section, rows in found.items() if rows}


def _row(setting: Setting) -> tuple[str, str]:
    """Return name and default of a setting, and its documentation with the values it takes.

    A long default moves to the end of the documentation, where it can wrap.
    """
    values = f"Values: {setting.takes}."
    about = f"{setting.about} {values}".strip()
    default = text(setting.default)
    if len(default) <= LONG:
        return f"{setting.name}={default}", about
    spaced = default.replace(",", ", ")
    return f"{setting.name}=...", f"{about} Default: {spaced}"
