"""Write files and folders atomically, and notice on reading that a file has changed.

A JSON file holds its own checksum. The files of a folder have theirs in `checksums.json`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lssvwm.agent.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRAFT = "draft-"
"""Start of the name of a file or folder that is being written."""
LOCK = ".lock"
"""File whose lock the one writer of a folder holds."""
CHECKSUM = "crc32"
"""Key of a JSON file that holds the checksum of all other keys."""
CHECKSUMS = "checksums.json"
"""File with size and CRC-32 of the other files of its folder."""
CHUNK = 1 << 22
"""Bytes read at once."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a draft that replaces the file `path` when the block succeeds.

    The draft lies in the same folder and has the same suffix, because some writers choose the format by it.
    A block that raises leaves `path` unchanged and no draft; a killed process leaves the draft.
    The draft may be a folder if `path` does not exist yet.
    """
    path = Path(path)
    draft = path.with_name(DRAFT + path.name)
    try:
        yield draft
        os.replace(draft, path)
    finally:
        remove(draft)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which one process may write.

    A missing folder is made. The system frees the lock when the process ends, however it ends. Systems without such
    locks have none.
    Raises UserError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    while True:
        with path.open("a+") as file:
            _take(file, folder)
            if not path.exists() or not os.path.samestat(
                os.fstat(file.fileno()), path.stat()
            ):
                continue  # its last holder removed the file after it was opened here
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _take(file: IO[str], folder: Path) -> None:
    """Lock an open file; raises UserError if another process holds it."""
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f"another process writes into {folder}: "
                f"wait until it ends, or choose another output="
            ) from None


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists.

    A folder is renamed first: a killed process leaves no part of it under its name.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(DRAFT):
        draft = path.with_name(DRAFT + path.name)
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):
            path = path.rename(draft)
    shutil.rmtree(path, ignore_errors=True)


def write_json(file: Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write plain data as JSON with a checksum.

    The file is replaced at once or not at all.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = finite(json.loads(json.dumps(content, default=str)))
    with replacing(file) as draft:
        text = json.dumps(plain | {CHECKSUM: _checksum(plain)}, indent=indent)
        draft.write_text(text + "\n", encoding="utf-8")


def finite(plain: Any) -> Any:
    """Return plain data with null for NaN and infinity, which JSON does not have."""
    if isinstance(plain, dict):
        return {key: finite(value) for key, value in plain.items()}
    if isinstance(plain, (list, tuple)):
        return [finite(value) for value in plain]
    is_number = not isinstance(plain, float) or math.isfinite(plain)
    return plain if is_number else None


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Return what `write_json` wrote; a file of earlier versions has no checksum.

    remedy: what the user can do if the file is missing or damaged; it ends the UserError
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        checksum = plain.pop(CHECKSUM, None)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: {remedy}") from None
    except (ValueError, TypeError, AttributeError):  # no JSON, or no object
        raise UserError(f"{file} is damaged: {remedy}") from None
    if checksum not in (None, _checksum(plain)):
        raise UserError(
            f"{file} has changed since it was written (its checksum is wrong): {remedy}"
        )
    return plain


def _checksum(plain: dict[str, Any]) -> str:
    """Return the CRC-32 of plain data as eight hexadecimal digits."""
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, without lines that are damaged or cut."""
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of every file in a folder."""
    others = (path for path in folder.iterdir() if path.name != CHECKSUMS)
    files = sorted(path for path in others if path.is_file())
    found = {path.name: _size_and_crc(path) for path in files}
    write_json(folder / CHECKSUMS, {"files": found})


def verify_checksums(folder: Path, remedy: str) -> None:
    """Raise UserError, which ends in `remedy`, if a file is missing or has changed."""
    listed = read_json(folder / CHECKSUMS, remedy)["files"]
    for name, expected in listed.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing: {remedy}")
        if _size_and_crc(file) != expected:
            raise UserError(
                f"{file} is damaged (its size or checksum is wrong): {remedy}"
            )


def _size_and_crc(file: Path) -> dict[str, int]:
    size = crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
    return {"bytes": size, "crc32": crc}
