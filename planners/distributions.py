"""The distributions that candidates are drawn from: categorical or Gaussian ones per step of the horizon.

Both keep their parameters in one tensor `state` [B, H, ...] which travels in the `Plan`. Randomness: every
draw is made once, [N, H, ...], and shared by all environments of the batch, so that what is found for one
environment depends on its own scores and the generator alone, not on who else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.planners.base import Box, Discrete, MultiDiscrete
from torch import Tensor


@dataclass(frozen=True)
class ProposalConfig:
    """How candidates are drawn and how their distribution may move.

    sticky is the probability that a candidate repeats the random draw of the step before (time correlation;
    None: 0.3, or 0.8 for continuous actions, whose white noise would average out); smoothing the share of the
    old distribution in a refit; fresh the share of the prior blended into a warm start; min_prob the least
    probability of each discrete action; init_std and min_std the first and the least standard deviation of
    continuous actions, in units of half the action range.
    """

    kind: str
    candidates: int = 128
    horizon: int = 16
    sticky: float | None = None
    smoothing: float = 0.1
    fresh: float = 0.3
    min_prob: float = 0.02
    init_std: float = 0.7
    min_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("candidates", "horizon"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("sticky", "smoothing", "fresh", "min_prob"):
            require(
                0 <= (getattr(self, name) or 0.0) <= 1, self, name, "between 0 and 1"
            )
        require(self.init_std > 0, self, "init_std", "positive")
        require(
            0 <= self.min_std <= self.init_std,
            self,
            "min_std",
            "between 0 and init_std",
        )


def require(condition: bool, config: ProposalConfig, name: str, what: str) -> None:
    """Raises ValueError naming the field, its value and what it must be, unless the condition holds."""
    if not condition:
        raise ValueError(
            f"planner {config.kind}: {name} must be {what}, got {getattr(config, name)}"
        )


def or_else(value: float | None, default: float) -> float:
    """The value, or the default where there is none."""
    return default if value is None else value


class Categorical:
    """Independent probabilities per step, and per choice where there are several; state is [B, H, n] or [B, H, A, n].

    n is the number of actions, or the largest of them: those that a choice lacks have probability 0.
    """

    def __init__(self, space: Discrete | MultiDiscrete, config: ProposalConfig) -> None:
        self.sizes, self.config = torch.tensor(space.n), config  # [] or [A]
        self.n = int(self.sizes.max())
        require(
            config.min_prob * self.n <= 1, config, "min_prob", f"at most 1 / {self.n}"
        )

    def _exists(self, device: torch.device) -> Tensor:
        """Which actions there are: 1.0 or 0.0, [n] or [A, n]."""
        return (torch.arange(self.n) < self.sizes[..., None]).float().to(device)

    def prior(self, batch: int, device: torch.device) -> Tensor:
        """Every action equally likely at every step: [B, H, ..., n]."""
        exists = self._exists(device)
        return (exists / exists.sum(-1, keepdim=True)).expand(
            batch, self.config.horizon, *exists.shape
        )

    def draw(self, generator: torch.Generator) -> Tensor:
        """Sticky uniform draws [N, H, ...]. Holding the draw and not the action repeats actions where the distribution
        is broad, leaves the probabilities of every single step exact, and lets a settled plan alternate."""
        size = (self.config.candidates, self.config.horizon, *self.sizes.shape)
        draw = torch.rand(size, generator=generator, device=generator.device)
        return hold(draw, or_else(self.config.sticky, 0.3), generator)

    def coloured(
        self, generator: torch.Generator, colour: float | None, count: int
    ) -> Tensor:
        """Uniform draws [count, H, ...] with the spectrum of `coloured` noise before they were made uniform."""
        normal = coloured(
            (count, *self.sizes.shape, self.config.horizon),
            or_else(colour, 0.5),
            generator,
        )
        return torch.special.ndtr(normal).movedim(-1, 1)

    def sample(self, state: Tensor, draw: Tensor) -> Tensor:
        """Candidates int64 [B, N, H, ...] by inverting cumulative probabilities at draws [N, H, ...]."""
        edges = state.cumsum(-1)[:, None, ..., :-1]
        return (
            (draw[None, ..., None] >= edges)
            .sum(-1)
            .minimum(self.sizes.to(state.device) - 1)
        )

    def mode(self, state: Tensor) -> Tensor:
        """The likeliest action at each step: int64 [B, H, ...]."""
        return state.argmax(-1)

    def refit(self, state: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Weighted frequencies of actions [B, M, H, ...], smoothed with the old state, floored at min_prob."""
        chosen = torch.nn.functional.one_hot(actions, self.n).to(state.dtype)
        frequency = torch.einsum("bm,bm...->b...", weights.to(state.dtype), chosen)
        probs, least = (
            torch.lerp(frequency, state, self.config.smoothing),
            self.config.min_prob,
        )
        exists = self._exists(state.device)
        return probs * (1 - exists.sum(-1, keepdim=True) * least) + least * exists

    def reuse(self, state: Tensor, planned: Tensor) -> Tensor:
        """A warm start: the state blended with the prior, and the prior alone beyond the planned steps."""
        share = torch.where(is_planned(state, planned), self.config.fresh, 1.0)
        return torch.lerp(state, self.prior(len(state), state.device), share)

    def admit(self, actions: Tensor) -> Tensor:
        """Proposals from outside as int64; raises ValueError if an action does not exist."""
        if actions.is_floating_point():
            raise ValueError(
                f"planner: proposals for discrete actions must be integers, got {actions.dtype}"
            )
        if bool(((actions < 0) | (actions >= self.sizes.to(actions.device))).any()):
            found = f"{int(actions.min())} to {int(actions.max())}"
            raise ValueError(
                f"planner: proposals must be actions 0 to {(self.sizes - 1).tolist()}, got {found}"
            )
        return actions.long()


class Gaussian:
    """Independent normal distributions per step and dimension, clamped to the box; state is [B, H, 2, A]."""

    def __init__(self, space: Box, config: ProposalConfig) -> None:
        self.low, self.high, self.config = space.low, space.high, config

    def prior(self, batch: int, device: torch.device) -> Tensor:
        """Centred in the box, standard deviation init_std half ranges, at every step: [B, H, 2, A]."""
        low, high = self.low.to(device), self.high.to(device)
        step = torch.stack([(low + high) / 2, self.config.init_std * (high - low) / 2])
        return step.expand(batch, self.config.horizon, *step.shape)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Sticky normal draws [N, H, A]"""
        size = (self.config.candidates, self.config.horizon, len(self.low))
        draw = torch.randn(
            size, generator=generator, device=generator.device, dtype=self.low.dtype
        )
        return hold(draw, or_else(self.config.sticky, 0.8), generator)

    def coloured(
        self, generator: torch.Generator, colour: float | None, count: int
    ) -> Tensor:
        """Normal draws [count, H, A] with the spectrum of `coloured` noise."""
        normal = coloured(
            (count, len(self.low), self.config.horizon), or_else(colour, 2.0), generator
        )
        return normal.transpose(1, 2).to(self.low.dtype)

    def sample(self, state: Tensor, draw: Tensor) -> Tensor:
        """Candidates [B, N, H, A]: mean plus standard deviation times draws [N, H, A], inside the box."""
        mean, std = state[:, None].unbind(-2)
        return self.clamp(mean + std * draw)

    def mode(self, state: Tensor) -> Tensor:
        """The mean at each step: [B, H, A]."""
        return self.clamp(state[:, :, 0])

    def refit(self, state: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Weighted moments of actions [B, M, H, A], smoothed with the old state, floored at min_std."""
        weights = weights.to(state.dtype)
        mean = torch.einsum("bm,bmha->bha", weights, actions)
        variance = torch.einsum(
            "bm,bmha->bha", weights, (actions - mean[:, None]).square()
        )
        fitted = torch.lerp(
            torch.stack([mean, variance.sqrt()], 2), state, self.config.smoothing
        )
        floor = self.config.min_std * (self.high - self.low).to(state) / 2
        return torch.stack([fitted[:, :, 0], fitted[:, :, 1].maximum(floor)], 2)

    def reuse(self, state: Tensor, planned: Tensor) -> Tensor:
        """A warm start: the mean kept, the deviation blended with the prior's; the prior beyond planned."""
        share = state.new_tensor([0.0, self.config.fresh])[:, None]
        share = torch.where(is_planned(state, planned), share, 1.0)
        return torch.lerp(state, self.prior(len(state), state.device), share)

    def admit(self, actions: Tensor) -> Tensor:
        """Proposals from outside, clamped to the box; raises ValueError if they are not finite."""
        if not bool(torch.isfinite(actions).all()):
            raise ValueError(
                "planner: proposals must be finite, got NaN or infinite actions"
            )
        return self.clamp(actions.to(self.low.dtype))

    def clamp(self, actions: Tensor) -> Tensor:
        """Actions [..., A] moved into the box."""
        return actions.clamp(self.low.to(actions.device), self.high.to(actions.device))


Proposals = Categorical | Gaussian


def hold(draw: Tensor, sticky: float, generator: torch.Generator) -> Tensor:
    """Draws [N, H, ...] in which a step keeps the one before with probability sticky; same marginals."""
    candidates, horizon = draw.shape[:2]
    renewed = (
        torch.rand(candidates, horizon, generator=generator, device=draw.device)
        >= sticky
    )
    steps = torch.arange(horizon, device=draw.device)
    source = torch.where(renewed, steps, 0).cummax(1).values
    return draw[torch.arange(candidates, device=draw.device)[:, None], source]


def coloured(
    shape: tuple[int, ...], colour: float, generator: torch.Generator
) -> Tensor:
    """Normal noise [..., H] whose power falls with frequency f as 1 / f ** colour, every step having variance 1."""
    length = 2 * shape[-1]  # a filter on a circle would tie the last step to the first
    white = torch.randn(
        (*shape[:-1], length), generator=generator, device=generator.device
    )
    frequency = torch.fft.fftfreq(length, device=white.device).abs()
    gain = frequency.clamp(min=1 / length) ** (-colour / 2)
    noise = torch.fft.ifft(
        torch.fft.fft(white) * (gain / gain.square().mean().sqrt())
    ).real
    return noise[..., : shape[-1]]


def edit(parents: Tensor, fresh: Tensor, generator: torch.Generator) -> Tensor:
    """Parents [B, M, H, ...] with one step removed, replaced or inserted, and new actions from fresh.

    Distributions with independent steps cannot do this: a plan that wastes one action early is a local
    optimum for them, since all later actions would have to move up together.
    """
    count, horizon = parents.shape[1:3]
    size, device = (count, 1), parents.device
    place = torch.randint(horizon, size, generator=generator, device=device)
    move = torch.randint(-1, 2, size, generator=generator, device=device)
    steps = torch.arange(horizon, device=device)
    source = steps + move * (steps >= place)
    new = torch.where(move == 1, source >= horizon, steps == place)
    rows = torch.arange(count, device=device)[:, None]
    edited = parents[:, rows, source.clamp(0, horizon - 1)]
    return torch.where(
        new.view(1, count, horizon, *[1] * (parents.ndim - 3)), fresh, edited
    )


def is_planned(state: Tensor, planned: Tensor) -> Tensor:
    """Which steps of state [B, H, ...] come before planned [B]: bool [B, H, 1, ...]."""
    before = torch.arange(state.shape[1], device=state.device) < planned[:, None]
    return before.view(*before.shape, *[1] * (state.ndim - 2))
