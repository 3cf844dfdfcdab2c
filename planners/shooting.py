"""Random shooting."""

from __future__ import annotations

from dataclasses import dataclass

from lssvwm.planners.search import Search, SearchConfig
from torch import Tensor


@dataclass(frozen=True)
class ShootingConfig(SearchConfig):
    """Random shooting needs one iteration; more draw more candidates."""

    kind: str = "shooting"
    iterations: int = 1


class Shooting(Search):
    """The best of random candidates, proposals and what was kept: the floor that other planners must beat."""

    def refit(self, state: Tensor, ranked: Tensor, scores: Tensor) -> Tensor:
        """The prior: nothing is learned from the scores."""
        return self.distribution.prior(len(state), state.device)
