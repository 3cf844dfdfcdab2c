"""The layers of LSSVWM (arXiv 2505.20171): block-wise SSM scan -> frame-local attention -> MLP.

Shapes
    x [B, T, R, S, D]   B sequences, T frames, R streams, S tokens per frame, D width.
                        Streams stand in scan order: (noisy, clean) in training, one of the two otherwise.
    writes [B, T]       the last copy of the frame goes into memory (it is not hidden); the one before only reads
    reset [B, T]        an episode begins with this frame
    G, s                tiles per frame, tokens per tile (G * s = S)

A block's first layer is a `Mixer`: what carries memory over time. Here that is the tiled scan; `baselines` has others.
Every layer has two ways through it. `forward` takes whole sequences and carries memory from left to right.
`recall` takes one imagined frame of n candidates that share one memory. The memory is only read; what a candidate
imagined is kept beside it, as tokens (`TokenCache`) or in a state of its own (`StateCache`).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from einops import rearrange
from lssvwm.worldmodel.fused_ops import addcmul, rotate
from lssvwm.worldmodel.scan import backends
from lssvwm.worldmodel.scan import chunked as ssm
from torch import Tensor, nn
from torch.nn import functional as F


class Mixer(Protocol):
    """What a block remembers by: `initial` memory, whole sequences through `__call__`, imagination by `trace` and
    `recall`. A trace is whatever the mixer keeps of what n candidates imagined; its `select` goes on with some of them,
    int64 [B, m], once or more often."""

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]: ...
    def __call__(
        self,
        u: Tensor,
        action: Tensor,
        writes: Tensor,
        reset: Tensor,
        memory: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> Any: ...
    def recall(self, u: Tensor, action: Tensor, trace: Any, commit: bool) -> Tensor: ...


class TokenCache:
    """What n candidates imagined, token by token, beside the memory that they share (SSD's attention-like form)."""

    def __init__(self, state: Tensor, pose: Tensor, n: int, tokens: int):
        """state [B, G, h, p, N] and pose [B, G, 3] of the shared memory, never written; at most `tokens` a tile."""
        b, g, h, p, size = state.shape
        self.state, self.pose, self.used = state, pose[:, None].expand(-1, n, -1, -1), 0
        self.keys = state.new_empty(b, n, g, tokens, size)
        self.values = state.new_empty(b, n, g, h, tokens, p)
        self.decay = state.new_empty(
            b, n, g, h, tokens
        )  # log decay from the fork to each token
        self.total = state.new_zeros(b, n, g, h)  # and to now

    def read(self, C: Tensor) -> Tensor:
        """C [B, n, G, s, N] -> [B, n, G, h, s, p]"""
        Y = (
            torch.einsum("bkgsn,bghpn->bkghsp", C, self.state)
            * torch.exp(self.total)[..., None, None]
        )
        if not self.used:
            return Y
        fade = torch.exp(
            self.total[..., None] - self.decay[..., : self.used]
        )  # [B, n, G, h, used]
        weight = (C @ self.keys[..., : self.used, :].transpose(-1, -2))[
            ..., None, :, :
        ] * fade[..., None, :]
        return Y + weight @ self.values[..., : self.used, :]

    def write(self, values: Tensor, B: Tensor, line: Tensor) -> None:
        """values [B, n, G, h, s, p], keys B [B, n, G, s, N], line [B, n, G, h, s]: log decay since the frame began."""
        new = slice(self.used, self.used + B.shape[3])
        self.keys[..., new, :] = B
        self.values[..., new, :] = values
        self.decay[..., new] = self.total[..., None] + line
        self.total, self.used = self.total + line[..., -1], new.stop

    def select(self, which: Tensor) -> None:
        """Go on with candidates which [B, m]."""
        for name in ("keys", "values", "decay", "total", "pose"):
            setattr(self, name, pick(getattr(self, name), which))

    def nbytes(self) -> int:
        """Bytes that all candidates take beside the shared memory."""
        return sum(
            v.numel() * v.element_size()
            for v in (self.keys, self.values, self.decay, self.total)
        )


class StateCache:
    """A state of its own for every candidate, from its first imagined frame on."""

    def __init__(self, state: Tensor, pose: Tensor, n: int):
        self.shared, self.pose = state, pose[:, None].expand(-1, n, -1, -1)
        self.state: Tensor | None = None  # [B, n, G, h p, N]

    @classmethod
    def of(cls, state: Tensor, pose: Tensor) -> StateCache:
        """One candidate for each memory, whose state is written over."""
        own = cls(state, pose, 1)
        own.state = state.flatten(2, 3)[:, None]
        return own

    def read(self, C: Tensor) -> Tensor:
        if self.state is None:
            return torch.einsum("bkgsn,bghpn->bkghsp", C, self.shared)
        Y = C @ self.state.transpose(-1, -2)  # [B, n, G, s, h p]
        return Y.unflatten(-1, self.shared.shape[2:4]).transpose(-2, -3)

    def write(self, values: Tensor, B: Tensor, line: Tensor) -> None:
        decay = torch.exp(line[..., -1]).repeat_interleave(values.shape[-1], -1)[
            ..., None
        ]  # [B, n, G, h p, 1]
        V = values * torch.exp(line[..., -1:] - line)[..., None]
        V = V.transpose(-1, -2).flatten(3, 4)  # [B, n, G, h p, s]
        first = self.state is None
        state = self.shared.flatten(2, 3)[:, None] if self.state is None else self.state
        state = state * decay if first or torch.is_grad_enabled() else state.mul_(decay)
        V, B = V.flatten(0, 2), B.flatten(0, 2)
        if torch.is_grad_enabled():
            self.state = torch.baddbmm(state.flatten(0, 2), V, B).unflatten(
                0, state.shape[:3]
            )
        else:
            state.flatten(0, 2).baddbmm_(V, B)
            self.state = state

    def select(self, which: Tensor) -> None:
        """Go on with candidates which [B, m]."""
        self.pose = pick(self.pose, which)
        self.state = None if self.state is None else pick(self.state, which)

    def nbytes(self) -> int:
        return (
            0 if self.state is None else self.state.numel() * self.state.element_size()
        )


def pick(x: Tensor, which: Tensor) -> Tensor:
    """Entries which [B, m] of x [B, n, ...]: [B, m, ...]"""
    rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return (
        x.flatten(0, 1)
        .index_select(0, (rows + which).flatten())
        .unflatten(0, which.shape)
    )


class PathIntegrator(nn.Module):
    """Where the agent is, in a plane of the model's own making, summed up from its motion; and so, where to look.

    A frame turns the heading by an angle and moves the position by a step, seen from the agent:
        heading += turn(action),    position += rotate(step(action), heading) * free(frame)
    where the frame may say that a wall was in the way (`walls`; of continuous actions, what walls stop is taken away
    before: `reach`). What is `known` of an action's motion is not trained: an error of a tenth of a degree adds up to a
    wrong heading over a thousand frames. A token of the frame lies at an offset from the agent (at first: its place in
    the token grid), and its phases are r plane waves at that point:
        phase_k = waves (position + rotate(offset_k, heading))
    which makes keys of places in the way grid cells do, or RoPE for an image that the agent carries about.
    """

    def __init__(self, width: int, actions: int, tile: int, phases: int, walls: bool):
        super().__init__()
        self.action = nn.Linear(
            actions, 3, bias=False
        )  # from the action itself: one-hot, or its numbers
        self.known: Tensor
        self.register_buffer("known", torch.zeros(actions, dtype=torch.bool))
        self.frame = nn.Linear(width, 1) if walls else None
        nn.init.normal_(self.action.weight, std=0.1)
        with (
            torch.no_grad()
        ):  # where an episode begins, nothing moves: all layers count from there
            self.action.weight[:, -1] = 0.0
            self.known[-1] = True
        if self.frame is not None:
            nn.init.zeros_(self.frame.weight)
            nn.init.constant_(
                self.frame.bias, 4.0
            )  # free, until training says otherwise
        rows, cols = torch.meshgrid(
            torch.arange(tile), torch.arange(tile), indexing="ij"
        )
        place = torch.stack((tile - 1 - rows, cols - (tile - 1) / 2), -1).flatten(
            0, 1
        )  # ahead, to the right
        self.offset = nn.Parameter(place.float())
        length, direction = (
            math.pi * torch.rand(phases).sqrt(),
            2 * math.pi * torch.rand(phases),
        )
        self.waves = nn.Parameter(
            torch.stack((length * direction.cos(), length * direction.sin()))
        )

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        state_dict.setdefault(
            prefix + "known", torch.zeros_like(self.known)
        )  # weights from before it was kept
        if self.frame is None:  # weights from before walls took away from actions
            for name in ("frame.weight", "frame.bias"):
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def motion(self, action: Tensor) -> Tensor:
        """Turn and step [..., 3] of actions [..., A]"""
        weight = self.action.weight
        return F.linear(action, torch.where(self.known, weight.detach(), weight))

    def free(self, u: Tensor) -> Tensor:
        """Which part of a step frames let the agent take, [..., G, 1], by their tokens u [..., G, s, D]."""
        if self.frame is None:
            return self.action.weight.new_ones(*u.shape[:-2], 1)
        return torch.sigmoid(self.frame(at_least_float(u.mean(-2))))

    def move(self, u: Tensor, action: Tensor, pose: Tensor) -> Tensor:
        """Pose [..., G, 3] (heading, position) after a frame of tokens u [..., G, s, D], reached by action [..., A]."""
        motion = self.motion(action).unsqueeze(-2)
        heading = pose[..., :1] + motion[..., :1]
        step = turn(motion[..., 1:], heading)
        return torch.cat((heading, pose[..., 1:] + step * self.free(u)), -1)

    def phases(self, pose: Tensor) -> Tensor:
        """Phases of the tokens of a frame, [..., G, s, r], at a pose [..., G, 3]."""
        points = pose[..., None, 1:] + turn(self.offset, pose[..., None, :1])
        return points @ self.waves

    def forward(
        self, u: Tensor, action: Tensor, writes: Tensor, reset: Tensor, pose: Tensor
    ):
        """u [B, T, R, G, s, D], action [B, T, A], pose [B, G, 3] -> poses [B, T, R, G, 3], last.

        The written copy of a frame moves the agent on, or the action alone where none is written; every copy looks
        from where it would be itself.
        """
        motion = self.motion(action)[:, :, None]  # [B, T, 1, 3]
        heading = _sum_before(motion[..., :1], reset, pose[:, :1, :1]) + motion[..., :1]
        step = turn(motion[..., 1:], heading)
        free = self.free(u)  # [B, T, R, G, 1]
        kept = step * torch.where(writes[..., None, None], free[:, :, -1], 1.0)
        before = _sum_before(kept, reset, pose[..., 1:])
        positions = before[:, :, None] + step[:, :, None] * free
        headings = heading[:, :, None].expand(*positions.shape[:-1], 1)
        final = torch.remainder(heading[:, -1], 2 * math.pi).expand_as(pose[..., :1])
        return torch.cat((headings, positions), -1), torch.cat(
            (final, (before + kept)[:, -1]), -1
        )


def at_least_float(v: Tensor) -> Tensor:
    return v.float() if v.dtype == torch.bfloat16 else v


def turn(v: Tensor, angle: Tensor) -> Tensor:
    """Rotate v [..., 2] by angle [..., 1]."""
    a, b = v[..., :1], v[..., 1:]
    return torch.cat(
        (angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b), -1
    )


def _sum_before(steps: Tensor, reset: Tensor, start: Tensor) -> Tensor:
    """What the steps [B, T, G, n] before each frame sum up to, from `start` [B, G, n] or, after a reset, from zero."""
    before = start[:, None] + steps.cumsum(1) - steps
    t = torch.arange(1, reset.shape[1] + 1, device=steps.device)
    last = (reset * t).cummax(1).values[..., None, None].expand_as(before)
    return before - F.pad(before, (0, 0, 0, 0, 1, 0)).gather(1, last)


class TiledSSD(nn.Module):
    """Mamba-2 scan of every `tile x tile` block of tokens over time, each block with its own state (section 3.2).

    Differences from Mamba-2, all for reading and writing by frames: no short convolution (it would leak noisy tokens
    into clean ones); keys and queries are normalised; and the leading pairs of both are rotated by a phase that stands
    for a place (data-dependent rotation as in Mamba-3, here by path integration: `PathIntegrator`), so that what was
    written can be found again by where it is.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        tile: int,
        state: int,
        head: int,
        expand: int,
        rotary: float,
        actions: int,
        walls: bool = True,
    ):
        super().__init__()
        if grid[0] % tile or grid[1] % tile:
            raise ValueError(
                f"tile {tile} does not divide the token grid {grid[0]} x {grid[1]}"
            )
        self.grid, self.tile, self.state, self.head = grid, tile, state, head
        self.inner = expand * width
        self.heads = self.inner // head
        self.angles = int(rotary * state) // 2
        self.scan: backends.Scan = ssm.chunked
        self.project = nn.Linear(
            width, 2 * self.inner + 2 * state + self.heads, bias=False
        )
        self.odometer = PathIntegrator(width, actions, tile, self.angles, walls)
        self.scale_B = nn.Parameter(torch.ones(state))
        self.scale_C = nn.Parameter(torch.ones(state))
        self.shift_B = nn.Parameter(torch.zeros(state))
        self.shift_C = nn.Parameter(torch.zeros(state))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.A_log = nn.Parameter(
            torch.linspace(math.log(0.001), math.log(0.2), self.heads)
        )
        dt = torch.exp(torch.linspace(math.log(0.3), math.log(0.05), self.heads))
        self.dt_bias = nn.Parameter(
            dt + torch.log(-torch.expm1(-dt))
        )  # inverse of softplus
        self.out = nn.Linear(self.inner, width, bias=False)
        with (
            torch.no_grad()
        ):  # at first, a place's key is the place itself, not what is there
            for scale, shift in (
                (self.scale_B, self.shift_B),
                (self.scale_C, self.shift_C),
            ):
                scale[: 2 * self.angles], shift[: self.angles] = 0.2, 1.0

    @property
    def tiles(self) -> int:
        return (self.grid[0] // self.tile) * (self.grid[1] // self.tile)

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """No memory yet: state [B, G, h, p, n] and pose [B, G, 3]."""
        state = like.new_zeros(batch, self.tiles, self.heads, self.head, self.state)
        return {"state": state, "pose": like.new_zeros(batch, self.tiles, 3)}

    def cut(self, x: Tensor) -> Tensor:
        """[..., S, d] -> [..., G, s, d]"""
        if self.tile == 1:
            return x.unsqueeze(-2)
        h, w = self.grid
        if self.tile == h == w:
            return x.unsqueeze(-3)
        lead = x.shape[:-2]
        x = x.reshape(-1, h, w, x.shape[-1])
        x = rearrange(
            x, "b (gh th) (gw tw) d -> b (gh gw) (th tw) d", th=self.tile, tw=self.tile
        )
        return x.reshape(*lead, *x.shape[1:])

    def join(self, x: Tensor) -> Tensor:
        """[..., G, s, d] -> [..., S, d]"""
        if self.tile == 1:
            return x.squeeze(-2)
        h, w = self.grid
        if self.tile == h == w:
            return x.squeeze(-3)
        lead, t = x.shape[:-3], self.tile
        x = x.reshape(-1, *x.shape[-3:])
        x = rearrange(x, "b (gh gw) (th tw) d -> b (gh th gw tw) d", gw=w // t, th=t)
        return x.reshape(*lead, *x.shape[1:])

    def inputs(self, u: Tensor):
        """u [..., S, D] -> gate z [..., S, inner] and, by tiles, X, dt, B, C [..., G, s, .]."""
        n, h = self.state, self.heads
        z, xbc = self.project(u).split([self.inner, self.inner + 2 * n + h], -1)
        X, B, C, dt = self.cut(xbc).split([self.inner, n, n, h], -1)
        B = F.layer_norm(B, (n,), self.scale_B, self.shift_B)
        return z, self._values(X), F.softplus(dt + self.dt_bias), B, self._normalised(C)

    def queries(self, u: Tensor):
        """Of `inputs`, what a copy needs that only reads: z, X, C."""
        n, inner = self.state, self.inner
        zx, _, c, _ = self.project.weight.split([2 * inner, n, n, self.heads])
        z, xc = F.linear(u, torch.cat((zx, c))).split([inner, inner + n], -1)
        X, C = self.cut(xc).split([inner, n], -1)
        return z, self._values(X), self._normalised(C)

    def _values(self, X: Tensor) -> Tensor:
        return F.silu(X).unflatten(-1, (self.heads, self.head))

    def _normalised(self, C: Tensor) -> Tensor:
        return F.layer_norm(C, (self.state,), self.scale_C, self.shift_C) / math.sqrt(
            self.state
        )

    def finish(self, Y: Tensor, X: Tensor, z: Tensor) -> Tensor:
        """Y, X [..., G, s, h, p], z [..., S, inner] -> [..., S, D]"""
        y = self.join(addcmul(Y, X, self.D[:, None].to(X.dtype)).flatten(-2))
        return self.out(F.layer_norm(y * F.silu(z), (self.inner,)))

    def forward(
        self,
        u: Tensor,
        action: Tensor,
        writes: Tensor,
        reset: Tensor,
        memory: dict[str, Tensor],
    ):
        *reader, writer = u.unbind(2)  # a slice would cost whole tensors going backward
        z, X, dt, B, C = self.inputs(writer)
        z0, X0, C0 = self.queries(reader[0]) if reader else (z, X, C)
        with torch.autocast(
            u.device.type, enabled=False
        ):  # sums over thousands of frames: bf16 would ruin memory
            dt, B, C, C0 = (at_least_float(v) for v in (dt, B, C, C0))
            poses, pose = self.odometer(
                self.cut(u), action, writes, reset, memory["pose"]
            )
            *peeking, phase = self.odometer.phases(poses).unbind(2)
            B, C = rotate(B, phase), rotate(C, phase)
            peek = [
                rearrange(rotate(C0, v), "b t g s n -> (b g) t s n") for v in peeking
            ]
        dt = dt * writes.to(dt.dtype)[..., None, None, None]
        values, dt, B, C = (
            rearrange(v, "b t g s ... -> (b g) (t s) ...") for v in (X, dt, B, C)
        )
        starts = (
            F.pad(reset[..., None], (0, self.tile**2 - 1))
            .flatten(1)
            .repeat_interleave(self.tiles, 0)
        )
        Y, S, *Y0 = self.scan(
            values,
            dt,
            -torch.exp(self.A_log),
            B,
            C,
            memory["state"].flatten(0, 1),
            starts,
            *peek,
        )
        read = [(Y0[0], X0, z0)] if reader else []
        b, t = reset.shape
        out = [
            self.finish(
                rearrange(y, "(b g) (t s) h p -> b t g s h p", b=b, t=t), x, gate
            )
            for y, x, gate in (*read, (Y, X, z))
        ]
        return torch.stack(out, 2), {"state": S.unflatten(0, (b, -1)), "pose": pose}

    def trace(
        self, memory: dict[str, Tensor], n: int, frames: int
    ) -> TokenCache | StateCache:
        """Whichever takes less memory by the end of the horizon: the imagined tokens, or a state of one's own."""
        tokens = frames * self.tile**2
        if tokens * (self.state + self.inner + self.heads) < self.inner * self.state:
            return TokenCache(memory["state"], memory["pose"], n, tokens)
        return StateCache(memory["state"], memory["pose"], n)

    def recall(
        self, u: Tensor, action: Tensor, trace: TokenCache | StateCache, commit: bool
    ) -> Tensor:
        """u [B, n, S, D] -> the same shape; with `commit` the frame becomes part of what the candidate remembers."""
        z, X, *writing, C = self.inputs(u) if commit else self.queries(u)
        with torch.autocast(u.device.type, enabled=False):
            pose = self.odometer.move(self.cut(u), action, trace.pose)
            phase = self.odometer.phases(pose)
            C = rotate(at_least_float(C), phase)
            Y = trace.read(C)
            if commit:
                dt, B = (at_least_float(v) for v in writing)
                B, values = (
                    rotate(B, phase),
                    (at_least_float(X) * dt[..., None]).transpose(-2, -3),
                )
                line = (
                    (dt * -torch.exp(self.A_log)).transpose(-1, -2).cumsum(-1)
                )  # [B, n, G, h, s] decay in the frame
                later = torch.ones(
                    X.shape[3], X.shape[3], dtype=torch.bool, device=X.device
                ).triu(1)
                gap = (line[..., :, None] - line[..., None, :]).masked_fill(
                    later, float("-inf")
                )
                own = (
                    (C @ B.transpose(-1, -2))[..., None, :, :] * torch.exp(gap)
                ) @ values
                Y = Y * torch.exp(line)[..., None] + own
                trace.write(values, B, line)
                trace.pose = pose
        return self.finish(Y.transpose(-2, -3), X, z)


class LocalAttention(nn.Module):
    """Attention of a frame's tokens to each other and to the `window - 1` frames before (section 3.3).

    A noisy copy sees itself and the clean copies of the frames before; nothing sees another frame's noisy copy.
    """

    def __init__(self, width: int, tokens: int, window: int, heads: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(
            torch.zeros(heads, tokens, window * tokens)
        )  # last `tokens` keys: the own frame

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """No frames yet: key and value [B, k-1, h, S, d]."""
        tokens, size = self.bias.shape[1], self.out.in_features // self.heads
        shape = (batch, self.window - 1, self.heads, tokens, size)
        return {"key": like.new_zeros(shape), "value": like.new_zeros(shape)}

    def split(self, u: Tensor):
        """u [..., R, S, D] -> q, k, v [..., h, R, S, d]"""
        x = self.qkv(u).unflatten(-1, (3, self.heads, -1))
        n = x.dim()
        return (
            x.permute(n - 3, *range(n - 5), n - 2, n - 5, n - 4, n - 1)
            .contiguous()
            .unbind(0)
        )

    def attend(
        self,
        q: Tensor,
        own: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor],
        visible: Tensor,
    ) -> Tensor:
        """q, own [..., h, R, S, d], past [..., h, (k-1) S, d], visible [..., (k-1) S] -> [..., R, S, D]"""
        r, s = q.shape[-3:-1]
        q = q / math.sqrt(q.shape[-1])
        far = (q.flatten(-3, -2) @ past[0].transpose(-1, -2)).unflatten(-2, (r, s))
        near = q @ own[0].transpose(-1, -2)
        bias = self.bias[:, None].expand(
            -1, r, -1, -1
        )  # by stream, so that its gradient sums over leading sizes only
        shown = torch.zeros_like(visible, dtype=bias.dtype).masked_fill(
            ~visible, float("-inf")
        )
        score = (
            torch.cat((far, near), -1)
            + bias
            + F.pad(shown, (0, s))[..., None, None, None, :]
        )
        weight = torch.softmax(score, -1)
        old, new = weight.split([weight.shape[-1] - s, s], -1)
        y = (old.flatten(-3, -2) @ past[1]).unflatten(-2, (r, s)) + new @ own[1]
        return self.out(y.movedim(-4, -2).flatten(-2))

    def forward(self, u: Tensor, visible: Tensor, memory: dict[str, Tensor]):
        """u [B, T, R, S, D], visible [B, T, k-1] -> the same shape as u, and the last frames' keys and values.
        The last stream is the one later frames may look at."""
        t, m, s = u.shape[1], self.window - 1, u.shape[3]
        q, k, v = self.split(u)
        past, carried = [], {}
        for name, own in (("key", k), ("value", v)):
            line = torch.cat(
                (memory[name].to(own.dtype), own[:, :, :, -1]), 1
            )  # [B, m + T, h, S, d]
            carried[name] = line[:, line.shape[1] - m :].to(memory[name].dtype)
            past.append(
                torch.cat([line[:, j : j + t] for j in range(m)], -2)
                if m
                else line[:, :t, :, :0]
            )
        return self.attend(
            q, (k, v), (past[0], past[1]), visible.repeat_interleave(s, -1)
        ), carried

    def recall(
        self,
        u: Tensor,
        trace: dict[str, Tensor],
        visible: Tensor,
        commit: bool,
        read: bool = True,
    ) -> Tensor:
        """u [B, n, S, D], visible [B, n, k-1]; trace holds key, value [B, n, k-1, h, S, d] of the last frames. Unless
        `read`, what comes out is of no use."""
        q, k, v = self.split(u[:, :, None])
        y = u[:, :, None]
        if read:
            past = [
                rearrange(trace[x], "b n k h s d -> b n h (k s) d")
                for x in ("key", "value")
            ]
            y = self.attend(
                q, (k, v), (past[0], past[1]), visible.repeat_interleave(u.shape[2], -1)
            )
        if commit:
            trace["key"] = torch.cat((trace["key"], k.movedim(-3, -4)), 2)[:, :, 1:]
            trace["value"] = torch.cat((trace["value"], v.movedim(-3, -4)), 2)[:, :, 1:]
        return y[:, :, 0]


class Block(nn.Module):
    """Scan, attention (if any) and MLP, each on a residual path; scale, shift and gate come from the condition."""

    def __init__(
        self, width: int, mlp: float, scan: Mixer, attention: LocalAttention | None
    ):
        super().__init__()
        self.scan, self.attention = scan, attention
        hidden = round(mlp * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.modulate = nn.Linear(width, 9 * width)
        nn.init.normal_(self.modulate.weight, std=0.3 / math.sqrt(width))
        with torch.no_grad():
            self.modulate.bias.zero_()
            self.modulate.bias[6 * width :].fill_(0.5)  # gates start half open

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """What the block remembers at first, on the device and in the type of `like`."""
        memory = self.scan.initial(batch, like)
        return (
            memory | self.attention.initial(batch, like) if self.attention else memory
        )

    def trace(
        self, memory: dict[str, Tensor], n: int, frames: int
    ) -> tuple[Any, dict[str, Tensor]]:
        """For n candidates that imagine at most `frames` frames: what they remember of their own."""
        local = ("key", "value") if self.attention else ()
        return self.scan.trace(memory, n, frames), {
            key: memory[key][:, None].expand(-1, n, *memory[key].shape[1:])
            for key in local
        }

    def select(
        self, trace: tuple[Any, dict[str, Tensor]], which: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        """The trace of candidates which [B, m]."""
        trace[0].select(which)
        return trace[0], {key: pick(value, which) for key, value in trace[1].items()}

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """condition [..., D] -> three each of scale, shift and gate, [..., 1, D]"""
        return self.modulate(F.silu(condition)).unsqueeze(-2).chunk(9, -1)

    def sublayers(self, x: Tensor, condition: Tensor, scan, attention, mlp) -> Tensor:
        m = self.modulation(condition)
        for i, layer in enumerate((scan, attention, mlp)):
            if layer is None:
                continue
            u = addcmul(m[3 + i], F.layer_norm(x, x.shape[-1:]), 1 + m[i])
            x = addcmul(x, m[6 + i], layer(u))
        return x

    def forward(
        self, x, condition, action, writes, reset, visible, memory: dict[str, Tensor]
    ):
        carried: dict[str, Tensor] = {}

        def scan(u):
            y, new = self.scan(u, action, writes, reset, memory)
            carried.update(new)
            return y

        def attention(u):
            assert self.attention is not None
            y, new = self.attention(u, visible, memory)
            carried.update(new)
            return y

        return self.sublayers(
            x, condition, scan, attention if self.attention else None, self.mlp
        ), carried

    def recall(
        self,
        x,
        condition,
        action,
        visible,
        trace: tuple[Any, dict[str, Tensor]],
        commit: bool,
        read: bool = True,
    ) -> Tensor:
        """One imagined frame x [B, n, S, D]. Unless `read`, nobody looks at what comes out: the last block of a frame
        that is only remembered."""

        def scan(u):
            return self.scan.recall(u, action, trace[0], commit)

        def attention(u):
            assert self.attention is not None
            return self.attention.recall(u, trace[1], visible, commit, read)

        mlp = self.mlp if read else None
        return self.sublayers(
            x, condition, scan, attention if self.attention else None, mlp
        )
