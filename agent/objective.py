"""Objective of planning: the value of imagined rollouts."""

from __future__ import annotations

import dataclasses

import torch
from lssvwm.agent.config.options import SETTINGS
from lssvwm.agent.policy_head import ImaginedPolicy, PolicyHead
from lssvwm.planners import Proposals, Simulation, discounted_return
from lssvwm.planners.base import pick
from lssvwm.planners.noise import Generators
from lssvwm.worldmodel import (
    Memory,
    Rollout,
    RolloutPolicy,
    RolloutState,
    WorldModel,
    imagination,
)
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

NO_DISTANCE = "this model has no distance head: train it with model.loss.distance > 0"
NO_SURPRISE = "this model has no surprise head: train it with model.loss.surprise > 0"
SAMPLE_STEPS = 2
"""Denoising steps of a sampled frame."""
ROWS = 1024
"""Rollouts imagined together: few enough for the processor's cache."""


@dataclass(frozen=True, config=SETTINGS)
class ObjectiveConfig:
    """Define the value of an imagined rollout."""

    reward: float = Field(default=1.0, ge=-1e6, le=1e6, allow_inf_nan=False)
    """Weight of the discounted return. 0: rewards do not count."""

    goal: float = Field(default=0.0, ge=-1e6, le=1e6, allow_inf_nan=False)
    """Weight of the predicted steps to the goal image, averaged over the horizon. 0: goal images do not count."""

    novelty: float = Field(default=0.0, ge=-1e6, le=1e6, allow_inf_nan=False)
    """Weight of the discounted sum of predicted frame errors, for exploration. 0: novelty does not count."""

    discount: float | None = Field(default=None, ge=0, le=1)
    """Discount per step of rewards and novelty. null: `model.discount`, with which the value was trained."""

    bootstrap: float = Field(default=0.5, ge=0, le=1)
    """Share of the value at the end of the horizon that counts as return. Below 1, because the value was learned from
    policies that may know more than the agent's memory."""

    samples: int = Field(default=1, ge=1, le=10**5)
    """Rollouts of each candidate. 1: one rollout of expected frames; more: so many rollouts of sampled frames."""

    std_penalty: float = Field(default=0.0, ge=-1e6, le=1e6, allow_inf_nan=False)
    """Penalty on the standard deviation of the samples' values, subtracted from their mean. 0: none."""

    @property
    def denoising_steps(self) -> int:
        """Denoising steps of each imagined frame."""
        return SAMPLE_STEPS if self.samples > 1 else 1


class Objective:
    """Score rollouts, candidates and proposals of the policy head.

    action_repeat: steps for which the agent repeats each planned action
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        model: WorldModel,
        policy_head: PolicyHead,
        action_repeat: int = 1,
    ):
        self.config = config
        self.model = model
        self.policy_head = policy_head
        self.action_repeat = action_repeat
        own_discount = config.discount
        self.discount = model.config.discount if own_discount is None else own_discount

    def value(self, rollout: Rollout) -> Tensor:
        """Return the value of each rollout, [B, n].

        It is weighted return + bootstrapped value - weighted goal distance + weighted novelty.
        Raises ValueError if novelty counts and the model does not predict it.
        """
        weight = self.config
        total = torch.zeros_like(rollout.reward[:, :, 0])
        if weight.reward:
            end_value = weight.bootstrap * rollout.value[:, :, -1]
            earned = self._discounted(rollout, rollout.reward, end_value)
            total = total + weight.reward * earned
        if weight.goal and rollout.distance is not None:
            total = total - weight.goal * rollout.distance.mean(2)
        if weight.novelty:
            if rollout.surprise is None:
                raise ValueError(NO_SURPRISE)
            novelty = self._discounted(rollout, rollout.surprise, None)
            total = total + weight.novelty * novelty
        return total

    def _discounted(
        self, rollout: Rollout, amount: Tensor, end_value: Tensor | None
    ) -> Tensor:
        return discounted_return(amount, rollout.cont, end_value, self.discount)

    @torch.no_grad()
    def score(
        self,
        memory: Memory,
        actions: Tensor,
        goal: Tensor | None = None,
        generators: Generators | None = None,
    ) -> Tensor:
        """Score candidates from B memories; return [B, N].

        actions: planned actions, [B, N, H(, A)]
        goal: goal images, uint8 [B, C, H, W]
        generators: one for each memory, for sampled frames; None: torch's own
        With several samples, the score is their mean less the penalty on their deviation.
        """
        samples = self.config.samples
        executed = self.repeat_actions(actions).repeat_interleave(samples, 1)
        values = []
        for part in _parts(len(executed), executed.shape[1]):
            rollout = self.model.imagine(
                memory[part],
                executed[part],
                denoising_steps=self.config.denoising_steps,
                generator=None if generators is None else generators[part],
                goal=None if goal is None else goal[part],
            )
            values.append(self.value(rollout))
        sampled = torch.cat(values).unflatten(1, (-1, samples))
        if samples == 1:
            return sampled[..., 0]
        std = sampled.std(2, correction=0)
        return sampled.mean(2) - self.config.std_penalty * std

    def repeat_actions(self, actions: Tensor) -> Tensor:
        """Return the executed actions [B, N, H * action_repeat(, A)] of planned ones."""
        return actions.repeat_interleave(self.action_repeat, 2)

    @torch.no_grad()
    def propose(
        self,
        memory: Memory,
        policy: Tensor,
        count: int,
        horizon: int,
        generators: Generators,
        goal: Tensor | None = None,
    ) -> Proposals:
        """Imagine `count` rollouts of the policy head from each memory, and score them.

        policy: output of the policy head for the last observed frame, [B, A]
        generators: one for each memory
        """
        actions, scores = [], []
        for part in _parts(len(policy), count):
            now = policy[part, None].expand(-1, count, -1)
            choose = ImaginedPolicy(
                self.policy_head, now, generators[part], self.action_repeat
            )
            policy_rollout = RolloutPolicy(choose, count, horizon * self.action_repeat)
            rollout = self.model.imagine(
                memory[part],
                policy_rollout,
                goal=None if goal is None else goal[part],
            )
            actions.append(rollout.actions[:, :, :: self.action_repeat])
            scores.append(self.value(rollout))
        return Proposals(torch.cat(actions), torch.cat(scores))

    def simulation(
        self, memory: Memory, horizon: int, branches: int, goal: Tensor | None = None
    ) -> Simulation:
        """Return functions by which a tree search extends sequences, imagining every prefix once.

        branches: sequences that are extended at once
        """
        steps = horizon * self.action_repeat
        root = []
        for part in _parts(len(memory), branches):
            images = None if goal is None else goal[part]
            state = imagination.start(self.model, memory[part], 1, steps, images)
            root.append(Prefixes(state, []))
        return Simulation(root, self._step, self._select)

    @torch.no_grad()
    def _step(
        self, parts: list[Prefixes], action: Tensor
    ) -> tuple[Tensor, list[Prefixes]]:
        """Extend all sequences by action [B, m]; return their values and the parts."""
        scores = []
        sizes = [len(part.state) for part in parts]
        for part, chosen in zip(parts, action.split(sizes)):
            for _ in range(self.action_repeat):
                part.step(self.model, chosen)
            scores.append(self.value(part.rollout(chosen)))
        return torch.cat(scores), parts

    def _select(self, parts: list[Prefixes], index: Tensor) -> list[Prefixes]:
        """Continue with the sequences index [B, m]."""
        sizes = [len(part.state) for part in parts]
        for part, chosen in zip(parts, index.split(sizes)):
            part.select(chosen)
        return parts


@dataclasses.dataclass
class Prefixes:
    """Hold the imagined prefixes of some environments, and the head outputs of their steps."""

    state: RolloutState
    outputs: list[dict[str, Tensor]]
    """For each imagined step: reward, cont, value, policy, distance and surprise, [B, m, ...]."""

    def step(self, model: WorldModel, action: Tensor) -> None:
        """Imagine one step."""
        heads, _ = imagination.step(model, self.state, action)
        names = ("reward", "cont", "value", "policy", "distance", "surprise")
        found = {name: getattr(heads, name) for name in names}
        self.outputs.append({k: v for k, v in found.items() if v is not None})

    def select(self, index: Tensor) -> None:
        """Continue with sequences index [B, m]."""
        imagination.select(self.state, index)
        self.outputs = [
            {name: pick(value, index) for name, value in step.items()}
            for step in self.outputs
        ]

    def rollout(self, action: Tensor) -> Rollout:
        """Return the steps so far as rollouts, for scoring only; action is the last one."""
        names = self.outputs[0]
        stacked = {
            name: torch.stack([step[name] for step in self.outputs], 2)
            for name in names
        }
        return Rollout(actions=action[:, :, None], frames=None, **stacked)


def _parts(environments: int, rollouts: int) -> list[slice]:
    """Split environments into parts of about ROWS rollouts."""
    size = max(1, ROWS // rollouts)
    return [slice(start, start + size) for start in range(0, environments, size)]
