"""The cross-entropy method."""

from __future__ import annotations

from typing import Literal

import torch
from lssvwm.planners.search import SETTINGS, Search, SearchConfig
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config=SETTINGS)
class CEMConfig(SearchConfig):
    """Fit the distribution to the best candidates; CEM has no settings of its own."""

    kind: Literal["cem"] = "cem"


class CEM(Search):
    """Sample, keep the elites, fit the distribution to them, repeat.

    Source: Rubinstein 1999; de Boer et al. 2005, "A tutorial on the cross-entropy method",
    with its smoothed updates.
    Elites are kept within and across calls as in Pinneri et al. 2020, iCEM.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """Return 1 for each elite and 0 for the rest, [B, M]."""
        rank = torch.arange(scores.shape[1], device=scores.device)
        is_elite = rank < self.config.elites
        return is_elite.to(scores.dtype).expand_as(scores)
