"""Data augmentation of training sequences: how long they are, which frames are hidden, where memory is erased."""

from __future__ import annotations

import numpy as np
import torch
from lssvwm.agent.config.settings import TrainConfig
from torch import Tensor

BUCKETS = 5
KEEP, SHARPNESS, EVEN = 0.8, 10.0, 0.25
"""Adversarial lengths: share of the old error kept, how much worse counts, share of evenly drawn lengths."""


class Lengths:
    """Length augmentation: how many frames a batch's sequences have, at a constant number of frames per batch.

    `random` draws one of five lengths evenly. `adversarial` is a bandit over them: the worse the frames in the last
    quarter of its sequences were foreseen lately, the more often a length is drawn (one whose error is 10 % lower,
    2.7 times less often), a quarter of the draws staying even.
    """

    def __init__(self, config: TrainConfig):
        self.config = config
        shortest = (
            config.length
            if config.length_augmentation == "none"
            else min(config.min_length, config.length)
        )
        self.choices = np.unique(
            np.linspace(shortest, config.length, BUCKETS).round().astype(int)
        ).tolist()
        self.error: list[float | None] = [None] * len(
            self.choices
        )  # of late frames, by length; None: not drawn yet

    def odds(self) -> np.ndarray:
        """Odds of every length, [K]"""
        even = np.full(len(self.choices), 1 / len(self.choices))
        known = [error for error in self.error if error is not None]
        if self.config.length_augmentation != "adversarial" or not known:
            return even
        error = np.array(
            [max(known) if error is None else error for error in self.error]
        )
        weight = np.exp(SHARPNESS * (error / max(error.max(), 1e-12) - 1))
        return EVEN * even + (1 - EVEN) * weight / weight.sum()

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Frames per sequence, and how many sequences keep the batch's number of frames."""
        if len(self.choices) == 1:
            return self.choices[0], self.config.batch
        length = int(rng.choice(self.choices, p=self.odds()))
        return length, max(1, round(self.config.batch * self.config.length / length))

    def learn(self, length: int, late: Tensor) -> None:
        """Take in the error [] of the late frames of a batch of this length."""
        if self.config.length_augmentation != "adversarial":
            return
        at, new = self.choices.index(length), float(late)
        old = self.error[at]
        self.error[at] = new if old is None else KEEP * old + (1 - KEEP) * new

    def metrics(self) -> dict[str, Tensor]:
        """The odds, for the log."""
        if self.config.length_augmentation != "adversarial":
            return {}
        return {
            f"odds/{length}": torch.tensor(p)
            for length, p in zip(self.choices, self.odds())
        }


def draw_hidden(
    config: TrainConfig, is_first: Tensor, rng: np.random.Generator
) -> Tensor | None:
    """Temporal masking: which frames [B, T] leave no trace; a first frame is never hidden."""
    share = config.frame_mask.prob
    if not share:
        return None
    b, t = is_first.shape
    span = rng.integers(1, config.frame_mask.span + 1, (b, t))
    begins = rng.random((b, t)) < share / ((config.frame_mask.span + 1) / 2)
    last = np.maximum.accumulate(np.where(begins, np.arange(t) + span, 0), 1)
    return torch.from_numpy(np.arange(t) < last).to(is_first.device) & ~is_first


def draw_forget(
    config: TrainConfig, is_first: Tensor, rng: np.random.Generator
) -> Tensor | None:
    """Before which frames [B, T] memory is erased, so that the model knows what it is to have none."""
    if not config.state_reset_prob:
        return None
    return torch.from_numpy(
        rng.random(tuple(is_first.shape)) < config.state_reset_prob
    ).to(is_first.device)
