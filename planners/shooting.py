"""Random shooting."""

from __future__ import annotations

from typing import Literal

from lssvwm.planners.search import SETTINGS, Ranking, Search, SearchConfig
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=SETTINGS)
class ShootingConfig(SearchConfig):
    """Set how many random candidates are drawn."""

    kind: Literal["shooting"] = "shooting"

    iterations: int = Field(default=1, ge=1, le=10**5)
    """Rounds of drawing and scoring candidates; each draws from the same distribution."""


class Shooting(Search):
    """Return the best of random candidates; every other planner should do better."""

    def refit(self, state: Tensor, ranking: Ranking) -> Tensor:
        """Return the prior: scores do not move the distribution."""
        return self.distribution.prior(len(state), state.device)
