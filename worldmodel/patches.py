"""Frames to tokens and back: a linear patch embedding, no autoencoder stage; the model predicts patches directly."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class Patches(nn.Module):
    """Frames [..., C, H, W] <-> patches [..., S, C * patch * patch].

    The frame is padded on all sides to a multiple of `patch`; `decode` cuts the padding off. The model works on
    `scaled` patches: from -1 to 1, or, if `normalize`, less the mean frame and over the spread that `fit` found, so
    that small things before a background which never changes are not drowned by it.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self, frame_shape: tuple[int, int, int], patch: int, normalize: bool = False
    ):
        super().__init__()
        c, h, w = frame_shape
        self.frame_shape, self.patch = frame_shape, patch
        self.grid = (-(-h // patch), -(-w // patch))
        self.size = c * patch * patch
        right, below = self.grid[1] * patch - w, self.grid[0] * patch - h
        self.pad = (right // 2, right - right // 2, below // 2, below - below // 2)
        self.normalize = normalize
        if normalize:
            self.register_buffer("centre", torch.zeros(self.tokens, self.size))
            self.register_buffer("spread", torch.ones(()))

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def cut(self, x: Tensor) -> Tensor:
        """[..., C, H, W] of any type -> [..., S, C * patch * patch]"""
        x = F.pad(x, self.pad)
        p = self.patch
        lead = x.shape[:-3]
        x = rearrange(
            x.reshape(-1, *x.shape[-3:]), "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p
        )
        return x.reshape(*lead, *x.shape[1:])

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Take mean and spread from uint8 frames [..., C, H, W], if `normalize`."""
        if self.normalize:
            patches = (self.cut(frames).float() / 127.5 - 1).flatten(0, -3)
            self.centre.copy_(patches.mean(0))
            self.spread.copy_(
                (patches - self.centre).square().mean().sqrt().clamp(min=1e-3)
            )

    def scaled(
        self, patches: Tensor, dtype: torch.dtype, some: Tensor | None = None
    ) -> Tensor:
        """uint8 patches [..., S, C * patch * patch], or `some` of their pixels, [..., S, C * m], as the model sees
        them."""
        x = patches.to(dtype).div_(127.5).sub_(1.0)
        if not self.normalize:
            return x
        centre = self.centre
        if some is not None:
            centre = centre.unflatten(-1, (self.frame_shape[0], -1))[..., some].flatten(
                -2
            )
        return x.sub_(centre).div_(self.spread)

    def squared(self, error: Tensor) -> Tensor:
        """Squared errors of scaled patches, in units of pixels from -1 to 1."""
        return error * self.spread.square() if self.normalize else error

    def decode(self, patches: Tensor) -> Tensor:
        """Scaled patches [..., S, C * patch * patch] -> uint8 frames [..., C, H, W]"""
        patches = patches * self.spread + self.centre if self.normalize else patches
        c, h, w = self.frame_shape
        p = self.patch
        lead = patches.shape[:-2]
        x = patches.reshape(-1, *patches.shape[-2:])
        x = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=self.grid[0], p=p, q=p)
        left, _, above, _ = self.pad
        x = x[..., above : above + h, left : left + w]
        return (
            ((x.clamp(-1, 1) + 1) * 127.5)
            .round()
            .to(torch.uint8)
            .reshape(*lead, c, h, w)
        )


class Rarity(nn.Module):
    """Weights of pixels in the frame loss: rare colours count more, so that small coloured things are learnt.

    A running histogram of colours (3 bits a channel); a pixel's weight is frequency ** -power, with mean 1 over the
    batch. The map of a maze is mostly wall and floor; what a plan needs is a few pixels of it.
    """

    counts: Tensor

    def __init__(self, power: float):
        super().__init__()
        self.power = power
        self.register_buffer("counts", torch.full((512,), 1e-4))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [..., C, m] -> weights [..., 1, m]"""
        code = (pixels[..., 0, :] >> 5).int()
        if pixels.shape[-2] >= 3:
            code = (code << 6) | (
                pixels[..., 1, :] >> 5 << 3 | pixels[..., 2, :] >> 5
            ).int()
        if self.training:
            seen = torch.bincount(code.flatten()[::7], minlength=512).float()
            self.counts.lerp_(seen / seen.sum() + 1e-5, 0.05)
        table = (self.counts / self.counts.sum()) ** -self.power
        weight = table.index_select(0, code.flatten()).view(code.shape)
        return (weight / weight.mean()).unsqueeze(-2)
