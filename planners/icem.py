"""CEM with coloured noise and fewer candidates from iteration to iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.planners.cem import CEM, CEMConfig
from lssvwm.planners.distributions import require
from torch import Tensor


@dataclass(frozen=True)
class ICEMConfig(CEMConfig):
    """`colour` is how steeply the power of the noise falls with frequency (0: white; 2: a random walk; None: 2 for
    continuous actions, and 0.5 for discrete ones, which must also alternate); in each
    iteration there are `decay` times fewer candidates than in the one before, but twice the elites at least. `sticky`
    is not used.
    """

    kind: str = "icem"
    colour: float | None = None
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.colour or 0.0) >= 0, self, "colour", "at least 0")
        require(self.decay >= 1, self, "decay", "at least 1")


class ICEM(CEM):
    """Sample-efficient CEM: candidates whose actions change slowly reach further than white noise, which averages out.

    Source: Pinneri et al. 2020, "Sample-efficient cross-entropy method for real-time planning". Discrete actions
    invert their cumulative probabilities at the same noise made uniform, so that the odds of every single step stay
    exact.
    """

    config: ICEMConfig

    def draw(self, generator: torch.Generator, iteration: int) -> Tensor:
        """Coloured draws for fewer and fewer candidates."""
        c = self.config
        count = min(
            c.candidates, max(2 * c.elites, round(c.candidates / c.decay**iteration))
        )
        return self.distribution.coloured(generator, c.colour, count)
