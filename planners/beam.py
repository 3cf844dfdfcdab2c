"""Beam search over the tree of discrete actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.planners.base import Discrete, Plan, Score, Space
from lssvwm.planners.distributions import require
from lssvwm.planners.search import Search, SearchConfig, check_proposals, clean, resumed
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BeamConfig(SearchConfig):
    """At every step of the horizon, the `width` best beginnings go on, each by every action. `iterations`, `edits` and
    the settings of how candidates are drawn are not used; `candidates` bounds the proposals only.
    """

    kind: str = "beam"
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, self, "width", "at least 1")


class Beam(Search):
    """Beam search: exact where the beam is as wide as the tree; a strong reference for discrete actions elsewhere.

    A beginning is judged like a whole plan, by what it earned and by the value foreseen at its end, so that the value
    must tell which beginnings are promising. Nothing is drawn at random. It asks for about width * n * H^2 / 2 imagined
    steps, all beginnings being imagined from the start. Proposals and the last plan's elites compete at the end.
    """

    config: BeamConfig

    def __init__(self, config: BeamConfig, space: Space) -> None:
        if not isinstance(space, Discrete):
            raise ValueError("planner beam: needs discrete actions")
        super().__init__(config, space)
        self.actions = space.n

    @torch.no_grad()
    def plan(
        self,
        score: Score,
        *,
        batch: int,
        generator: torch.Generator,
        warm: Plan | None = None,
        proposals: Tensor | None = None,
        judged: Tensor | None = None,
    ) -> Plan:
        """As `Search.plan`; the generator only says on which device."""
        c, device = self.config, generator.device
        self._start(batch, device, warm)  # for its checks
        leaves = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        for step in range(1, c.horizon + 1):
            ranked, scores = self._round(score, self._grown(leaves))
            leaves = ranked[:, : c.width if step < c.horizon else None]
        known = leaves, scores
        ends = leaves[:, :1].expand(-1, c.keep_elites if warm else 0, -1)
        rivals = resumed(warm, ends) if warm else ends
        if proposals is not None:
            count = check_proposals(
                proposals, leaves.new_zeros(batch, c.candidates, c.horizon)
            )
            proposals = self.distribution.admit(proposals)
            if judged is None:
                rivals = torch.cat([proposals, rivals], 1)
            else:
                known = (
                    torch.cat([proposals, leaves], 1),
                    torch.cat([clean(judged, (batch, count)), scores], 1),
                )
        ranked, scores = self._round(score, rivals, known)
        few = torch.arange(c.elites, device=device).clamp(max=ranked.shape[1] - 1)
        elites, elite_scores = ranked[:, few], scores[:, few]
        state = F.one_hot(elites, self.actions).float().mean(1)
        planned = torch.full((batch,), c.horizon, device=device)
        return Plan(
            elites[:, 0], elite_scores[:, 0], state, elites, elite_scores, planned
        )

    def _grown(self, leaves: Tensor) -> Tensor:
        """Every beginning [B, W, h] with every action after it, [B, W n, h + 1]."""
        last = torch.arange(self.actions, device=leaves.device).expand(
            *leaves.shape[:2], -1
        )[..., None]
        grown = torch.cat(
            [leaves[:, :, None].expand(-1, -1, self.actions, -1), last], -1
        )
        return grown.flatten(1, 2)
