"""Settings of the world model and of its training losses."""

from __future__ import annotations

from typing import Annotated, Literal

from lssvwm.worldmodel.mixers import AnyMixerConfig, TiledSSDConfig
from lssvwm.worldmodel.mixers.base import SETTINGS
from pydantic import Field
from pydantic.dataclasses import dataclass

Side = Annotated[int, Field(ge=1, le=4096)]

HEAD_HIDDEN = 128
"""Hidden units of every head."""


@dataclass(frozen=True, config=SETTINGS)
class LossWeights:
    """Weight the terms of the training loss.

    The losses of the continue head and of the action limits always have weight 1, that of the value head 0.1.
    """

    frame: float = Field(default=10.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the squared error of predicted frames (pixels scaled to -1 ... 1)."""

    coarse: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the squared error of predicted frames averaged over 4 x 4 fields of each patch. It helps with small
    moving objects. 0: no such loss."""

    reward: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the cross entropy of the reward head."""

    policy: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the advantage-weighted imitation loss of the policy head. 0: the policy learns in imagination only, see
    `train.actor_critic`."""

    distance: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the loss of the goal distance head (steps to a goal image). 0: the model has no such head."""

    write: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Price of writing: weight of the mean write strength of all tokens. It closes the write gate for tokens that are
    not worth storing. 0: writing is free. Mixers without a write gate ignore it."""

    surprise: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of the loss of the surprise head (expected error of a predicted frame). 0: the model has no such head."""


@dataclass(frozen=True, config=SETTINGS)
class ModelConfig:
    """Set the size of the world model and how it is trained."""

    mixer: AnyMixerConfig = Field(default_factory=TiledSSDConfig)
    """Settings of the layer that carries memory over time. `kind` selects it."""

    pose: Literal["integrated", "learned", "given", "none"] = "integrated"
    """Source of the agent's pose.

    integrated: summed up from actions and frames; one motion per action, found before training.
    learned: summed up from steps that a motion model estimates from recent actions and frames. Poses of the environment
    train it; without them, the frames that it has to predict do.
    given: by the environment, also for imagined frames, as in the paper.
    none: the model knows actions only.
    """

    pose_use: Literal["keys", "condition"] = "keys"
    """Use of the pose.

    keys: it rotates keys and queries of the memory.
    condition: every frame is conditioned on it, as in the paper.
    """

    patch: Side | tuple[Side, Side] = 22
    """Side of a patch (a token of the frame), in pixels. [patch, cell]: also the side of the cells of a patch. Their
    principal components, found before training, replace pixels. This includes `normalize_frames`; `pixel_fraction` and
    `rare_colour_power` have no effect."""

    normalize_frames: bool = False
    """Subtract the mean frame and divide by the standard deviation. Use it for small objects on a static background."""

    width: int = Field(default=64, ge=1, le=65_536)
    """Numbers per token; a multiple of `attention_heads`."""

    attention_window: int = Field(default=3, ge=0, le=10**5)
    """Frames that frame-local attention sees, the present one included. 0: no such layer."""

    attention_heads: int = Field(default=4, ge=1, le=1024)
    """Heads of the frame-local attention; must divide `width`."""

    mlp_ratio: float = Field(default=3.0, gt=0, le=1024, allow_inf_nan=False)
    """Hidden units of a block's MLP, as a multiple of `width`."""

    forcing: Literal["teacher", "diffusion", "diffusion_prefix"] = "teacher"
    """Frames written to memory in training. teacher: clean frames. diffusion: frames as noisy as those being denoised.
    diffusion_prefix: as diffusion, but half of the sequences start with a clean prefix of at least half their length.
    """

    context_noise: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False)
    """Largest noise added to the frames written to memory, in one of eight sequences of a batch. The unit is the
    standard deviation of the noise that replaces a frame. 0: none."""

    self_forcing_prob: float = Field(default=0.0, ge=0, le=1)
    """Fraction of training frames written to memory as the model predicts them instead of as observed. 0: none."""

    self_forcing_span: int = Field(default=8, ge=1, le=10**6)
    """Longest run of consecutive predicted frames written to memory, in frames. Imagination over as many steps is
    trained."""

    pixel_fraction: float = Field(default=0.25, gt=0, le=1)
    """Fraction of the pixels, drawn at every step, that enter the frame loss."""

    rare_colour_power: float = Field(default=0.5, ge=0, le=100, allow_inf_nan=False)
    """Weight of a pixel in the frame loss is colour frequency to the power of minus this number. 0: equal weights."""

    event_weight: float = Field(default=4.0, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of frames with a reward or a termination in the losses of reward and continue. Others have weight 1."""

    discount: float = Field(default=0.97, ge=0, le=1)
    """Discount per step of the return that the value head predicts."""

    loss: LossWeights = Field(default_factory=LossWeights)
    """Weights of the loss terms."""

    def __post_init__(self) -> None:
        if not isinstance(self.patch, int) and self.loss.coarse:
            raise ValueError("model.loss.coarse needs pixels: give model.patch no cell")
        if self.width % self.attention_heads:
            raise ValueError(
                f"model.width={self.width} must be a multiple of "
                f"model.attention_heads={self.attention_heads}"
            )
