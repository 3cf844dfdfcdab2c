"""Planning by sampling: a planner receives a function `score(actions) -> returns` and returns a `Plan`.

    planner = build(CEMConfig(horizon=12), Discrete(4))
    plan = planner.plan(score, batch=B, generator=torch.Generator().manual_seed(0))
    plan = planner.plan(score, batch=B, generator=generator, warm=plan.shift(4))

Reading order: base (inputs and outputs), search (the loop), cem, icem, mppi, shooting, beam (their
differences), distributions and noise (sampling).

A new planner takes two files: its own, with its config and its `Search`, and this one, with its line in
`PLANNERS`. On the command line it is chosen by `planner.kind=NAME`.
"""

from lssvwm.planners.base import (
    Box,
    Discrete,
    MultiDiscrete,
    Plan,
    Proposals,
    Score,
    Simulation,
    Space,
    discounted_return,
)
from lssvwm.planners.beam import Beam, BeamConfig
from lssvwm.planners.cem import CEM, CEMConfig
from lssvwm.planners.icem import ICEM, ICEMConfig
from lssvwm.planners.mppi import MPPI, MPPIConfig
from lssvwm.planners.search import Search, SearchConfig
from lssvwm.planners.shooting import Shooting, ShootingConfig

PLANNERS: dict[type[SearchConfig], type[Search]] = {
    BeamConfig: Beam,
    CEMConfig: CEM,
    ICEMConfig: ICEM,
    MPPIConfig: MPPI,
    ShootingConfig: Shooting,
}
"""Every planner's config class and the class that it configures."""

PLANNER_CONFIGS = {config.kind: config for config in PLANNERS}
"""Config classes by the name of the planner."""

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "PLANNER_CONFIGS",
    "Beam",
    "BeamConfig",
    "Box",
    "CEMConfig",
    "Discrete",
    "ICEMConfig",
    "MPPIConfig",
    "MultiDiscrete",
    "Plan",
    "Proposals",
    "Score",
    "Search",
    "SearchConfig",
    "Shooting",
    "ShootingConfig",
    "Simulation",
    "Space",
    "build",
    "discounted_return",
]


def build(config: SearchConfig, space: Space) -> Search:
    """Build the planner of a config for an action space; raises TypeError for another object."""
    if type(config) not in PLANNERS:
        known = ", ".join(kind.__name__ for kind in PLANNERS)
        raise TypeError(f"no planner for a {type(config).__name__}; known: {known}")
    return PLANNERS[type(config)](config, space)
