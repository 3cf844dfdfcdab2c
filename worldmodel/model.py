"""LSSVWM: a video world model whose only long-term memory is a constant-size state (arXiv 2505.20171).

Four verbs: `initial` makes an empty memory, `observe` writes real frames into it, `imagine` rolls actions forward
from it without touching it, `loss` trains everything in one pass.

Shapes: B sequences, T frames, R streams (noisy, clean), S tokens a frame, D width, n candidates, H horizon.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from lssvwm.worldmodel import action_limits as reaching
from lssvwm.worldmodel import corruption as noise
from lssvwm.worldmodel.blocks import (
    Block,
    LocalAttention,
    RolloutInputs,
    SequenceInputs,
)
from lssvwm.worldmodel.config import ModelConfig
from lssvwm.worldmodel.fused_ops import squares
from lssvwm.worldmodel.heads import (
    Distance,
    HeadOutputs,
    Heads,
    lambda_returns,
    two_hot,
)
from lssvwm.worldmodel.losses import (
    ADVANTAGE_TEMPERATURE,
    FIXED_WEIGHTS,
    TD_LAMBDA,
)
from lssvwm.worldmodel.memory import Memory, RolloutState
from lssvwm.worldmodel.mixers.base import MixerContext, build_mixer, pick
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from lssvwm.worldmodel.patches import Patches, Rarity
from lssvwm.worldmodel.prefix_tree import levels
from lssvwm.worldmodel.scan import backends
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

FORESEEN = 0.5
"""Level at which foreseen frames are remembered, so that they can be told from those that were seen (level 1)."""

COARSE = 4
"""Fields along each side of a patch, for the coarse frame loss."""


@dataclass
class Batch:
    """Training sequences: pixels uint8 [B, T, C, H, W]; action (the one that led to the frame; int64 [B, T] or
    float32 [B, T, A]); reward [B, T] on arrival; terminated, truncated, is_first bool [B, T]."""

    pixels: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    is_first: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(**{key: value.to(device) for key, value in vars(self).items()})

    def __getitem__(self, part: slice) -> Batch:
        """The same frames of every sequence."""
        return Batch(**{key: value[:, part] for key, value in vars(self).items()})


@dataclass
class Rollout:
    """Futures: actions [B, n, H(, A)]; reward, cont, value [B, n, H]; policy [B, n, H, A]; frames uint8
    [B, n, H, C, H', W'] or None; distance and surprise [B, n, H] (see `HeadOutputs`), or None."""

    actions: Tensor
    reward: Tensor
    cont: Tensor
    value: Tensor
    policy: Tensor
    frames: Tensor | None
    distance: Tensor | None = None
    surprise: Tensor | None = None


@dataclass
class Step:
    """What was imagined in one step: the heads' answers and frames of m beginnings, and which of them each candidate
    has, of [B, n] (None: its own)."""

    readout: HeadOutputs
    frame: Tensor | None
    of: Tensor | None = None

    def each(self, value: Tensor) -> Tensor:
        """A value of every beginning [B, m, ...] for every candidate, [B, n, ...]."""
        return value if self.of is None else pick(value, self.of)


def _rollout(actions: Tensor, steps: list[Step]) -> Rollout:
    """The futures that these steps make up."""

    def along(values: list[Tensor | None]) -> Tensor | None:
        known = [
            step.each(value) for step, value in zip(steps, values) if value is not None
        ]
        return torch.stack(known, 2) if known else None

    answers = [step.readout for step in steps]
    always = (
        [getattr(x, name) for x in answers]
        for name in ("reward", "cont", "value", "policy")
    )
    reward, cont, value, policy = (cast("Tensor", along(values)) for values in always)
    frames, distance = (
        along([step.frame for step in steps]),
        along([x.distance for x in answers]),
    )
    return Rollout(
        actions,
        reward,
        cont,
        value,
        policy,
        frames,
        distance,
        along([x.surprise for x in answers]),
    )


class WorldModel(nn.Module):
    """The model for frames of `frame_shape` (C, H, W) and `actions` discrete actions or action dimensions."""

    def __init__(
        self,
        config: ModelConfig,
        frame_shape: tuple[int, int, int],
        actions: int,
        discrete: bool = True,
    ):
        super().__init__()
        c = config
        channels, height, width = frame_shape
        self.frame_shape = (channels, height, width)
        self.config, self.actions, self.discrete = c, actions, discrete
        self.recompute = False  # of each block, keep the inputs only, and run it again in the backward pass
        self.patches = Patches(self.frame_shape, c.patch, c.normalize_frames)
        grid, tokens = self.patches.grid, self.patches.tokens
        self.embed = nn.Linear(self.patches.size, c.width)
        self.place = nn.Parameter(torch.randn(tokens, c.width) * 0.3)
        self.act = nn.Linear(actions + 1, c.width, bias=not discrete)
        self.level = nn.Sequential(
            nn.Linear(16, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.mlp_ratio,
                build_mixer(
                    c.mixer, MixerContext(layer, c.width, grid, actions + 1, discrete)
                ),
                LocalAttention(c.width, tokens, c.attention_window, c.attention_heads)
                if c.attention_window
                else None,
            )
            for layer in range(c.mixer.depth)
        )
        odometers = not discrete and self.layers[0].mixer.has_poses
        self.reach = (
            reaching.ActionLimits(tokens, c.width, actions) if odometers else None
        )
        self.unembed = nn.Linear(c.width, self.patches.size)
        self.heads = Heads(tokens, c.width, actions, c.loss.surprise > 0)
        self.distance = Distance(tokens, c.width) if c.loss.distance else None
        self.rarity = Rarity(c.rare_colour_power)
        if discrete:
            nn.init.normal_(self.act.weight)
        nn.init.normal_(self.unembed.weight, std=0.02)
        nn.init.zeros_(self.unembed.bias)

    @property
    def layers(self) -> list[Block]:
        """The blocks in order; `Memory.layers` holds what each of them remembers."""
        return cast("list[Block]", list(self.blocks))

    @property
    def path_integrators(self) -> list[PathIntegrator]:
        """Those of the layers that have one."""
        found = (block.mixer.integrator() for block in self.layers)
        return [integrator for integrator in found if integrator is not None]

    def use(self, backend: str = "auto") -> WorldModel:
        """Scan by this backend, see `backends.select_backend` (also for what it raises). Returns itself."""
        _, scan = backends.select_backend(backend, self.place.device)
        for block in self.layers:
            block.mixer.use_kernel(scan)
        return self

    # ---- memory

    def initial(self, batch: int) -> Memory:
        """The empty memory of `batch` agents."""
        m, like = max(0, self.config.attention_window - 1), self.place
        layers = {
            str(i): block.initial(batch, like) for i, block in enumerate(self.layers)
        }
        layers = TensorDict(layers, batch_size=[batch])
        frames = torch.zeros(batch, dtype=torch.int64, device=like.device)
        seen = torch.zeros(batch, m, dtype=torch.bool, device=like.device)
        reach = self._unstopped(batch)
        return Memory(
            layers=layers, seen=seen, reach=reach, frames=frames, batch_size=[batch]
        )

    def observe(
        self,
        memory: Memory,
        frames: Tensor,
        action: Tensor,
        is_first: Tensor,
        hidden: Tensor | None = None,
        *,
        learn: bool = False,
    ) -> tuple[Memory, HeadOutputs]:
        """Write frames uint8 [B, T, C, H, W] into memory; returns the new memory and the heads of every frame [B, T].

        `action` is the one that led to each frame, `is_first` marks the start of an episode (memory is reset
        there), `hidden` [B, T] frames leave no trace. Any way of cutting a sequence gives the same numbers. To `learn`,
        see `dream`.
        """
        with torch.no_grad() if learn else contextlib.nullcontext():
            x = self._embed_frames(self.patches.cut(frames)).unsqueeze(2)
            writes = torch.ones_like(is_first) if hidden is None else ~hidden
            level = torch.ones_like(is_first, dtype=x.dtype)
            x, memory = self._run(x, level[..., None], action, is_first, writes, memory)
        return memory, self.heads(x[:, :, 0])

    def _run(
        self,
        x: Tensor,
        level: Tensor,
        action: Tensor,
        is_first: Tensor,
        writes: Tensor,
        memory: Memory,
        forget: Tensor | None = None,
        reach: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """Embedded copies x [B, T, R, S, D] at noise `level` [B, T, R] through all blocks; `reach` [B, T, 2 A] of these
        frames, if it is not to be told from the last copy."""
        reset = is_first if forget is None else is_first | forget
        action = self._plain(action, is_first)
        reach = self._reach(x[:, :, -1], writes) if reach is None else reach
        before = torch.cat((memory.reach[:, None], reach[:, :-1]), 1).masked_fill(
            reset[..., None], math.inf
        )
        made = self._made(action, before)
        condition = self.act(action)[:, :, None] + self._level(level)
        x = x + self.place + condition[..., None, :]
        visible, seen = _visibility(memory.seen, writes, reset)
        frames = SequenceInputs(made, writes, reset, visible)
        layers = {}
        for i, block in enumerate(self.layers):
            inputs = (x, condition, frames, memory.layers[str(i)].to_dict())
            again = self.recompute and torch.is_grad_enabled()
            x, layers[str(i)] = (
                checkpoint(block, *inputs, use_reentrant=False)
                if again
                else block(*inputs)
            )
        batch, t = x.shape[:2]
        latest = (reset * torch.arange(1, t + 1, device=x.device)).amax(
            1
        )  # 1 + index of the last reset, or 0
        frames = torch.where(latest > 0, t + 1 - latest, memory.frames + t)
        layers = TensorDict(layers, batch_size=[batch])
        return x, Memory(
            layers=layers,
            seen=seen,
            reach=reach[:, -1],
            frames=frames,
            batch_size=[batch],
        )

    def _embed_frames(self, patches: Tensor) -> Tensor:
        """`embed` of uint8 patches: scaling to [-1, 1] is folded into the weights (bf16 holds the numbers exactly)."""
        if self.patches.normalize:
            return self.embed(self.patches.scaled(patches, self.embed.weight.dtype))
        weight, bias, device = self.embed.weight, self.embed.bias, patches.device.type
        kind = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else weight.dtype
        )
        return F.linear(patches.to(kind), weight / 127.5, bias - weight.sum(1))

    def _plain(self, action: Tensor, is_first: Tensor) -> Tensor:
        """Actions as numbers [..., A + 1]: one-hot or as they are, and whether there was none."""
        if self.discrete:
            return F.one_hot(
                torch.where(is_first, self.actions, action), self.actions + 1
            ).to(self.place.dtype)
        first = is_first[..., None].to(action.dtype)
        return torch.cat((action * (1 - first), first), -1)

    def _unstopped(self, *shape: int) -> Tensor:
        """The reach of frames of which nothing is known, [..., 2 A]; [..., 0] where reach is not told."""
        size = 2 * self.actions if self.reach is not None else 0
        return self.place.new_full((*shape, size), math.inf)

    def _reach(self, x: Tensor, seen: Tensor) -> Tensor:
        """The reach of frames x [..., S, D], infinite unless they were `seen` [...]. Only `reach.loss` trains it."""
        if self.reach is None:
            return self._unstopped(*seen.shape)
        known = reaching.shift(self).any(0).repeat(2)
        return self.reach(x).detach().masked_fill(~(seen[..., None] & known), math.inf)

    def _made(self, action: Tensor, reach: Tensor) -> Tensor:
        """What is made of plain actions [..., A + 1] from where so much can be."""
        if self.reach is None:
            return action
        return torch.cat(
            (reaching.stopped(action[..., :-1], reach), action[..., -1:]), -1
        )

    def _level(self, level: Tensor) -> Tensor:
        """Noise level in [0, 1] (1: clean, 0: nothing of the frame) -> [..., D]"""
        wave = (
            level[..., None] * math.pi * 2.0 ** torch.arange(-1, 7, device=level.device)
        )
        return self.level(torch.cat((wave.sin(), wave.cos()), -1))

    # ---- imagination

    def fork(
        self, memory: Memory, n: int, horizon: int, goal: Tensor | None = None
    ) -> RolloutState:
        """n futures of each memory, to be advanced by `step`; the memory itself is never written. With goal images
        uint8 [B, C, H, W], heads tell the steps to them; raises ValueError if the model has not learnt to."""
        fork = memory.fork(n, horizon)
        if goal is not None:
            if self.distance is None:
                raise ValueError(
                    "this model cannot tell steps to a goal image: train it with model.loss.distance > 0"
                )
            fork.aim = self.distance.aim(self._embed_frames(self.patches.cut(goal)))[
                :, None
            ]
        fork.seen, fork.reach = (
            v[:, None].expand(-1, n, -1) for v in (memory.seen, memory.reach)
        )
        fork.traces = [
            block.start_rollout(memory.layers[str(i)].to_dict(), n, horizon)
            for i, block in enumerate(self.layers)
        ]
        return fork

    def select(self, fork: RolloutState, which: Tensor) -> None:
        """Go on with some of the futures, which [B, m], once or more often."""
        assert (
            fork.traces is not None and fork.seen is not None and fork.reach is not None
        )
        fork.n, fork.seen, fork.reach = (
            which.shape[1],
            pick(fork.seen, which),
            pick(fork.reach, which),
        )
        for cache in fork.traces:
            cache.select(which)

    def step(
        self,
        fork: RolloutState,
        action: Tensor,
        denoise: int = 1,
        decode: bool = False,
        generator=None,
        last: bool = False,
    ) -> tuple[HeadOutputs, Tensor | None]:
        """Imagine the frame that `action` [B, n] leads to and remember it, unless it is the `last`; its heads, and
        frames if `decode`.

        One denoising step gives the expected frame from memory alone, and heads that answer for all frames which
        may come: what is not known lowers an expected reward, where reading a blurred frame as if it were seen would
        raise hopes. More steps draw a sample (flow matching), and the heads answer for that sample.
        """
        not_first = torch.zeros(
            action.shape[:2], dtype=torch.bool, device=action.device
        )
        action = self._plain(action, not_first)
        x = self._recall(fork, self._blank(action), 0.0, action, commit=False)
        readout, patches = self._read(x, fork), None
        if denoise > 1:
            shape = (*not_first.shape, self.patches.tokens, self.patches.size)
            white = torch.randn(
                shape, generator=generator, device=x.device, dtype=x.dtype
            )
            patches = self._predict(x)
            for i in range(1, denoise):
                level = i / denoise
                x = self.embed(level * patches + (1 - level) * white)
                patches = self._predict(
                    self._recall(fork, x, level, action, commit=False)
                )
        elif decode:
            patches = self._predict(x)
        if denoise > 1 or not last:
            clean = self._reembed(x) if patches is None else self.embed(patches)
            trust = FORESEEN if self.config.self_forcing_prob and denoise == 1 else 1.0
            x = self._recall(fork, clean, trust, action, commit=True, read=denoise > 1)
            readout = readout if denoise == 1 else self._read(x, fork)
        assert fork.seen is not None
        fork.seen = F.pad(fork.seen, (0, 1), value=True)[..., 1:]
        return readout, self.patches.decode(
            patches
        ) if decode and patches is not None else None

    def advance(self, memory: Memory, action: Tensor) -> tuple[HeadOutputs, Memory]:
        """`step`, for a single future of each memory: the heads of the frame that `action` [B(, A)] leads to, and the
        memory that remembers it. The same numbers as `imagine`; every call copies the memory."""
        none, action = (
            torch.zeros(len(memory), 1, dtype=torch.bool, device=self.place.device),
            action[:, None],
        )
        blank = self._blank(self._plain(action, none))[:, :, None]
        x, _ = self._run(
            blank, torch.zeros_like(blank[..., 0, 0]), action, none, none, memory
        )
        readout, trust = (
            self.heads(x[:, 0, 0]),
            FORESEEN if self.config.self_forcing_prob else 1.0,
        )
        level = torch.full_like(blank[..., 0, 0], trust)
        _, memory = self._run(self._reembed(x), level, action, none, ~none, memory)
        return readout, memory

    def _read(self, x: Tensor, fork: RolloutState) -> HeadOutputs:
        with torch.enable_grad() if fork.learn else contextlib.nullcontext():
            readout = self.heads(x)
        if self.distance is not None and fork.aim is not None:
            readout.distance = self.distance(x, fork.aim)
        return readout

    def imagine(
        self,
        memory: Memory,
        actions: Tensor,
        denoise: int = 1,
        decode: bool = False,
        generator=None,
        goal: Tensor | None = None,
        share: bool = True,
    ) -> Rollout:
        """Roll actions [B, n, H(, A)] forward from a memory, which stays as it is; towards a `goal`, see `fork`.

        Of discrete actions, beginnings that candidates have in common are imagined once (`share`), unless more
        denoising steps draw samples: the numbers are the same.
        """
        n, horizon = actions.shape[1:3]
        if not (share and self.discrete and denoise == 1):
            return self.dream(
                memory,
                n,
                horizon,
                lambda h, _: actions[:, :, h],
                denoise,
                decode,
                generator,
                goal,
            )
        fork, steps = self.fork(memory, 1, horizon, goal), []
        for h, level in enumerate(levels(actions, self.actions)):
            if level.parents is not None:
                self.select(fork, level.parents)
            out, frame = self.step(
                fork, level.action, decode=decode, last=h == horizon - 1
            )
            steps.append(Step(out, frame, level.of))
        return _rollout(actions, steps)

    def dream(
        self,
        memory: Memory,
        n: int,
        horizon: int,
        choose: Callable[[int, HeadOutputs | None], Tensor],
        denoise: int = 1,
        decode: bool = False,
        generator=None,
        goal: Tensor | None = None,
        learn: bool = False,
    ) -> Rollout:
        """n futures of each memory, whose actions [B, n(, A)] `choose(h, readout)` says one after the other, from what
        the heads answered to the frame before (None before the first). To `learn` from them, the heads' answers keep
        the gradient of the heads, which reaches no other part of the model."""
        with torch.no_grad() if learn else contextlib.nullcontext():
            fork, out = self.fork(memory, n, horizon, goal), None
            fork.learn = learn
            actions, steps = [], []
            for h in range(horizon):
                actions.append(choose(h, out).detach())
                out, frame = self.step(
                    fork, actions[-1], denoise, decode, generator, last=h == horizon - 1
                )
                steps.append(Step(out, frame))
        return _rollout(torch.stack(actions, 2), steps)

    def _blank(self, like: Tensor) -> Tensor:
        """Tokens of a frame of which nothing is known, [..., S, D]"""
        return self.embed.bias.expand(*like.shape[:-1], self.patches.tokens, -1)

    def _reembed(self, x: Tensor) -> Tensor:
        """`embed(_predict(x))` without going through pixels."""
        weight = self.embed.weight @ self.unembed.weight
        return F.linear(
            F.layer_norm(x, x.shape[-1:]), weight, self.embed(self.unembed.bias)
        )

    def _predict(self, x: Tensor) -> Tensor:
        """The clean patches [..., S, P] that tokens [..., S, D] stand for."""
        return self.unembed(F.layer_norm(x, x.shape[-1:]))

    def _recall(
        self,
        fork: RolloutState,
        x: Tensor,
        level: float,
        action: Tensor,
        commit: bool,
        read: bool = True,
    ) -> Tensor:
        """One imagined frame x [B, n, S, D] at a noise level through all blocks; with `commit` it is remembered, and
        unless `read`, that is all that it is for."""
        condition = self.act(action) + self._level(
            torch.full(action.shape[:2], level, device=x.device, dtype=x.dtype)
        )
        assert (
            fork.traces is not None and fork.seen is not None and fork.reach is not None
        )
        made = self._made(action, fork.reach)
        if commit:
            fork.reach = self._reach(
                x, torch.ones_like(action[..., 0], dtype=torch.bool)
            )
        x = x + self.place + condition[..., None, :]
        for i, (block, cache) in enumerate(zip(self.layers, fork.traces)):
            read_layer = read or i < len(self.layers) - 1
            frame = RolloutInputs(made, fork.seen, commit, read_layer)
            x = block.imagine_step(x, condition, frame, cache)
        return x

    # ---- training

    def loss(
        self,
        batch: Batch,
        memory: Memory | None = None,
        hidden: Tensor | None = None,
        generator: torch.Generator | None = None,
        forget: Tensor | None = None,
        foresee: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor], Memory]:
        """One interleaved scan over two copies of every frame, one to be denoised and one to be remembered: loss,
        metrics, memory. The second is clean (teacher forcing), or noisy as well (`forcing` diffusion).

        `memory` [B] carries on from an earlier segment (gradient cut at the seam), `hidden` [B, T] frames are
        neither written nor attended to, but still predicted; memory is erased before `forget` [B, T] frames. With
        `foresee`, a share `imagined` of the frames is remembered as foreseen.
        """
        memory = self.initial(len(batch.pixels)) if memory is None else memory.detach()
        patches = self.patches.cut(batch.pixels)
        x, level = self._copies(patches, generator)
        tokens = x[:, :, 1]
        counted = torch.ones_like(batch.is_first)
        diffusion = self.config.forcing != "teacher"
        if diffusion:
            prefix = self.config.forcing == "diffusion_prefix"
            prefix_prob = noise.CLEAN_PREFIX_PROB if prefix else 0.0
            x, level, counted = noise.equally(
                self.embed, x[:, :, 1], prefix_prob, generator
            )
        clean = torch.ones_like(batch.is_first) if hidden is None else ~hidden
        reach = self._reach(
            tokens, clean
        )  # of frames remembered as foreseen, too: it was there
        if self.config.self_forcing_prob and foresee and self.training:
            span = noise.spans(
                batch.is_first,
                self.config.self_forcing_prob,
                self.config.self_forcing_span,
                generator,
            )
            x, level = self._with_foreseen(
                x, level, span, batch, clean, memory, forget, reach
            )
        tokens = x[:, :, 1] if self.config.forcing == "teacher" else tokens
        x, memory = self._run(
            x, level, batch.action, batch.is_first, clean, memory, forget, reach
        )
        noisy, remembered = x.unbind(2)
        foreseen, seen = self.heads(noisy), self.heads(remembered)
        target = self._value_target(seen, batch)
        blank = counted if diffusion else level[:, :, 0] == 0
        true = clean & (level[:, :, 1] == 1)
        of_seen, _ = self._head_losses(seen, target, batch, true)
        losses, metrics = self._head_losses(foreseen, target, batch, blank)
        losses = {key: of_seen[key] + value for key, value in losses.items()}
        known = blank & ~batch.is_first
        if self.distance is not None:
            goals = self._embed_frames(patches), batch.is_first
            losses["distance"] = self._distance_loss(
                self.distance, ((noisy, blank), (remembered, true)), *goals, generator
            )
        losses["frame"], error, of_frames = self._frame_loss(
            noisy, patches, counted, known, generator
        )
        if self.config.loss.coarse:
            losses["coarse"] = self._coarse_loss(noisy, patches, counted)
        metrics |= of_frames
        if self.reach is not None:
            losses["action_limits"] = reaching.loss(self, tokens, batch, generator)
        if foreseen.log_error is not None:
            gap = foreseen.log_error - torch.log(error + 1e-4)
            losses["surprise"] = _mean(gap.square(), known.to(gap.dtype))
        weights = dataclasses.asdict(self.config.loss) | FIXED_WEIGHTS
        total = sum(
            (weights[k] * v for k, v in losses.items()),
            torch.zeros((), device=x.device),
        )
        metrics |= {f"loss/{k}": v.detach() for k, v in losses.items()}
        return total, metrics | {"loss/total": total.detach()}, memory

    def _copies(self, patches: Tensor, generator) -> tuple[Tensor, Tensor]:
        """Embedded noisy and clean copies [B, T, 2, S, D] of uint8 patches [B, T, S, P], and their noise levels.

        Most noisy copies are blank (level 0): the frame must come from memory alone, as in one-step imagination.
        The others mix frame and noise. A few clean sequences are disturbed a little, so that the model tolerates
        its own imperfect frames.
        """
        b, t = patches.shape[:2]
        make = {
            "generator": generator,
            "device": patches.device,
            "dtype": self.embed.weight.dtype,
        }
        partly = torch.rand(b, t, **make) < noise.DENOISING_FRACTION
        level = torch.rand(b, t, **make) * partly
        clean, blank = self._embed_frames(patches), self.embed.bias
        noisy = torch.where(
            partly[..., None, None],
            noise.noised(self.embed, clean, level, generator),
            blank,
        )
        if self.config.context_noise and self.training:
            few = max(1, b // 8)
            amount = self.config.context_noise * torch.rand(few, 1, 1, 1, **make)
            clean = torch.cat(
                (
                    clean[:few]
                    + amount * noise.noise(self.embed, clean[:few], generator),
                    clean[few:],
                )
            )
        return torch.stack((noisy, clean), 2), torch.stack(
            (level, torch.ones_like(level)), 2
        )

    def _with_foreseen(
        self, x, level, span, batch: Batch, clean, memory: Memory, forget, reach=None
    ):
        """The copies, those to be remembered in a `span` [B, T] replaced by what is foreseen from before it.

        That is what imagination remembers. A foreseen frame is no evidence: without this, a model that foresees one
        of two things which may be there takes it for seen, and plans as if it knew.
        """
        with torch.no_grad():
            blank = torch.stack((self._blank(x[:, :, 1, 0]), x[:, :, 1]), 2)
            levels = torch.stack((torch.zeros_like(level[:, :, 0]), level[:, :, 1]), 2)
            out, _ = self._run(
                blank,
                levels,
                batch.action,
                batch.is_first,
                clean & ~span,
                memory,
                forget,
                reach,
            )
            foreseen = self._reembed(out[:, :, 0])
        remembered = torch.where(span[..., None, None], foreseen, x[:, :, 1])
        trust = torch.where(span, FORESEEN, level[:, :, 1])
        return torch.stack((x[:, :, 0], remembered), 2), torch.stack(
            (level[:, :, 0], trust), 2
        )

    def _frame_loss(
        self, x: Tensor, patches: Tensor, counted: Tensor, known: Tensor, generator
    ):
        """Squared error of the predicted frames that are `counted` [B, T], on a random share of the pixels, rare
        colours weighing more; the plain error [B, T]; and metrics, of the frames predicted from memory alone (`known`
        [B, T]): PSNR, and `late`, the error in the last quarter of the sequences."""
        channels, pixels = self.frame_shape[0], self.patches.patch**2
        some = torch.randperm(pixels, generator=generator, device=x.device)[
            : int(pixels * self.config.pixel_fraction)
        ]
        where = (
            torch.arange(channels, device=x.device)[:, None] * pixels + some
        ).flatten()
        true = patches.gather(
            -1, where.expand(*patches.shape[:-1], -1)
        )  # [B, T, S, C m]
        weight, bias = (v[where] for v in self.unembed.parameters())
        predicted = F.linear(F.layer_norm(x, x.shape[-1:]), weight, bias)
        colours = true.unflatten(-1, (channels, -1))
        rare = (
            self.rarity(colours).expand_as(colours).flatten(-2)
            if self.config.rare_colour_power
            else None
        )
        error, plain = squares(
            predicted, self.patches.scaled(true, x.dtype, some), rare
        )
        plain, known = self.patches.squared(plain), known.to(plain.dtype)
        quarter = x.shape[1] * 3 // 4
        metrics = {
            "psnr": -10 * torch.log10(_mean(plain, known) / 4 + 1e-9),
            "late": _mean(plain[:, quarter:], known[:, quarter:]),
        }
        return _mean(error, counted.to(error.dtype)), plain, metrics

    def _coarse_loss(self, x: Tensor, patches: Tensor, counted: Tensor) -> Tensor:
        """Squared error of the predicted frames averaged over COARSE x COARSE fields of each patch.

        A dot of few pixels, misplaced, is as wrong anywhere: the frame loss tells no way towards it. Seen coarsely,
        what is near is less wrong.
        """
        channels, p = self.frame_shape[0], self.patches.patch

        def pool(v: Tensor) -> Tensor:  # [..., C * p * p] -> [..., C * COARSE ** 2]
            fields = F.adaptive_avg_pool2d(v.reshape(-1, channels, p, p), COARSE)
            return fields.reshape(*v.shape[:-1], -1)

        weight, bias = pool(self.unembed.weight.T).T, pool(self.unembed.bias)
        true = pool(self.patches.scaled(patches, x.dtype))
        error = (F.linear(F.layer_norm(x, x.shape[-1:]), weight, bias) - true).square()
        return _mean(error.flatten(2).mean(-1), counted.to(error.dtype))

    def _distance_loss(
        self, head: Distance, streams, goals: Tensor, is_first: Tensor, generator
    ) -> Tensor:
        """Of frames foreseen and, last, seen (x [B, T, S, D], valid [B, T]): the steps to other frames."""
        aims, seen = head.aim(goals), streams[-1][0]
        parts = [
            head.loss(x, seen, aims, is_first, valid, generator) for x, valid in streams
        ]
        return torch.stack(parts).sum()

    def _value_target(self, seen: HeadOutputs, batch: Batch) -> Tensor:
        discount, value = self.config.discount, seen.value.detach()
        return lambda_returns(
            batch.reward, batch.terminated, batch.is_first, value, discount, TD_LAMBDA
        )

    def _head_losses(
        self, out: HeadOutputs, target: Tensor, batch: Batch, valid: Tensor
    ):
        """Cross entropy of reward, continue, value and policy where `valid` [B, T]; first frames have no reward."""
        c = self.config
        arrived = (valid & ~batch.is_first).float()
        event = (batch.reward != 0) | batch.terminated
        weight = arrived * (1 + (c.event_weight - 1) * event.float())
        reward_loss = _cross_entropy(out.reward_logits, two_hot(batch.reward, out.bins))
        alive = (~batch.terminated).float()
        cont_loss = F.binary_cross_entropy_with_logits(
            out.continue_logit.float(), alive, reduction="none"
        )
        value_loss = _cross_entropy(out.value_logits, two_hot(target, out.bins))
        going = valid & ~batch.terminated & ~batch.truncated
        acts = (going[:, :-1] & ~batch.is_first[:, 1:]).float()
        better = torch.exp(
            (target - out.value.detach())[:, :-1] / ADVANTAGE_TEMPERATURE
        ).clamp(max=5.0)
        policy_loss = self._policy_loss(out.policy[:, :-1], batch.action[:, 1:])
        losses = {
            "reward": _mean(reward_loss, weight),
            "cont": _mean(cont_loss, weight),
            "value": _mean(value_loss, going.float()),
            "policy": _mean(policy_loss, acts * better),
        }
        hit = ((out.reward - batch.reward).abs() < 0.5).float()
        metrics = {
            "event_accuracy": _mean(hit, arrived * event),
            "events": (arrived * event).sum(),
        }
        return losses, {k: v.detach() for k, v in metrics.items()}

    def _policy_loss(self, policy: Tensor, action: Tensor) -> Tensor:
        if self.discrete:
            return F.cross_entropy(
                policy.flatten(0, 1), action.flatten(), reduction="none"
            ).view(action.shape)
        return (policy - action).square().sum(-1)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp(min=1.0)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * torch.log_softmax(logits.float(), -1)).sum(-1)


def _visibility(seen: Tensor, writes: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the k-1 frames before may each frame look at, [B, T, k-1]; and the flags to carry on, [B, k-1].

    A frame is visible if it was written and no episode began since.
    """
    m, t = seen.shape[1], writes.shape[1]
    flags = torch.cat((seen, writes), 1)
    episode = F.pad(reset.long().cumsum(1), (m, 0))
    same = [
        flags[:, j : j + t] & (episode[:, j : j + t] == episode[:, m:])
        for j in range(m)
    ]
    visible = torch.stack(same, -1) if m else flags.new_zeros(*writes.shape, 0)
    return visible, (flags & (episode == episode[:, -1:]))[:, t:]
