"""Pass frames through the blocks, from left to right, and carry the memory.

Shapes: B sequences, T frames, R copies of a frame (noisy, clean), S tokens per frame, D width.
A action dimensions or discrete actions, k frames of local attention.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple, Self, cast

import torch
from lssvwm.worldmodel import action_limits
from lssvwm.worldmodel.action_limits import ActionLimits
from lssvwm.worldmodel.blocks import Block, BlockOutput, LocalAttention
from lssvwm.worldmodel.config import ModelConfig
from lssvwm.worldmodel.data import Trajectory
from lssvwm.worldmodel.embedding import Embedding, PoseEmbedding
from lssvwm.worldmodel.memory import Memory
from lssvwm.worldmodel.mixers.base import (
    MixerContext,
    MixerMemory,
    SequenceInputs,
    build_mixer,
)
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from lssvwm.worldmodel.motion import Motion, MotionModel
from lssvwm.worldmodel.patches import Patches
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class BackboneOutput(NamedTuple):
    """Hold what all blocks make of sequences."""

    tokens: Tensor
    """[B, T, R, S, D]"""

    memory: Memory
    """Memory after the last frame"""

    gates: Tensor | None
    """Write strengths of the tokens of each frame in all blocks, [B, T, k]; None: no block has a write gate"""

    motion: Motion | None
    """Estimated motion of the agent; None: the model has no motion model"""


class Backbone(nn.Module):
    """Embed frames and actions, pass them through all blocks, and write them to memory.

    Frames have the shape `frame_shape` (C, H, W). There are `actions` discrete actions or action dimensions. With
    `activation_checkpointing`, blocks keep only their inputs and run again in the backward pass. This takes less memory
    and more time.
    """

    def __init__(
        self,
        config: ModelConfig,
        frame_shape: tuple[int, int, int],
        actions: int,
        discrete: bool = True,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        channels, height, width = frame_shape
        self.frame_shape = (channels, height, width)
        self.config = config
        self.actions = actions
        self.discrete = discrete
        self.activation_checkpointing = activation_checkpointing
        patches = Patches(self.frame_shape, config.patch, config.normalize_frames)
        self.embedding = Embedding(patches, config.width, actions, discrete)
        self.blocks = nn.ModuleList(
            self._block(layer) for layer in range(config.mixer.depth)
        )
        self.pose_embed = self.pose_integrator = None
        if config.pose_use == "condition" and config.pose != "none":
            self.pose_embed = PoseEmbedding(config.width)
            if config.pose == "integrated":
                context = replace(self._context(0), pose="integrated")
                rows = patches.grid[0]
                self.pose_integrator = PathIntegrator(context, rows, 0)
        self.motion = None
        if config.pose == "learned":
            self.motion = MotionModel(config.width, patches.tokens, actions + 1)
        has_limits = (
            not discrete
            and config.pose == "integrated"
            and self.layers[0].mixer.has_poses
        )
        self.action_limits = (
            ActionLimits(patches.tokens, config.width, actions) if has_limits else None
        )

    def _context(self, layer: int) -> MixerContext:
        config = self.config
        in_keys = config.pose_use == "keys"
        return MixerContext(
            layer,
            config.width,
            self.patches.grid,
            self.actions + 1,
            pose=config.pose if in_keys else "none",
            walls=self.discrete,
        )

    def _block(self, layer: int) -> Block:
        config, patches = self.config, self.patches
        context = self._context(layer)
        mixer = build_mixer(config.mixer, context)
        window = config.attention_window
        attention = None
        if window:
            attention = LocalAttention(
                config.width, patches.tokens, window, config.attention_heads
            )
        return Block(config.width, config.mlp_ratio, mixer, attention)

    @property
    def layers(self) -> list[Block]:
        """The blocks in order; `Memory.layers` holds what each of them remembers."""
        return cast("list[Block]", list(self.blocks))

    @property
    def path_integrators(self) -> list[PathIntegrator]:
        """Path integrators of the blocks that have one, and of the condition."""
        found = [block.mixer.integrator() for block in self.layers]
        found.append(self.pose_integrator)
        return [integrator for integrator in found if integrator is not None]

    @property
    def patches(self) -> Patches:
        """Conversion of frames to patches and back."""
        return self.embedding.patches

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding.pos_embed.dtype

    def use_backend(self, name: str = "auto") -> Self:
        """Compute the state-space scan by a backend. Returns the model.

        `scan.backends` lists the names, and the errors that are raised.
        """
        for block in self.layers:
            block.mixer.use_backend(name, self.device)
        return self

    def initial(self, batch: int) -> Memory:
        """Return the empty memory of `batch` agents."""
        like = self.embedding.pos_embed
        layers: dict[str, Any] = {
            str(i): block.initial(batch, like) for i, block in enumerate(self.layers)
        }
        if self.pose_integrator is not None:
            layers["pose"] = {"pose": like.new_zeros(batch, 1, 3)}
        if self.motion is not None:
            layers["pose"] = self.motion.initial(batch, like)
        past = max(0, self.config.attention_window - 1)
        return Memory(
            layers=TensorDict(layers, batch_size=[batch]),
            visible=torch.zeros(batch, past, dtype=torch.bool, device=like.device),
            action_limits=self._unlimited(batch),
            frames=torch.zeros(batch, dtype=torch.int64, device=like.device),
            batch_size=[batch],
        )

    def run(
        self, x: Tensor, level: Tensor, trajectory: Trajectory, memory: Memory
    ) -> BackboneOutput:
        """Pass embedded copies [B, T, R, S, D] through all blocks.

        level [B, T, R] is their noise level. The last copy is written.
        """
        reset = trajectory.reset
        writes = trajectory.writes
        action = self.embedding.action_numbers(trajectory.action, trajectory.is_first)
        limits = trajectory.action_limits
        if limits is None:
            limits = self.limits_after(x[:, :, -1], writes)
        first_limits = memory.action_limits[:, None]
        before = torch.cat((first_limits, limits[:, :-1]), 1)
        before = before.masked_fill(reset[..., None], math.inf)
        visible, last_visible = _visibility(memory.visible, writes, reset)
        moved = (self.executed(action, before), writes, reset)
        frames = SequenceInputs(*moved, visible, seen=x[:, :, -1])
        poses, remembered, motion = self._poses(x, frames, trajectory.pose, memory)
        condition = self.embedding.condition(action)[:, :, None]
        condition = condition + self.embedding.noise(level)
        if self.pose_embed is not None:
            condition = condition + self.pose_embed(poses)
        x = x + self.embedding.pos_embed
        x = x + condition[..., None, :]
        frames = frames._replace(seen=x[:, :, -1], pose=poses)
        layers: dict[str, Any] = {"pose": remembered} if remembered else {}
        gates: list[Tensor] = []
        for i, block in enumerate(self.layers):
            before_block = memory.layers[str(i)].to_dict()
            out = self._through(block, x, condition, frames, before_block)
            x, layers[str(i)] = out.tokens, out.memory
            if out.gates is not None:
                gates.append(out.gates)
        batch = len(x)
        memory = Memory(
            layers=TensorDict(layers, batch_size=[batch]),
            visible=last_visible,
            action_limits=limits[:, -1],
            frames=_age(memory.frames, reset),
            batch_size=[batch],
        )
        opened = torch.cat(gates, -1) if gates else None
        return BackboneOutput(x, memory, opened, motion)

    def _through(self, block: Block, *inputs: Any) -> BlockOutput:
        """Apply a block, again in the backward pass with `activation_checkpointing`."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _poses(
        self, x: Tensor, frames: SequenceInputs, given: Tensor | None, memory: Memory
    ) -> tuple[Tensor | None, MixerMemory, Motion | None]:
        """Return the poses of copies x [B, T, R, S, D], what to remember of them, and the motion.

        given [B, T, 3]: poses of the environment. Without poses, each layer integrates its own.
        """
        if self.config.pose == "given":
            pose = self.given_pose(given).to(x)
            of_copies = pose[:, :, None].expand(-1, -1, x.shape[2], -1)
            return of_copies, {}, None
        if self.motion is not None:
            before = memory.layers["pose"].to_dict()
            with torch.autocast(x.device.type, enabled=False):
                motion, after = self.motion(x, frames, before)
            poses = motion.poses if given is None else motion.poses.detach()
            return poses, after, motion
        if self.pose_integrator is not None:
            tile = x.unsqueeze(3)  # it holds all tokens
            before = memory.layers["pose", "pose"]
            poses, pose = self.pose_integrator(tile, frames, before)
            return poses.squeeze(3), {"pose": pose}, None
        return None, {}, None

    def limits_after(self, x: Tensor, observed: Tensor) -> Tensor:
        """Predict the limits of the next action from frames x [..., S, D], infinite unless `observed` [...].

        Only `action_limits.loss` trains them.
        """
        if self.action_limits is None:
            return self._unlimited(*observed.shape)
        known = action_limits.view_shift(self).any(0).repeat(2)
        limits = self.action_limits(x).detach()
        return limits.masked_fill(~(observed[..., None] & known), math.inf)

    @staticmethod
    def given_pose(pose: Tensor | None) -> Tensor:
        """Return the pose of a frame; raises ValueError if it is missing."""
        if pose is None:
            raise ValueError(
                "model.pose=given needs the pose of every frame, also of imagined ones"
            )
        return pose

    def executed(self, action: Tensor, limits: Tensor) -> Tensor:
        """Clip actions [..., A + 1] to limits [..., 2 A]: what walls let through."""
        if self.action_limits is None:
            return action
        clipped = action_limits.clipped(action[..., :-1], limits)
        return torch.cat((clipped, action[..., -1:]), -1)

    def _unlimited(self, *shape: int) -> Tensor:
        """Return infinite limits [*shape, 2 A], or [*shape, 0] if the model has none."""
        size = 0 if self.action_limits is None else 2 * self.actions
        return self.embedding.pos_embed.new_full((*shape, size), math.inf)


def _age(frames: Tensor, reset: Tensor) -> Tensor:
    """Count the frames [B] since the last reset [B, T], after `frames` [B] before the sequence."""
    length = reset.shape[1]
    number = torch.arange(1, length + 1, device=reset.device)
    latest = (reset * number).amax(1)  # 0: no reset in this sequence
    return torch.where(latest > 0, length + 1 - latest, frames + length)


def _visibility(
    visible: Tensor, writes: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """Mark the k-1 frames before each frame that local attention may look at.

    A frame is visible if it was written and no episode began since. Returns the mask [B, T, k-1], and that of the
    sequence that follows, [B, k-1].
    """
    past, length = visible.shape[1], writes.shape[1]
    written = torch.cat((visible, writes), 1)
    episode = F.pad(reset.long().cumsum(1), (past, 0))
    current = episode[:, past:]
    masks = [
        written[:, at : at + length] & (episode[:, at : at + length] == current)
        for at in range(past)
    ]
    mask = torch.stack(masks, -1) if past else written.new_zeros(*writes.shape, 0)
    last_episode = episode[:, -1:]
    return mask, (written & (episode == last_episode))[:, length:]
