"""Hold what goes into the model and what comes out: training sequences and imagined futures.

Shapes: B sequences or memories, T frames, n candidates, H steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """Hold training sequences.

    The action of a frame is the one that led to it. The reward of a frame is received on arrival.
    """

    pixels: Tensor
    """uint8 [B, T, C, H, W]"""

    action: Tensor
    """int64 [B, T], or float32 [B, T, A] for continuous actions"""

    reward: Tensor
    """float32 [B, T]"""

    terminated: Tensor
    """bool [B, T]"""

    truncated: Tensor
    """bool [B, T]"""

    is_first: Tensor
    """bool [B, T]: the frame begins an episode"""

    pose: Tensor | None = None
    """float32 [B, T, 3]: heading and position of the agent; None: not known"""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(**{name: value.to(device) for name, value in _present(self)})

    def __getitem__(self, frames: slice) -> Batch:
        """Return some frames of every sequence."""
        return Batch(**{name: value[:, frames] for name, value in _present(self)})


@dataclass(frozen=True)
class Masks:
    """Say what is done to frames of training sequences. Every mask is bool [B, T]; None: nothing."""

    hidden: Tensor | None = None
    """Frames that are predicted, but not written to memory"""

    dark: Tensor | None = None
    """Frames that are predicted as they are, and written as black frames"""

    state_reset: Tensor | None = None
    """Frames before which memory is erased"""

    def to(self, device: torch.device | str) -> Masks:
        """Return the masks on a device."""
        return Masks(**{name: mask.to(device) for name, mask in _present(self)})

    def __getitem__(self, frames: slice) -> Masks:
        """Return some frames of every sequence."""
        return Masks(**{name: mask[:, frames] for name, mask in _present(self)})


def _present(fields: Batch | Masks) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in vars(fields).items() if value is not None]


@dataclass
class Trajectory:
    """Hold what the model needs of a sequence besides its frames."""

    action: Tensor
    """Action that led to each frame: int64 [B, T], or float [B, T, A]"""

    is_first: Tensor
    """bool [B, T]: the frame begins an episode; memory is erased before it"""

    writes: Tensor
    """bool [B, T]: memory keeps the frame"""

    state_reset: Tensor | None = None
    """bool [B, T]: memory is erased before the frame although no episode begins"""

    pose: Tensor | None = None
    """[B, T, 3]: given pose of each frame; None: not given"""

    action_limits: Tensor | None = None
    """[B, T, 2 A]: limits of the next action; None: predicted from the written copies"""

    @property
    def reset(self) -> Tensor:
        """Mask of the frames before which memory is erased, [B, T]."""
        if self.state_reset is None:
            return self.is_first
        return self.is_first | self.state_reset


@dataclass
class Rollout:
    """Hold imagined futures; entry h belongs to the frame after action h."""

    actions: Tensor
    """[B, n, H], or [B, n, H, A] for continuous actions"""

    reward: Tensor
    """Expected reward [B, n, H]"""

    cont: Tensor
    """Probability that the episode continues, [B, n, H]"""

    value: Tensor
    """Expected discounted return after the frame, [B, n, H]"""

    policy: Tensor
    """Logits or mean of the policy head, [B, n, H, A]"""

    frames: Tensor | None
    """uint8 [B, n, H, C, H', W'], if they were decoded"""

    distance: Tensor | None = None
    """Steps to the goal image [B, n, H], if one was given"""

    surprise: Tensor | None = None
    """Expected squared error of the frames [B, n, H], if the model has this head"""
