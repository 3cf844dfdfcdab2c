"""Imagine futures of n candidates from memories, which stay as they are.

Shapes: B memories, n candidates of each, H steps, S tokens per frame, D width, A action dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from lssvwm.worldmodel.blocks import BlockCache
from lssvwm.worldmodel.corruption import PREDICTED_LEVEL
from lssvwm.worldmodel.data import Rollout, Trajectory
from lssvwm.worldmodel.fused_ops import host_may_read
from lssvwm.worldmodel.heads import HeadOutputs
from lssvwm.worldmodel.memory import Memory
from lssvwm.worldmodel.mixers.base import MixerMemory, RolloutInputs, pick
from lssvwm.worldmodel.prefix_tree import levels
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.model import WorldModel

Noise = torch.Generator | Sequence[torch.Generator] | None
"""Source of noise: one generator, or one for each memory; None: torch's own."""


@dataclass(frozen=True)
class RolloutPolicy:
    """Choose the actions of n candidates per memory during the rollout."""

    choose: Callable[[int, HeadOutputs | None], Tensor]
    """Return the actions [B, n] or [B, n, A] of a step, given its number and the heads of the last imagined frame (None
    at the first step)."""

    n: int
    """Candidates per memory."""

    horizon: int
    """Steps to imagine."""

    heads_only: bool = False
    """Let the gradient of the head outputs reach the weights of the heads, and no others."""

    pose: Tensor | None = None
    """Poses of the imagined frames [B, n, H, 3], for models of given poses."""

    @classmethod
    def along(cls, actions: Tensor, pose: Tensor | None = None) -> RolloutPolicy:
        """Return the policy of fixed actions [B, n, H] or [B, n, H, A]."""
        n, horizon = actions.shape[1:3]
        return cls(lambda at, _: actions[:, :, at], n, horizon, pose=pose)


@dataclass(frozen=True)
class StepOptions:
    """Set how a frame is imagined."""

    denoising_steps: int = 1
    """1: predict the expected frame; the heads average over all possible frames. More: draw a sample by flow matching
    in so many steps; the heads read this sample."""

    decode: bool = False
    """Return the imagined frames as images."""

    generator: Noise = None
    """Source of the noise, with more than one denoising step."""

    heads_only: bool = False
    """See `RolloutPolicy`."""


ONE_STEP = StepOptions()


@dataclass
class Pending:
    """Hold an expected frame that the candidates have not remembered."""

    x: Tensor
    """Tokens after all blocks, [B, n, S, D]"""

    patches: Tensor | None
    """Decoded patches [B, n, S, P], if there are any"""

    action: Tensor
    """Action that led to it, as numbers [B, n, A + 1]"""

    pose: Tensor | None
    """Given pose [B, n, 3]; None: the model estimates it"""

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""
        self.x = pick(self.x, index)
        self.action = pick(self.action, index)
        if self.pose is not None:
            self.pose = pick(self.pose, index)
        if self.patches is not None:
            self.patches = pick(self.patches, index)


@dataclass
class RolloutState:
    """Hold what n candidates of each memory imagined; `step` and `select` change it."""

    caches: list[BlockCache]
    """Own memory of the candidates in each block, apart from the memory that they share"""

    visible: Tensor
    """bool [B, n, k-1]: local attention may look at this one of the last k-1 frames"""

    action_limits: Tensor
    """[B, n, 2 A]: limits of the next action"""

    goal: Tensor | None = None
    """Embedded goal images [B, 1, hidden]"""

    pose: MixerMemory = field(default_factory=dict)
    """Memory [B, n, ...] of the motion model, or of the integrator of the pose that conditions frames"""

    pending: Pending | None = None
    """The last expected frame, which `step` writes in the same pass as it reads the next one"""

    def __len__(self) -> int:
        """Return the number of memories."""
        return len(self.visible)


@dataclass
class Step:
    """Hold one imagined frame of m distinct prefixes."""

    heads: HeadOutputs
    frames: Tensor | None
    """uint8 [B, m, C, H, W], if decoded"""

    prefix: Tensor | None = None
    """int64 [B, n]: prefix of each candidate; None: each has its own"""


class _Frame(NamedTuple):
    """Hold an imagined frame on its way through the blocks."""

    x: Tensor
    """Embedded tokens [B, n, S, D]"""

    action: Tensor
    """Action that led to it, as numbers [B, n, A + 1]"""

    level: float
    """Noise level"""

    pose: Tensor | None = None
    """Given pose [B, n, 3]; None: the model estimates it"""


def imagine(
    model: WorldModel,
    memory: Memory,
    actions: Tensor | RolloutPolicy,
    goal: Tensor | None,
    options: StepOptions,
) -> Rollout:
    """Roll actions [B, n, H] or [B, n, H, A], or those of a policy, forward from a memory.

    On CPUs, shared prefixes of discrete actions are imagined once, unless frames are sampled. The numbers are the same.
    Elsewhere, counting them would take longer.
    """
    if isinstance(actions, RolloutPolicy):
        return _follow(model, memory, actions, goal, options)
    if model.discrete and options.denoising_steps == 1 and host_may_read(actions):
        return _imagine_prefixes(model, memory, actions, goal, options)
    return _follow(model, memory, RolloutPolicy.along(actions), goal, options)


def _follow(
    model: WorldModel,
    memory: Memory,
    policy: RolloutPolicy,
    goal: Tensor | None,
    options: StepOptions,
) -> Rollout:
    options = replace(options, heads_only=policy.heads_only)
    with torch.no_grad() if policy.heads_only else contextlib.nullcontext():
        state = start(model, memory, policy.n, policy.horizon, goal)
        heads = None
        actions: list[Tensor] = []
        steps: list[Step] = []
        for at in range(policy.horizon):
            actions.append(policy.choose(at, heads).detach())
            given = None if policy.pose is None else policy.pose[:, :, at]
            heads, frames = step(model, state, actions[-1], options, given)
            steps.append(Step(heads, frames))
    return _rollout(torch.stack(actions, 2), steps)


def _imagine_prefixes(
    model: WorldModel,
    memory: Memory,
    actions: Tensor,
    goal: Tensor | None,
    options: StepOptions,
) -> Rollout:
    horizon = actions.shape[2]
    state = start(model, memory, 1, horizon, goal)
    steps: list[Step] = []
    for level in levels(actions, model.actions):
        if level.parents is not None:
            write(model, state)  # before parents are copied for several children
            select(state, level.parents)
        heads, frames = step(model, state, level.action, options)
        steps.append(Step(heads, frames, level.prefix))
    return _rollout(actions, steps)


def _rollout(actions: Tensor, steps: list[Step]) -> Rollout:
    """Join the steps of each candidate."""

    def along(values: list[Tensor | None]) -> Tensor | None:
        by_candidate = [
            value if step.prefix is None else pick(value, step.prefix)
            for step, value in zip(steps, values)
            if value is not None
        ]
        return torch.stack(by_candidate, 2) if by_candidate else None

    heads = [step.heads for step in steps]
    return Rollout(
        actions,
        reward=cast("Tensor", along([out.reward for out in heads])),
        cont=cast("Tensor", along([out.cont for out in heads])),
        value=cast("Tensor", along([out.value for out in heads])),
        policy=cast("Tensor", along([out.policy for out in heads])),
        frames=along([step.frames for step in steps]),
        distance=along([out.distance for out in heads]),
        surprise=along([out.surprise for out in heads]),
    )


def start(
    model: WorldModel,
    memory: Memory,
    n: int,
    horizon: int,
    goal: Tensor | None = None,
) -> RolloutState:
    """Begin n futures of each memory, of at most `horizon` frames. Nothing of the memory is copied.

    With goal images uint8 [B, C, H, W], the heads predict the steps to them. Raises ValueError if the model has no goal
    distance head.
    """
    embedded_goal = None
    if goal is not None:
        if model.distance is None:
            raise ValueError(
                "this model does not predict steps to a goal image: "
                "train it with model.loss.distance > 0"
            )
        tokens = model.embedding.frames(model.patches.patchify(goal))
        embedded_goal = model.distance.embed_goal(tokens)[:, None]
    caches = [
        block.start_rollout(memory.layers[str(i)].to_dict(), n, horizon)
        for i, block in enumerate(model.layers)
    ]
    visible = memory.visible[:, None].expand(-1, n, -1)
    action_limits = memory.action_limits[:, None].expand(-1, n, -1)
    state = RolloutState(caches, visible, action_limits, embedded_goal)
    if "pose" in memory.layers:
        for name, value in memory.layers["pose"].items():
            rest = [-1] * (value.ndim - 1)
            state.pose[name] = value[:, None].expand(-1, n, *rest)
    return state


def select(state: RolloutState, index: Tensor) -> None:
    """Keep the candidates `index` [B, m], each once or more often."""
    state.visible = pick(state.visible, index)
    state.action_limits = pick(state.action_limits, index)
    state.pose = {name: pick(value, index) for name, value in state.pose.items()}
    if state.pending is not None:
        state.pending.select(index)
    for cache in state.caches:
        cache.select(index)


def step(
    model: WorldModel,
    state: RolloutState,
    action: Tensor,
    options: StepOptions = ONE_STEP,
    pose: Tensor | None = None,
) -> tuple[HeadOutputs, Tensor | None]:
    """Imagine the frames that actions [B, n] or [B, n, A] lead to.

    Models of given poses need `pose` [B, n, 3]. For others, it may replace the pose that they estimate.

    The candidates remember them. An expected frame (one denoising step) is written by the next step, or by `write`.
    Returns the heads, and with `options.decode` frames uint8 [B, n, C, H, W].

    After one denoising step, the heads read the expected frame before it is a frame. An expected reward is then low
    where the frame is uncertain. A blurred frame, read as if observed, would give too high a reward.
    """
    not_first = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
    if model.config.pose == "given":
        pose = model.given_pose(pose)
    action = model.embedding.action_numbers(action, not_first)
    blank = _Frame(model.embedding.blank(*not_first.shape), action, 0.0, pose)
    if state.pending is None:
        x = _through_blocks(model, state, [blank])
    else:
        written = _remembered(model, state.pending)
        state.pending = None
        x = _through_blocks(model, state, [written, blank], write=True)
    heads = _read(model, state, x, options)
    patches = None
    if options.denoising_steps > 1:
        patches = _sample(model, state, x, blank, options)
        tokens = model.embedding.patch_embed(patches)
        sampled = blank._replace(x=tokens, level=1.0)
        x = _through_blocks(model, state, [sampled], write=True)
        heads = _read(model, state, x, options)
    else:
        if options.decode:
            patches = model.unembed(x)
        state.pending = Pending(x, patches, action, pose)
    if not options.decode or patches is None:
        return heads, None
    return heads, model.patches.unpatchify(patches)


def write(model: WorldModel, state: RolloutState) -> None:
    """Let the candidates remember the last expected frame, if they have not."""
    if state.pending is None:
        return
    written = _remembered(model, state.pending)
    state.pending = None
    _through_blocks(model, state, [written], write=True, read=False)


def _remembered(model: WorldModel, pending: Pending) -> _Frame:
    """Return an expected frame as it is remembered."""
    if pending.patches is None:
        x = model.reembed(pending.x)
    else:
        x = model.embedding.patch_embed(pending.patches)
    return _Frame(x, pending.action, written_level(model), pending.pose)


def written_level(model: WorldModel) -> float:
    """Return the noise level at which expected frames are remembered."""
    return PREDICTED_LEVEL if model.config.self_forcing_prob else 1.0


def _sample(
    model: WorldModel,
    state: RolloutState,
    x: Tensor,
    blank: _Frame,
    options: StepOptions,
) -> Tensor:
    """Denoise a blank frame, given the tokens x [B, n, S, D] of the expected one. Returns patches."""
    patches = model.unembed(x)
    noise = _normal(patches, options.generator)
    for i in range(1, options.denoising_steps):
        level = i / options.denoising_steps
        noisy = level * patches + (1 - level) * noise
        x = model.embedding.patch_embed(noisy)
        x = _through_blocks(model, state, [blank._replace(x=x, level=level)])
        patches = model.unembed(x)
    return patches


def _normal(like: Tensor, source: Noise) -> Tensor:
    """Draw normal numbers in the shape of a tensor [B, ...]."""
    noise = torch.empty_like(like)
    if not isinstance(source, Sequence):
        return noise.normal_(generator=source)
    for part, generator in zip(noise, source):
        part.normal_(generator=generator)
    return noise


def _through_blocks(
    model: WorldModel,
    state: RolloutState,
    frames: Sequence[_Frame],
    write: bool = False,
    read: bool = True,
) -> Tensor:
    """Pass one frame, or two successive ones, through all blocks.

    With `write`, the candidates remember the first. Returns the last frame's tokens [B, n, S, D], unless nothing is to
    be read.
    """
    executed = []
    for number, frame in enumerate(frames):
        executed.append(model.executed(frame.action, state.action_limits))
        if write and number == 0:
            observed = torch.ones_like(frame.action[..., 0], dtype=torch.bool)
            state.action_limits = model.limits_after(frame.x, observed)
    x = torch.stack([frame.x for frame in frames], 2)
    action = torch.stack(executed, 2)
    inputs = RolloutInputs(action, state.visible, x[:, :, 0], write)
    poses = _poses(model, state, frames, x, inputs)
    condition = _condition(model, frames, poses)
    x = x + model.embedding.pos_embed
    x = x + condition[..., None, :]
    inputs = inputs._replace(seen=x[:, :, 0], pose=poses)
    last = len(state.caches) - 1
    only_first = read and len(frames) == 1
    for i, (block, cache) in enumerate(zip(model.layers, state.caches)):
        needed = only_first or i < last  # the output of the first frame
        x = block.imagine_step(x, condition, inputs._replace(read=needed), cache)
    if write:
        visible = F.pad(state.visible, (0, 1), value=True)
        state.visible = visible[..., 1:]
    return x[:, :, -1] if read else x


def _poses(
    model: WorldModel,
    state: RolloutState,
    frames: Sequence[_Frame],
    x: Tensor,
    inputs: RolloutInputs,
) -> Tensor | None:
    """Return the poses [B, n, R, 3] of successive frames x [B, n, R, S, D]; None: the layers integrate them.

    The candidates move to a written frame.
    """
    given = [frame.pose for frame in frames if frame.pose is not None]
    if len(given) == len(frames):
        return torch.stack(given, 2)
    if model.motion is not None:
        with torch.autocast(x.device.type, enabled=False):
            poses, state.pose = model.motion.follow(x, inputs, state.pose)
        return poses
    if model.pose_integrator is not None:
        tile = x.unsqueeze(3)
        poses = model.pose_integrator.follow(tile, inputs, state.pose["pose"])
        if inputs.write:
            state.pose["pose"] = poses[:, :, 0]
        return poses.squeeze(3)
    return None


def _condition(
    model: WorldModel, frames: Sequence[_Frame], poses: Tensor | None
) -> Tensor:
    """Return the condition [B, n, R, D] of successive frames at poses [B, n, R, 3]."""
    action = torch.stack([frame.action for frame in frames], 2)
    noise_levels = [action.new_full((), frame.level) for frame in frames]
    level = torch.stack(noise_levels)
    noise = model.embedding.noise(level)
    condition = model.embedding.condition(action)
    condition = condition + noise
    if model.pose_embed is None or poses is None:
        return condition
    return condition + model.pose_embed(poses)


def _read(
    model: WorldModel, state: RolloutState, x: Tensor, options: StepOptions
) -> HeadOutputs:
    with torch.enable_grad() if options.heads_only else contextlib.nullcontext():
        heads = model.heads(x)
    if model.distance is not None and state.goal is not None:
        heads.distance = model.distance(x, state.goal)
    return heads


def imagine_one(
    model: WorldModel, memory: Memory, action: Tensor, decode: bool = False
) -> tuple[HeadOutputs, Memory, Tensor | None]:
    """Imagine the frame that actions [B] or [B, A] lead to.

    Returns the heads [B], a memory of the frame and, if `decode`, the frame uint8 [B, C, H, W].
    The numbers are those of `imagine`. Every call copies the memory.
    """
    action = action[:, None]
    none = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
    trajectory = Trajectory(action, is_first=none, writes=none)
    blank = model.embedding.blank(*none.shape)[:, :, None]
    unknown = torch.zeros_like(blank[..., 0, 0])
    x = model.run(blank, unknown, trajectory, memory).tokens
    heads = model.heads(x[:, 0, 0])
    frames = None
    if decode:
        frames = model.patches.unpatchify(model.unembed(x[:, 0, 0]))
    trajectory.writes = ~none
    level = torch.full_like(unknown, written_level(model))
    written = model.run(model.reembed(x), level, trajectory, memory)
    return heads, written.memory, frames
