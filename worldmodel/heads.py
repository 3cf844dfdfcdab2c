"""Heads: reward, continue, value, policy prior and steps to a goal, of a frame seen or foreseen; and their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.worldmodel.config import HEAD_HIDDEN
from torch import Tensor, nn
from torch.nn import functional as F


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(x.abs())


@dataclass
class HeadOutputs:
    """What the heads say of a frame [...]: logits of reward and value over `bins`, logit of continue, policy.

    `policy` [..., n] is logits for discrete actions, the mean for continuous ones; `distance` the steps to the goal, if
    one was given; `log_error` the logarithm of the error that is expected of the frame as it was foreseen, if the model
    has learnt that.
    """

    reward_logits: Tensor
    value_logits: Tensor
    continue_logit: Tensor
    policy: Tensor
    bins: Tensor
    distance: Tensor | None = None
    log_error: Tensor | None = None

    def last(self) -> HeadOutputs:
        """Of frames [B, T], the last ones, [B]: reward, value, continue and policy."""
        reward, value, cont = (
            self.reward_logits[:, -1],
            self.value_logits[:, -1],
            self.continue_logit[:, -1],
        )
        return HeadOutputs(reward, value, cont, self.policy[:, -1], self.bins)

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
    def surprise(self) -> Tensor | None:
        """Mean squared error expected of the frame as it was foreseen (pixels from -1 to 1), [...]: near 0 where memory
        knows what is there."""
        return None if self.log_error is None else self.log_error.float().exp()

    @property
    def cont(self) -> Tensor:
        """Probability that the episode does not terminate with this frame, [...]."""
        return torch.sigmoid(self.continue_logit.to(self.bins.dtype))


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Spread symlog(x) [...] over the two nearest of equally spaced `bins` [n]: [..., n] (DreamerV3, section 3)."""
    step = bins[1] - bins[0]
    place = ((symlog(x) - bins[0]) / step).clamp(0, len(bins) - 1)
    return (
        1 - (place[..., None] - torch.arange(len(bins), device=x.device)).abs()
    ).clamp(min=0)


class Heads(nn.Module):
    """Tokens of a frame [..., S, D] -> `HeadOutputs`; one shared layer, then a linear map each."""

    bins: Tensor

    def __init__(
        self,
        tokens: int,
        width: int,
        actions: int,
        surprise: bool = False,
        bins: int = 61,
        reach: float = 6.0,
    ):
        super().__init__()
        self.register_buffer(
            "bins", torch.linspace(-reach, reach, bins), persistent=False
        )
        self.sizes = [bins, bins, 1, actions]
        self.trunk = nn.Linear(tokens * width, HEAD_HIDDEN)
        self.out = nn.Linear(HEAD_HIDDEN, sum(self.sizes))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        self.error = nn.Linear(HEAD_HIDDEN, 1) if surprise else None

    def forward(self, x: Tensor) -> HeadOutputs:
        hidden = F.gelu(self.trunk(_flat(x)))
        reward, value, cont, policy = self.out(hidden).split(self.sizes, -1)
        expected = None if self.error is None else self.error(hidden)[..., 0]
        return HeadOutputs(
            reward, value, cont[..., 0], policy, self.bins, log_error=expected
        )


class Distance(nn.Module):
    """Steps from a frame, seen or foreseen (its tokens [..., S, D]), to a goal image (embedded tokens [..., S, D])."""

    def __init__(
        self, tokens: int, width: int, hidden: int = HEAD_HIDDEN, expectile: float = 0.1
    ):
        super().__init__()
        self.expectile = expectile
        self.here, self.there = (
            nn.Linear(tokens * width, hidden),
            nn.Linear(tokens * width, hidden),
        )
        last = nn.Linear(hidden, 1)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)
        nn.init.ones_(
            last.bias
        )  # some steps to begin with: 0 is the least that is told

    def aim(self, goal: Tensor) -> Tensor:
        """What `forward` needs of goals [..., S, D]: [..., hidden]"""
        return self.there(_flat(goal))

    def forward(self, x: Tensor, aim: Tensor) -> Tensor:
        """Steps [...], at least 0, from frames x [..., S, D]."""
        return torch.expm1(self._log(self.here(_flat(x)), aim).clamp(min=0))

    def _log(self, here: Tensor, aim: Tensor) -> Tensor:
        return self.out(here + aim)[..., 0].float()

    def loss(
        self,
        x: Tensor,
        seen: Tensor,
        aims: Tensor,
        is_first: Tensor,
        valid: Tensor,
        generator,
    ):
        """Of frames x [B, T, S, D] where `valid` [B, T]: how well the steps to goals, `aims` [B, T, hidden] of the same
        frames (see `aim`), are told.

        Half of the goals come later in the same episode, after steps that were counted. The others are any frames:
        those steps are what walking on for some and then what this head, from there (`seen`, x of the clean frames),
        says: temporal differences, which join parts of walks that nobody walked in one go.
        Whoever walked there need not have taken the shortest way: expectile regression (Newey and Powell 1987) of
        log(1 + steps) to a low expectile, `expectile`, tells what the quicker ones took. What is joined is implicit
        Q-learning with goals (HIQL, Park et al. 2023), over several steps and, instead of a discount, up to FARTHEST.
        """
        here, (b, t) = self.here(_flat(x))[:, :, None], is_first.shape
        rows = torch.arange(b, device=x.device)[:, None, None]
        at = torch.arange(t, device=x.device)[:, None]
        steps, on = (
            later(is_first, PAIRS, generator),
            later(is_first, WAYPOINTS, generator),
        )
        counted = torch.log1p(steps.float()) - self._log(here, aims[rows, at + steps])
        whose = torch.randint(b, steps.shape, generator=generator, device=x.device)
        whose = torch.where(
            torch.arange(PAIRS, device=x.device) < PAIRS // 2, rows, whose
        )
        goal = aims[
            whose, torch.randint(t, steps.shape, generator=generator, device=x.device)
        ]
        with torch.no_grad():
            there = self.here(_flat(seen))[rows, at + on][
                :, :, :, None
            ]  # [B, T, WAYPOINTS, 1, hidden]
            rest = torch.expm1(self._log(there, goal[:, :, None]).clamp(min=0))
            total = torch.log1p((on[..., None] + rest).amin(2).clamp(max=FARTHEST))
        error = _expectile(counted, self.expectile) + _expectile(
            total - self._log(here, goal), JOINING
        )
        return (error * valid[..., None]).sum() / valid.sum().clamp(min=1) / PAIRS


PAIRS = 8
"""Goals of each kind that each frame is paired with in training."""
WAYPOINTS = 4
"""Frames of a walk from which the rest of the way is told; the nearest to the goal counts."""
CLOSE = 8
"""Half of those that come later are at most so many steps away."""
JOINING = 0.2
"""The expectile where steps told are joined (HIQL has 0.3): taken again and again, a lower one shrinks them."""
FARTHEST = 300.0
"""Steps that are joined at most."""


def _expectile(gap: Tensor, low: float) -> Tensor:
    return torch.where(gap > 0, low, 1 - low) * gap.square()


def later(is_first: Tensor, n: int, generator) -> Tensor:
    """Steps to n frames of the same episode, from each frame of is_first [B, T]: int64 [B, T, n]; 0 where it ends."""
    t = torch.arange(is_first.shape[1], device=is_first.device)
    begins = torch.where(is_first, t, len(t))
    following = (
        F.pad(begins[:, 1:], (0, 1), value=len(t)).flip(1).cummin(1).values.flip(1)
    )
    left = (following - 1 - t)[..., None].expand(-1, -1, n)
    few = torch.where(
        torch.arange(n, device=t.device) < n // 2, left.clamp(max=CLOSE), left
    )
    draw = torch.rand(few.shape, generator=generator, device=t.device)
    return (draw * (few + 1)).long().clamp(max=len(t))


def _flat(x: Tensor) -> Tensor:
    x = x.flatten(-2)
    return F.layer_norm(x, x.shape[-1:])


def lambda_returns(
    reward: Tensor,
    terminated: Tensor,
    is_first: Tensor,
    value: Tensor,
    discount: float,
    lam: float,
):
    """Targets of the value head by TD(lambda), all [B, T]; frame t's reward is what arriving at t gave.

    A terminated episode is worth nothing after its end; at a truncation, and where the sequence ends, the value
    itself stands for what would have followed.
    """
    alive = discount * (1 - terminated[:, 1:].to(value.dtype))
    starts = is_first[:, 1:]
    gained = torch.where(
        starts, value[:, :-1], reward[:, 1:] + alive * (1 - lam) * value[:, 1:]
    )
    kept = torch.where(starts, 0.0, alive * lam)
    targets = [value[:, -1]]
    for more, share in zip(reversed(gained.unbind(1)), reversed(kept.unbind(1))):
        targets.append(torch.addcmul(more, share, targets[-1]))
    return torch.stack(targets[::-1], 1)
