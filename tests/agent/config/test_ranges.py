"""Every number among the settings has a range, and values outside of it are refused."""

from __future__ import annotations

import pytest
from lssvwm.agent.config.composition import overridden, parse, to_dict
from lssvwm.agent.config.settings import BenchmarkRunConfig, RecordRunConfig
from lssvwm.agent.config.validation import build
from lssvwm.agent.errors import UserError

from tests.wrong_values import Numbers, every_setting, numeric_parts, wrong_values

SETTINGS = every_setting()
LOW, HIGH = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def label(setting: Numbers) -> str:
    return f"{setting.kind or ''} {setting.name}".strip()


def test_every_number_has_a_range() -> None:
    unlimited = [
        label(setting)
        for setting in SETTINGS
        for part in numeric_parts(setting.schema)
        if not (any(k in part for k in LOW) and any(k in part for k in HIGH))
    ]
    assert unlimited == []
    assert sum(1 for s in SETTINGS for _ in numeric_parts(s.schema)) > 90


@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_values_outside_of_the_range_are_refused(setting: Numbers) -> None:
    cls = RecordRunConfig if setting.name.startswith("record") else BenchmarkRunConfig
    for value in wrong_values(setting.schema):
        plain = to_dict(cls())
        if setting.kind:
            section, kind = setting.kind.removesuffix("=").split(".kind=")
            above = plain
            *sections, last = section.split(".")
            for part in sections:
                above = above[part]
            above[last] = {"kind": kind}
        with pytest.raises(UserError) as caught:
            build(cls, overridden(plain, [parse(f"{setting.name}={value}")]))
        assert "\n" not in str(caught.value), value
