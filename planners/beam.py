"""Beam search over the tree of discrete actions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lssvwm.planners.base import Discrete, Plan, Proposals, Score, Simulation, Space
from lssvwm.planners.noise import Source, as_generators
from lssvwm.planners.search import (
    SETTINGS,
    Ranking,
    Search,
    SearchConfig,
    check_proposals,
    clean,
    make_plan,
    rank,
    resume,
    sort,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, config=SETTINGS)
class BeamConfig(SearchConfig):
    """Set the width of the beam.

    `iterations` and `time_budget` have no effect.
    `candidates` only limits the number of proposals.
    """

    kind: Literal["beam"] = "beam"

    width: int = Field(default=32, ge=1, le=10**6)
    """Sequences that are extended by every action at each step of the horizon."""


class Beam(Search):
    """Extend the best sequences by every action, step by step.

    The search is exact if the beam is as wide as the tree.
    A sequence is scored like a whole plan, by its rewards and the value at its end,
    so that the value must recognise promising prefixes.
    Nothing is random. Proposals and the last plan's elites compete at the end.

    With a `Simulation`, width * n * H steps are imagined; with `score` alone, every prefix again.
    """

    def __init__(self, config: BeamConfig, space: Space) -> None:
        if not isinstance(space, Discrete):
            raise ValueError(
                "planner beam: needs discrete actions; choose another, e.g. planner=cem"
            )
        super().__init__(config, space)
        self.width = config.width
        self.actions = space.n
        self.branches = self.width * self.actions

    @torch.no_grad()
    def plan(
        self,
        score: Score,
        *,
        batch: int,
        generator: Source,
        warm: Plan | None = None,
        proposals: Proposals | None = None,
        simulation: Simulation | None = None,
    ) -> Plan:
        """Plan as `Search.plan` does; generators only name the device."""
        device = as_generators(generator, batch)[0].device
        self._initial_state(batch, device, warm)  # raises an error if warm does not fit
        if simulation is None:
            leaves = self._grow_by_score(score, batch, device)
        else:
            leaves = self._grow_by_step(simulation, batch, device)
        ranking = self._compete(score, leaves, warm, proposals)
        places = torch.arange(self.config.elites, device=device)
        index = places.clamp(max=ranking.actions.shape[1] - 1)
        elites = Ranking(ranking.actions[:, index], ranking.scores[:, index])
        frequency = F.one_hot(elites.actions, self.actions).float().mean(1)
        return make_plan(elites, frequency)

    def _grow_by_score(self, score: Score, batch: int, device: torch.device) -> Ranking:
        """Rank all sequences of the last level; score every level from the start."""
        beam = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        for _ in range(self.config.horizon):
            leaves = rank(score, self._extend(beam))
            beam = leaves.first(self.width).actions
        return leaves

    def _grow_by_step(
        self, simulation: Simulation, batch: int, device: torch.device
    ) -> Ranking:
        """Rank all sequences of the last level; imagine one step per level."""
        beam = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        kept = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        state: Any = simulation.root
        for _ in range(self.config.horizon):
            actions = self._extend(beam)
            parents = kept.repeat_interleave(self.actions, 1)
            state = simulation.select(state, parents)
            scores, state = simulation.step(state, actions[:, :, -1])
            leaves, order = sort(actions, clean(scores, actions.shape[:2]))
            beam = leaves.first(self.width).actions
            kept = order[:, : self.width]
        return leaves

    def _compete(
        self, score: Score, leaves: Ranking, warm: Plan | None, given: Proposals | None
    ) -> Ranking:
        """Rank the leaves with proposals and the last plan's elites."""
        count = self.config.keep_elites if warm else 0
        others = leaves.actions[:, :1].expand(-1, count, -1)
        if warm is not None:
            others = resume(warm, others)
        if given is None:
            return rank(score, others, leaves)
        batch, _, horizon = leaves.actions.shape
        slots = leaves.actions.new_zeros(batch, self.config.candidates, horizon)
        check_proposals(given, slots)
        actions = self.distribution.validate(given.actions)
        if given.scores is None:
            return rank(score, torch.cat([actions, others], 1), leaves)
        scores = clean(given.scores, actions.shape[:2])
        known = Ranking(
            actions=torch.cat([actions, leaves.actions], 1),
            scores=torch.cat([scores, leaves.scores], 1),
        )
        return rank(score, others, known)

    def _extend(self, beam: Tensor) -> Tensor:
        """Append every action to every sequence [B, W, h]; return [B, W n, h + 1]."""
        prefixes = beam.repeat_interleave(self.actions, 1)
        action = torch.arange(self.actions, device=beam.device).repeat(beam.shape[1])
        last = action.expand(len(beam), -1)[..., None]
        return torch.cat([prefixes, last], -1)
