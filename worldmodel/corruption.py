"""Prepare training frames: noisy copies, and copies replaced by predictions.

Every frame of a training sequence has two copies. The first, noisy one is denoised, with what memory holds. The second
one is written to memory.

Noise is drawn as tokens, as `patch_embed` (patches [..., P] -> tokens [..., D]) would embed noisy patches. These are
fewer numbers than the pixels. Shapes: B sequences, T frames, S tokens per frame, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lssvwm.worldmodel.batch_part import own, whole
from lssvwm.worldmodel.config import ModelConfig
from torch import Tensor, nn

DENOISING_FRACTION = 0.125
"""Fraction of frames trained at a random noise level; the others are predicted from memory alone."""
CLEAN_PREFIX_PROB = 0.5
"""Fraction of sequences that start with a clean prefix (`model.forcing=diffusion_prefix`)."""
CONTEXT_NOISE_ROWS = 8
"""One of so many sequences is disturbed by `model.context_noise`."""
PREDICTED_LEVEL = 0.5
"""Noise level of written predictions. It distinguishes them from observed frames (level 1)."""

Generator = torch.Generator | None


@dataclass(frozen=True)
class Copies:
    """Hold two copies of every frame, and which of them are trained on."""

    noisy: Tensor
    """Tokens of the copy to denoise, [B, T, S, D]"""

    noisy_level: Tensor
    """Its noise level [B, T]"""

    written: Tensor
    """Tokens of the copy to write to memory, [B, T, S, D]"""

    written_level: Tensor
    """Its noise level [B, T]"""

    in_frame_loss: Tensor
    """bool [B, T]: the prediction of the frame is trained"""

    in_head_loss: Tensor
    """bool [B, T]: the heads are trained on the noisy copy"""

    @property
    def tokens(self) -> Tensor:
        """Both copies, [B, T, 2, S, D]."""
        return torch.stack((self.noisy, self.written), 2)

    @property
    def levels(self) -> Tensor:
        """Noise levels of both copies, [B, T, 2]."""
        return torch.stack((self.noisy_level, self.written_level), 2)


def white_noise(
    patch_embed: nn.Linear, shape: tuple[int, ...], generator: Generator
) -> Tensor:
    """Draw embedded white noise, without the bias, for a `shape` (N, ...); returns own rows [B, ..., D]."""
    # root^T root is the covariance of embedded noise
    root = torch.linalg.qr(patch_embed.weight.T).R
    noise = torch.randn(
        *shape, len(root), generator=generator, device=root.device, dtype=root.dtype
    )
    return own(noise) @ root


def add_noise(
    patch_embed: nn.Linear, clean: Tensor, level: Tensor, generator: Generator
) -> Tensor:
    """Embed level * frame + (1 - level) * noise, for embedded frames [B, T, S, D] and level [B, T]."""
    level = level[..., None, None]
    shape = whole(len(clean)), *clean.shape[1:-1]
    noise = white_noise(patch_embed, shape, generator) + patch_embed.bias
    return level * clean + (1 - level) * noise


def teacher_forcing(
    patch_embed: nn.Linear, clean: Tensor, generator: Generator
) -> Copies:
    """Denoise blank frames, and a few noisy ones; write clean frames [B, T, S, D] to memory.

    A blank frame (level 0) must be predicted from memory alone, as in one-step imagination.
    """
    shape = whole(len(clean)), clean.shape[1]
    draw = _uniform(patch_embed, generator)
    is_noisy = own(draw(*shape)) < DENOISING_FRACTION
    level = own(draw(*shape)) * is_noisy
    noisy = add_noise(patch_embed, clean, level, generator)
    noisy = torch.where(is_noisy[..., None, None], noisy, patch_embed.bias)
    return Copies(
        noisy,
        level,
        clean,
        torch.ones_like(level),
        in_frame_loss=torch.ones_like(is_noisy),
        in_head_loss=level == 0,
    )


def diffusion_forcing(
    patch_embed: nn.Linear, clean: Tensor, prefix_prob: float, generator: Generator
) -> Copies:
    """Denoise and write frames [B, T, S, D] at the same random level (arXiv 2407.01392).

    A fraction `prefix_prob` of the sequences begins with a prefix, at least half as long, that is written clean and not
    trained on (arXiv 2505.20171).
    """
    batch, frames = whole(len(clean)), clean.shape[1]
    draw = _uniform(patch_embed, generator)
    level = own(draw(batch, frames))
    has_prefix, fraction = own(draw(2, batch, 1), 1)
    length = (frames + fraction * frames) / 2
    length = torch.where(has_prefix < prefix_prob, length, 0.0)
    in_prefix = torch.arange(frames, device=clean.device) < length
    noisy = add_noise(patch_embed, clean, level, generator)
    return Copies(
        noisy,
        level,
        torch.where(in_prefix[..., None, None], clean, noisy),
        level.masked_fill(in_prefix, 1.0),
        in_frame_loss=~in_prefix,
        in_head_loss=~in_prefix,
    )


def add_context_noise(
    patch_embed: nn.Linear, written: Tensor, largest: float, generator: Generator
) -> Tensor:
    """Disturb some sequences [B, T, S, D]: the model learns to tolerate imperfect frames."""
    rows = max(1, whole(len(written)) // CONTEXT_NOISE_ROWS)
    amount = largest * own(_uniform(patch_embed, generator)(rows, 1, 1, 1))
    some, rest = written[: len(amount)], written[len(amount) :]
    shape = rows, *written.shape[1:-1]
    some = some + amount * white_noise(patch_embed, shape, generator)
    return torch.cat((some, rest))


def make_copies(
    patch_embed: nn.Linear,
    clean: Tensor,
    config: ModelConfig,
    training: bool,
    generator: Generator,
) -> tuple[Copies, Tensor]:
    """Draw the copies of frames [B, T, S, D] as `config.forcing` says.

    Returns the copies and the frames themselves, with context noise while training.
    """
    # drawn for diffusion, too: without it, a seed would give other noise than in earlier versions
    copies = teacher_forcing(patch_embed, clean, generator)
    if config.context_noise and training:
        clean = add_context_noise(patch_embed, clean, config.context_noise, generator)
        copies = replace(copies, written=clean)
    if config.forcing == "teacher":
        return copies, clean
    has_prefix = config.forcing == "diffusion_prefix"
    prefix_prob = CLEAN_PREFIX_PROB if has_prefix else 0.0
    return diffusion_forcing(patch_embed, clean, prefix_prob, generator), clean


def darken(copies: Copies, dark: Tensor, black: Tensor) -> Copies:
    """Write black frames, embedded as [1, 1, S, D], to memory where `dark` [B, T].

    The frames are still predicted: memory learns that darkness says nothing about what is there.
    """
    written = torch.where(
        dark[..., None, None], black.to(copies.written), copies.written
    )
    level = torch.where(dark, 1.0, copies.written_level)
    return replace(copies, written=written, written_level=level)


def self_forcing_spans(
    is_first: Tensor, prob: float, longest: int, generator: Generator
) -> Tensor:
    """Draw runs of up to `longest` frames, bool [B, T].

    They hold about a fraction `prob` of all frames, and no first frames.
    """
    batch, frames = whole(len(is_first)), is_first.shape[1]
    device = is_first.device
    draw = own(torch.rand(2, batch, frames, generator=generator, device=device), 1)
    at = torch.arange(frames, device=device)
    begins = draw[0] < 2 * prob / (longest + 1)
    length = 1 + (draw[1] * longest).long()
    end = torch.where(begins, at + length, 0).cummax(1).values
    return (at < end) & ~is_first


def write_predictions(copies: Copies, span: Tensor, predicted: Tensor) -> Copies:
    """Write predicted frames [B, T, S, D] to memory where `span` [B, T], as imagination does.

    A predicted frame is no evidence. Without this, a model that predicts one of two possible objects takes it for
    observed, and plans with it.
    """
    written = torch.where(span[..., None, None], predicted, copies.written)
    level = torch.where(span, PREDICTED_LEVEL, copies.written_level)
    return replace(copies, written=written, written_level=level)


def _uniform(patch_embed: nn.Linear, generator: Generator):
    """Return a function that draws tensors of a shape from [0, 1).

    They have the device and the type of the weights.
    """

    def draw(*shape: int) -> Tensor:
        weight = patch_embed.weight
        return torch.rand(
            shape, generator=generator, device=weight.device, dtype=weight.dtype
        )

    return draw
