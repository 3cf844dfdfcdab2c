"""Distributions that candidates are drawn from: categorical or Gaussian for each planned step.

Both keep their parameters in one tensor `state` [B, H, ...], which travels in the `Plan`.
Noise is [G, N, H, ...]: drawn for each of G = B generators, or shared with G = 1.
The plan of an environment therefore depends on its own scores and its generator only.
"""

from __future__ import annotations

import torch
from lssvwm.planners.base import Box, Discrete, MultiDiscrete, Space
from lssvwm.planners.noise import Generators, Source, integers, normal, uniform
from torch import Tensor
from torch.nn import functional as F

SMOOTHING = 0.1
"""Weight of the old distribution in a refit."""
PRIOR_MIX = 0.3
"""Weight of the prior that is blended into a warm start."""
MIN_PROB = 0.02
"""Least probability of each discrete action after a refit, for at most 25 actions."""
INIT_STD = 0.7
"""First standard deviation of continuous actions, in half ranges of the action."""
MIN_STD = 0.02
"""Least standard deviation of continuous actions after a refit, in half ranges."""


HOLD_DISCRETE, HOLD_CONTINUOUS = 0.3, 0.8
"""Probability that a step of a candidate repeats the random draw of the step before."""


class Categorical:
    """Independent action probabilities for every step, and for every choice of it.

    state: [B, H, n] or [B, H, A, n]
    n is the largest number of actions of any choice; missing actions have probability 0.
    """

    def __init__(
        self,
        space: Discrete | MultiDiscrete,
        horizon: int,
    ) -> None:
        self.sizes = torch.tensor(space.n)  # [] or [A]
        self.n = int(self.sizes.max())
        self.horizon = horizon
        # at least half of the probability follows the scores, with any number of actions
        self.min_prob = min(MIN_PROB, 1 / (2 * self.n))

    def _sizes_on(self, device: torch.device) -> Tensor:
        """Return the numbers of actions; a single one counts on every device as it is."""
        return self.sizes.to(device) if self.sizes.ndim else self.sizes

    def _exists(self, device: torch.device) -> Tensor:
        """Return 1.0 for every action that exists and 0.0 for the others, [n] or [A, n]."""
        action = torch.arange(self.n, device=device)
        sizes = self._sizes_on(device)
        return (action < (sizes[:, None] if sizes.ndim else sizes)).float()

    def prior(self, batch: int, device: torch.device) -> Tensor:
        """Return equal probabilities for all actions, [B, H, ..., n]."""
        exists = self._exists(device)
        uniform = exists / exists.sum(-1, keepdim=True)
        return uniform.expand(batch, self.horizon, *exists.shape)

    def draw(self, generators: Generators, count: int) -> Tensor:
        """Draw uniform numbers [G, count, H, ...], held over steps at random.

        Holding the number instead of the action keeps the probabilities of every step exact.
        It repeats actions where the distribution is broad, and lets a narrow one alternate.
        """
        size = (len(generators), count, self.horizon, *self.sizes.shape)
        noise = uniform(size, generators)
        return hold(noise, HOLD_DISCRETE, generators)

    def coloured(
        self, generators: Generators, colour: float | None, count: int
    ) -> Tensor:
        """Draw uniform numbers [G, count, H, ...] from coloured normal noise."""
        size = (len(generators), count, *self.sizes.shape, self.horizon)
        noise = coloured(size, 0.5 if colour is None else colour, generators)
        return torch.special.ndtr(noise).movedim(-1, 2)

    def sample(self, state: Tensor, noise: Tensor) -> Tensor:
        """Invert the cumulative probabilities at the noise; return int64 [B, N, H, ...]."""
        edges = state.cumsum(-1)[:, None, ..., :-1]
        action = (noise[..., None] >= edges).sum(-1)
        return action.minimum(self._sizes_on(state.device) - 1)

    def mode(self, state: Tensor) -> Tensor:
        """Return the most probable action of each step, int64 [B, H, ...]."""
        return state.argmax(-1)

    def refit(self, state: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Fit probabilities to actions [B, M, H, ...] with weights [B, M].

        The result is smoothed with the old state, and at least `min_prob`.
        """
        chosen = F.one_hot(actions, self.n).to(state.dtype)
        frequency = torch.einsum("bm,bm...->b...", weights.to(state.dtype), chosen)
        probs = torch.lerp(frequency, state, SMOOTHING)
        exists = self._exists(state.device)
        spread = exists.sum(-1, keepdim=True) * self.min_prob
        return probs * (1 - spread) + self.min_prob * exists

    def reuse(self, state: Tensor, planned: Tensor) -> Tensor:
        """Blend the state with the prior, for a warm start.

        Beyond `planned` [B] steps, use the prior alone.
        """
        share = torch.where(is_planned(state, planned), PRIOR_MIX, 1.0)
        return torch.lerp(state, self.prior(len(state), state.device), share)

    def validate(self, actions: Tensor) -> Tensor:
        """Return proposed actions as int64.

        Raises ValueError if an action does not exist. On a GPU, that is not checked: it would have to wait.
        """
        if actions.is_floating_point():
            raise ValueError(
                f"planner: proposals for discrete actions must be integers, got {actions.dtype}"
            )
        outside = (actions < 0) | (actions >= self._sizes_on(actions.device))
        if host_may_read(actions) and bool(outside.any()):
            found = f"{int(actions.min())} to {int(actions.max())}"
            last = (self.sizes - 1).tolist()
            raise ValueError(
                f"planner: proposals must be actions 0 to {last}, got {found}"
            )
        return actions.long()


class Gaussian:
    """Independent normal distributions for every step and dimension, clamped to the box.

    state: [B, H, 2, A], mean and standard deviation
    """

    def __init__(self, space: Box, horizon: int) -> None:
        self.low = space.low
        self.high = space.high
        self.horizon = horizon

    def prior(self, batch: int, device: torch.device) -> Tensor:
        """Return the centre of the box and a standard deviation of INIT_STD half ranges."""
        low, high = self.low.to(device), self.high.to(device)
        mean = (low + high) / 2
        std = INIT_STD * (high - low) / 2
        step = torch.stack([mean, std])
        return step.expand(batch, self.horizon, *step.shape)

    def draw(self, generators: Generators, count: int) -> Tensor:
        """Draw normal numbers [G, count, H, A], held over steps at random."""
        size = (len(generators), count, self.horizon, len(self.low))
        noise = normal(size, generators, self.low.dtype)
        return hold(noise, HOLD_CONTINUOUS, generators)

    def coloured(
        self, generators: Generators, colour: float | None, count: int
    ) -> Tensor:
        """Draw coloured normal noise [G, count, H, A]."""
        size = (len(generators), count, len(self.low), self.horizon)
        noise = coloured(size, 2.0 if colour is None else colour, generators)
        return noise.transpose(2, 3).to(self.low.dtype)

    def sample(self, state: Tensor, noise: Tensor) -> Tensor:
        """Return mean + standard deviation * noise, clamped, as [B, N, H, A]."""
        mean, std = state[:, None].unbind(-2)
        return self.clamp(mean + std * noise)

    def mode(self, state: Tensor) -> Tensor:
        """Return the mean of each step, [B, H, A]."""
        return self.clamp(state[:, :, 0])

    def refit(self, state: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Fit mean and standard deviation to actions [B, M, H, A] with weights [B, M].

        The result is smoothed with the old state, and the deviation is at least MIN_STD.
        """
        weights = weights.to(state.dtype)
        mean = torch.einsum("bm,bmha->bha", weights, actions)
        deviation = (actions - mean[:, None]).square()
        variance = torch.einsum("bm,bmha->bha", weights, deviation)
        moments = torch.stack([mean, variance.sqrt()], 2)
        fitted = torch.lerp(moments, state, SMOOTHING)
        least = MIN_STD * (self.high - self.low).to(state) / 2
        return torch.stack([fitted[:, :, 0], fitted[:, :, 1].maximum(least)], 2)

    def reuse(self, state: Tensor, planned: Tensor) -> Tensor:
        """Blend the standard deviation with the prior's, for a warm start; keep the mean.

        Beyond `planned` [B] steps, use the prior alone.
        """
        kept = state.new_tensor([0.0, PRIOR_MIX])[:, None]
        share = torch.where(is_planned(state, planned), kept, 1.0)
        return torch.lerp(state, self.prior(len(state), state.device), share)

    def validate(self, actions: Tensor) -> Tensor:
        """Return proposed actions clamped to the box.

        Raises ValueError if they are not finite. On a GPU, that is not checked: it would have to wait.
        """
        finite = torch.isfinite(actions)
        if host_may_read(actions) and not bool(finite.all()):
            raise ValueError(
                "planner: proposals must be finite, got NaN or infinite actions"
            )
        return self.clamp(actions.to(self.low.dtype))

    def clamp(self, actions: Tensor) -> Tensor:
        """Clamp actions [..., A] to the box."""
        return actions.clamp(self.low.to(actions.device), self.high.to(actions.device))


Distribution = Categorical | Gaussian


def host_may_read(values: Tensor) -> bool:
    """Return whether reading values costs no wait for a GPU."""
    return values.device.type == "cpu"


def distribution_for(space: Space, horizon: int) -> Distribution:
    """Return the distribution over plans of `horizon` actions from a space."""
    if isinstance(space, Box):
        return Gaussian(space, horizon)
    return Categorical(space, horizon)


def hold(noise: Tensor, prob: float, generators: Generators) -> Tensor:
    """Let every step of noise [G, N, H, ...] repeat the one before with probability `prob`.

    The marginal distribution of each step does not change.
    """
    chance = uniform(noise.shape[:3], generators)
    renewed = chance >= prob
    steps = torch.arange(noise.shape[2], device=noise.device)
    source = torch.where(renewed, steps, 0).cummax(2).values
    return noise.take_along_dim(_like_actions(source, noise), 2)


def coloured(shape: tuple[int, ...], colour: float, generator: Source) -> Tensor:
    """Draw normal noise [..., H] whose power falls with frequency f as 1 / f ** colour.

    Every step has variance 1.
    """
    # A filter acts on a circle. Twice the length keeps the last step apart from the first.
    length = 2 * shape[-1]
    white = normal((*shape[:-1], length), generator)
    frequency = torch.fft.fftfreq(length, device=white.device).abs()
    gain = frequency.clamp(min=1 / length) ** (-colour / 2)
    spectrum = torch.fft.fft(white) * (gain / gain.square().mean().sqrt())
    noise = torch.fft.ifft(spectrum).real
    return noise[..., : shape[-1]]


def mutate(parents: Tensor, fresh: Tensor, generators: Generators) -> Tensor:
    """Remove, replace or insert one step of each parent [B, M, H, ...].

    New actions come from fresh [B, M, H, ...].
    A distribution with independent steps cannot shift all later actions at once.
    For it, a plan that wastes one early action is a local optimum.
    """
    count, horizon = parents.shape[1:3]
    size = (len(generators), count, 1)
    place = integers(0, horizon, size, generators)
    # -1: insert a step, 0: replace it, 1: remove it
    move = integers(-1, 2, size, generators)
    steps = torch.arange(horizon, device=parents.device)
    source = steps + move * (steps >= place)
    beyond_end = source >= horizon
    is_new = torch.where(move == 1, beyond_end, steps == place)
    source = _like_actions(source.clamp(0, horizon - 1), parents)
    moved = parents.take_along_dim(source, 2)
    return torch.where(_like_actions(is_new, parents), fresh, moved)


def _like_actions(value: Tensor, actions: Tensor) -> Tensor:
    """Append dimensions of size 1 to a value [G, N, H], as many as actions [B, N, H, ...] have."""
    return value.view(*value.shape, *[1] * (actions.ndim - value.ndim))


def is_planned(state: Tensor, planned: Tensor) -> Tensor:
    """Return the mask of steps of state [B, H, ...] before `planned` [B], as [B, H, 1, ...]."""
    steps = torch.arange(state.shape[1], device=state.device)
    before = steps < planned[:, None]
    return before.view(*before.shape, *[1] * (state.ndim - 2))
