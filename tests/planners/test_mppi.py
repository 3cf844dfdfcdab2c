"""MPPI: relative temperature."""

import pytest
import torch
from lssvwm.planners import Discrete, MPPIConfig, build

from tests.planners.conftest import matches, seed


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9, 1e25])
def test_mppi_ignores_scale_of_rewards(scale):
    target = torch.randint(3, (2, 8), generator=seed(2))
    planner = build(MPPIConfig(horizon=8), Discrete(3))
    base = planner.plan(matches(target), batch=2, generator=seed())
    scaled = planner.plan(
        lambda actions: matches(target)(actions) * scale, batch=2, generator=seed()
    )
    torch.testing.assert_close(base.state, scaled.state, rtol=1e-4, atol=1e-5)
