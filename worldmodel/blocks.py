"""The layers of LSSVWM (arXiv 2505.20171): block-wise SSM scan -> frame-local attention -> MLP.

Shapes
    x [B, T, R, S, D]   B sequences, T frames, R streams, S tokens per frame, D width.
                        Streams stand in scan order: (noisy, clean) in training, one of the two otherwise.
    writes [B, T, R]    this copy of the frame goes into memory (clean and not hidden)
    reset [B, T]        an episode begins with this frame
    G, s                tiles per frame, tokens per tile (G * s = S)

A block's first layer is a `Mixer`: what carries memory over time. Here that is the tiled scan; `baselines` has others.
Every layer has two ways through it. `forward` takes whole sequences and carries memory from left to right.
`recall` takes one imagined frame of n candidates that share one memory: it reads the shared memory and the
candidate's own imagined frames (SSD's dual, attention-like form), so that forking copies no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel import backends, ssm


class Mixer(Protocol):
    """What a block remembers by: `initial` memory, whole sequences through `__call__`, imagination by `trace` and
    `recall`. A trace is whatever the mixer keeps of what n candidates imagined."""

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]: ...
    def __call__(
        self, u: Tensor, action: Tensor, writes: Tensor, reset: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> Any: ...
    def recall(self, u: Tensor, action: Tensor, trace: Any, commit: bool) -> Tensor: ...


@dataclass
class ScanTrace:
    """What n candidates imagined, for one scan layer: J tokens a tile at most, of which `used` are filled."""

    state: Tensor  # [B, G, h, p, n] of the shared memory, never written
    pose: Tensor  # [B, n, G, 3]
    keys: Tensor  # [B, n, G, J, N]
    values: Tensor  # [B, n, G, h, J, P]
    decay: Tensor  # [B, n, G, h, J] log decay from the fork to each token
    total: Tensor  # [B, n, G, h] log decay from the fork to now
    used: int = 0


class Odometer(nn.Module):
    """Where the agent is, in a plane of the model's own making, summed up from its motion; and so, where to look.

    A frame turns the heading by an angle and moves the position by a step, seen from the agent:
        heading += turn(action),    position += rotate(step(action), heading) * free(frame)
    where the frame may say that a wall was in the way. A token of the frame lies at an offset from the agent (at
    first: its place in the token grid), and its phases are r plane waves at that point:
        phase_k = waves (position + rotate(offset_k, heading))
    which makes keys of places in the way grid cells do, or RoPE for an image that the agent carries about.
    """

    def __init__(self, width: int, actions: int, tile: int, phases: int):
        super().__init__()
        self.action = nn.Linear(actions, 3, bias=False)  # from the action itself: one-hot, or its numbers
        self.frame = nn.Linear(width, 1)
        nn.init.normal_(self.action.weight, std=0.1)
        nn.init.zeros_(self.frame.weight)
        nn.init.constant_(self.frame.bias, 4.0)  # free, until training says otherwise
        rows, cols = torch.meshgrid(torch.arange(tile), torch.arange(tile), indexing="ij")
        place = torch.stack((tile - 1 - rows, cols - (tile - 1) / 2), -1).flatten(0, 1)  # ahead, to the right
        self.offset = nn.Parameter(place.float())
        length, direction = math.pi * torch.rand(phases).sqrt(), 2 * math.pi * torch.rand(phases)
        self.waves = nn.Parameter(torch.stack((length * direction.cos(), length * direction.sin())))

    def move(self, u: Tensor, action: Tensor, pose: Tensor) -> Tensor:
        """Pose [..., G, 3] (heading, position) after a frame: tile means u [..., G, D], reached by action [..., A]."""
        motion = self.action(action).unsqueeze(-2)
        heading = pose[..., :1] + motion[..., :1]
        return torch.cat((heading, pose[..., 1:] + turn(motion[..., 1:], heading) * torch.sigmoid(self.frame(u))), -1)

    def phases(self, pose: Tensor) -> Tensor:
        """Phases of the tokens of a frame, [..., G, s, r], at a pose [..., G, 3]."""
        points = pose[..., None, 1:] + turn(self.offset, pose[..., None, :1])
        return points @ self.waves

    def forward(self, u: Tensor, action: Tensor, write: Tensor, reset: Tensor, pose: Tensor):
        """u [B, T, R, G, D], action [B, T, A], write [B, T, R, 1, 1], pose [B, G, 3] -> poses [B, T, R, G, 3], last.

        The written copy of a frame moves the agent on, or the action alone where none is written; every copy looks
        from where it would be itself.
        """
        motion = self.action(action)[:, :, None]  # [B, T, 1, 3]
        heading = _sum_before(motion[..., :1], reset, pose[:, :1, :1]) + motion[..., :1]
        step = turn(motion[..., 1:], heading)
        free = torch.sigmoid(self.frame(u))  # [B, T, R, G, 1]
        kept = step * ((free * write).sum(2) + (1 - write.sum(2)))
        before = _sum_before(kept, reset, pose[..., 1:])
        positions = before[:, :, None] + step[:, :, None] * free
        headings = heading[:, :, None].expand(*positions.shape[:-1], 1)
        final = torch.remainder(heading[:, -1], 2 * math.pi).expand_as(pose[..., :1])
        return torch.cat((headings, positions), -1), torch.cat((final, (before + kept)[:, -1]), -1)


def turn(v: Tensor, angle: Tensor) -> Tensor:
    """Rotate v [..., 2] by angle [..., 1]."""
    a, b = v[..., :1], v[..., 1:]
    return torch.cat((angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b), -1)


def _sum_before(steps: Tensor, reset: Tensor, start: Tensor) -> Tensor:
    """What the steps [B, T, G, n] before each frame sum up to, from `start` [B, G, n] or, after a reset, from zero."""
    before = start[:, None] + steps.cumsum(1) - steps
    t = torch.arange(1, reset.shape[1] + 1, device=steps.device)
    last = (reset * t).cummax(1).values[..., None, None].expand_as(before)
    return before - F.pad(before, (0, 0, 0, 0, 1, 0)).gather(1, last)


class TiledScan(nn.Module):
    """Mamba-2 scan of every `tile x tile` block of tokens over time, each block with its own state (section 3.2).

    Differences from Mamba-2, all for reading and writing by frames: no short convolution (it would leak noisy tokens
    into clean ones); keys and queries are normalised; and the leading pairs of both are rotated by a phase that stands
    for a place (data-dependent rotation as in Mamba-3, here by path integration: `Odometer`), so that what was
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
    ):
        super().__init__()
        if grid[0] % tile or grid[1] % tile:
            raise ValueError(f"tile {tile} does not divide the token grid {grid[0]} x {grid[1]}")
        self.grid, self.tile, self.state, self.head = grid, tile, state, head
        self.inner = expand * width
        self.heads = self.inner // head
        self.angles = int(rotary * state) // 2
        self.scan: backends.Scan = ssm.chunked
        self.project = nn.Linear(width, 2 * self.inner + 2 * state + self.heads, bias=False)
        self.odometer = Odometer(width, actions, tile, self.angles)
        self.scale_B = nn.Parameter(torch.ones(state))
        self.scale_C = nn.Parameter(torch.ones(state))
        self.shift_B = nn.Parameter(torch.zeros(state))
        self.shift_C = nn.Parameter(torch.zeros(state))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.A_log = nn.Parameter(torch.linspace(math.log(0.001), math.log(0.2), self.heads))
        dt = torch.exp(torch.linspace(math.log(0.3), math.log(0.05), self.heads))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.out = nn.Linear(self.inner, width, bias=False)
        with torch.no_grad():  # at first, a place's key is the place itself, not what is there
            for scale, shift in ((self.scale_B, self.shift_B), (self.scale_C, self.shift_C)):
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
        x = rearrange(x, "b (gh th) (gw tw) d -> b (gh gw) (th tw) d", th=self.tile, tw=self.tile)
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
        dt = F.softplus(dt + self.dt_bias)
        B = F.layer_norm(B, (n,), self.scale_B, self.shift_B)
        C = F.layer_norm(C, (n,), self.scale_C, self.shift_C) / math.sqrt(n)
        X = F.silu(X).unflatten(-1, (h, self.head))
        return z, X, dt, B, C

    def finish(self, Y: Tensor, X: Tensor, z: Tensor) -> Tensor:
        """Y, X [..., G, s, h, p], z [..., S, inner] -> [..., S, D]"""
        y = self.join((Y + self.D[:, None] * X).flatten(-2))
        return self.out(F.layer_norm(y * F.silu(z), (self.inner,)))

    def forward(self, u: Tensor, action: Tensor, writes: Tensor, reset: Tensor, memory: dict[str, Tensor]):
        b, t, r = u.shape[:3]
        z, X, dt, B, C = self.inputs(u)
        write = writes.to(u.dtype)[..., None, None]
        poses, pose = self.odometer(self.cut(u).mean(-2), action, write, reset, memory["pose"])
        phase = self.odometer.phases(poses)
        B, C = ssm.rotate(B, phase), ssm.rotate(C, phase)
        dt = dt * write[..., None]
        X_, dt_, B_, C_ = (rearrange(v, "b t r g s ... -> (b g) (t r s) ...") for v in (X, dt, B, C))
        s = X.shape[4]
        starts = F.pad(reset[..., None], (0, r * s - 1)).flatten(1).repeat_interleave(self.tiles, 0)
        A = -torch.exp(self.A_log)
        Y, S = self.scan(X_, dt_, A, B_, C_, memory["state"].flatten(0, 1), starts)
        Y = rearrange(Y, "(b g) (t r s) h p -> b t r g s h p", b=b, t=t, r=r)
        return self.finish(Y, X, z), {"state": S.unflatten(0, (b, -1)), "pose": pose}

    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> ScanTrace:
        state = memory["state"]
        lead = (state.shape[0], n, self.tiles)
        J = frames * self.tile**2
        new = state.new_empty
        return ScanTrace(
            state,
            memory["pose"][:, None].expand(-1, n, -1, -1),
            new(*lead, J, self.state),
            new(*lead, self.heads, J, self.head),
            new(*lead, self.heads, J),
            state.new_zeros(*lead, self.heads),
        )

    def recall(self, u: Tensor, action: Tensor, trace: ScanTrace, commit: bool) -> Tensor:
        """u [B, n, S, D] -> the same shape; with `commit` the frame becomes part of what the candidate remembers."""
        z, X, dt, B, C = self.inputs(u)
        pose = self.odometer.move(self.cut(u).mean(-2), action, trace.pose)
        phase = self.odometer.phases(pose)
        C = ssm.rotate(C, phase)
        Y = torch.einsum("bkgsn,bghpn->bkghsp", C, trace.state) * torch.exp(trace.total)[..., None, None]
        if trace.used:
            fade = torch.exp(trace.total[..., None] - trace.decay[..., : trace.used])  # [B, n, G, h, used]
            weight = (C @ trace.keys[..., : trace.used, :].transpose(-1, -2))[..., None, :, :] * fade[..., None, :]
            Y = Y + weight @ trace.values[..., : trace.used, :]
        if commit:
            Y = Y + self._remember(trace, X, dt, ssm.rotate(B, phase), C, Y)
            trace.pose = pose
        return self.finish(Y.transpose(-2, -3), X, z)

    def _remember(self, trace: ScanTrace, X: Tensor, dt: Tensor, B: Tensor, C: Tensor, Y: Tensor) -> Tensor:
        """Add a frame's tokens to the trace; returns what their order within the frame changes in what they read, Y."""
        line = (dt * -torch.exp(self.A_log)).transpose(-1, -2).cumsum(-1)  # [B, n, G, h, s] log decay in the frame
        values = (X * dt[..., None]).transpose(-2, -3)
        s, j = X.shape[3], trace.used + X.shape[3]
        later = torch.ones(s, s, dtype=torch.bool, device=X.device).triu(1)
        gap = (line[..., :, None] - line[..., None, :]).masked_fill(later, float("-inf"))
        own = ((C @ B.transpose(-1, -2))[..., None, :, :] * torch.exp(gap)) @ values
        trace.keys[..., j - s : j, :] = B
        trace.values[..., j - s : j, :] = values
        trace.decay[..., j - s : j] = trace.total[..., None] + line
        trace.total, trace.used = trace.total + line[..., -1], j
        return own + Y * torch.expm1(line)[..., None]


class LocalAttention(nn.Module):
    """Attention of a frame's tokens to each other and to the `window - 1` frames before (section 3.3).

    A noisy copy sees itself and the clean copies of the frames before; nothing sees another frame's noisy copy.
    """

    def __init__(self, width: int, tokens: int, window: int, heads: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(heads, tokens, window * tokens))  # last `tokens` keys: the own frame

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """No frames yet: key and value [B, k-1, h, S, d]."""
        tokens, size = self.bias.shape[1], self.out.in_features // self.heads
        shape = (batch, self.window - 1, self.heads, tokens, size)
        return {"key": like.new_zeros(shape), "value": like.new_zeros(shape)}

    def split(self, u: Tensor):
        """u [..., R, S, D] -> q, k, v [..., h, R, S, d]"""
        x = self.qkv(u).unflatten(-1, (3, self.heads, -1))
        n = x.dim()
        return x.permute(n - 3, *range(n - 5), n - 2, n - 5, n - 4, n - 1).contiguous().unbind(0)

    def attend(self, q: Tensor, own: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        """q, own [..., h, R, S, d], past [..., h, (k-1) S, d], visible [..., (k-1) S] -> [..., R, S, D]"""
        r, s = q.shape[-3:-1]
        q = q / math.sqrt(q.shape[-1])
        bias = self.bias[..., :-s].masked_fill(~visible[..., None, None, :], float("-inf"))
        far = (q.flatten(-3, -2) @ past[0].transpose(-1, -2)).unflatten(-2, (r, s)) + bias.unsqueeze(-3)
        near = q @ own[0].transpose(-1, -2) + self.bias[:, None, :, -s:]
        weight = torch.softmax(torch.cat((far, near), -1), -1)
        y = (weight[..., :-s].flatten(-3, -2) @ past[1]).unflatten(-2, (r, s)) + weight[..., -s:] @ own[1]
        return self.out(y.movedim(-4, -2).flatten(-2))

    def forward(self, u: Tensor, visible: Tensor, memory: dict[str, Tensor]):
        """u [B, T, R, S, D], visible [B, T, k-1] -> the same shape as u, and the last frames' keys and values.
        The last stream is the one later frames may look at."""
        t, m, s = u.shape[1], self.window - 1, u.shape[3]
        q, k, v = self.split(u)
        past, carried = [], {}
        for name, own in (("key", k), ("value", v)):
            line = torch.cat((memory[name], own[:, :, :, -1]), 1)  # [B, m + T, h, S, d]
            carried[name] = line[:, line.shape[1] - m :]
            past.append(torch.cat([line[:, j : j + t] for j in range(m)], -2) if m else line[:, :t, :, :0])
        return self.attend(q, (k, v), (past[0], past[1]), visible.repeat_interleave(s, -1)), carried

    def recall(self, u: Tensor, trace: dict[str, Tensor], visible: Tensor, commit: bool) -> Tensor:
        """u [B, n, S, D], visible [B, n, k-1]; trace holds key, value [B, n, k-1, h, S, d] of the last frames."""
        q, k, v = self.split(u[:, :, None])
        past = [rearrange(trace[x], "b n k h s d -> b n h (k s) d") for x in ("key", "value")]
        y = self.attend(q, (k, v), (past[0], past[1]), visible.repeat_interleave(u.shape[2], -1))
        if commit:
            trace["key"] = torch.cat((trace["key"], k.movedim(-3, -4)), 2)[:, :, 1:]
            trace["value"] = torch.cat((trace["value"], v.movedim(-3, -4)), 2)[:, :, 1:]
        return y[:, :, 0]


class Block(nn.Module):
    """Scan, attention (if any) and MLP, each on a residual path; scale, shift and gate come from the condition."""

    def __init__(self, width: int, mlp: float, scan: Mixer, attention: LocalAttention | None):
        super().__init__()
        self.scan, self.attention = scan, attention
        hidden = round(mlp * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulate = nn.Linear(width, 9 * width)
        nn.init.normal_(self.modulate.weight, std=0.3 / math.sqrt(width))
        with torch.no_grad():
            self.modulate.bias.zero_()
            self.modulate.bias[6 * width :].fill_(0.5)  # gates start half open

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """What the block remembers at first, on the device and in the type of `like`."""
        memory = self.scan.initial(batch, like)
        return memory | self.attention.initial(batch, like) if self.attention else memory

    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> tuple[Any, dict[str, Tensor]]:
        """For n candidates that imagine at most `frames` frames: what they remember of their own."""
        local = ("key", "value") if self.attention else ()
        return self.scan.trace(memory, n, frames), {
            key: memory[key][:, None].expand(-1, n, *memory[key].shape[1:]) for key in local
        }

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """condition [..., D] -> three each of scale, shift and gate, [..., 1, D]"""
        return self.modulate(F.silu(condition)).unsqueeze(-2).chunk(9, -1)

    def sublayers(self, x: Tensor, condition: Tensor, scan, attention) -> Tensor:
        m = self.modulation(condition)
        for i, layer in enumerate((scan, attention, self.mlp)):
            if layer is None:
                continue
            u = torch.addcmul(m[3 + i], F.layer_norm(x, x.shape[-1:]), 1 + m[i])
            x = torch.addcmul(x, m[6 + i], layer(u))
        return x

    def forward(self, x, condition, action, writes, reset, visible, memory: dict[str, Tensor]):
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

        return self.sublayers(x, condition, scan, attention if self.attention else None), carried

    def recall(self, x, condition, action, visible, trace: tuple[Any, dict[str, Tensor]], commit: bool) -> Tensor:
        def scan(u):
            return self.scan.recall(u, action, trace[0], commit)

        def attention(u):
            assert self.attention is not None
            return self.attention.recall(u, trace[1], visible, commit)

        return self.sublayers(x, condition, scan, attention if self.attention else None)
