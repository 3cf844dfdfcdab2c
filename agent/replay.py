"""Store trajectories on disk and draw training sequences from them; `shards` defines the files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import remove
from lssvwm.agent.progress import announce
from lssvwm.agent.shard_writer import ShardWriter
from lssvwm.agent.shards import (
    KEYS,
    POSE,
    Shard,
    check_environment,
    open_shards,
    shard_paths,
)
from lssvwm.worldmodel import Batch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import SliceSampler, Storage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter

KEPT_FRAMES = 1_000_000
"""Frames that a data folder keeps; the oldest shards are deleted first."""
GIVEN = "data:"
"""Start of the names of shards of the given folder."""


class Replay:
    """Hold the shards of a data folder, add new ones and draw sequences.

    keep: frames kept; beyond them the oldest shards are not used, and deleted by `delete_retired`. None: all are kept
    given: another data folder, whose frames are used too; it is only read
    environment: that of the frames, as `shards.describe_environment` returns it; None: any
    Raises UserError if a shard is damaged, or holds frames of another environment.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int | None = None,
        environment: dict[str, Any] | None = None,
        given: Path | None = None,
    ):
        self.writer = ShardWriter(folder, environment)
        self.folder = self.writer.folder
        self.keep = keep
        self.environment = environment
        self.given = given
        self.retired: list[Path] = []
        """Shards that are no longer used, until they are deleted."""
        self.unused: set[str] = set()
        """Names of shards that are in a folder but not used."""
        self.shards = [] if given is None else self._open_given(given)
        self.shards += open_shards(self.folder, environment)

    def _open_given(self, given: Path) -> list[Shard]:
        if given.resolve() == self.folder.resolve():
            raise UserError(
                f"data={given} is the run's own folder, which it uses in any case: "
                f"set data=null, or choose another output="
            )
        shards = open_shards(given, self.environment)
        if not shards:
            raise UserError(
                f"no data in {given}: collect some with `lssvwm collect output={given}`"
            )
        return shards

    def __len__(self) -> int:
        """Return the number of frames."""
        return sum(len(shard) for shard in self.shards)

    @property
    def episodes(self) -> int:
        """Return the number of episodes."""
        return sum(len(shard.starts) for shard in self.shards)

    @property
    def names(self) -> list[str]:
        """Return the names of the shards, oldest first; those of the given folder after GIVEN."""
        return [self._name(shard.path) for shard in self.shards]

    def _name(self, path: Path) -> str:
        return path.name if self._is_own(path) else f"{GIVEN}{path.name}"

    def _is_own(self, path: Path) -> bool:
        return path.parent == self.folder

    def _paths(self) -> list[Path]:
        """Return the folders of all shards, used or not; those of the given folder first."""
        given = [] if self.given is None else shard_paths(self.given)
        return given + shard_paths(self.folder)

    def extend(
        self,
        rows: Mapping[str, np.ndarray],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Append whole episodes as a new shard, then retire the oldest shards beyond `keep` frames.

        provenance: how the frames were collected, plain data
        Raises OSError if the disk lacks the space.
        """
        path = self.writer.write(rows, provenance or {})
        self.shards.append(Shard.open(path, verify=False))
        self._retire()

    def refresh(self) -> None:
        """Take in shards that other writers have completed or deleted.

        A shard that is damaged or of another environment is reported once and left out.
        """
        paths = self._paths()
        opened = {shard.path: shard for shard in self.shards}
        found = []
        for path in paths:
            if self._name(path) not in self.unused:
                found.append(opened.get(path) or self._open_new(path))
        self.shards = [shard for shard in found if shard is not None]
        self._retire()

    def _open_new(self, path: Path) -> Shard | None:
        """Open a shard of another writer; None if it is unusable, or deleted meanwhile."""
        try:
            shard = Shard.open(path, verify=True)
            if self.environment is not None:
                check_environment(path.parent, shard.environment(), self.environment)
            return shard
        except (UserError, OSError, RuntimeError) as error:
            if path.exists():
                announce(f"{error}; training goes on without {path.name}")
                self.unused.add(self._name(path))
            return None

    def _retire(self) -> None:
        """Stop to use the oldest shards beyond `keep` frames."""
        if self.keep is None or not self.shards:
            return
        while len(self) - len(self.shards[0]) >= self.keep:
            old = self.shards.pop(0).path
            self.unused.add(self._name(old))
            if self._is_own(old):
                self.retired.append(old)

    def delete_retired(self) -> None:
        """Delete own shards that are no longer used, once no checkpoint needs them."""
        for path in self.retired:
            remove(path)
        self.retired = []

    def follow(self, names: Collection[str]) -> None:
        """Open exactly the shards with these names, as another process does."""
        paths = {self._name(path): path for path in self._paths()}
        opened = {shard.path: shard for shard in self.shards}
        wanted = [paths[name] for name in names]
        self.shards = [
            opened.get(path) or Shard.open(path, verify=False) for path in wanted
        ]

    def delete_collection(self, name: str) -> None:
        """Delete the own shards of a collection."""
        for shard in self.shards:
            is_own = self._is_own(shard.path)
            if is_own and shard.provenance().get("collection") == name:
                remove(shard.path)
        self.shards = [shard for shard in self.shards if shard.path.exists()]

    def use_only(self, names: Collection[str]) -> list[str]:
        """Use no other shards than those with these names; the others stay in the folder.

        Shards of the given folder are used, too, if none of them is named. Returns the names of those not used.
        """
        given = {name for name in self.names if name.startswith(GIVEN)}
        wanted = {*names} if given & {*names} else {*names, *given}
        left_out = {*self.names} - wanted
        self.unused |= left_out
        self.shards = [
            shard for shard in self.shards if self._name(shard.path) in wanted
        ]
        return sorted(left_out)

    def check(self, needs_pose: bool = False) -> None:
        """Raise UserError if there are no frames, or no poses that the model needs."""
        if len(self) == 0:
            raise UserError(
                f"no data in {self.given or self.folder}: collect some first "
                f"(train.collect.frames or `lssvwm collect`)"
            )
        if needs_pose and POSE not in set(self.shards[0].rows.keys()):
            raise UserError(
                f"model.pose=given: the frames in {self.given or self.folder} have no poses; "
                f"use an environment that has them, or model.pose=integrated"
            )

        for shard in self.shards:
            _check_finite(shard)

    def sample(
        self,
        batch: int,
        length: int,
        episode_start_prob: float,
        rng: np.random.Generator,
        rows: slice = slice(None),
    ) -> Batch:
        """Draw `batch` sequences of `length` consecutive rows of one shard.

        Sequences may span episodes; `is_first` marks where one begins.
        episode_start_prob: fraction of sequences that start with an episode
        rows: those that are read and returned; all of them are drawn
        """
        fits = [shard for shard in self.shards if len(shard) >= length]
        if not fits:
            raise UserError(
                f"no shard in {self.folder} has {length} frames: "
                f"lower train.length or collect more"
            )
        sizes = np.array([len(shard) for shard in fits], float)
        chosen = rng.choice(len(fits), batch, p=sizes / sizes.sum())
        parts = [_draw(fits[i], length, episode_start_prob, rng) for i in chosen]
        shared = set.intersection(*(set(part.keys()) for part in parts))
        keys = [*KEYS, POSE] if POSE in shared else KEYS
        read = parts[rows]
        return Batch(**{key: torch.stack([part[key] for part in read]) for key in keys})


def _check_finite(shard: Shard) -> None:
    """Raise UserError, with the episode, for a reward that is not a finite number."""
    reward = np.asarray(shard.rows.get("reward"))
    wrong = np.flatnonzero(~np.isfinite(reward))
    if len(wrong):
        episode = int(np.searchsorted(shard.starts, wrong[0], side="right"))
        raise UserError(
            f"{shard.path}, episode {episode}: the reward of a frame is "
            f"{reward[wrong[0]]}; delete this folder, or collect its frames again"
        )


def _draw(
    shard: Shard, length: int, episode_start_prob: float, rng: np.random.Generator
) -> TensorDictBase:
    """Draw `length` consecutive rows of a shard."""
    last = len(shard) - length
    usable = int(np.searchsorted(shard.starts, last, side="right"))
    at_start = rng.random() < episode_start_prob and usable > 0
    if at_start:
        begin = int(shard.starts[rng.integers(usable)])
    else:
        begin = int(rng.integers(last + 1))
    return shard.rows[begin : begin + length]


def as_replay_buffer(
    folder: str | Path, batch_size: int = 256, slice_len: int | None = None
) -> TensorDictReplayBuffer:
    """Open a data folder as a read-only TorchRL replay buffer of transitions.

        batch = as_replay_buffer("runs/tmaze/data", batch_size=32).sample()

    Frames stay in memory-mapped files; only those that are sampled are read. Keys of a sample [B]:

        pixels uint8 [B, C, H, W]
        last_action int64 [B] or float32 [B, A]   the action that led to `pixels`, zero on a first frame
        is_first bool [B, 1]
        action int64 [B] or float32 [B, A]        the action that was executed
        next   pixels, last_action, is_first; reward float32 [B, 1]; done, terminated, truncated bool [B, 1]

    slice_len: transitions of each slice of an episode; a sample holds batch_size / slice_len slices, and
        TorchRL marks the last transition of each as truncated. None: single transitions.
    Raises UserError if the folder holds no data.
    """
    shards = open_shards(folder)
    if not shards:
        raise UserError(f"no data in {folder}: collect some with `lssvwm collect`")
    storage = TransitionStorage(shards)
    sampler = None
    if slice_len is not None:
        ends = torch.from_numpy(storage.ends())
        sampler = SliceSampler(slice_len=slice_len, ends=ends, cache_values=True)
    return TensorDictReplayBuffer(
        storage=storage,
        sampler=sampler,
        writer=ImmutableDatasetWriter(),
        collate_fn=lambda transitions: transitions,  # the storage returns whole batches
        batch_size=batch_size,
    )


class TransitionStorage(Storage):
    """Read transitions of memory-mapped shards as a TorchRL storage; it cannot be written."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards
        rows = [_transition_rows(shard) for shard in shards]
        numbers = [np.full(len(found), i) for i, found in enumerate(rows)]
        self.row = np.concatenate(rows)
        self.shard = np.concatenate(numbers)
        super().__init__(max_size=len(self.row))

    def __len__(self) -> int:
        """Return the number of transitions."""
        return len(self.row)

    def ends(self) -> np.ndarray:
        """Return which transitions are the last of their episode, bool [N]."""
        ends = np.empty(len(self), bool)
        ends[:-1] = (np.diff(self.row) != 1) | (np.diff(self.shard) != 0)
        ends[-1] = True
        return ends

    def get(self, index: Any) -> TensorDict:
        """Read the transitions of an integer, a slice or an array of integers."""
        if isinstance(index, tuple):  # as samplers give the index of a 1-D storage
            (index,) = index
        if isinstance(index, (Tensor, range, list)):
            index = np.asarray(index)
        row = np.atleast_1d(self.row[index])
        shard = np.atleast_1d(self.shard[index])
        parts, places = [], []
        for number in np.unique(shard):
            place = np.flatnonzero(shard == number)
            parts.append(_transitions(self.shards[number].rows, row[place]))
            places.append(place)
        order = torch.from_numpy(np.argsort(np.concatenate(places)))
        found = TensorDict.cat(parts)[order]
        assert isinstance(found, TensorDict)
        return found if np.ndim(self.row[index]) else found[0]

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Raise TypeError: collect data with `lssvwm collect` instead."""
        raise TypeError("a data folder is read-only as a replay buffer")

    def _empty(self) -> None:
        self.set(None, None)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the transitions are on disk."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore a state, which is always empty."""


def _transition_rows(shard: Shard) -> np.ndarray:
    """Return the rows that are followed by another row of the same episode, int64 [N]."""
    is_first = np.asarray(shard.rows.get("is_first"))
    continues = ~is_first[1:]
    return np.flatnonzero(continues)


def _transitions(rows: TensorDict, at: np.ndarray) -> TensorDict:
    """Return the transitions from rows `at` to the rows after them."""
    index = torch.from_numpy(at)
    before = _read(rows, index)
    after = _read(rows, index + 1)
    flags = {key: after[key][:, None] for key in ("reward", "terminated", "truncated")}
    done = flags["terminated"] | flags["truncated"]
    following = _observation(after) | flags | {"done": done}
    transition = _observation(before) | {"action": after["action"], "next": following}
    return TensorDict(transition, batch_size=[len(at)])


def _read(rows: TensorDict, index: Tensor) -> dict[str, Tensor]:
    """Read the rows of an index into memory."""
    return {key: rows.get(key)[index] for key in KEYS}


def _observation(rows: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "pixels": rows["pixels"],
        "last_action": rows["action"],
        "is_first": rows["is_first"][:, None],
    }
