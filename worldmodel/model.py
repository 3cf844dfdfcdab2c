"""Define LSSVWM, a video world model with memory of constant size (arXiv 2505.20171).

    memory = model.initial(batch)                                        an empty memory
    memory, heads = model.observe(memory, frames, action, is_first)      real frames written into it
    rollout = model.imagine(memory, actions)                             futures; the memory stays as it is
    loss, metrics, memory = model.loss(batch)                            everything trained in one pass

Shapes: B sequences, T frames, S tokens per frame, D width, A action dimensions or discrete actions, n candidates,
H steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from lssvwm.worldmodel import corruption, imagination, losses
from lssvwm.worldmodel.backbone import Backbone
from lssvwm.worldmodel.config import ModelConfig
from lssvwm.worldmodel.corruption import Copies
from lssvwm.worldmodel.data import Batch, Masks, Rollout, Trajectory
from lssvwm.worldmodel.embedding import PatchPredictor
from lssvwm.worldmodel.goal_distance import GoalDistance
from lssvwm.worldmodel.heads import HeadOutputs, Heads
from lssvwm.worldmodel.imagination import Noise, RolloutPolicy, StepOptions
from lssvwm.worldmodel.memory import Memory
from lssvwm.worldmodel.patches import ColourWeights
from torch import Tensor, nn


class WorldModel(Backbone):
    """Predict frames, rewards, values and actions from what memory holds.

    Frames have the shape `frame_shape` (C, H, W). There are `actions` discrete actions or action dimensions. With
    `activation_checkpointing`, training takes less memory and more time.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_shape: tuple[int, int, int],
        actions: int,
        discrete: bool = True,
        activation_checkpointing: bool = False,
    ):
        super().__init__(
            config, frame_shape, actions, discrete, activation_checkpointing
        )
        width, tokens = config.width, self.patches.tokens
        self.unembed = PatchPredictor(width, self.patches.size)
        has_surprise = config.loss.surprise > 0
        self.heads = Heads(tokens, width, actions, has_surprise)
        has_distance = config.loss.distance > 0
        self.distance = GoalDistance(tokens, width) if has_distance else None
        self.colour_weights = ColourWeights(config.rare_colour_power)
        # drawn last, so that a seed gives the same weights as in earlier versions
        if discrete:
            nn.init.normal_(self.embedding.action_embed.weight)
        nn.init.normal_(self.unembed.weight, std=0.02)
        nn.init.zeros_(self.unembed.bias)

    def observe(
        self,
        memory: Memory,
        frames: Tensor,
        action: Tensor,
        is_first: Tensor,
        frame_mask: Tensor | None = None,
        *,
        pose: Tensor | None = None,
    ) -> tuple[Memory, HeadOutputs]:
        """Write frames uint8 [B, T, C, H, W] into memory. Returns the new memory and the heads [B, T].

        action [B, T] or [B, T, A] led to each frame. Memory is erased before frames with is_first [B, T]. Frames with
        frame_mask [B, T] leave no trace. A sequence may be cut into calls anywhere: the numbers are the same. A model
        of given poses needs `pose` [B, T, 3].
        """
        writes = _unmasked(is_first, frame_mask)
        trajectory = Trajectory(action, is_first, writes, pose=pose)
        memory, tokens = self.write(memory, frames, trajectory)
        return memory, self.heads(tokens)

    def write(
        self, memory: Memory, frames: Tensor, trajectory: Trajectory
    ) -> tuple[Memory, Tensor]:
        """Write frames into memory. Returns the new memory, and the tokens [B, T, S, D] that the heads read."""
        x = self.embedding.frames(self.patches.patchify(frames)).unsqueeze(2)
        level = torch.ones_like(trajectory.is_first, dtype=x.dtype)[..., None]
        x, memory, *_ = self.run(x, level, trajectory, memory)
        return memory, x[:, :, 0]

    def imagine(
        self,
        memory: Memory,
        actions: Tensor | RolloutPolicy,
        *,
        decode: bool = False,
        denoising_steps: int = 1,
        goal: Tensor | None = None,
        generator: Noise = None,
    ) -> Rollout:
        """Roll actions [B, n, H] or [B, n, H, A] forward from a memory.

        `actions` may be a policy that chooses them on the way. It also holds the poses that a model of given poses
        needs. The rollout holds frames if `decode`. With a goal image uint8 [B, C, H, W], it holds the steps to it. One
        denoising step predicts expected frames. More draw samples. Raises ValueError for missing poses, and for a goal
        if the model has no goal distance head.
        """
        options = StepOptions(denoising_steps, decode, generator)
        return imagination.imagine(self, memory, actions, goal, options)

    def loss(
        self,
        batch: Batch,
        memory: Memory | None = None,
        *,
        masks: Masks | None = None,
        self_forcing: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Memory]:
        """Train on sequences by one scan over two copies of every frame. Returns loss, metrics and memory.

        The first copy is denoised, the second is written to memory (see `corruption`). `memory` [B] continues an
        earlier segment; no gradient flows back into it. `self_forcing=False` switches `self_forcing_prob` off.
        """
        if memory is None:
            memory = self.initial(len(batch.pixels))
        memory = memory.detach()
        masks = masks or Masks()
        patches = self.patches.patchify(batch.pixels)
        copies, clean = self._copies(patches, masks.dark, generator)
        writes = _unmasked(batch.is_first, masks.hidden)
        limits = self.limits_after(clean, writes)
        trajectory = Trajectory(
            batch.action, batch.is_first, writes, masks.state_reset, batch.pose, limits
        )
        if self.config.self_forcing_prob and self_forcing and self.training:
            span = self._draw_span(batch.is_first, generator)
            frames = self.predict_frames(copies, span, trajectory, memory)
            copies = corruption.write_predictions(copies, span, frames)
        x, memory, gates, motion = self.run(
            copies.tokens, copies.levels, trajectory, memory
        )
        predicted, observed = x.unbind(2)
        outputs = losses.Outputs(
            patches,
            clean=copies.written if self.config.forcing == "teacher" else clean,
            predicted=predicted,
            observed=observed,
            in_frame_loss=copies.in_frame_loss,
            in_head_loss=copies.in_head_loss,
            is_observed=writes & (copies.written_level == 1),
            gates=gates,
            motion=motion,
            dark=masks.dark,
        )
        return *losses.total(self, batch, outputs, generator), memory

    def _copies(
        self, patches: Tensor, dark: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Copies, Tensor]:
        """Return the two copies of frames [B, T, S, P], and their embedding."""
        copies, clean = corruption.make_copies(
            self.embedding.patch_embed,
            self.embedding.frames(patches),
            self.config,
            self.training,
            generator,
        )
        if dark is not None:
            frame = torch.zeros(1, 1, *self.frame_shape, device=patches.device)
            black = self.embedding.frames(self.patches.patchify(frame))
            copies = corruption.darken(copies, dark, black)
        return copies, clean

    def _draw_span(self, is_first: Tensor, generator: torch.Generator | None) -> Tensor:
        prob, longest = self.config.self_forcing_prob, self.config.self_forcing_span
        return corruption.self_forcing_spans(is_first, prob, longest, generator)

    @torch.no_grad()
    def predict_frames(
        self, copies: Copies, span: Tensor, trajectory: Trajectory, memory: Memory
    ) -> Tensor:
        """Predict all frames, with nothing written in a `span` [B, T]. Returns tokens [B, T, S, D]."""
        blank = self.embedding.blank(*span.shape)
        tokens = torch.stack((blank, copies.written), 2)
        unknown = torch.zeros_like(copies.written_level)
        levels = torch.stack((unknown, copies.written_level), 2)
        trajectory = replace(trajectory, writes=trajectory.writes & ~span)
        x = self.run(tokens, levels, trajectory, memory).tokens
        return self.reembed(x[:, :, 0])

    def reembed(self, x: Tensor) -> Tensor:
        """Embed the frames that tokens x [..., S, D] predict."""
        return self.unembed.embedded(x, self.embedding.patch_embed)


def _unmasked(is_first: Tensor, frame_mask: Tensor | None) -> Tensor:
    return torch.ones_like(is_first) if frame_mask is None else ~frame_mask
