"""Hold what the model remembers, in constant size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lssvwm.worldmodel.migration import FORMAT_VERSION, migrate_memory
from lssvwm.worldmodel.tensor_file import (
    is_torch_file,
    read_tensors,
    read_torch_file,
    write_tensors,
)
from tensordict import TensorClass, TensorDict, is_tensor_collection
from torch import Tensor


class Memory(TensorClass):
    """Hold the memories of B agents.

    Indexing, `to`, `detach`, `clone`, `torch.stack` and `torch.cat` work as on any TensorClass.
    """

    layers: TensorDict
    """`layers[str(i)]` holds the memory of block i: `mixer` and `attention` (see `blocks`)"""

    visible: Tensor
    """bool [B, k-1]: local attention may look at this one of the last k-1 frames"""

    action_limits: Tensor
    """[B, 2 A]: limits of the next action, down and up; infinite if unknown, [B, 0] if the model has none"""

    frames: Tensor
    """int64 [B]: frames since the episode began, masked ones included; no output depends on it"""

    if TYPE_CHECKING:  # tensordict's stub allows any result

        def __getitem__(self, index: Any) -> Memory: ...

    def nbytes(self) -> int:
        """Return the bytes per agent, which do not depend on the age of the episode."""
        tensors = self.to_tensordict().flatten_keys().values()
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return total // max(1, self.batch_size.numel())

    def diff(self, other: Memory) -> Tensor:
        """Return the largest absolute difference in any state, key or action limit, [B]."""
        mine, theirs = _compared(self), _compared(other)
        gaps = []
        for name, value in mine.items():
            if not value.numel():
                continue
            a, b = value.double(), theirs[name].double()
            # limits may both be infinite, and inf - inf is no number
            gap = torch.where(a == b, 0.0, a - b)
            gaps.append(gap.abs().flatten(1).amax(1))
        return torch.stack(gaps).amax(0)

    def write(self, path: str | Path) -> None:
        """Save to one file, also within an episode."""
        layers = self.layers
        keys = [key for key in layers.keys(True) if is_tensor_collection(layers[key])]
        groups = [key if isinstance(key, str) else ".".join(key) for key in keys]
        about = {"format_version": FORMAT_VERSION, "groups": groups}
        tensors = self.to_tensordict().flatten_keys().items()
        write_tensors(Path(path), dict(tensors), about)

    @classmethod
    def read(cls, path: str | Path) -> Memory:
        """Load what `write` saved, with the same numbers.

        Raises ValueError if the file is damaged, holds something else or has a newer format.
        """
        path = Path(path)
        saved = read_torch_file(path) if is_torch_file(path) else _read(path)
        saved = migrate_memory(saved, str(path))
        batch = saved["frames"].shape
        layers = TensorDict(saved.pop("layers"), batch_size=batch)
        return cls(layers=layers, **saved, batch_size=batch)


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of a memory as nested plain data."""
    about, tensors = read_tensors(path, FORMAT_VERSION)
    saved = TensorDict()
    for group in sorted(about.get("groups", [])):  # parents first; some are empty
        saved["layers", *group.split(".")] = TensorDict()
    for name, value in tensors.items():
        saved[tuple(name.split("."))] = value
    return {"format_version": about.get("format_version", 1)} | saved.to_dict()


def _compared(memory: Memory) -> dict[str, Tensor]:
    tensors = dict(memory.layers.flatten_keys().items())
    return tensors | {"action_limits": memory.action_limits}
