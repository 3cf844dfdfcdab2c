"""Model predictive path integral control."""

from __future__ import annotations

from dataclasses import dataclass

from lssvwm.planners.distributions import require
from lssvwm.planners.search import WORST, Search, SearchConfig
from torch import Tensor


@dataclass(frozen=True)
class MPPIConfig(SearchConfig):
    """MPPI weighs all candidates; temperature is in units of the gap between best and median score."""

    kind: str = "mppi"
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, self, "temperature", "positive")


class MPPI(Search):
    """Model predictive path integral control: every candidate counts by the exponential of its score.

    Source: Williams et al. 2017, "Information theoretic MPC for model-based reinforcement learning" (the best
    score is subtracted before the exponential). Beyond the paper, the spread is refitted too (Hansen et al.
    2024, TD-MPC2), the temperature is relative so that the scale of rewards does not matter, and actions may
    be discrete, with the same weights on action frequencies.
    """

    config: MPPIConfig

    def weights(self, scores: Tensor) -> Tensor:
        """exp((score - best) / (temperature * (best - median))): [B, M], the best one's weight being 1."""
        best = scores[:, :1]
        median = (
            scores.masked_fill(scores <= WORST, float("nan"))
            .nanmedian(1, keepdim=True)
            .values
        )
        gap = (
            (best - median)
            .nan_to_num(nan=0.0)
            .clamp(min=1e-30)
            .maximum(1e-6 * best.abs())
        )
        return ((scores - best) / (self.config.temperature * gap)).exp()
