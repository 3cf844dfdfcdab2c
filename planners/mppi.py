"""Model predictive path integral control."""

from __future__ import annotations

from typing import Literal

from lssvwm.planners.base import Space
from lssvwm.planners.search import SETTINGS, WORST, Search, SearchConfig
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=SETTINGS)
class MPPIConfig(SearchConfig):
    """Set how sharply MPPI weights the better candidates."""

    kind: Literal["mppi"] = "mppi"

    temperature: float = Field(default=0.2, gt=0, le=1e6, allow_inf_nan=False)
    """Temperature of the weights, in units of the gap between best and median score."""


class MPPI(Search):
    """Weight every candidate by the exponential of its score.

    Source: Williams et al. 2017, "Information theoretic MPC for model-based reinforcement learning".
    As there, the best score is subtracted before the exponential.
    Beyond the paper, the standard deviation is refitted too (Hansen et al. 2024, TD-MPC2).
    The temperature is relative, so that the scale of rewards does not matter.
    Actions may be discrete; the same weights then apply to action frequencies.
    """

    def __init__(self, config: MPPIConfig, space: Space) -> None:
        super().__init__(config, space)
        self.temperature = config.temperature

    def weights(self, scores: Tensor) -> Tensor:
        """Return exp((score - best) / (temperature * (best - median))), [B, M]."""
        best = scores[:, :1]
        usable = scores.masked_fill(scores <= WORST, float("nan"))
        median = usable.nanmedian(1, keepdim=True).values
        gap = (best - median).nan_to_num(nan=0.0)
        # Equal scores must not divide by zero, and rounding of large scores is no gap.
        gap = gap.clamp(min=1e-30).maximum(1e-6 * best.abs())
        return ((scores - best) / (self.temperature * gap)).exp()
