"""Actions drawn from the output of the policy head, in real steps and in imagination."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lssvwm.planners import Box, Space
from lssvwm.planners.noise import Source, normal, uniform
from lssvwm.worldmodel.heads import HeadOutputs
from torch import Tensor
from torch.distributions import Normal

STD = 0.3
"""Standard deviation of continuous actions around the policy head's output, in half ranges."""


@dataclass
class PolicyHead:
    """Turn outputs of the policy head [B, ..., A] into actions.

    Discrete actions follow the softmax of the output.
    Continuous actions are normal around the output, and clamped to the bounds.
    Noise comes from one generator, or from one for each entry of B.
    """

    space: Space

    def sample(self, policy: Tensor, generator: Source) -> Tensor:
        """Draw one action per output [B, ..., A]: int64 [B, ...] or float32 [B, ..., A]."""
        if isinstance(self.space, Box):
            noise = normal(policy.shape, generator)
            action = policy + self._std(self.space).to(policy.device) * noise
            return action.clamp(self.space.low, self.space.high)
        numbers = uniform(policy.shape, generator)
        exponential = -numbers.clamp(min=1e-20).log()
        return (policy - exponential.log()).argmax(-1)  # Gumbel-max trick

    def uniform(self, like: Tensor, generator: Source) -> Tensor:
        """Draw uniform actions, as many as there are outputs in `like` [B, ..., A]."""
        if not isinstance(self.space, Box):
            return self.sample(torch.zeros_like(like), generator)
        share = uniform(like.shape, generator)
        return self.space.low + share * (self.space.high - self.space.low)

    def log_prob_and_entropy(
        self, policy: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log-probability and entropy [...] of actions drawn by `sample`.

        policy: outputs of the policy head, [..., A]
        action: int64 [...] or float32 [..., A]
        """
        if isinstance(self.space, Box):
            std = self._std(self.space).to(policy.device).expand_as(policy)
            normal = Normal(policy, std)
            return normal.log_prob(action).sum(-1), normal.entropy().sum(-1)
        log_prob = torch.log_softmax(policy.float(), -1)
        chosen = log_prob.gather(-1, action[..., None])[..., 0]
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        return chosen, entropy

    def _std(self, space: Box) -> Tensor:
        return STD * (space.high - space.low) / 2


class ImaginedPolicy:
    """Choose imagined actions by the policy head; each is repeated `action_repeat` times.

    now: output of the policy head for the last observed frame, [B, n, A]
    generator: one, or one for each of B memories
    """

    def __init__(
        self,
        policy_head: PolicyHead,
        now: Tensor,
        generator: Source,
        action_repeat: int = 1,
    ):
        self.policy_head = policy_head
        self.now = now
        self.generator = generator
        self.action_repeat = action_repeat
        self.action: Tensor | None = None

    def __call__(self, step: int, output: HeadOutputs | None) -> Tensor:
        """Return the actions [B, n(, A)] of imagined step `step`.

        output: heads of the frame before, None for the first step
        """
        if self.action is None or step % self.action_repeat == 0:
            policy = self.now if output is None else output.policy
            self.action = self.sample(policy)
        return self.action

    def sample(self, policy: Tensor) -> Tensor:
        """Draw actions for outputs of the policy head [B, n, A]."""
        return self.policy_head.sample(policy, self.generator)
