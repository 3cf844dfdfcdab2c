"""Training of the policy prior and the value in imagination, as Dreamer does (arXiv 2301.04104), without new frames.

From what is remembered somewhere in every training sequence, the policy head walks on in imagination. Its actions are
reinforced by how much more the imagined return was than the value head had foretold, and the value head learns that
return. Only the heads learn from dreams: how the world goes on is learnt from real frames.

Shapes: B memories, n dreams of each, H steps.
"""

from __future__ import annotations

import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.policy_head import ImaginedPolicy
from lssvwm.worldmodel import Memory
from lssvwm.worldmodel.heads import HeadOutputs, two_hot
from lssvwm.worldmodel.losses import TD_LAMBDA
from torch import Tensor
from torch.nn import functional as F
from torchrl.objectives.value.functional import td_lambda_return_estimate

RANGE = 0.05, 0.95
"""Quantiles of the returns between which lies what the advantages are measured in, if it is more than 1."""


class Walker(ImaginedPolicy):
    """Chooses by the policy head, and keeps what the heads answered."""

    def __init__(self, agent: Agent, here: Tensor):
        super().__init__(agent.policy_head, here, agent.config.action_repeat)
        self.answers: list[HeadOutputs] = []

    def __call__(self, h: int, out: HeadOutputs | None) -> Tensor:
        if out is not None:
            self.answers.append(out)
        return super().__call__(h, out)


def dream(
    agent: Agent,
    memory: Memory,
    now: HeadOutputs,
    ended: Tensor,
    n: int,
    horizon: int,
    entropy: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics of n dreams of each memory, to whose last frame the heads answered `now` [B]; those whose
    episode has `ended`, bool [B], do not count."""
    model, c = agent.model, agent.model.config
    walker = Walker(agent, now.policy.detach()[:, None].expand(-1, n, -1))
    future = model.dream(memory, n, horizon, walker, learn=True)
    reward, cont, value = (
        x.detach() for x in (future.reward, future.cont, future.value)
    )
    target = returns(reward, cont, value, c.discount, TD_LAMBDA)

    def before(
        name: str,
    ) -> Tensor:  # what a head answered to the frame before each action, [B, n, H, ...]
        here = getattr(now, name)[:, None].expand(
            -1, n, *[-1] * (getattr(now, name).dim() - 1)
        )
        return torch.stack(
            [here, *(getattr(answer, name) for answer in walker.answers)], 2
        )

    reach = F.pad(cont.cumprod(2)[:, :, :-1], (1, 0), value=1.0) * ~ended[:, None, None]
    decided = reach * (
        torch.arange(horizon, device=reach.device) % agent.config.action_repeat == 0
    )
    low, high = torch.quantile(target, torch.tensor(RANGE, device=target.device))
    gain = (target - before("value").detach()) / (high - low).clamp(min=1.0)
    likely, spread = agent.policy_head.log_prob_and_entropy(
        before("policy"), future.actions
    )
    reinforced = _mean(-gain * likely - entropy * spread, decided)
    foretold = -(
        two_hot(target, model.heads.bins) * F.log_softmax(before("value_logits"), -1)
    ).sum(-1)
    metrics = {
        "dream/return": target[:, :, 0].mean(),
        "dream/entropy": spread.detach().mean(),
    }
    return reinforced + _mean(foretold, reach), metrics


def returns(
    reward: Tensor, cont: Tensor, value: Tensor, discount: float, trace: float
) -> Tensor:
    """TD(lambda) returns of each step's action, all [B, n, H]: its reward and what follows, discounted by the chance
    that something does; the last value stands for what follows the dream."""
    gamma, value, reward = (
        (x.flatten(0, 1)[..., None]) for x in (discount * cont, value, reward)
    )
    never = torch.zeros_like(reward, dtype=torch.bool)
    done = never.clone()
    done[:, -1] = True  # the dream ends, the episode goes on
    found = td_lambda_return_estimate(gamma, trace, value, reward, done, never)  # type: ignore[arg-type]
    return found[..., 0].unflatten(0, cont.shape[:2])


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (weight * x).sum() / weight.sum().clamp(min=1.0)
