"""Trajectories on disk, and sequences drawn from them.

Format. A data folder holds shards `shard-000000`, `shard-000001`, ...: each a memory-mapped TensorDict
(`tensordict.load_memmap`) of whole episodes, one row per frame, T + 1 rows for T actions, episodes back to back:
    pixels uint8 [C, H, W]   the frame
    action int64 [] or float32 [A]   the action that led to it (zero on a first frame)
    reward float32 []        received on arriving at it
    terminated, truncated, is_first bool []
A shard is written under another name and renamed when complete, so that a killed process leaves no half shard.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import Batch
from tensordict import TensorDict

MARGIN = 2**16  # bytes a shard takes beside its arrays, at most
KEYS = ("pixels", "action", "reward", "terminated", "truncated", "is_first")


class Replay:
    """The shards of a data folder; reopens what is there, and grows."""

    def __init__(self, folder: str | Path, keep: int = 10**12):
        self.folder, self.keep = Path(folder), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shards: list[TensorDict] = []
        self.starts: list[np.ndarray] = []
        self.paths: list[Path] = []
        for draft in self.folder.glob("draft-*"):
            shutil.rmtree(draft)
        for path in sorted(self.folder.glob("shard-*")):
            self._open(path)

    def _open(self, path: Path) -> None:
        shard = TensorDict.load_memmap(path)
        first = shard["is_first"]
        assert isinstance(first, torch.Tensor)
        self.shards.append(shard)
        self.starts.append(np.asarray(first).nonzero()[0])
        self.paths.append(path)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @property
    def episodes(self) -> int:
        return sum(len(starts) for starts in self.starts)

    def extend(self, rows: dict[str, np.ndarray]) -> None:
        """Append whole episodes as a new shard; beyond `keep` frames the oldest shards go.

        Raises OSError if the disk has no room for it: filling a memory map beyond that would kill the process.
        """
        number = int(self.paths[-1].name[-6:]) + 1 if self.paths else 0
        path, draft = (
            self.folder / f"shard-{number:06d}",
            self.folder / f"draft-{number:06d}",
        )
        data = {key: torch.from_numpy(np.ascontiguousarray(rows[key])) for key in KEYS}
        if (
            shutil.disk_usage(self.folder).free
            < sum(part.nbytes for part in data.values()) + MARGIN
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        try:
            TensorDict(data, batch_size=[len(rows["reward"])]).memmap(
                str(draft), copy_existing=True
            )
            os.replace(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._open(path)
        while len(self) - len(self.shards[0]) >= self.keep:
            shutil.rmtree(self.paths.pop(0))
            self.shards.pop(0)
            self.starts.pop(0)

    def check(self, frame_shape: tuple[int, int, int]) -> None:
        """Raises UserError if there is nothing to train on, or if the frames are of another shape."""
        if len(self) == 0:
            raise UserError(
                f"no data in {self.folder}: collect some first (train.collect.frames or `lssvwm collect`)"
            )
        found = tuple(self.shards[0]["pixels"].shape[1:])
        if found != tuple(frame_shape):
            raise UserError(
                f"frames in {self.folder} are {found}, the environment's are {tuple(frame_shape)}"
            )

    def sample(
        self, batch: int, length: int, align: float, rng: np.random.Generator
    ) -> Batch:
        """`batch` sequences of `length` consecutive rows, which may span episodes (`is_first` marks them).

        A share `align` of them starts with an episode, so that what it shows first is in the sequence.
        """
        fits = [i for i, shard in enumerate(self.shards) if len(shard) >= length]
        if not fits:
            raise UserError(
                f"no shard in {self.folder} has {length} frames: lower train.length or collect more"
            )
        sizes = np.array([len(self.shards[i]) for i in fits], float)
        parts = [
            self._slice(int(i), length, align, rng)
            for i in rng.choice(fits, batch, p=sizes / sizes.sum())
        ]
        return Batch(
            **{key: torch.stack([part[key] for part in parts]) for key in KEYS}
        )

    def _slice(
        self, shard: int, length: int, align: float, rng: np.random.Generator
    ) -> TensorDict:
        last = len(self.shards[shard]) - length
        starts = self.starts[shard]
        usable = int(np.searchsorted(starts, last, side="right"))
        aligned = rng.random() < align and usable > 0
        begin = (
            int(starts[rng.integers(usable)])
            if aligned
            else int(rng.integers(last + 1))
        )
        return self.shards[shard][begin : begin + length]
