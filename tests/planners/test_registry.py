"""The registry of planners and the ranges of their settings."""

from dataclasses import fields
from typing import Literal

import pytest
import torch
from lssvwm.planners import (
    PLANNER_CONFIGS,
    PLANNERS,
    Discrete,
    MPPIConfig,
    Search,
    SearchConfig,
    build,
)
from pydantic.dataclasses import dataclass


def test_registry_builds_every_planner():
    for kind, config in PLANNER_CONFIGS.items():
        assert fields(config)[0].name == "kind"
        assert config().kind == kind
        assert type(build(config(), Discrete(2))).__name__.lower() == kind
    with pytest.raises(TypeError, match="known: BeamConfig, CEMConfig"):
        build(SearchConfig(kind="nothing"), Discrete(2))


def test_registry_takes_new_planner(monkeypatch):
    """One entry is all that a new planner needs."""

    class First(Search):
        def refit(self, state, ranking):
            return state

    @dataclass(frozen=True)
    class FirstConfig(SearchConfig):
        kind: Literal["first"] = "first"

    monkeypatch.setitem(PLANNERS, FirstConfig, First)
    planner = build(FirstConfig(horizon=3), Discrete(2))
    plan = planner.plan(
        lambda actions: actions.float().sum(-1),
        batch=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert plan.actions.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidates", 0),
        ("horizon", 0),
        ("iterations", 0),
        ("elites", 129),
        ("keep_elites", 0),
        ("time_budget", -1.0),
        ("temperature", 0.0),
    ],
)
def test_config_mistakes_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"(?s){field}.*{value}"):
        MPPIConfig(**{field: value})
