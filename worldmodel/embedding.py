"""Embed frames, actions and noise levels; predict frames from tokens.

Shapes: S tokens per frame, P numbers per patch, D width, A action dimensions or discrete actions.
"""

from __future__ import annotations

import math

import torch
from lssvwm.worldmodel.patches import Patches
from torch import Tensor, nn
from torch.nn import functional as F

WAVES = 8
"""Frequencies that encode a noise level, from half a period to 64."""
POSE_WAVES = 32
"""Plane waves that encode a position, with wavelengths of 2 tiles and more."""


class Embedding(nn.Module):
    """Embed tokens of frames, and the actions and noise levels that condition blocks.

    A noise level lies between 0 (nothing of the frame remains) and 1 (the clean frame).
    """

    def __init__(self, patches: Patches, width: int, actions: int, discrete: bool):
        super().__init__()
        self.actions = actions
        self.discrete = discrete
        self.patches = patches
        self.patch_embed = nn.Linear(patches.size, width)
        self.pos_embed = nn.Parameter(torch.randn(patches.tokens, width) * 0.3)
        # the last input is 1 if there was no action
        self.action_embed = nn.Linear(actions + 1, width, bias=not discrete)
        self.noise_embed = nn.Sequential(
            nn.Linear(2 * WAVES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def frames(self, patches: Tensor) -> Tensor:
        """Embed what `patchify` returns, [..., S, P]. Returns [..., S, D]."""
        weight = self.patch_embed.weight
        if self.patches.normalized:
            return self.patch_embed(self.patches.scale(patches, weight.dtype))
        # scaling to -1 ... 1 is folded into the weights; bf16 holds whole pixels exactly
        device = patches.device.type
        dtype = weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        bias = self.patch_embed.bias - weight.sum(1)
        return F.linear(patches.to(dtype), weight / 127.5, bias)

    def blank(self, *shape: int) -> Tensor:
        """Return the tokens of frames at noise level 0, without noise, [*shape, S, D]."""
        return self.patch_embed.bias.expand(*shape, len(self.pos_embed), -1)

    def action_numbers(self, action: Tensor, is_first: Tensor) -> Tensor:
        """Return actions as numbers [..., A + 1].

        Discrete actions become one-hot. The last number is 1 if there was no action.
        """
        if self.discrete:
            index = torch.where(is_first, self.actions, action)
            return F.one_hot(index, self.actions + 1).to(self.pos_embed.dtype)
        none = is_first[..., None].to(action.dtype)
        taken = action * (1 - none)
        return torch.cat((taken, none), -1)

    def condition(self, numbers: Tensor) -> Tensor:
        """Embed action numbers [..., A + 1]. Returns [..., D]."""
        return self.action_embed(numbers)

    def noise(self, level: Tensor) -> Tensor:
        """Embed noise levels [...]. Returns [..., D]."""
        octave = torch.arange(-1, WAVES - 1, device=level.device)
        frequency = math.pi * 2.0**octave
        wave = level[..., None] * frequency
        circles = torch.cat((wave.sin(), wave.cos()), -1)
        return self.noise_embed(circles)


class PoseEmbedding(nn.Module):
    """Embed poses [..., 3] as [..., D]: heading, and position by fixed plane waves."""

    def __init__(self, width: int):
        super().__init__()
        self.waves: Tensor
        length = math.pi * torch.rand(POSE_WAVES).sqrt()
        direction = 2 * math.pi * torch.rand(POSE_WAVES)
        ahead = length * direction.cos()
        right = length * direction.sin()
        self.register_buffer("waves", torch.stack((ahead, right)))
        self.out = nn.Linear(2 + 2 * POSE_WAVES, width)

    def forward(self, pose: Tensor) -> Tensor:
        """Return the embedding of poses."""
        heading, position = pose.split([1, 2], -1)
        phases = torch.cat((heading, position @ self.waves), -1)
        circles = torch.cat((phases.sin(), phases.cos()), -1)
        return self.out(circles)


class PatchPredictor(nn.Linear):
    """Predict scaled patches [..., S, P] of clean frames from tokens [..., S, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """Predict all pixels."""
        return super().forward(F.layer_norm(x, x.shape[-1:]))

    def partly(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Predict with some rows, or averages of rows, of the weights [m, D] and biases [m]."""
        return F.linear(F.layer_norm(x, x.shape[-1:]), weight, bias)

    def embedded(self, x: Tensor, patch_embed: nn.Linear) -> Tensor:
        """Embed the predicted frames again without computing their pixels. Returns [..., S, D]."""
        weight = patch_embed.weight @ self.weight
        return self.partly(x, weight, patch_embed(self.bias))
