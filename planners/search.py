"""Search loop of the sampling planners: draw candidates, score them, refit the distribution.

M is the number of candidates that are ranked together: N new ones and those kept from before.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from lssvwm.planners.base import Plan, Proposals, Score, Simulation, Space, pick
from lssvwm.planners.distributions import distribution_for, mutate
from lssvwm.planners.noise import Generators, Source, as_generators
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

WORST = -1e30
"""Score of candidates whose own is NaN or -inf; scores are clamped to [WORST, -WORST]."""
SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


MUTATION_RATE = 0.25
"""Share of candidates that are kept elites with one step removed, replaced or inserted.

The first iteration has none.
"""


@dataclass(frozen=True, config=SETTINGS)
class SearchConfig:
    """Set how a planner searches; each kind of planner adds its own settings."""

    kind: str
    """Name of the planner."""

    candidates: int = Field(default=128, ge=1, le=10**6)
    """Action sequences that are scored in each iteration."""

    horizon: int = Field(default=16, ge=1, le=10**5)
    """Actions in each sequence."""

    iterations: int = Field(default=3, ge=1, le=10**5)
    """Rounds of drawing and scoring candidates."""

    elites: int = Field(default=16, ge=1, le=10**6)
    """Best candidates that the plan reports and CEM fits, at most `candidates`."""

    keep_elites: int = Field(default=4, ge=1, le=10**6)
    """Elites that compete again in the next iteration and in the next plan, at most `elites`."""

    time_budget: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Seconds for a plan; iterations that would end later are left out. 0: no limit."""

    def __post_init__(self) -> None:
        self._at_most("elites", "candidates")
        self._at_most("keep_elites", "elites")

    def _at_most(self, name: str, limit: str) -> None:
        value, most = getattr(self, name), getattr(self, limit)
        if value > most:
            raise ValueError(
                f"planner.{name}={value} must be at most planner.{limit}={most}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates [B, M, H, ...] and their scores [B, M], best first."""

    actions: Tensor
    scores: Tensor

    def first(self, count: int) -> Ranking:
        """Return the `count` best candidates."""
        return Ranking(self.actions[:, :count], self.scores[:, :count])


class Search:
    """Plan by sampling; a subclass decides how ranked candidates move the distribution.

    An instance keeps nothing between calls of `plan`.
    """

    branches = 0
    """Sequences that `Simulation.step` extends at once; 0: the planner needs only `Score`."""

    def __init__(self, config: SearchConfig, space: Space) -> None:
        self.config = config
        self.space = space
        self.distribution = distribution_for(space, config.horizon)

    def weights(self, scores: Tensor) -> Tensor:
        """Return weights [B, M] >= 0 of candidates with descending scores [B, M]."""
        raise NotImplementedError

    def refit(self, state: Tensor, ranking: Ranking) -> Tensor:
        """Return the distribution's next state, fitted to ranked candidates."""
        weights = usable_weights(self.weights(ranking.scores), ranking.scores)
        return self.distribution.refit(state, ranking.actions, weights)

    def draw(self, generators: Generators, iteration: int) -> Tensor:
        """Draw the noise of candidates with each of G generators, [G, N, H, ...]."""
        return self.distribution.draw(generators, self.config.candidates)

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
        """Return the best action sequence found for each of `batch` environments.

        generator: one for each environment, or one whose noise all environments share
        warm: the last plan, shifted by the actions executed since
        proposals: take the place of the first candidates of the first iteration, and win ties
        simulation: used by tree searches only

        Everything lives on the generator's device.
        An environment with an equal generator gets an equal plan, alone or in any batch.
        NaN and -inf scores count as worst.
        Raises ValueError if warm, proposals or the result of `score` have the wrong shape.
        """
        clock = Clock(self.config.time_budget)
        generators = as_generators(generator, batch)
        state = self._initial_state(batch, generators[0].device, warm)
        actions = self._sample(state, generators, iteration=0)
        ranking = self._score_first(score, actions, warm, proposals)
        state = self.refit(state, ranking)
        for iteration in range(1, self.config.iterations):
            if not clock.allows_another():
                break
            kept = ranking.first(self.config.keep_elites)
            actions = self._sample(state, generators, iteration)
            actions = self._mutate(actions, kept.actions, generators)
            ranking = rank(score, actions, kept)
            state = self.refit(state, ranking)
        return make_plan(ranking.first(self.config.elites), state)

    def _initial_state(
        self, batch: int, device: torch.device, warm: Plan | None
    ) -> Tensor:
        """Return the prior, or the last plan's state blended with it."""
        prior = self.distribution.prior(batch, device)
        if warm is None:
            return prior
        if warm.state.shape != prior.shape:
            found, expected = [*warm.state.shape], [*prior.shape]
            raise ValueError(f"planner: warm has state {found}, expected {expected}")
        return self.distribution.reuse(warm.state, warm.planned)

    def _sample(self, state: Tensor, generators: Generators, iteration: int) -> Tensor:
        """Draw candidates [B, N, H, ...]; the last one is the mode."""
        actions = self.distribution.sample(state, self.draw(generators, iteration))
        actions[:, -1] = self.distribution.mode(state)
        return actions

    def _score_first(
        self, score: Score, actions: Tensor, warm: Plan | None, given: Proposals | None
    ) -> Ranking:
        """Rank proposals, the last plan's elites and samples, in this order."""
        count = 0
        if given is not None:
            count = check_proposals(given, actions)
            actions[:, :count] = self.distribution.validate(given.actions)
        if warm is not None:
            slots = actions[:, count : count + self.config.keep_elites]
            slots.copy_(resume(warm, slots))
        if given is None or given.scores is None:
            return rank(score, actions)
        known = Ranking(actions[:, :count], clean(given.scores, (len(actions), count)))
        return rank(score, actions[:, count:], known)

    def _mutate(self, actions: Tensor, kept: Tensor, generators: Generators) -> Tensor:
        """Replace a share of candidates [B, N, H, ...] by mutated elites [B, K, H, ...]."""
        count = int(MUTATION_RATE * (actions.shape[1] - 1))
        index = torch.arange(count, device=kept.device) % kept.shape[1]
        actions[:, :count] = mutate(kept[:, index], actions[:, :count], generators)
        return actions


class Clock:
    """Predict whether another iteration ends within the budget.

    budget: seconds; 0 for no limit
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.start = time.perf_counter()
        self.last = self.start
        self.longest = 0.0

    def allows_another(self) -> bool:
        """Return whether an iteration as long as the longest fits; call it after each one."""
        now = time.perf_counter()
        self.longest = max(self.longest, now - self.last)
        self.last = now
        expected_end = now - self.start + self.longest
        return not self.budget or expected_end <= self.budget


def rank(score: Score, actions: Tensor, known: Ranking | None = None) -> Ranking:
    """Score candidates [B, N, H, ...] and rank them together with `known` ones.

    Ties go to the known candidates first, then to the earlier ones.
    """
    shape = actions.shape[:2]
    if actions.shape[1]:
        scores = clean(score(actions), shape)
    else:
        scores = torch.zeros(shape, device=actions.device)
    if known is not None:
        actions = torch.cat([known.actions, actions], 1)
        scores = torch.cat([known.scores, scores], 1)
    ranking, _ = sort(actions, scores)
    return ranking


def sort(actions: Tensor, scores: Tensor) -> tuple[Ranking, Tensor]:
    """Rank scored candidates; also return the index [B, M] that sorts them."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Ranking(pick(actions, order), scores), order


def make_plan(elites: Ranking, state: Tensor) -> Plan:
    """Return the plan with these elites, the first of which is followed."""
    batch, _, horizon = elites.actions.shape[:3]
    return Plan(
        actions=elites.actions[:, 0],
        score=elites.scores[:, 0],
        state=state,
        elites=elites.actions,
        elite_scores=elites.scores,
        planned=torch.full((batch,), horizon, device=state.device),
    )


def resume(warm: Plan, ends: Tensor) -> Tensor:
    """Return as many of the last plan's elites as there are `ends` [B, K, H, ...].

    Steps beyond the plan come from `ends`.
    """
    steps = torch.arange(ends.shape[2], device=ends.device)
    planned = steps < warm.planned[:, None]
    action_dims = [1] * (ends.ndim - 3)
    planned = planned.view(len(ends), 1, -1, *action_dims)
    return torch.where(planned, warm.elites[:, : ends.shape[1]], ends)


def check_proposals(given: Proposals, actions: Tensor) -> int:
    """Return the number P of proposals [B, P, H, ...].

    Raises ValueError unless they fit candidates [B, N, H, ...] and their scores are [B, P].
    """
    batch, candidates, *rest = actions.shape
    found = given.actions.shape
    count = found[1] if len(found) > 1 else 0
    if found != (batch, count, *rest) or count > candidates:
        sizes = ", ".join(map(str, rest))
        expected = f"[{batch}, P <= {candidates}, {sizes}]"
        raise ValueError(
            f"planner: proposals have shape {[*found]}, expected {expected}"
        )
    if given.scores is not None and given.scores.shape != (batch, count):
        found, expected = [*given.scores.shape], [batch, count]
        raise ValueError(f"planner: proposals have scores {found}, expected {expected}")
    return count


def clean(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return scores [B, N] without NaN and infinities, in float32 or better.

    Raises ValueError for another shape.
    """
    if scores.shape != shape:
        found, expected = [*scores.shape], [*shape]
        raise ValueError(
            f"planner: score returned shape {found}, expected [B, N] = {expected}"
        )
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.nan_to_num(nan=WORST).clamp(WORST, -WORST)


def usable_weights(weights: Tensor, scores: Tensor) -> Tensor:
    """Normalise weights [B, M] to a sum of 1, without those of the worst scores.

    If all scores are the worst, all weights count.
    """
    usable = scores > WORST
    none_usable = ~usable.any(1, keepdim=True)
    weights = weights * (usable | none_usable)
    return weights / weights.sum(1, keepdim=True)
