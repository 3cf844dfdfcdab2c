"""Train the policy and value heads in imagination, after Dreamer (arXiv 2301.04104).

From a frame of every training sequence the policy head walks on in imagination.
Its actions are reinforced by the imagined return less the prediction of the value head.
The value head learns the return.
Only these heads learn from walks; the world model learns from real frames.

Shapes: B memories, n walks from each, H steps, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.policy_head import ImaginedPolicy
from lssvwm.worldmodel import Batch, Memory, RolloutPolicy
from lssvwm.worldmodel.batch_part import fraction, gather, own, share_of_mean, spread
from lssvwm.worldmodel.data import Trajectory
from lssvwm.worldmodel.heads import HeadOutputs, two_hot
from lssvwm.worldmodel.losses import TD_LAMBDA
from torch import Tensor
from torch.nn import functional as F
from torchrl.objectives.value.functional import td_lambda_return_estimate

QUANTILES = 0.05, 0.95
"""Quantiles of the returns; the range between them, if more than a unit of the value head, scales the advantages."""


@dataclass(frozen=True)
class Walks:
    """Set the walks from each memory.

    entropy: weight of the policy's entropy in the loss
    """

    count: int
    horizon: int = 16
    entropy: float = 0.01


class RecordingPolicy(ImaginedPolicy):
    """Choose imagined actions by the policy head and keep the outputs of all heads."""

    def __init__(self, agent: Agent, now: Tensor):
        repeat = agent.config.action_repeat
        super().__init__(agent.policy_head, now, agent.generator, repeat)
        self.outputs: list[HeadOutputs] = []

    def __call__(self, step: int, output: HeadOutputs | None) -> Tensor:
        """Return the actions of imagined step `step`."""
        if output is not None:
            self.outputs.append(output)
        return super().__call__(step, output)

    def sample(self, policy: Tensor) -> Tensor:
        """Draw actions with the noise of the whole batch."""
        return own(super().sample(spread(policy)))


def walk_loss(
    agent: Agent, sequences: Batch, walks: Walks
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and metrics of walks from the last frame of every sequence."""
    model = agent.model
    everywhere = torch.ones_like(sequences.is_first)
    trajectory = Trajectory(
        sequences.action, sequences.is_first, everywhere, pose=sequences.pose
    )
    with torch.no_grad():  # only the heads learn
        empty = model.initial(len(sequences.pixels))
        memory, tokens = model.write(empty, sequences.pixels, trajectory)
    outputs = model.heads(tokens)
    ended = (sequences.terminated | sequences.truncated)[:, -1]
    return imagined_loss(agent, memory, outputs.last(), ended, walks)


def imagined_loss(
    agent: Agent, memory: Memory, now: HeadOutputs, ended: Tensor, walks: Walks
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and metrics of walks from B memories.

    now: outputs of the heads for the last observed frame, [B]
    ended: memories whose episode is over, which do not count, bool [B]
    """
    model = agent.model
    policy = RecordingPolicy(agent, _each_walk(now.policy.detach(), walks.count))
    policy_rollout = RolloutPolicy(policy, walks.count, walks.horizon, heads_only=True)
    rollout = model.imagine(memory, policy_rollout)
    cont = rollout.cont.detach()
    target = returns(
        rollout.reward.detach(),
        cont,
        rollout.value.detach(),
        model.config.discount,
        TD_LAMBDA,
    )

    def before_action(name: str) -> Tensor:
        """Stack the outputs of a head for the frame before each action, [B, n, H, ...]."""
        first = _each_walk(getattr(now, name), walks.count)
        later = [getattr(output, name) for output in policy.outputs]
        return torch.stack([first, *later], 2)

    reached = F.pad(cont.cumprod(2)[:, :, :-1], (1, 0), value=1.0)
    weight = reached * ~ended[:, None, None]
    step = torch.arange(walks.horizon, device=weight.device)
    chosen = step % agent.config.action_repeat == 0  # other steps repeat an action
    value_unit = model.heads.scales[1]
    advantage = (target - before_action("value").detach()) / _scale(target, value_unit)
    log_prob, entropy = agent.policy_head.log_prob_and_entropy(
        before_action("policy"), rollout.actions
    )
    actor = share_of_mean(
        -advantage * log_prob - walks.entropy * entropy, weight * chosen
    )
    scaled_target = two_hot(target / value_unit, model.heads.bins)
    log_value = F.log_softmax(before_action("value_logits"), -1)
    cross_entropy = -(scaled_target * log_value).sum(-1)
    critic = share_of_mean(cross_entropy, weight)
    metrics = {
        "actor_critic/return": target[:, :, 0].mean() * fraction(),
        "actor_critic/entropy": entropy.detach().mean() * fraction(),
    }
    return actor + critic, metrics


def returns(
    reward: Tensor, cont: Tensor, value: Tensor, discount: float, td_lambda: float
) -> Tensor:
    """Return the TD(lambda) return of each action, [B, n, H].

    reward, cont, value: of the frame that each action leads to, [B, n, H]
    The last value stands for everything after the walk.
    """
    gamma = _as_episodes(discount * cont)
    value = _as_episodes(value)
    reward = _as_episodes(reward)
    terminated = torch.zeros_like(reward, dtype=torch.bool)
    done = terminated.clone()
    done[:, -1] = True  # the walk ends, its episode goes on
    found = td_lambda_return_estimate(
        gamma,  # type: ignore[arg-type]
        td_lambda,
        value,
        reward,
        done,
        terminated,
    )
    return found[..., 0].unflatten(0, cont.shape[:2])


def _as_episodes(value: Tensor) -> Tensor:
    """Reshape [B, n, H] to TorchRL's [B n, H, 1]."""
    return value.flatten(0, 1)[..., None]


def _each_walk(value: Tensor, count: int) -> Tensor:
    """Repeat a value of each memory [B, ...] for its walks, [B, n, ...]."""
    rest = [-1] * (value.dim() - 1)
    return value[:, None].expand(-1, count, *rest)


def _scale(target: Tensor, least: Tensor) -> Tensor:
    quantiles = target.new_tensor(QUANTILES)
    low, high = torch.quantile(gather(target), quantiles)
    return (high - low).maximum(least)
