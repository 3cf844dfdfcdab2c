"""Take gradient steps: learning rate, segments, precision, averaged weights.

Shapes: B sequences, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from lssvwm.agent.config.settings import TrainConfig
from lssvwm.agent.mpc import Agent
from lssvwm.agent.training.actor_critic import Walks, walk_loss
from lssvwm.agent.training.distributed import add_up
from lssvwm.worldmodel import Batch, Masks, Memory, WorldModel
from lssvwm.worldmodel.batch_part import Part, divided
from torch import Tensor

BETAS = 0.9, 0.98
"""Decays of AdamW's moments."""
WEIGHT_DECAY = 0.01
WARMUP = 30
"""Steps over which the learning rate rises, at most a tenth of all."""
GRADIENT_CLIP = 1.0
"""Largest norm of the gradient."""
PATH_INTEGRATOR_RATE = 0.05
"""Learning rate of path integration, relative to other weights: every memory depends on it."""
NO_MASKS = Masks()
"""Nothing is done to single frames."""


@dataclass(frozen=True)
class TrainingBatch:
    """Hold sequences and what is done to them in one step.

    burn_in: frames at the start that are observed without a gradient
    masks: what is done to single frames
    self_forcing: remember some frames as the model predicts them
    walk_from: frames observed before the imagined walks start; None: there are no walks
    part: the rows that this process has; None: all
    """

    sequences: Batch
    burn_in: int = 0
    masks: Masks = NO_MASKS
    self_forcing: bool = True
    walk_from: int | None = None
    part: Part | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch on a device."""
        sequences, masks = self.sequences.to(device), self.masks.to(device)
        return replace(self, sequences=sequences, masks=masks)

    def segments(self, length: int) -> list[slice]:
        """Split the frames after the burn-in into segments of `length`; 0: one segment."""
        frames = self.sequences.is_first.shape[1]
        size = length or frames
        starts = range(self.burn_in, frames, size)
        return [slice(start, min(start + size, frames)) for start in starts]


@dataclass
class Learner:
    """Train a model: hold it, its averaged weights and its optimizer.

    ema: copy of the model with exponentially averaged weights
    generator: randomness of the losses
    walker: the agent whose policy head walks in imagination; None: no walks
    """

    model: WorldModel
    ema: WorldModel
    config: TrainConfig
    generator: torch.Generator
    walker: Agent | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), betas=BETAS)

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.generator.device

    def step(self, batch: TrainingBatch, at: int) -> dict[str, Tensor]:
        """Take gradient step number `at`, from 0; returns its metrics.

        Raises FloatingPointError if the gradient is not finite; no weight has changed then.
        """
        rate = learning_rate(self.config, at)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        with divided(batch.part):
            metrics = self.gradient(batch)
        parameters = list(self.model.parameters())
        add_up([p.grad for p in parameters if p.grad is not None])
        add_up(list(metrics.values()))
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {at}")
        self.optimizer.step()
        young_decay = (1 + at) / (10 + at)  # early weights are soon forgotten
        update_ema(self.ema, self.model, min(self.config.ema, young_decay))
        metrics["gradient_norm"] = norm.detach()
        metrics["learning_rate"] = torch.tensor(rate)
        return metrics

    def gradient(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Add up the gradient segment by segment, memory carried on; returns mean metrics.

        `model.loss` detaches the memory, so that no gradient crosses a segment.
        """
        memory = self._burn_in(batch) if batch.burn_in else None
        segments = batch.segments(self.config.tbptt_length)
        found = []
        for segment in segments:
            with self._autocast():
                loss, metrics, memory = self.model.loss(
                    batch.sequences[segment],
                    memory,
                    masks=batch.masks[segment],
                    self_forcing=batch.self_forcing,
                    generator=self.generator,
                )
            (loss / len(segments)).backward()
            found.append(metrics)
        mean = {
            key: torch.stack([part[key] for part in found]).mean() for key in found[0]
        }
        return mean | self._walk_gradient(batch)

    @torch.no_grad()
    def _burn_in(self, batch: TrainingBatch) -> Memory:
        """Return the memory of the frames before the gradient starts."""
        old = batch.sequences[: batch.burn_in]
        pixels = old.pixels
        dark = batch.masks.dark
        if dark is not None:
            black = dark[:, : batch.burn_in, None, None, None]
            pixels = pixels.masked_fill(black, 0)
        memory = self.model.initial(len(pixels))
        memory, _ = self.model.observe(
            memory, pixels, old.action, old.is_first, pose=old.pose
        )
        return memory

    def _walk_gradient(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Add the gradient of imagined walks, if there are any; returns their metrics."""
        if self.walker is None or batch.walk_from is None:
            return {}
        settings = self.config.actor_critic
        observed = batch.sequences[: batch.walk_from]
        with self._autocast():
            loss, metrics = walk_loss(self.walker, observed, Walks(settings.walks))
        (settings.weight * loss).backward()
        return metrics

    def _autocast(self) -> torch.autocast:
        enabled = in_bf16(self.config.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def parameter_groups(model: WorldModel) -> list[dict[str, Any]]:
    """Return the optimizer's groups: weights that decay, biases and scales, path integration.

    Saved optimizer states refer to parameters by their index in these groups.
    """
    geometry = {
        parameter
        for integrator in model.path_integrators
        for parameter in integrator.geometry()
    }
    weights, rest, integrators = [], [], []
    for parameter in model.parameters():
        if parameter in geometry:
            integrators.append(parameter)
        elif parameter.dim() > 1:
            weights.append(parameter)
        else:
            rest.append(parameter)
    return [
        {"params": weights, "scale": 1.0, "weight_decay": WEIGHT_DECAY},
        {"params": rest, "scale": 1.0, "weight_decay": 0.0},
        {"params": integrators, "scale": PATH_INTEGRATOR_RATE, "weight_decay": 0.0},
    ]


def in_bf16(precision: str, device: torch.device) -> bool:
    """Return whether matrix products run in bf16: by setting, or where the hardware is fast."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def learning_rate(config: TrainConfig, at: int) -> float:
    """Return the learning rate of step `at`.

    It rises linearly, then falls along a cosine to its final fraction.
    """
    progress = min(1.0, at / max(1, config.steps))
    rising = min(WARMUP, config.steps // 10)
    warmup = min(1.0, (at + 1) / max(1, rising))
    final = config.final_learning_rate
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warmup * cosine


@torch.no_grad()
def update_ema(ema: WorldModel, model: WorldModel, decay: float) -> None:
    """Move averaged weights towards the model's by 1 - `decay`; buffers are copied."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(ema.parameters()), list(model.parameters()), 1 - decay
    )
    for averaged, latest in zip(ema.buffers(), model.buffers()):
        averaged.copy_(latest)
