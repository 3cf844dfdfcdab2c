"""Test the ranges of the model's settings."""

import dataclasses

import pytest
from lssvwm.worldmodel import LossWeights, ModelConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forcing": "both"}, "'teacher', 'diffusion' or"),
        ({"width": 33}, "model.width=33 must be a multiple of"),
        ({"pixel_fraction": 0.0}, "greater than 0"),
        ({"patches": 3}, "patches"),
        ({"discount": float("nan")}, "discount"),
    ],
)
def test_config_refuses_wrong_values(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)


@pytest.mark.parametrize("config", [ModelConfig, LossWeights])
def test_every_setting_is_documented(config):
    for field in dataclasses.fields(config):
        assert config.__pydantic_fields__[field.name].description, field.name
