"""Predict reward, continuation, value and policy from the tokens of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.worldmodel.config import HEAD_HIDDEN
from torch import Tensor, nn
from torch.nn import functional as F

BINS = 61
"""Bins of the distributions over reward and value."""
BIN_LIMIT = 6.0
"""Largest symlog of a scaled reward or value that the bins represent: e^6 - 1, about 402."""
FITTING = 0.1, 100.0
"""Largest rewards and returns, in units of the scale, with which a scale is kept."""


def symlog(x: Tensor) -> Tensor:
    """Compress large numbers: sign(x) log(1 + |x|) (DreamerV3)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """Invert `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Spread symlog(x) over the two nearest bins (DreamerV3, section 3).

    x [...], bins [n], equally spaced -> [..., n]
    """
    spacing = bins[1] - bins[0]
    position = (symlog(x) - bins[0]) / spacing
    position = position.clamp(0, len(bins) - 1)[..., None]
    gap = (position - torch.arange(len(bins), device=x.device)).abs()
    return (1 - gap).clamp(min=0)


@dataclass
class HeadOutputs:
    """Hold the outputs of the heads for frames [...]."""

    reward_logits: Tensor
    """[..., bins]"""

    value_logits: Tensor
    """[..., bins]"""

    continue_logit: Tensor
    """[...]"""

    policy: Tensor
    """[..., A]: logits of discrete actions, or the mean of continuous ones"""

    bins: Tensor
    """symlog of the scaled reward and value of each bin"""

    scales: Tensor
    """Units of reward and value, [2]"""

    distance: Tensor | None = None
    """Steps to the goal image [...], if one was given"""

    log_error: Tensor | None = None
    """Logarithm of the expected error of a predicted frame [...], if the model has the surprise head"""

    def last(self) -> HeadOutputs:
        """Return reward, value, continuation and policy of the last frames [B] of sequences [B, T]."""
        return HeadOutputs(
            self.reward_logits[:, -1],
            self.value_logits[:, -1],
            self.continue_logit[:, -1],
            self.policy[:, -1],
            self.bins,
            self.scales,
        )

    @property
    def reward(self) -> Tensor:
        """Expected reward received on arriving at the frame, [...]."""
        return self._expectation(self.reward_logits) * self.scales[0]

    @property
    def value(self) -> Tensor:
        """Expected discounted return after the frame, [...]."""
        return self._expectation(self.value_logits) * self.scales[1]

    @property
    def cont(self) -> Tensor:
        """Probability that the episode does not terminate with this frame, [...]."""
        return torch.sigmoid(self.continue_logit.to(self.bins.dtype))

    @property
    def surprise(self) -> Tensor | None:
        """Expected squared error of the predicted frame, [...] (pixels from -1 to 1).

        It is near 0 where memory holds what will be seen.
        """
        return None if self.log_error is None else self.log_error.float().exp()

    def _expectation(self, logits: Tensor) -> Tensor:
        probability = torch.softmax(logits, -1, dtype=self.bins.dtype)
        return symexp(probability @ self.bins)


class Heads(nn.Module):
    """Map tokens of a frame [..., S, D] to `HeadOutputs`.

    The heads share one hidden layer. Each has a linear map of its own.
    Rewards and values are learned in units of `scales`, so that they may have any size.
    """

    bins: Tensor
    scales: Tensor

    def __init__(self, tokens: int, width: int, actions: int, surprise: bool = False):
        super().__init__()
        bins = torch.linspace(-BIN_LIMIT, BIN_LIMIT, BINS)
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("scales", torch.ones(2))
        self.sizes = [BINS, BINS, 1, actions]
        self.trunk = nn.Linear(tokens * width, HEAD_HIDDEN)
        self.out = nn.Linear(HEAD_HIDDEN, sum(self.sizes))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        self.error = nn.Linear(HEAD_HIDDEN, 1) if surprise else None

    def forward(self, x: Tensor) -> HeadOutputs:
        """Compute all heads of frames x [..., S, D]."""
        hidden = F.gelu(self.trunk(normalized_frame(x)))
        reward, value, cont, policy = self.out(hidden).split(self.sizes, -1)
        log_error = None if self.error is None else self.error(hidden)[..., 0]
        return HeadOutputs(
            reward_logits=reward,
            value_logits=value,
            continue_logit=cont[..., 0],
            policy=policy,
            bins=self.bins,
            scales=self.scales,
            log_error=log_error,
        )

    def fit_scales(self, reward: float, value: float) -> None:
        """Set the units of reward and value where the present ones do not fit.

        reward, value: largest magnitudes to expect; 0: unknown, which fits
        Units are kept if the magnitudes lie within FITTING of them.
        """
        low, high = FITTING
        for i, largest in enumerate((reward, value)):
            size = largest / float(self.scales[i])
            if largest and not low <= size <= high:
                self.scales[i] = largest


def normalized_frame(x: Tensor) -> Tensor:
    """Join the tokens of a frame, [..., S, D] -> [..., S D], and normalise them."""
    x = x.flatten(-2)
    return F.layer_norm(x, x.shape[-1:])
