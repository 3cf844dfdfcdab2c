"""What is drawn in training: noisy copies of frames, and runs of frames that are remembered as foreseen.

Noise is drawn as tokens, as `embed` (patches [..., P] -> tokens [..., D]) would make them of noisy patches: fewer
numbers than the pixels. Shapes: B sequences, T frames, S tokens a frame, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DENOISING_FRACTION = 0.125
"""Fraction of frames trained at a random noise level; the others are predicted from memory alone."""
CLEAN_PREFIX_PROB = 0.5
"""Fraction of sequences that start with a clean prefix (`model.forcing=diffusion_prefix`)."""


def noise(embed: nn.Linear, like: Tensor, generator) -> Tensor:
    """What `embed` makes of white noise, less its bias, in the shape of `like` [..., D]."""
    root = torch.linalg.qr(embed.weight.T).R  # root^T root: its covariance
    shape = (*like.shape[:-1], len(root))
    return (
        torch.randn(shape, generator=generator, device=root.device, dtype=root.dtype)
        @ root
    )


def noised(embed: nn.Linear, clean: Tensor, level: Tensor, generator) -> Tensor:
    """`embed` of level * frame + (1 - level) * noise, for embedded frames [B, T, S, D] and level [B, T]."""
    level = level[..., None, None]
    return level * clean + (1 - level) * (noise(embed, clean, generator) + embed.bias)


def equally(
    embed: nn.Linear, clean: Tensor, share: float, generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Diffusion forcing (arXiv 2407.01392): every frame [B, T, S, D] has a noise level of its own, at which it is
    denoised and remembered: copies [B, T, 2, S, D], their levels [B, T, 2], and which frames count [B, T]. In a share
    of the sequences a prefix is remembered clean, and not counted (arXiv 2505.20171)."""
    b, t = clean.shape[:2]
    make = {"generator": generator, "device": clean.device, "dtype": embed.weight.dtype}
    level, draw = torch.rand(b, t, **make), torch.rand(2, b, 1, **make)
    length = torch.where(draw[0] < share, (t + draw[1] * t) / 2, 0.0)
    prefix = torch.arange(t, device=clean.device) < length
    noisy = noised(embed, clean, level, generator)
    remembered = torch.where(prefix[..., None, None], clean, noisy)
    levels = torch.stack((level, level.masked_fill(prefix, 1.0)), 2)
    return torch.stack((noisy, remembered), 2), levels, ~prefix


def spans(is_first: Tensor, share: float, longest: int, generator) -> Tensor:
    """Runs of up to `longest` frames, a share of all [B, T], that are remembered as foreseen; never first frames."""
    draw = torch.rand(2, *is_first.shape, generator=generator, device=is_first.device)
    at = torch.arange(is_first.shape[1], device=is_first.device)
    begins = draw[0] < 2 * share / (longest + 1)
    until = torch.where(begins, at + 1 + (draw[1] * longest).long(), 0).cummax(1).values
    return (at < until) & ~is_first
