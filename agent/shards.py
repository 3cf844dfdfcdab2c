"""Write and open shards: whole episodes in memory-mapped arrays, with checksums.

A data folder of format 3 holds:

    format.json      format_version, and the environment that the frames come from
    shard-000000-MACHINE-PROCESS/    a memory-mapped TensorDict, as `TensorDict.memmap` writes it:
        KEY.memmap       one array
        meta.json        type and shape of each array
        provenance.json  environment, settings, policy, seed and weights that the frames were collected with
        checksums.json   size and CRC-32 of the files above
    seeds/           numbers that writers have claimed, to collect different episodes

Earlier shards have shorter names and no provenance. Format 2 has no environment and no checksums; format 1 has no
format.json either.
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
import os
import re
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
    CHECKSUMS,
    DRAFT,
    read_json,
    replacing,
    verify_checksums,
    write_checksums,
    write_json,
)
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv
from tensordict import TensorDict
from torch import Tensor

FORMAT_VERSION = 3
"""Format of data folders that this version writes."""
CHECKED = 3
"""First format with checksums."""
PATIENCE = 2.0
"""Seconds of checking shards after which progress is shown."""
FORMAT_FILE = "format.json"
META = "meta.json"
PROVENANCE = "provenance.json"
KEYS = ("pixels", "action", "reward", "terminated", "truncated", "is_first")
POSE = "pose"
"""Key of rows that only environments with poses have."""
TYPES = {
    str(kind): kind for kind in (torch.uint8, torch.int64, torch.float32, torch.bool)
}
"""Types of arrays by their names in meta.json."""
REMEDY = "restore it, or delete {} to go on without its frames"
"""Advice about a damaged shard, for its path."""
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
        remedy = REMEDY.format(path)
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

    def provenance(self) -> dict[str, Any]:
        """Return how the frames were collected; empty for shards of earlier versions."""
        file = self.path / PROVENANCE
        return read_json(file, REMEDY.format(self.path)) if file.exists() else {}

    def environment(self) -> dict[str, Any]:
        """Return the recorded environment, or as much of it as the rows show."""
        return self.provenance().get("environment") or self.described()


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


def shard_paths(folder: Path) -> list[Path]:
    """Return the folders of all complete shards, oldest first."""
    return sorted(path for path in folder.glob("shard-*") if path.is_dir())


def shard_number(path: Path) -> int:
    """Return the number in the name of a shard; -1 for a foreign name."""
    found = re.match(r"shard-(\d+)", path.name)
    return int(found[1]) if found else -1


def write_shard(
    path: Path, arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any]
) -> None:
    """Write the rows of whole episodes as a new shard, which is complete or absent."""
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    rows = TensorDict(tensors, batch_size=[len(arrays["reward"])])
    with replacing(path) as draft:
        rows.memmap(str(draft), copy_existing=True)
        write_json(draft / PROVENANCE, provenance)
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

    def write(self, folder: Path, writer: str) -> None:
        """Write format.json; `writer` keeps the drafts of several writers apart."""
        content = {"format_version": self.version, "environment": self.environment}
        draft = folder / f"{DRAFT}format-{writer}.json"
        write_json(draft, content)
        os.replace(draft, folder / FORMAT_FILE)


def open_shards(
    folder: str | Path, environment: Mapping[str, Any] | None = None
) -> list[Shard]:
    """Open the shards of a data folder, oldest first, without changing anything.

    All files are read once to compare their checksums, which takes minutes for millions of frames.
    environment: that of the frames, see `describe_environment`; None: any that all shards share
    Raises UserError for damaged shards, and for frames of another environment.
    """
    folder = Path(folder)
    check_folder(folder, environment)
    has_checksums = Format.read(folder).version >= CHECKED
    paths = shard_paths(folder)
    progress = Progress("check", len(paths), "shards", patience=PATIENCE)
    shards: list[Shard] = []
    for path in paths:
        verify = has_checksums or (path / CHECKSUMS).is_file()
        shards.append(Shard.open(path, verify))
        progress.update(len(shards), str(folder))
    progress.close()
    expected = environment or (shards[0].described() if shards else {})
    for shard in shards:
        found = shard.described() if environment is None else shard.environment()
        check_environment(shard.path, found, expected)
    return shards


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


def check_folder(folder: Path, environment: Mapping[str, Any] | None) -> None:
    """Raise UserError if a data folder holds frames of another environment; None: any."""
    paths = shard_paths(folder)
    if environment is None or not paths:
        return
    recorded = Format.read(folder).environment
    if recorded is None:
        recorded = Shard.open(paths[0], verify=False).environment()
    check_environment(folder, recorded, environment)
