"""Augment training data: vary the length of sequences, mask frames, erase the memory.

Shapes: B sequences, T frames, K lengths.
"""

from __future__ import annotations

import numpy as np
import torch
from lssvwm.agent.config.settings import FrameMaskConfig, TrainConfig
from lssvwm.worldmodel.batch_part import own, whole
from torch import Tensor

BUCKETS = 5
"""Lengths to choose from."""
ERROR_DECAY = 0.8
"""Fraction of the old error that remains when a new one is averaged in."""
SHARPNESS = 10.0
"""Exponent of the relative error in the adversary's weights: 10 % less error, 2.7 times fewer draws."""
UNIFORM = 0.25
"""Fraction of lengths that the adversary draws uniformly."""


class Lengths:
    """Choose the length of the sequences of each batch.

    Batches of every length have about as many frames.

    `random` draws one of five lengths uniformly.
    `adversarial` is a bandit: it prefers lengths with a large recent error in the last quarter of their frames.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        self.varies = config.length_augmentation != "none"
        self.adversarial = config.length_augmentation == "adversarial"
        longest = config.length
        shortest = min(config.min_length, longest) if self.varies else longest
        evenly = np.linspace(shortest, longest, BUCKETS).round().astype(int)
        self.choices: list[int] = np.unique(evenly).tolist()
        self.error: list[float | None] = [None] * len(self.choices)
        """Averaged error of each length; None for a length not drawn yet."""

    def odds(self) -> np.ndarray:
        """Return the probability of every length, float64 [K]."""
        uniform = np.full(len(self.choices), 1 / len(self.choices))
        known = [error for error in self.error if error is not None]
        if not self.adversarial or not known:
            return uniform
        largest = max(known)
        error = np.array([largest if error is None else error for error in self.error])
        relative = error / max(error.max(), 1e-12)
        weight = np.exp(SHARPNESS * (relative - 1))
        return UNIFORM * uniform + (1 - UNIFORM) * weight / weight.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw frames per sequence; returns them and the sequences of the batch."""
        if len(self.choices) == 1:
            return self.choices[0], self.config.batch
        length = int(rng.choice(self.choices, p=self.odds()))
        sequences = round(self.config.batch * self.config.length / length)
        return length, max(1, sequences)

    def learn(self, length: int, error: Tensor) -> None:
        """Average in the error [] of the last frames of a batch of this length."""
        if not self.adversarial:
            return
        at = self.choices.index(length)
        new = float(error)
        old = self.error[at]
        self.error[at] = (
            new if old is None else ERROR_DECAY * old + (1 - ERROR_DECAY) * new
        )

    def metrics(self) -> dict[str, Tensor]:
        """Return the adversary's probabilities for the log."""
        if not self.adversarial:
            return {}
        odds = zip(self.choices, self.odds())
        return {f"odds/{length}": torch.tensor(p) for length, p in odds}


def draw_hidden(
    config: FrameMaskConfig, is_first: Tensor, rng: np.random.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Draw frames that are not written into memory, and frames that are black there.

    Both are bool [B, T], or None if there are none. First frames are never among them.
    """
    if not config.prob:
        return None, None
    shape = whole(len(is_first)), is_first.shape[1]
    index = np.arange(shape[1])
    span = rng.integers(1, config.span + 1, shape)
    mean_span = (config.span + 1) / 2
    begins = rng.random(shape) < config.prob / mean_span
    end = np.maximum.accumulate(np.where(begins, index + span, 0), 1)
    inside = own(torch.from_numpy(index < end)).to(is_first.device) & ~is_first
    if not config.dark:
        return inside, None
    rows = torch.from_numpy(rng.random((shape[0], 1)) < config.dark)
    is_dark = own(rows).to(is_first.device)
    return inside & ~is_dark, inside & is_dark


def draw_resets(
    prob: float, is_first: Tensor, rng: np.random.Generator
) -> Tensor | None:
    """Draw frames before which the memory is erased, bool [B, T]; None if there are none.

    So the model learns to act without a memory.
    """
    if not prob:
        return None
    shape = whole(len(is_first)), is_first.shape[1]
    resets = rng.random(shape) < prob
    return own(torch.from_numpy(resets)).to(is_first.device)
