"""Write shards into a data folder that other processes use at the same time.

They may run on other machines. A shard is named `shard-NUMBER-MACHINE-PROCESS`. Numbers grow with time; two writers
may use the same one. A shard appears when it is complete. Until then it is a draft, which only its writer touches
while that lives.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import socket
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lssvwm.agent.files import CHECKSUMS, DRAFT, remove, write_checksums
from lssvwm.agent.shards import (
    FORMAT_VERSION,
    KEYS,
    POSE,
    Format,
    check_folder,
    shard_number,
    shard_paths,
    write_shard,
)

MARGIN = 2**16
"""Bytes that a shard takes in addition to its arrays, at most."""
SEEDS = "seeds"
"""Folder with an empty file for each number that a writer has claimed."""
ABANDONED = 24 * 3600
"""Seconds after which a draft of another machine counts as abandoned."""


class ShardWriter:
    """Write shards of this process into a data folder; other shards are left alone.

    environment: that of the frames, as `shards.describe_environment` returns it; None: any
    Raises UserError if the folder holds frames of another environment.
    """

    def __init__(self, folder: str | Path, environment: dict[str, Any] | None = None):
        self.folder = Path(folder)
        self.environment = environment
        check_folder(self.folder, environment)

    def write(
        self, rows: Mapping[str, np.ndarray], provenance: Mapping[str, Any]
    ) -> Path:
        """Write whole episodes as a new shard, and return its folder.

        provenance: how the frames were collected, plain data.
        Raises OSError if the disk lacks the space: to fill a memory map beyond it would kill the process.
        """
        keys = [key for key in (*KEYS, POSE) if key in rows]
        arrays = {key: np.ascontiguousarray(rows[key]) for key in keys}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_space(sum(array.nbytes for array in arrays.values()))
        remove_abandoned(self.folder)
        others = shard_paths(self.folder)
        self._prepare(others)
        number = 1 + max(map(shard_number, others), default=-1)
        path = self.folder / f"shard-{number:06d}-{writer_id()}"
        write_shard(path, arrays, {"environment": self.environment, **provenance})
        return path

    def _check_space(self, size: int) -> None:
        if shutil.disk_usage(self.folder).free < size + MARGIN:
            message = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, message, str(self.folder))

    def _prepare(self, others: list[Path]) -> None:
        """Prepare the folder for a shard of the present format and of this environment."""
        if others and Format.read(self.folder).version == FORMAT_VERSION:
            check_folder(self.folder, self.environment)
            return
        for path in others:
            if not (path / CHECKSUMS).is_file():
                write_checksums(path)
        Format(environment=self.environment).write(self.folder, writer_id())

    def claim(self) -> int:
        """Return a number that no other writer of the folder gets, to draw seeds from."""
        claimed = self.folder / SEEDS
        claimed.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(len(shard_paths(self.folder))):
            with suppress(FileExistsError):
                (claimed / f"{number:06d}").touch(exist_ok=False)
                return number
        raise AssertionError


def writer_id() -> str:
    """Identify this process among all that may write to a shared folder."""
    return f"{machine_id()}-{os.getpid()}"


def machine_id() -> str:
    """Identify this machine since its start; a container counts as a machine."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"


def remove_abandoned(folder: Path) -> None:
    """Remove drafts of shards whose writer has died."""
    for draft in folder.glob(f"{DRAFT}shard-*"):
        with suppress(FileNotFoundError):  # another writer has removed it
            if _is_abandoned(draft):
                remove(draft)


def _is_abandoned(draft: Path) -> bool:
    """Return whether the writer of a draft has ended, as far as this machine knows.

    Drafts of other machines are abandoned after a day.
    """
    *_, machine, process = draft.name.split("-")
    if machine == machine_id():
        return not _is_running(int(process))
    return time.time() - draft.stat().st_mtime > ABANDONED


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
