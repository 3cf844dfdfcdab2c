"""Write and open shards: whole episodes in memory-mapped arrays, with checksums.

A data folder of format 3 holds:

    format.json      format_version, and the environment that the frames come from
    shard-000000/    a memory-mapped TensorDict, as `TensorDict.memmap` writes it:
        KEY.memmap       one array
        meta.json        type and shape of each array
        checksums.json   size and CRC-32 of the files above

Format 2 has no environment and no checksums; format 1 has no format.json either.
Only arrays of the keys below are read, never anything pickled. An episode of T actions has T + 1 rows, one per frame:

    pixels uint8 [C, H, W]   the frame
    action int64 [] or float32 [A]   the action that led to it (zero on a first frame)
    reward float32 []        received on arrival
    terminated, truncated, is_first bool []
    pose float32 [3]         heading and position of the agent, only if the environment has poses
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent.config.reference import text
from lssvwm.agent.config.settings import EnvConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import (
    read_json,
    replacing,
    verify_checksums,
    write_checksums,
    write_json,
)
from lssvwm.envs.base import BatchedEnv
from tensordict import TensorDict
from torch import Tensor

FORMAT_VERSION = 3
"""Format of data folders that this version writes."""
CHECKED = 3
"""First format with checksums."""
FORMAT_FILE = "format.json"
META = "meta.json"
KEYS = ("pixels", "action", "reward", "terminated", "truncated", "is_first")
POSE = "pose"
"""Key of rows that only environments with poses have."""
TYPES = {
    str(kind): kind for kind in (torch.uint8, torch.int64, torch.float32, torch.bool)
}
"""Types of arrays by their names in meta.json."""
IDENTITY = ("kind", "id", "factory", "kwargs", "render")
"""Settings that make it another environment. Others, such as the size of a maze, may vary in a data folder."""


def describe_environment(config: EnvConfig, env: BatchedEnv) -> dict[str, Any]:
    """Describe an environment as plain data: identity, frames and actions."""
    named = {key: getattr(config, key) for key in IDENTITY if hasattr(config, key)}
    if named.get("factory"):
        named["factory"] = Path(named["factory"]).name  # wherever the file lies
    described = {
        "env": named,
        "frame_shape": env.frame_shape,
        "action_shape": np.shape(env.last_action())[1:],
        "actions": dataclasses.asdict(env.actions),
    }
    return json.loads(json.dumps(described, default=float))


@dataclass(frozen=True)
class Shard:
    """Hold the memory-mapped rows of whole episodes.

    starts: index of the first row of each episode, int64 [E]
    """

    path: Path
    rows: TensorDict
    starts: np.ndarray

    @classmethod
    def open(cls, path: Path, verify: bool) -> Shard:
        """Open a shard; raises UserError if a file is missing or damaged.

        verify: compare the checksums, for which all files are read once
        """
        remedy = f"restore it, or delete {path} to go on without its frames"
        if verify:
            verify_checksums(path, remedy)
        shapes = _shapes(path / META, remedy)
        arrays = {key: _map(path, key, *shapes[key], remedy) for key in shapes}
        rows = TensorDict(arrays, batch_size=[len(arrays["reward"])])
        is_first = np.asarray(arrays["is_first"])
        return cls(path, rows, is_first.nonzero()[0])

    def __len__(self) -> int:
        return len(self.rows)

    def described(self) -> dict[str, Any]:
        """Describe the environment of the rows, as far as a shard shows it."""
        pixels, action = self.rows["pixels"], self.rows["action"]
        return {
            "frame_shape": list(pixels.shape[1:]),
            "action_shape": list(action.shape[1:]),
        }


def _shapes(meta: Path, remedy: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return type and shape of the arrays of a shard by key; raises UserError."""
    saved = read_json(meta, remedy)
    keys = (*KEYS, POSE) if POSE in saved else KEYS
    try:
        found = {
            key: (TYPES[saved[key]["dtype"]], tuple(map(int, saved[key]["shape"])))
            for key in keys
        }
        lengths = {shape[0] for _, shape in found.values()}
    except (KeyError, TypeError, ValueError, IndexError):
        lengths = set()
    if len(lengths) != 1:
        raise UserError(f"{meta} is damaged: {remedy}")
    return found


def _map(
    shard: Path, key: str, dtype: torch.dtype, shape: tuple[int, ...], remedy: str
) -> Tensor:
    """Map the file of an array into memory, read-only; raises UserError."""
    file = shard / f"{key}.memmap"
    if not file.is_file():
        raise UserError(f"{file} is missing: {remedy}")
    count = math.prod(shape)
    expected, found = count * dtype.itemsize, file.stat().st_size
    if expected <= 0 or found != expected:
        sizes = f"{found:,} bytes instead of {expected:,}"
        raise UserError(f"{file} is damaged ({sizes}): {remedy}")
    return torch.from_file(str(file), shared=False, size=count, dtype=dtype).view(shape)


def write_shard(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the rows of whole episodes as a new shard, which is complete or absent."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    rows = TensorDict(tensors, batch_size=[len(arrays["reward"])])
    with replacing(path) as draft:
        rows.memmap(str(draft), copy_existing=True)
        write_checksums(draft)


@dataclass(frozen=True)
class Format:
    """Hold what format.json says.

    environment: as `describe_environment` returns it; None in formats 1 and 2
    """

    version: int = FORMAT_VERSION
    environment: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> Format:
        """Read the format of a data folder; raises UserError if it is newer or damaged."""
        file = folder / FORMAT_FILE
        if not file.is_file():
            return cls(1)
        remedy = "restore it, or collect again into another folder"
        saved = read_json(file, remedy)
        version = saved.get("format_version")
        if not isinstance(version, int):
            raise UserError(f"{file} is damaged: {remedy}")
        if version > FORMAT_VERSION:
            raise UserError(
                f"the data have format {version}, "
                f"this version reads formats up to {FORMAT_VERSION}: update lssvwm"
            )
        return cls(version, saved.get("environment"))

    def write(self, folder: Path) -> None:
        """Write format.json."""
        content = {"format_version": self.version, "environment": self.environment}
        write_json(folder / FORMAT_FILE, content)


def open_shards(folder: str | Path) -> list[Shard]:
    """Open the shards of a data folder, oldest first, without changing anything."""
    verify = Format.read(Path(folder)).version >= CHECKED
    paths = sorted(Path(folder).glob("shard-*"))
    return [Shard.open(path, verify) for path in paths]


def check_environment(
    folder: Path, recorded: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    """Raise UserError if frames were recorded in another environment than that used here."""
    for key, there in recorded.items():
        if there != here.get(key):
            raise UserError(
                f"the frames in {folder} are of another environment: "
                f"{key} is {text(there)}, here {text(here.get(key))}; "
                f"choose another folder by data= or output="
            )
