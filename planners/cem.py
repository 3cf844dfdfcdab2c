"""The cross-entropy method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.planners.search import Search, SearchConfig
from torch import Tensor


@dataclass(frozen=True)
class CEMConfig(SearchConfig):
    """CEM fits the distribution to the `elites` best candidates; all fields are common ones."""

    kind: str = "cem"


class CEM(Search):
    """Cross-entropy method: sample, keep the elites, fit the distribution to them, repeat.

    Source: Rubinstein 1999; de Boer et al. 2005, "A tutorial on the cross-entropy method", with its smoothed
    updates. Elites kept within and across calls: Pinneri et al. 2020, iCEM.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """One for each elite, zero for the rest: [B, M]."""
        rank = torch.arange(scores.shape[1], device=scores.device)
        return (rank < self.config.elites).to(scores.dtype).expand_as(scores)
