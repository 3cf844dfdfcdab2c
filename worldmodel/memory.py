"""What the model keeps of the past, as an object: constant in size, carried, copied, forked, saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lssvwm.worldmodel.blocks import BlockCache
from tensordict import TensorClass, TensorDict
from torch import Tensor


class Memory(TensorClass):
    """Memory of B agents: per layer the scan state of each tile and the last frames' keys and values.

    layers[i]: `mixer` and `attention`, what the mixer and the local attention of block i remember (see there);
    seen [B, k-1]: which of the last k-1 frames may be attended to; reach [B, 2 A]: how far a continuous action can
    lead from the last frame (see `reach`; [B, 0]: not told); frames [B]: frames observed since the episode began.
    Indexing, `to`, `detach`, `clone`, `torch.stack` and `torch.cat` work as on any TensorClass.
    """

    layers: TensorDict
    seen: Tensor
    reach: Tensor
    frames: Tensor

    if TYPE_CHECKING:  # tensordict's stub allows any result

        def __getitem__(self, index: Any) -> Memory: ...

    def fork(self, n: int, horizon: int) -> RolloutState:
        """n imagined futures of at most `horizon` frames each; nothing of the shared past is copied."""
        return RolloutState(self, n, horizon)

    def nbytes(self) -> int:
        """Bytes per agent: the same at every age of the episode."""
        tensors = self.to_tensordict().flatten_keys().values()
        return sum(v.numel() * v.element_size() for v in tensors) // max(
            1, self.batch_size.numel()
        )

    def diff(self, other: Memory) -> Tensor:
        """Largest absolute difference in any state, key or reach, [B]."""
        a, b = (
            dict(m.layers.flatten_keys().items()) | {"reach": m.reach}
            for m in (self, other)
        )
        pairs = ((v.double(), b[k].double()) for k, v in a.items() if v.numel())
        gaps = [
            torch.where(v == w, 0.0, v - w).abs().flatten(1).amax(1) for v, w in pairs
        ]  # reach may be infinite
        return torch.stack(gaps).amax(0)

    def write(self, path: str | Path) -> None:
        """Save to one file, also in mid-episode; `Memory.read` gives the same numbers back."""
        torch.save(self.to_tensordict().to_dict(), path)

    @classmethod
    def read(cls, path: str | Path) -> Memory:
        """Load what `write` saved; raises ValueError for what another version saved."""
        saved = torch.load(path, weights_only=True)
        if missing := {"layers", "seen", "reach", "frames"} - set(saved):
            raise ValueError(
                f"{path} holds no memory of this version: {', '.join(sorted(missing))} not in it"
            )
        if not all("mixer" in layer for layer in saved["layers"].values()):
            raise ValueError(
                f"{path} holds the memory of an earlier version, which cannot be read: observe the frames again"
            )
        batch = saved["frames"].shape
        layers = TensorDict(saved["layers"], batch_size=batch)
        rest = {key: saved[key] for key in ("seen", "reach", "frames")}
        return cls(layers=layers, **rest, batch_size=batch)


@dataclass
class RolloutState:
    """n imagined futures of each of B memories; advanced by `WorldModel.step`."""

    memory: Memory
    n: int
    horizon: int
    traces: list[BlockCache] | None = None
    seen: Tensor | None = None  # [B, n, k-1]
    reach: Tensor | None = None  # [B, n, 2 A]
    aim: Tensor | None = None  # what the distance head needs of the goals
    learn: bool = False  # heads keep their gradient
