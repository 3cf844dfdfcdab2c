"""Types that planners share with their callers: action spaces, plans, proposals, functions.

Shapes: B environments, N candidates, H planning horizon, E elites, n discrete actions,
A choices or continuous dimensions.
`H, ...` stands for `H` with discrete actions and for `H, A` with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Score candidates: int64 [B, N, H(, A)] or float [B, N, H, A] -> predicted returns [B, N]."""


@dataclass(frozen=True)
class Simulation:
    """Extend sequences step by step, so that a tree search never imagines a prefix twice.

    The state is opaque to the planner. A state is consumed by the call that it is passed to.
    The protocol follows `RecurrentFn` of mctx.
    """

    root: Any
    """State that holds one empty sequence for each of B environments."""

    step: Callable[[Any, Tensor], tuple[Tensor, Any]]
    """Append action int64 [B, m] to m sequences; return the sequences' scores [B, m] and the state."""

    select: Callable[[Any, Tensor], Any]
    """Return the state of the sequences index int64 [B, m]; an index may occur several times."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """Candidates from outside the planner, such as rollouts of a policy.

    actions: [B, P, H, ...]
    scores: [B, P], or None to have the planner score them
    """

    actions: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Discrete:
    """Actions 0 .. n - 1; raises ValueError if n < 1."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(
                f"Discrete(n={self.n}): an action space needs at least one action"
            )


@dataclass(frozen=True)
class MultiDiscrete:
    """A choices at once; choice i is one of 0 .. n[i] - 1.

    Raises ValueError if there is no choice, or one without an action.
    """

    n: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.n or min(self.n) < 1:
            raise ValueError(
                f"MultiDiscrete(n={self.n}): needs a choice, and at least one action in each"
            )


@dataclass(frozen=True, eq=False)
class Box:
    """Real actions between float tensors low [A] and high [A].

    Raises ValueError unless the bounds are finite and low < high.
    """

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        low, high = self.low, self.high
        if low.ndim != 1 or low.shape != high.shape:
            shapes = f"{[*low.shape]} and {[*high.shape]}"
            raise ValueError(f"Box: low and high must both be [A], got {shapes}")
        if not (low.is_floating_point() and high.is_floating_point()):
            kinds = f"{low.dtype} and {high.dtype}"
            raise ValueError(f"Box: bounds must be float tensors, got {kinds}")
        finite = torch.isfinite(low) & torch.isfinite(high)
        ordered = low < high
        if not (finite & ordered).all():
            raise ValueError(
                f"Box: bounds must be finite with low < high, got {low} and {high}"
            )


Space = Discrete | MultiDiscrete | Box


@dataclass(frozen=True, eq=False)
class Plan:
    """Hold the result of one planner call.

    actions: [B, H, ...], the best sequence
    score: [B], its score
    state: search distribution, which a warm start continues;
        action probabilities [B, H(, A), n], or mean and standard deviation [B, H, 2, A]
    elites: [B, E, H, ...], the best candidates, best first
    elite_scores: [B, E]
    planned: int64 [B], steps that were planned; `shift` fills the steps after them
    """

    actions: Tensor
    score: Tensor
    state: Tensor
    elites: Tensor
    elite_scores: Tensor
    planned: Tensor

    def shift(self, steps: int | Tensor) -> Plan:
        """Drop the first `steps` (a number or int64 [B]) actions, which were executed.

        Shifting by H or more forgets the plan, as a new episode needs.
        Scores stay those of the unshifted plan.
        Raises ValueError for a negative number of steps.
        """
        if not isinstance(steps, Tensor) and steps < 0:
            raise ValueError(f"Plan.shift: steps must not be negative, got {steps}")
        device = self.actions.device
        executed = torch.as_tensor(steps, device=device).expand(self.planned.shape)
        horizon = self.actions.shape[1]
        steps_ahead = torch.arange(horizon, device=device) + executed[:, None]
        source = steps_ahead.clamp(max=horizon - 1)
        return replace(
            self,
            actions=pick(self.actions, source),
            state=pick(self.state, source),
            elites=pick(self.elites.transpose(1, 2), source).transpose(1, 2),
            planned=(self.planned - executed).clamp(min=0),
        )

    def select(self, index: Tensor) -> Plan:
        """Return the plans of some environments; index is bool [B] or int64 [M]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Plan(**{name: value[index] for name, value in values.items()})

    def put(self, index: Tensor, other: Plan) -> Plan:
        """Return a copy in which the environments at index have the M plans of `other`.

        index: bool [B] or int64 [M]
        """
        merged = {}
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(other, field.name)
            merged[field.name] = old.index_put((index,), new)
        return Plan(**merged)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Index values [B, M, ...] along dimension 1 by index [B, K]; return [B, K, ...]."""
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, index]


def discounted_return(
    reward: Tensor, cont: Tensor, value: Tensor | None, discount: float
) -> Tensor:
    """Return the discounted return [B, N] of rollouts, bootstrapped with the final value.

    reward: [B, N, H], reward of step t
    cont: [B, N, H], probability that the episode continues after step t (1 - terminated)
    value: [B, N], value after the last step; None for no bootstrap
    With c_t = discount * cont_t the return is

        sum_t (prod_{s<t} c_s) reward_t + (prod_{s<H} c_s) value
    """
    survival = (discount * cont).cumprod(-1)
    start = torch.ones_like(survival[..., :1])
    weight = torch.cat([start, survival[..., :-1]], -1)
    total = (weight * reward).sum(-1)
    if value is None:
        return total
    return total + survival[..., -1] * value
