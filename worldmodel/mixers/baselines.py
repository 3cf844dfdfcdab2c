"""What others use in place of the scan, behind the same interface: attention over many frames, a recurrent vector.

Both take the place of `TiledSSD` in a block (shapes as in `blocks`), so that tokens, heads, losses, memory,
imagination and every command stay the same. A noisy copy reads what clean frames left and leaves nothing behind.

    attention   causal attention to the last `reach` frames, keys and values cached: sees everything within its reach,
                at a cost that grows with it; with the scan's odometer, too, where asked for
    gru         one vector per frame, carried on by a GRU (the deterministic path of an RSSM, DreamerV3)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from lssvwm.worldmodel.blocks import (
    LocalAttention,
    PathIntegrator,
    at_least_float,
    pick,
)
from lssvwm.worldmodel.fused_ops import rotate
from torch import Tensor, nn
from torch.nn import functional as F

SEGMENT = 32
"""Frames that attention works on at once."""
SHARP = 16.0
"""What attention to the same place adds to a logit at first, where keys stand for places. With r waves a head, other
places add exp(SHARP^2 / 4 r) on average, so that few waves (or many heads) cannot tell one among a thousand."""


@dataclass
class AttentionTrace:
    """What n candidates imagined: keys and values [B, n, h, S, d] of each frame, beside the shared cache."""

    memory: dict[str, Tensor]
    pose: Tensor | None = None  # [B, n, 1, 3]
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def select(self, which: Tensor) -> None:
        """Go on with candidates which [B, m]."""
        self.keys, self.values = (
            [pick(x, which) for x in xs] for xs in (self.keys, self.values)
        )
        self.pose = None if self.pose is None else pick(self.pose, which)


class Attention(nn.Module):
    """Attention of a frame's tokens to each other and to all tokens of the `reach - 1` frames before.

    How long ago a key was written is told by rotation (RoPE over frames). Memory: key and value [B, F, h, S, d] of
    the last F = reach - 1 frames and valid [B, F], which of them may be attended to.

    With an `odometer` the first pairs of keys and queries stand for places instead, as in `TiledSSD`: they are turned
    by its phases, every head by waves of its own. Memory then holds the pose [B, 1, 3], too.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        reach: int,
        heads: int,
        odometer: PathIntegrator | None = None,
    ):
        super().__init__()
        if reach < 1:
            raise ValueError(
                f"model.window={reach}: attention reaches over at least 1 frame"
            )
        self.tokens, self.reach, self.heads, self.size = (
            tokens,
            reach,
            heads,
            width // heads,
        )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.odometer = odometer
        self.places = (
            0 if odometer is None else odometer.waves.shape[1] // heads
        )  # pairs of a head
        if odometer is not None:
            shape = (2, heads, 1, 1, 2 * self.places)  # for queries and keys
            self.scale, self.shift = (
                nn.Parameter(torch.full(shape, 0.2)),
                nn.Parameter(torch.zeros(shape)),
            )
            with (
                torch.no_grad()
            ):  # at first, a place's key is the place itself, not what is there
                self.shift[..., : self.places] = math.sqrt(
                    SHARP * math.sqrt(self.size) / self.places
                )

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        shape = (batch, self.reach - 1, self.heads, self.tokens, self.size)
        valid = torch.zeros(batch, self.reach - 1, dtype=torch.bool, device=like.device)
        pose = {} if self.odometer is None else {"pose": like.new_zeros(batch, 1, 3)}
        return {
            "key": like.new_zeros(shape),
            "value": like.new_zeros(shape),
            "valid": valid,
        } | pose

    def split(self, u: Tensor, phase: Tensor | None):
        """u [..., R, S, D] -> q, k, v [..., h, R, S, d], q and k at their places, by the phases [..., R, S, h r]."""
        q, k, v = LocalAttention.split(self, u)  # type: ignore[arg-type]
        if phase is not None:
            angle = phase.unflatten(-1, (self.heads, -1)).movedim(
                -2, -4
            )  # [..., h, R, S, r]
            q, k = (
                self._placed(x, angle, *how)
                for x, *how in zip((q, k), self.scale, self.shift)
            )
        return q, k, v

    def _placed(self, x: Tensor, angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        n = 2 * self.places
        return torch.cat((rotate(x[..., :n] * scale + shift, angle), x[..., n:]), -1)

    def phases(self, pose: Tensor) -> Tensor:
        """Of the tokens of frames at poses [..., 1, 3]: [..., S, h r]"""
        assert self.odometer is not None
        return self.odometer.phases(pose).squeeze(-3)

    def forward(
        self,
        u: Tensor,
        action: Tensor,
        writes: Tensor,
        reset: Tensor,
        memory: dict[str, Tensor],
    ):
        """u [B, T, R, S, D] -> the same shape, and the memory to carry on. Long sequences go through in segments, so
        that time and space grow with frames times reach, not with frames squared."""
        out, place, phase = [], {}, None
        if self.odometer is not None:
            with torch.autocast(u.device.type, enabled=False):
                poses, pose = self.odometer(
                    at_least_float(u.unsqueeze(-3)),
                    action,
                    writes,
                    reset,
                    memory["pose"],
                )
                phase, place = self.phases(poses), {"pose": pose}
        for i in range(0, u.shape[1], SEGMENT):
            part = slice(i, i + SEGMENT)
            here = None if phase is None else phase[:, part]
            y, memory = self._segment(
                u[:, part], here, writes[:, part], reset[:, part], memory
            )
            out.append(y)
        return torch.cat(out, 1), memory | place

    def _segment(
        self,
        u: Tensor,
        phase: Tensor | None,
        writes: Tensor,
        reset: Tensor,
        memory: dict[str, Tensor],
    ):
        b, t, r, s = u.shape[:4]
        past = self.reach - 1
        q, k, v = (
            x.transpose(1, 2) for x in self.split(u, phase)
        )  # [B, h, T, R, S, d]
        old = _used(memory)
        key, value = (
            torch.cat((old[x].transpose(1, 2).to(own.dtype), own[:, :, :, -1]), 2)
            for x, own in (("key", k), ("value", v))
        )
        flags = torch.cat((old["valid"], writes), 1)
        f = flags.shape[1] - t
        episode = F.pad(reset.long().cumsum(1), (f, 0))
        ago = torch.arange(f, f + t, device=u.device)[:, None] - torch.arange(
            f + t, device=u.device
        )
        visible = (
            flags[:, None]
            & (episode[:, f:, None] == episode[:, None])
            & (ago > 0)
            & (ago < self.reach)
        )
        own = torch.eye(t * r, dtype=torch.bool, device=u.device).expand(
            b, -1, -1
        )  # every copy sees itself
        mask = torch.cat(
            (visible.repeat_interleave(r, 1), own), -1
        )  # [B, T R, F + T R]
        mask = mask.repeat_interleave(s, 1).repeat_interleave(s, 2)[:, None]
        at = torch.arange(f + t, device=u.device)[:, None, None]
        q, k = self._turn(q, at[f:]), self._turn(k, at[f:])
        keys = torch.cat(
            (self._turn(key, at[..., 0]).flatten(2, 3), k.flatten(2, 4)), 2
        )
        values = torch.cat((value.flatten(2, 3), v.flatten(2, 4)), 2)
        y = F.scaled_dot_product_attention(
            q.flatten(2, 4), keys, values, mask
        ).unflatten(2, (t, r, s))
        valid = flags & (episode == episode[:, -1:])
        kept = valid[..., None, None, None].to(u.dtype)
        carried = {
            "key": key.transpose(1, 2) * kept,
            "value": value.transpose(1, 2) * kept,
            "valid": valid,
        }
        y = self.out(y.permute(0, 2, 3, 4, 1, 5).flatten(-2))
        return y, {x: _last(v, past) for x, v in carried.items()}

    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> AttentionTrace:
        used = _used(memory)
        turned = {"turned": self._turn(used["key"], _frames(used["key"]))}
        pose = (
            memory["pose"][:, None].expand(-1, n, -1, -1)
            if self.odometer is not None
            else None
        )
        return AttentionTrace(used | turned, pose)

    def recall(
        self, u: Tensor, action: Tensor, trace: AttentionTrace, commit: bool
    ) -> Tensor:
        """u [B, n, S, D] -> the same shape; with `commit` the frame becomes part of what the candidate remembers."""
        pose, phase = None, None
        if self.odometer is not None:
            with torch.autocast(u.device.type, enabled=False):
                assert trace.pose is not None
                pose = self.odometer.move(
                    at_least_float(u.unsqueeze(-3)), action, trace.pose
                )
                phase = self.phases(pose)[:, :, None]
        q, k, v = (
            x.squeeze(-3) for x in self.split(u[:, :, None], phase)
        )  # [B, n, h, S, d]
        shared, own = trace.memory, len(trace.keys)
        f = shared["valid"].shape[1]
        now = torch.tensor(f + own, device=u.device)
        q, k = self._turn(q, now) / math.sqrt(self.size), self._turn(k, now)
        ago = now - torch.arange(f, device=u.device)
        hidden = ~(shared["valid"] & (ago < self.reach))
        far = torch.einsum("bnhsd,bjhzd->bnhsjz", q, shared["turned"])
        far = far.masked_fill(
            hidden[:, None, None, None, :, None], float("-inf")
        ).flatten(-2)
        first = max(0, own - (self.reach - 1))
        keys, values = trace.keys[first:], trace.values[first:]
        mid = [q @ x.transpose(-1, -2) for x in keys]
        near = q @ k.transpose(-1, -2)
        weight = torch.softmax(torch.cat((far, *mid, near), -1), -1).split(
            [far.shape[-1], *(self.tokens for _ in keys), self.tokens], -1
        )
        y = torch.einsum(
            "bnhsjz,bjhzd->bnhsd",
            weight[0].unflatten(-1, (-1, self.tokens)),
            shared["value"],
        )
        y = y + weight[-1] @ v
        for w, x in zip(weight[1:-1], values):
            y = y + w @ x
        if commit:
            trace.keys.append(k)
            trace.values.append(v)
            trace.pose = pose
        return self.out(y.movedim(2, -2).flatten(-2))

    def _turn(self, x: Tensor, frame: Tensor) -> Tensor:
        """Rotate what does not stand for places of x [..., d] by its frame's number (broadcast): wavelengths from 6 to
        10,000 frames."""
        place, rest = x.split([2 * self.places, self.size - 2 * self.places], -1)
        pairs = rest.shape[-1] // 2
        rate = 1e4 ** (
            -torch.arange(pairs, device=x.device, dtype=x.dtype) / max(1, pairs - 1)
        )
        turned = rotate(rest, frame[..., None] * rate)
        return torch.cat((place, turned), -1) if self.places else turned


def _frames(x: Tensor) -> Tensor:
    """The numbers of the frames of x [B, F, h, S, d], to be broadcast: [F, 1, 1]"""
    return torch.arange(x.shape[1], device=x.device)[:, None, None]


def _used(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys and values without the leading frames that nobody may attend to."""
    some = memory["valid"].any(0)
    first = int(some.int().argmax()) if bool(some.any()) else len(some)
    return {name: memory[name][:, first:] for name in ("key", "value", "valid")}


def _last(x: Tensor, n: int) -> Tensor:
    """The last n of x [B, F, ...], with zeros before where there are fewer."""
    x = x[:, max(0, x.shape[1] - n) :]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [n - x.shape[1], 0])


@dataclass
class GRUTrace:
    state: Tensor  # [B, n, H]

    def select(self, which: Tensor) -> None:
        """Go on with candidates which [B, m]."""
        self.state = pick(self.state, which)


class GRU(nn.Module):
    """One vector of `state` numbers for the whole frame: h' = GRU(frame, action; h). Every token reads h'.

    A noisy copy reads the h' that it would lead to itself; only a written copy is carried on.
    """

    def __init__(self, width: int, tokens: int, state: int, actions: int):
        super().__init__()
        self.state = state
        self.read = nn.Linear(width, state // tokens)
        self.cell = nn.GRUCell(tokens * (state // tokens) + actions, state)
        self.out = nn.Linear(state, width, bias=False)
        self.place = nn.Parameter(torch.randn(tokens, state) / math.sqrt(state))

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        return {"state": like.new_zeros(batch, self.state)}

    def forward(
        self,
        u: Tensor,
        action: Tensor,
        writes: Tensor,
        reset: Tensor,
        memory: dict[str, Tensor],
    ):
        """u [B, T, R, S, D] -> the same shape, and the memory to carry on."""
        t, r = u.shape[1:3]
        x = torch.cat(
            (self.read(u).flatten(-2), action[:, :, None].expand(-1, -1, r, -1)), -1
        )
        x = F.linear(x, self.cell.weight_ih, self.cell.bias_ih)
        h, out = memory["state"], []
        for at in range(t):
            h = h.masked_fill(reset[:, at, None], 0.0)
            new = self._next(x[:, at], h[:, None].expand(-1, r, -1))
            out.append(new)
            h = torch.where(writes[:, at, None], new[:, -1], h)
        return self._answer(torch.stack(out, 1)), {"state": h}

    def _next(self, x: Tensor, h: Tensor) -> Tensor:
        """The cell, its inputs' projection x [..., 3 H] already made (as `nn.GRUCell`)."""
        a = F.linear(h, self.cell.weight_hh, self.cell.bias_hh)
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), a.chunk(3, -1)
        reset, keep = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        return (1 - keep) * torch.tanh(xn + reset * hn) + keep * h

    def _answer(self, h: Tensor) -> Tensor:
        """h [..., H] -> what each token reads, [..., S, D]"""
        return self.out(h[..., None, :] * (1 + self.place))

    def trace(self, memory: dict[str, Tensor], n: int, frames: int) -> GRUTrace:
        return GRUTrace(memory["state"][:, None].expand(-1, n, -1))

    def recall(
        self, u: Tensor, action: Tensor, trace: GRUTrace, commit: bool
    ) -> Tensor:
        """u [B, n, S, D] -> the same shape; with `commit` the frame becomes part of what the candidate remembers."""
        x = torch.cat((self.read(u).flatten(-2), action), -1)
        h = self._next(F.linear(x, self.cell.weight_ih, self.cell.bias_ih), trace.state)
        if commit:
            trace.state = h
        return self._answer(h)
