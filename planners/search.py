"""The loop that all planners share: draw candidates, score them, move the distribution to the good ones.

Shapes as in `planners/plan.py`; M is the number of candidates ranked together: N new ones and those kept
from before.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from lssvwm.planners.base import Box, Plan, Score, Space, pick
from lssvwm.planners.distributions import (
    Categorical,
    Gaussian,
    ProposalConfig,
    Proposals,
    edit,
    require,
)
from torch import Tensor

WORST = -1e30
"""The score of candidates whose own is NaN or -inf; scores are clamped to [WORST, -WORST]."""


@dataclass(frozen=True)
class SearchConfig(ProposalConfig):
    """What every planner has: draws (ProposalConfig), the search itself, and what only the agent reads.

    elites is the number of best candidates reported in the plan (and fitted by CEM); keep_elites of them
    compete again in the next iteration, with the scores they have, and in the next call, scored anew. From
    the second iteration on, a share `edits` of the candidates are these with one step removed, replaced or
    inserted. An iteration is left out if it would end after more than `budget` seconds (0: no limit), and for
    environments whose elites' scores already lie within `settled` of each other (0: never).

    The agent weighs predicted `reward`, the steps to the `goal` image if there is one, and `novelty`, how little it
    knows of what it would see. It takes every action of a plan `repeat` times; of every candidate it imagines
    `samples` futures, drawn in `denoise` > 1 steps a frame, and counts the mean of their scores less `caution`
    times their standard deviation. It counts rewards with `discount` and a share `bootstrap` of the value foreseen
    at the end of the horizon, executes `replan` actions of each plan, and draws `proposals` candidates from its
    policy prior. The value is what the walks earned that were learnt from: scripted walkers know more than an agent
    may remember, so that in full it would make waiting look better than it is.
    """

    iterations: int = 3
    elites: int = 16
    keep_elites: int = 4
    edits: float = 0.25
    budget: float = 0.0
    settled: float = 0.0
    reward: float = 1.0
    goal: float = 0.0
    novelty: float = 0.0
    denoise: int = 1
    samples: int = 1
    caution: float = 0.0
    repeat: int = 1
    discount: float = 0.97
    bootstrap: float = 0.5
    replan: int = 4
    proposals: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.iterations >= 1, self, "iterations", "at least 1")
        candidates, elites, horizon = self.candidates, self.elites, self.horizon
        require(
            1 <= elites <= candidates,
            self,
            "elites",
            f"between 1 and candidates = {candidates}",
        )
        require(
            1 <= self.keep_elites <= elites,
            self,
            "keep_elites",
            f"between 1 and elites = {elites}",
        )
        require(0 <= self.edits <= 1, self, "edits", "between 0 and 1")
        require(0 <= self.discount <= 1, self, "discount", "between 0 and 1")
        require(0 <= self.bootstrap <= 1, self, "bootstrap", "between 0 and 1")
        require(self.budget >= 0, self, "budget", "at least 0")
        require(self.settled >= 0, self, "settled", "at least 0")
        require(
            self.denoise >= 1 and self.repeat >= 1,
            self,
            "repeat",
            "at least 1, and denoise too",
        )
        require(
            self.samples == 1 or self.denoise > 1 < self.samples,
            self,
            "samples",
            "1, or more with denoise > 1",
        )
        require(
            1 <= self.replan <= horizon,
            self,
            "replan",
            f"between 1 and horizon = {horizon}",
        )
        require(
            0 <= self.proposals <= candidates,
            self,
            "proposals",
            f"between 0 and {candidates = }",
        )


class Search:
    """A planner by sampling; the subclasses say how ranked candidates move the distribution."""

    def __init__(self, config: SearchConfig, space: Space) -> None:
        self.config, self.space = config, space
        self.distribution: Proposals
        if isinstance(space, Box):
            self.distribution = Gaussian(space, config)
        else:
            self.distribution = Categorical(space, config)

    def refit(self, state: Tensor, ranked: Tensor, scores: Tensor) -> Tensor:
        """The next state from candidates [B, M, H, ...] ranked by scores [B, M], best first."""
        weights = only_usable(self.weights(scores), scores)
        return self.distribution.refit(state, ranked, weights)

    def weights(self, scores: Tensor) -> Tensor:
        """How much each ranked candidate counts: descending scores [B, M] -> weights [B, M], not negative."""
        raise NotImplementedError

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
        """The best action sequence found for each of `batch` environments.

        warm is the last plan, shifted by the actions executed since; proposals [B, P, H, ...] take the
        place of the first P candidates of the first iteration and win ties; judged [B, P] are their scores,
        if they are known already. Everything lives on the generator's device, and equal generators give equal
        plans, alone or in any batch. NaN and -inf scores count as worst. Raises ValueError if warm, proposals
        or what `score` returns have the wrong shape.
        """
        clock = Clock(self.config.budget)
        state = self._start(batch, generator.device, warm)
        actions, known = self._first(state, generator, warm, proposals), None
        if judged is not None:
            count = 0 if proposals is None else proposals.shape[1]
            known, actions = (
                (actions[:, :count], clean(judged, (batch, count))),
                actions[:, count:],
            )
        ranked, scores = self._round(score, actions, known)
        state = self.refit(state, ranked, scores)
        for i in range(1, self.config.iterations):
            settled = self._settled(scores)
            if not clock.allows_another() or (
                self.config.settled and bool(settled.all())
            ):
                break
            kept = (
                ranked[:, : self.config.keep_elites],
                scores[:, : self.config.keep_elites],
            )
            actions = self._with_edits(
                self._sample(state, generator, i), kept[0], generator
            )
            found = self._round(score, actions, kept)
            found = *found, self.refit(state, *found)
            ranked, scores, state = (
                _unless(settled, *pair) for pair in zip(found, (ranked, scores, state))
            )
        elites, elite_scores = (
            ranked[:, : self.config.elites],
            scores[:, : self.config.elites],
        )
        planned = torch.full((batch,), self.config.horizon, device=state.device)
        return Plan(
            elites[:, 0], elite_scores[:, 0], state, elites, elite_scores, planned
        )

    def _settled(self, scores: Tensor) -> Tensor:
        """Which environments need no more iterations, by scores [B, M], best first: bool [B]."""
        spread = scores[:, 0] - scores[:, self.config.elites - 1]
        return (spread <= self.config.settled) & (self.config.settled > 0)

    def _start(self, batch: int, device: torch.device, warm: Plan | None) -> Tensor:
        """The first state: the prior, or what is left of the last plan blended with it."""
        prior = self.distribution.prior(batch, device)
        if warm is None:
            return prior
        if warm.state.shape != prior.shape:
            raise ValueError(
                f"planner: warm has state {[*warm.state.shape]}, expected {[*prior.shape]}"
            )
        return self.distribution.reuse(warm.state, warm.planned)

    def draw(self, generator: torch.Generator, iteration: int) -> Tensor:
        """What candidates are made from, shared by all environments: [N, H, ...]"""
        return self.distribution.draw(generator)

    def _sample(
        self, state: Tensor, generator: torch.Generator, iteration: int = 0
    ) -> Tensor:
        """Candidates [B, N, H, ...], the last of which is the mode."""
        actions = self.distribution.sample(state, self.draw(generator, iteration))
        actions[:, -1] = self.distribution.mode(state)
        return actions

    def _first(
        self,
        state: Tensor,
        generator: torch.Generator,
        warm: Plan | None,
        proposals: Tensor | None,
    ) -> Tensor:
        """First candidates: proposals, the last plan's elites with their ends drawn anew, then samples."""
        actions = self._sample(state, generator)
        used = 0
        if proposals is not None:
            used = check_proposals(proposals, actions)
            actions[:, :used] = self.distribution.admit(proposals)
        if warm is not None:
            slots = actions[:, used : used + self.config.keep_elites]
            slots.copy_(resumed(warm, slots))
        return actions

    def _with_edits(
        self, actions: Tensor, kept: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Candidates [B, N, H, ...], a share of them edited copies of the kept elites [B, K, H, ...]."""
        count = int(self.config.edits * (actions.shape[1] - 1))
        parents = kept[:, torch.arange(count, device=kept.device) % kept.shape[1]]
        actions[:, :count] = edit(parents, actions[:, :count], generator)
        return actions

    def _round(
        self, score: Score, actions: Tensor, kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores candidates [B, N, H, ...] and ranks them with the kept ones; ties go to the earlier."""
        shape = actions.shape[:2]
        scores = (
            clean(score(actions), shape)
            if shape[1]
            else torch.zeros(shape, device=actions.device)
        )
        if kept is not None:
            actions, scores = (
                torch.cat([kept[0], actions], 1),
                torch.cat([kept[1], scores], 1),
            )
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return pick(actions, order), scores


class Clock:
    """Says whether there is time for another round as long as the longest so far; `budget` in seconds, 0: always."""

    def __init__(self, budget: float) -> None:
        self.budget, self.begun = budget, time.perf_counter()
        self.last, self.longest = self.begun, 0.0

    def allows_another(self) -> bool:
        """To be asked after each round."""
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now
        return not self.budget or now - self.begun + self.longest <= self.budget


def _unless(settled: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`old` for the environments that are settled; in as many candidates as `new` has."""
    old = old[:, : new.shape[1]]
    return torch.where(
        settled.view(-1, *[1] * (new.ndim - 1)), old, new[:, : old.shape[1]]
    )


def resumed(warm: Plan, ends: Tensor) -> Tensor:
    """The last plan's best elites, as many as `ends` [B, K, H, ...], whose steps they have where nothing is planned."""
    steps = torch.arange(ends.shape[2], device=ends.device)
    planned = (steps < warm.planned[:, None]).view(
        len(ends), 1, -1, *[1] * (ends.ndim - 3)
    )
    return torch.where(planned, warm.elites[:, : ends.shape[1]], ends)


def check_proposals(proposals: Tensor, actions: Tensor) -> int:
    """The number of proposals [B, P, H, ...]; raises ValueError unless they fit actions [B, N, H, ...]."""
    batch, candidates, *rest = actions.shape
    count = proposals.shape[1] if proposals.ndim > 1 else 0
    if proposals.shape != (batch, count, *rest) or count > candidates:
        expected = f"[{batch}, P <= {candidates}, {', '.join(map(str, rest))}]"
        raise ValueError(
            f"planner: proposals have shape {[*proposals.shape]}, expected {expected}"
        )
    return count


def clean(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scores [B, N] without NaN or infinities, at least float32; raises ValueError for any other shape."""
    if scores.shape != shape:
        raise ValueError(
            f"planner: score returned shape {[*scores.shape]}, expected [B, N] = {[*shape]}"
        )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.nan_to_num(nan=WORST).clamp(WORST, -WORST)


def only_usable(weights: Tensor, scores: Tensor) -> Tensor:
    """Weights [B, M] normalised to sum to one, with none for the worst scores unless there are no others."""
    usable = scores > WORST
    weights = weights * (usable | ~usable.any(1, keepdim=True))
    return weights / weights.sum(1, keepdim=True)
