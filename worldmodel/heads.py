"""Heads: reward, continue, value and policy prior, of a frame seen or foreseen; and their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(x.abs())


@dataclass
class Readout:
    """What the heads say of a frame [...]: logits of reward and value over `bins`, logit of continue, policy.

    `policy` [..., n] is logits for discrete actions, the mean for continuous ones.
    """

    reward_logits: Tensor
    value_logits: Tensor
    continue_logit: Tensor
    policy: Tensor
    bins: Tensor

    def _mean(self, logits: Tensor) -> Tensor:
        return symexp(torch.softmax(logits, -1, dtype=self.bins.dtype) @ self.bins)

    @property
    def reward(self) -> Tensor:
        """Expected reward received on arriving at the frame, [...]."""
        return self._mean(self.reward_logits)

    @property
    def value(self) -> Tensor:
        """Expected discounted return from the frame on, [...]."""
        return self._mean(self.value_logits)

    @property
    def cont(self) -> Tensor:
        """Probability that the episode does not terminate with this frame, [...]."""
        return torch.sigmoid(self.continue_logit.to(self.bins.dtype))


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Spread symlog(x) [...] over the two nearest of equally spaced `bins` [n]: [..., n] (DreamerV3, section 3)."""
    step = bins[1] - bins[0]
    place = ((symlog(x) - bins[0]) / step).clamp(0, len(bins) - 1)
    return (1 - (place[..., None] - torch.arange(len(bins), device=x.device)).abs()).clamp(min=0)


class Heads(nn.Module):
    """Tokens of a frame [..., S, D] -> `Readout`; one shared layer, then a linear map each."""

    bins: Tensor

    def __init__(self, tokens: int, width: int, hidden: int, actions: int, bins: int = 61, reach: float = 6.0):
        super().__init__()
        self.register_buffer("bins", torch.linspace(-reach, reach, bins), persistent=False)
        self.sizes = [bins, bins, 1, actions]
        self.trunk = nn.Linear(tokens * width, hidden)
        self.out = nn.Linear(hidden, sum(self.sizes))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Readout:
        x = x.flatten(-2)
        x = F.layer_norm(x, x.shape[-1:])
        reward, value, cont, policy = self.out(F.gelu(self.trunk(x))).split(self.sizes, -1)
        return Readout(reward, value, cont[..., 0], policy, self.bins)


def lambda_returns(reward: Tensor, terminated: Tensor, is_first: Tensor, value: Tensor, discount: float, lam: float):
    """Targets of the value head by TD(lambda), all [B, T]; frame t's reward is what arriving at t gave.

    A terminated episode is worth nothing after its end; at a truncation, and where the sequence ends, the value
    itself stands for what would have followed.
    """
    target = value.clone()
    for t in range(reward.shape[1] - 2, -1, -1):
        rest = (1 - lam) * value[:, t + 1] + lam * target[:, t + 1]
        alive = 1 - terminated[:, t + 1].to(value.dtype)
        target[:, t] = torch.where(is_first[:, t + 1], value[:, t], reward[:, t + 1] + discount * alive * rest)
    return target
