"""Compute the terms of the training loss.

Shapes: B sequences, T frames, S tokens per frame, D width, P = C * patch * patch numbers per patch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lssvwm.worldmodel import action_limits, goal_distance, motion
from lssvwm.worldmodel.batch_part import all_sum, fraction, share_of_mean
from lssvwm.worldmodel.data import Batch
from lssvwm.worldmodel.fused_ops import squared_errors
from lssvwm.worldmodel.goal_distance import GoalDistance, Trajectories
from lssvwm.worldmodel.heads import HeadOutputs, two_hot
from lssvwm.worldmodel.mixers.tiled import write_strength
from lssvwm.worldmodel.motion import Motion
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.model import WorldModel

TD_LAMBDA = 0.95
"""Lambda of the value targets."""
ADVANTAGE_TEMPERATURE = 0.1
"""Advantage, in units of the value head, that weighs an imitated action e times as much."""
MAX_ADVANTAGE_WEIGHT = 5.0
"""Largest weight of an imitated action."""
DARK_WRITE_COST = 5.0
"""Price of writing a black frame, relative to other frames."""
DARK_MARGIN = 0.3
"""Opening below 0 at which the gate of a black frame costs nothing."""
COARSE = 4
"""Fields along each side of a patch, for the coarse frame loss."""
FIXED_WEIGHTS = {"cont": 1.0, "value": 0.1, "action_limits": 1.0, "motion": 1.0}
"""Weights of the terms that have none in `LossWeights`."""

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Outputs:
    """Hold what the loss compares with the batch."""

    patches: Tensor
    """The frames as `patchify` returns them, [B, T, S, P]"""

    clean: Tensor
    """Tokens from which action limits are predicted, [B, T, S, D]"""

    predicted: Tensor
    """Tokens of the noisy copies after all blocks, [B, T, S, D]"""

    observed: Tensor
    """Tokens of the written copies after all blocks, [B, T, S, D]"""

    in_frame_loss: Tensor
    """bool [B, T]: train the prediction of the frame"""

    in_head_loss: Tensor
    """bool [B, T]: train the heads on `predicted`"""

    is_observed: Tensor
    """bool [B, T]: train the heads on `observed`; the written copy is clean and not masked"""

    gates: Tensor | None = None
    """Openings of the write gates for the tokens of each frame, [B, T, k]; None: there is no write gate"""

    dark: Tensor | None = None
    """bool [B, T]: the written copy is a black frame; None: no frame is"""

    motion: Motion | None = None
    """Estimated motion of the agent; None: the model has no motion model"""


def total(
    model: WorldModel, batch: Batch, out: Outputs, generator: torch.Generator | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of all terms, and metrics."""
    found, metrics = terms(model, batch, out, generator)
    weights = dataclasses.asdict(model.config.loss) | FIXED_WEIGHTS
    zero = torch.zeros((), device=out.predicted.device)
    loss = sum((weights[name] * term for name, term in found.items()), zero)
    metrics |= {f"loss/{name}": term.detach() for name, term in found.items()}
    return loss, metrics | {"loss/total": loss.detach()}


def terms(
    model: WorldModel, batch: Batch, out: Outputs, generator: torch.Generator | None
) -> tuple[Terms, dict[str, Tensor]]:
    """Return every term under the name of its weight, and metrics."""
    predicted, observed = model.heads(out.predicted), model.heads(out.observed)
    target = value_target(observed, batch, model.config.discount)
    event_weight = model.config.event_weight
    on_observed, _ = head_losses(observed, target, batch, out.is_observed, event_weight)
    on_predicted, metrics = head_losses(
        predicted, target, batch, out.in_head_loss, event_weight
    )
    found = {name: on_observed[name] + term for name, term in on_predicted.items()}
    if model.distance is not None:
        goals = model.embedding.frames(out.patches)
        found["distance"] = distance_loss(
            model.distance, goals, batch.is_first, out, generator
        )
    follows = out.in_head_loss & ~batch.is_first
    found["frame"], error = frame_loss(model, out, generator)
    metrics |= frame_metrics(error, follows)
    if model.config.loss.coarse:
        found["coarse"] = coarse_loss(model, out)
    if model.action_limits is not None:
        found["action_limits"] = action_limits.loss(model, out.clean, batch, generator)
    if out.motion is not None and batch.pose is not None:
        found["motion"], missed = motion.loss(out.motion, batch.pose, batch.is_first)
        metrics["step_error"] = missed
    if out.gates is not None:
        found["write"] = write_cost(out.gates, out.dark) * fraction()
        metrics["written"] = (out.gates.detach() > 0).float().mean() * fraction()
    if predicted.log_error is not None:
        found["surprise"] = surprise_loss(predicted.log_error, error, follows)
    return found, metrics


def write_cost(openings: Tensor, dark: Tensor | None) -> Tensor:
    """Return the mean write strength by openings [B, T, k]; black frames, `dark` [B, T], cost more.

    A gate that opens for some black frames writes a little in each of these, and a long darkness adds up. So black
    frames pay until their gates are closed by a margin.
    """
    strength = write_strength(openings)
    if dark is None:
        return strength.mean()
    darkness = DARK_WRITE_COST * F.relu(openings + DARK_MARGIN)
    return torch.where(dark[..., None], darkness, strength).mean()


def head_losses(
    out: HeadOutputs,
    target: Tensor,
    batch: Batch,
    valid: Tensor,
    event_weight: float,
) -> tuple[Terms, dict[str, Tensor]]:
    """Return the losses of reward, continuation, value and policy where `valid` [B, T], and metrics.

    First frames have no reward. The policy imitates the actions of the batch, weighted by their advantage (AWR,
    arXiv 1910.00177).
    """
    is_event = (batch.reward != 0) | batch.terminated
    arrived = (valid & ~batch.is_first).float()
    weight = arrived * (1 + (event_weight - 1) * is_event.float())
    reward_unit, value_unit = out.scales
    scaled_reward = two_hot(batch.reward / reward_unit, out.bins)
    reward = _cross_entropy(out.reward_logits, scaled_reward)
    cont = F.binary_cross_entropy_with_logits(
        out.continue_logit.float(), (~batch.terminated).float(), reduction="none"
    )
    scaled_target = two_hot(target / value_unit, out.bins)
    value = _cross_entropy(out.value_logits, scaled_target)
    goes_on = valid & ~batch.terminated & ~batch.truncated
    follows = ~batch.is_first[:, 1:]
    acts = (goes_on[:, :-1] & follows).float()
    advantage = (target - out.value.detach())[:, :-1] / value_unit
    advantage_weight = torch.exp(advantage / ADVANTAGE_TEMPERATURE)
    policy = policy_loss(out.policy[:, :-1], batch.action[:, 1:])
    found = {
        "reward": share_of_mean(reward, weight),
        "cont": share_of_mean(cont, weight),
        "value": share_of_mean(value, goes_on.float()),
        "policy": share_of_mean(
            policy, acts * advantage_weight.clamp(max=MAX_ADVANTAGE_WEIGHT)
        ),
    }
    is_right = ((out.reward - batch.reward).abs() < 0.5 * reward_unit).float()
    events = arrived * is_event
    metrics = {
        "event_accuracy": share_of_mean(is_right, events),
        "events": events.sum(),
    }
    return found, {name: value.detach() for name, value in metrics.items()}


def policy_loss(policy: Tensor, action: Tensor) -> Tensor:
    """Return the error [B, T] of the policy head for actions [B, T] or [B, T, A].

    It is the cross entropy of discrete actions, or the squared error of continuous ones.
    """
    if action.dim() == policy.dim():
        return (policy - action).square().sum(-1)
    logits = policy.flatten(0, 1)
    error = F.cross_entropy(logits, action.flatten(), reduction="none")
    return error.view(action.shape)


def value_target(observed: HeadOutputs, batch: Batch, discount: float) -> Tensor:
    """Return the TD(lambda) targets of the value head, [B, T]."""
    value = observed.value.detach()
    return lambda_returns(
        batch.reward, batch.terminated, batch.is_first, value, discount, TD_LAMBDA
    )


def lambda_returns(
    reward: Tensor,
    terminated: Tensor,
    is_first: Tensor,
    value: Tensor,
    discount: float,
    td_lambda: float,
) -> Tensor:
    """Compute TD(lambda) returns, all [B, T]. The reward of a frame is received on arrival.

    Nothing follows a termination. At a truncation and at the end of the sequence, the value stands for the rest.
    """
    alive = discount * (1 - terminated[:, 1:].to(value.dtype))
    starts = is_first[:, 1:]
    bootstrap = (1 - td_lambda) * value[:, 1:]
    step = reward[:, 1:] + alive * bootstrap
    step = torch.where(starts, value[:, :-1], step)
    decay = torch.where(starts, 0.0, alive * td_lambda)
    targets = [value[:, -1]]
    for gain, fade in zip(reversed(step.unbind(1)), reversed(decay.unbind(1))):
        targets.append(torch.addcmul(gain, fade, targets[-1]))
    return torch.stack(targets[::-1], 1)


def distance_loss(
    head: GoalDistance,
    goals: Tensor,
    is_first: Tensor,
    out: Outputs,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the loss of the goal distance on predicted and observed frames.

    goals [B, T, S, D] are the embedded frames of the batch.
    """
    batch = Trajectories(out.observed, head.embed_goal(goals), is_first)
    parts = [
        goal_distance.loss(head, x, valid, batch, generator)
        for x, valid in (
            (out.predicted, out.in_head_loss),
            (out.observed, out.is_observed),
        )
    ]
    return torch.stack(parts).sum()


def frame_loss(
    model: WorldModel, out: Outputs, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return the squared error of predicted frames, and the unweighted error of each frame [B, T]."""
    if model.patches.code is None:
        predicted, true, rare = _some_pixels(model, out, generator)
    else:
        predicted = model.unembed(out.predicted)
        true = model.patches.scale(out.patches, predicted.dtype)
        rare = None
    error, plain = squared_errors(predicted, true, rare)
    loss = share_of_mean(error, out.in_frame_loss.to(error.dtype))
    return loss, model.patches.pixel_error(plain)


def _some_pixels(
    model: WorldModel, out: Outputs, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a random fraction of the pixels, predicted and true, and their weights.

    Rare colours weigh more.
    """
    config, patches = model.config, model.patches
    channels, pixels = model.frame_shape[0], patches.patch**2
    device = out.patches.device
    order = torch.randperm(pixels, generator=generator, device=device)
    some = order[: int(pixels * config.pixel_fraction)]
    first_of_channel = torch.arange(channels, device=device)[:, None] * pixels
    index = (first_of_channel + some).flatten()
    of_patches = index.expand(*out.patches.shape[:-1], -1)
    true = out.patches.gather(-1, of_patches)
    weight, bias = model.unembed.weight[index], model.unembed.bias[index]
    predicted = model.unembed.partly(out.predicted, weight, bias)
    rare = None
    if config.rare_colour_power:
        colours = true.unflatten(-1, (channels, -1))
        rare = model.colour_weights(colours).expand_as(colours).flatten(-2)
    return predicted, patches.scale(true, predicted.dtype, some), rare


def frame_metrics(error: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Return metrics of frames predicted from memory alone (`known` [B, T]), by their squared error [B, T].

    psnr in decibels; late: the error in the last quarter of the sequences.
    """
    known = known.to(error.dtype)
    last_quarter = slice(error.shape[1] * 3 // 4, None)
    mean_error = all_sum(share_of_mean(error, known))
    return {
        "psnr": -10 * torch.log10(mean_error / 4 + 1e-9) * fraction(),
        "late": share_of_mean(error[:, last_quarter], known[:, last_quarter]),
    }


def coarse_loss(model: WorldModel, out: Outputs) -> Tensor:
    """Return the squared error of predicted frames at low resolution.

    Each patch is averaged over COARSE x COARSE fields.

    The frame loss of a misplaced small object is the same at any distance, and has no gradient towards the true place.
    Averaged over fields, a near miss costs less.
    """
    channels, side = model.frame_shape[0], model.patches.patch

    def pool(pixels: Tensor) -> Tensor:  # [..., P] -> [..., C * COARSE ** 2]
        images = pixels.reshape(-1, channels, side, side)
        fields = F.adaptive_avg_pool2d(images, COARSE)
        return fields.reshape(*pixels.shape[:-1], -1)

    weight = pool(model.unembed.weight.T).T
    bias = pool(model.unembed.bias)
    true = pool(model.patches.scale(out.patches, out.predicted.dtype))
    predicted = model.unembed.partly(out.predicted, weight, bias)
    error = (predicted - true).square().flatten(2).mean(-1)
    return share_of_mean(error, out.in_frame_loss.to(error.dtype))


def surprise_loss(log_error: Tensor, error: Tensor, known: Tensor) -> Tensor:
    """Return the squared gap between expected and true log error of predicted frames, all [B, T]."""
    gap = log_error - torch.log(error + 1e-4)
    return share_of_mean(gap.square(), known.to(gap.dtype))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * torch.log_softmax(logits.float(), -1)).sum(-1)
