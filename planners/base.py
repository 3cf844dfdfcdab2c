"""What a planner and its caller share: action spaces, the `Plan`, and the return of an imagined rollout.

Shapes: B environments, N candidates, H planning horizon, E elites, n discrete actions, A choices or continuous
dimensions. `H, ...` stands for `H` with discrete actions and for `H, A` with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Judges candidates: actions int64 [B, N, H(, A)] or float [B, N, H, A] -> predicted returns [B, N]."""


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
    """A choices at once, the i-th of them 0 .. n[i] - 1; raises ValueError unless there is one, and each n[i] >= 1."""

    n: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.n or min(self.n) < 1:
            raise ValueError(
                f"MultiDiscrete(n={self.n}): needs a choice, and at least one action in each"
            )


@dataclass(frozen=True, eq=False)
class Box:
    """Real actions between float tensors low [A] and high [A]; ValueError unless finite and low < high."""

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            shapes = f"{[*self.low.shape]} and {[*self.high.shape]}"
            raise ValueError(f"Box: low and high must both be [A], got {shapes}")
        if not (self.low.is_floating_point() and self.high.is_floating_point()):
            raise ValueError(
                f"Box: bounds must be float tensors, got {self.low.dtype} and {self.high.dtype}"
            )
        if not (
            torch.isfinite(self.low)
            & torch.isfinite(self.high)
            & (self.low < self.high)
        ).all():
            raise ValueError(
                f"Box: bounds must be finite with low < high, got {self.low} and {self.high}"
            )


Space = Discrete | MultiDiscrete | Box


@dataclass(frozen=True, eq=False)
class Plan:
    """The result of one planner call, every field a tensor with the environments first.

    actions [B, H, ...] is the best sequence found, score [B] what `score` said of it; elites [B, E, H, ...]
    and elite_scores [B, E] are the best candidates, best first. state is the search distribution that a
    warm start continues: action probabilities [B, H(, A), n], or mean and standard deviation [B, H, 2, A]. Only
    the first planned [B] steps are a plan: after `shift` the rest is filler, which a warm start replaces by
    fresh samples.
    """

    actions: Tensor
    score: Tensor
    state: Tensor
    elites: Tensor
    elite_scores: Tensor
    planned: Tensor

    def shift(self, steps: int | Tensor) -> Plan:
        """The same plan after `steps` of its actions were executed: one number, or int64 [B].

        Shifting by H or more forgets the plan, which is what a new episode needs. Scores stay those of the
        unshifted plan. Raises ValueError for negative steps.
        """
        gone = torch.as_tensor(steps, device=self.actions.device).expand(
            self.planned.shape
        )
        if bool((gone < 0).any()):
            raise ValueError(
                f"Plan.shift: steps must not be negative, got {gone.tolist()}"
            )
        horizon = self.actions.shape[1]
        moved = (torch.arange(horizon, device=gone.device) + gone[:, None]).clamp(
            max=horizon - 1
        )
        return replace(
            self,
            actions=pick(self.actions, moved),
            state=pick(self.state, moved),
            elites=pick(self.elites.transpose(1, 2), moved).transpose(1, 2),
            planned=(self.planned - gone).clamp(min=0),
        )

    def select(self, index: Tensor) -> Plan:
        """The plans of some environments: index is bool [B] or int64 [M]."""
        return Plan(
            **{field.name: getattr(self, field.name)[index] for field in fields(self)}
        )

    def put(self, index: Tensor, other: Plan) -> Plan:
        """A copy in which the environments at index, bool [B] or int64 [M], have the M plans of `other`."""
        names = [field.name for field in fields(self)]
        return Plan(
            **{
                name: getattr(self, name).index_put((index,), getattr(other, name))
                for name in names
            }
        )


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Entries of values [B, M, ...] along dimension 1 by each environment's index [B, K]: [B, K, ...]."""
    rows = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[rows, index]


def returns(
    reward: Tensor, cont: Tensor, value: Tensor | None, discount: float
) -> Tensor:
    """Discounted return of imagined rollouts, ended by termination, with the final value added: [B, N].

    reward [B, N, H] is what step t yields, cont [B, N, H] the probability that the episode goes on after it
    (1 - terminated), value [B, N] the value after the last step, or None for none. With c_t = discount *
    cont_t: sum_t (prod_{s<t} c_s) reward_t + (prod_{s<H} c_s) value.
    """
    reached = (discount * cont).cumprod(-1)
    weight = torch.cat([torch.ones_like(reached[..., :1]), reached[..., :-1]], -1)
    total = (weight * reward).sum(-1)
    return total if value is None else total + reached[..., -1] * value
