"""Turn frames into patches and back, and weigh pixels by how rare their colour is.

There is no trained autoencoder: the model predicts patches directly, or their linear code.

Shapes: S patches per frame, P = C * patch * patch numbers per patch, m pixels of a patch, K numbers of a scaled patch:
P, or those of its code.
"""

from __future__ import annotations

import torch
from einops import rearrange
from lssvwm.worldmodel.batch_part import all_sum, fraction, own_rows
from lssvwm.worldmodel.cell_code import CellCode
from torch import Tensor, nn
from torch.nn import functional as F

MIN_STD = 1e-3
"""Smallest standard deviation that normalised frames are divided by."""
COLOURS = 512
"""Bins of the colour histogram: 3 bits per channel."""
HISTOGRAM_STRIDE = 7
"""Every so many pixels are counted."""
HISTOGRAM_RATE = 0.05
"""Weight of the present batch in the running histogram."""


class Patches(nn.Module):
    """Convert frames [..., C, H, W] to patches [..., S, P] and back.

    Frames are padded on all sides to a multiple of `patch`; `unpatchify` removes the padding. The model works on scaled
    patches: from -1 to 1 or, if `normalized`, minus the mean frame and divided by the standard deviation that `fit`
    found. Then a static background does not dominate small objects. If `patch` also gives the side of cells, deviations
    from the mean frame are coded by cells.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        patch: int | tuple[int, int],
        normalized: bool = False,
    ):
        super().__init__()
        channels, height, width = frame_shape
        self.frame_shape = frame_shape
        patch, cell = (patch, 0) if isinstance(patch, int) else patch
        self.patch = patch
        self.grid = (-(-height // patch), -(-width // patch))
        self.pixels = channels * patch * patch
        down = self.grid[0] * patch - height
        right = self.grid[1] * patch - width
        left, top = right // 2, down // 2
        self.pad = (left, right - left, top, down - top)
        self.code = CellCode(channels, patch, cell) if cell else None
        self.normalized = normalized or self.code is not None
        if self.normalized:
            self.register_buffer("mean", torch.zeros(self.tokens, self.pixels))
            self.register_buffer("std", torch.ones(()))

    @property
    def tokens(self) -> int:
        """Patches per frame."""
        return self.grid[0] * self.grid[1]

    @property
    def size(self) -> int:
        """Numbers of a scaled patch."""
        return self.pixels if self.code is None else self.code.size

    def patchify(self, frames: Tensor) -> Tensor:
        """Cut frames [..., C, H, W] of any type into patches [..., S, P].

        With a code, return scaled codes [..., S, K].
        """
        x = self._cut(frames)
        if self.code is None:
            return x
        middle = self.code.encode(self.mean + 1)
        return self.code.encode(x).div_(127.5).sub_(middle).div_(self.std)

    def _cut(self, frames: Tensor) -> Tensor:
        lead = frames.shape[:-3]
        x = F.pad(frames, self.pad)
        x = rearrange(
            x.reshape(-1, *x.shape[-3:]),
            "b c (h p) (w q) -> b (h w) (c p q)",
            p=self.patch,
            q=self.patch,
        )
        return x.reshape(*lead, *x.shape[1:])

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Join scaled patches [..., S, K] to frames uint8 [..., C, H, W]."""
        if self.normalized:
            patches = patches * self.std
            if self.code is not None:
                patches = self.code.decode(patches)
            patches = patches + self.mean
        channels, height, width = self.frame_shape
        x = rearrange(
            patches.reshape(-1, *patches.shape[-2:]),
            "b (h w) (c p q) -> b c (h p) (w q)",
            h=self.grid[0],
            p=self.patch,
            q=self.patch,
        )
        left, _, top, _ = self.pad
        x = x[..., top : top + height, left : left + width]
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.reshape(*patches.shape[:-2], channels, height, width)

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Set mean, code and standard deviation from frames uint8 [..., C, H, W], if `normalized`."""
        if not self.normalized:
            return
        patches = (self._cut(frames).float() / 127.5 - 1).flatten(0, -3)
        self.mean.copy_(patches.mean(0))
        deviation = patches - self.mean
        if self.code is not None:
            self.code.fit(deviation.flatten(0, 1))
            deviation = self.code.encode(deviation)
        self.std.copy_(deviation.square().mean().sqrt().clamp(min=MIN_STD))

    def scale(
        self, patches: Tensor, dtype: torch.dtype, pixels: Tensor | None = None
    ) -> Tensor:
        """Scale what `patchify` returns to what the model works on.

        patches [..., S, P], or [..., S, C * m] with only the pixels int64 [m] of each patch. Codes are scaled already.
        """
        if self.code is not None:
            return patches.to(dtype)
        x = patches.to(dtype).div_(127.5).sub_(1.0)
        if not self.normalized:
            return x
        mean = self.mean
        if pixels is not None:
            by_channel = mean.unflatten(-1, (self.frame_shape[0], -1))
            mean = by_channel[..., pixels].flatten(-2)
        return x.sub_(mean).div_(self.std)

    def pixel_error(self, squared_error: Tensor) -> Tensor:
        """Convert mean squared errors of scaled patches to units of pixels from -1 to 1.

        What a code loses is not part of them.
        """
        if self.normalized:
            return squared_error * self.std.square() * (self.size / self.pixels)
        return squared_error


class ColourWeights(nn.Module):
    """Weigh pixels in the frame loss by colour frequency ** -power.

    A plan needs small coloured objects; most pixels are wall and floor. The frequencies come from a running histogram.
    The weights have mean 1 over the batch.
    """

    counts: Tensor

    def __init__(self, power: float):
        super().__init__()
        self.power = power
        self.register_buffer("counts", torch.full((COLOURS,), 1e-4))

    def forward(self, pixels: Tensor) -> Tensor:
        """Weigh uint8 pixels [..., C, m]. Returns [..., 1, m]."""
        colour = (pixels[..., 0, :] >> 5).int()
        if pixels.shape[-2] >= 3:
            green = pixels[..., 1, :] >> 5 << 3
            blue = pixels[..., 2, :] >> 5
            colour = (colour << 6) | (green | blue).int()
        if self.training:
            self._count(colour)
        frequency = self.counts / self.counts.sum()
        table = frequency**-self.power
        weight = table.index_select(0, colour.flatten()).view(colour.shape)
        mean = all_sum(weight.mean() * fraction())
        return (weight / mean).unsqueeze(-2)

    def _count(self, colour: Tensor) -> None:
        counted_before = (own_rows().start or 0) * colour[0].numel()
        skipped = -counted_before % HISTOGRAM_STRIDE
        sample = colour.flatten()[skipped::HISTOGRAM_STRIDE]
        counts = all_sum(torch.bincount(sample, minlength=COLOURS)).float()
        self.counts.lerp_(counts / counts.sum() + 1e-5, HISTOGRAM_RATE)
