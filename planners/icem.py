"""CEM with coloured noise and fewer candidates from iteration to iteration."""

from __future__ import annotations

from typing import Literal

from lssvwm.planners.base import Space
from lssvwm.planners.cem import CEM
from lssvwm.planners.noise import Generators
from lssvwm.planners.search import SETTINGS, SearchConfig
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=SETTINGS)
class ICEMConfig(SearchConfig):
    """Set the noise and the decay of candidates."""

    kind: Literal["icem"] = "icem"

    colour: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    """Exponent with which the power of the noise falls with frequency. 0: white noise. 2: random walk.
    null: 0.5 for discrete and 2 for continuous actions."""

    decay: float = Field(default=1.0, ge=1, le=1e6, allow_inf_nan=False)
    """Factor by which the number of candidates falls in each iteration, down to twice `elites`."""


class ICEM(CEM):
    """Run CEM on slowly changing candidates, which reach further than white noise.

    Source: Pinneri et al. 2020, "Sample-efficient cross-entropy method for real-time planning".
    Discrete actions invert their cumulative probabilities at the same noise made uniform,
    so that the probabilities of every single step stay exact.
    """

    def __init__(self, config: ICEMConfig, space: Space) -> None:
        super().__init__(config, space)
        self.colour = config.colour
        self.decay = config.decay

    def draw(self, generators: Generators, iteration: int) -> Tensor:
        """Draw coloured noise for fewer candidates in each iteration."""
        all_candidates = self.config.candidates
        decayed = round(all_candidates / self.decay**iteration)
        count = min(all_candidates, max(2 * self.config.elites, decayed))
        return self.distribution.coloured(generators, self.colour, count)
