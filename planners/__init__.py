"""Planning by sampling: a planner takes a function `score(actions) -> returns` and returns a `Plan`.

    planner = build(CEMConfig(horizon=12), Discrete(4))
    plan = planner.plan(score, batch=B, generator=torch.Generator().manual_seed(0))
    plan = planner.plan(score, batch=B, generator=generator, warm=plan.shift(4))

Reading order: plan (what goes in and out), search (the loop), cem, icem, mppi, shooting, beam (what differs),
proposals (sampling).
"""

from lssvwm.planners.base import (
    Box,
    Discrete,
    MultiDiscrete,
    Plan,
    Score,
    Space,
    returns,
)
from lssvwm.planners.beam import Beam, BeamConfig
from lssvwm.planners.cem import CEM, CEMConfig
from lssvwm.planners.icem import ICEM, ICEMConfig
from lssvwm.planners.mppi import MPPI, MPPIConfig
from lssvwm.planners.search import Search, SearchConfig
from lssvwm.planners.shooting import Shooting, ShootingConfig

PLANNER_CONFIGS: dict[str, type[SearchConfig]] = {
    "beam": BeamConfig,
    "cem": CEMConfig,
    "icem": ICEMConfig,
    "mppi": MPPIConfig,
    "shooting": ShootingConfig,
}

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
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
    "Score",
    "Search",
    "SearchConfig",
    "Shooting",
    "ShootingConfig",
    "Space",
    "build",
    "returns",
]


def build(config: SearchConfig, space: Space) -> Search:
    """The planner that a config describes, for an action space; raises TypeError for any other object."""
    match config:
        case BeamConfig():
            return Beam(config, space)
        case ICEMConfig():
            return ICEM(config, space)
        case CEMConfig():
            return CEM(config, space)
        case MPPIConfig():
            return MPPI(config, space)
        case ShootingConfig():
            return Shooting(config, space)
    known = ", ".join(kind.__name__ for kind in PLANNER_CONFIGS.values())
    raise TypeError(f"no planner for a {type(config).__name__}; known: {known}")
