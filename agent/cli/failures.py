"""Turn Ctrl-C, a full disk and a denied folder into one line with the remedy."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lssvwm.agent.interrupts import handled, interrupt

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes of the console script."""
FULL_BYTES = 1 << 20
"""Free bytes of a disk below which a failed write is put down to a full disk."""
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
MEMORY = re.compile("out of memory|allocate memory", re.IGNORECASE)
"""Messages of torch about too little memory."""
UNUSABLE = (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EIO, errno.ELOOP)
"""Errors that speak of an unusable folder if they name a file in it."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Stop(Exception):
    """End the program with one line and an exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextmanager
def saved(
    folder: Path, resumable: bool = False, again: str = "run it again to start over"
) -> Iterator[None]:
    """Raise Stop in place of Ctrl-C, a full disk and a denied folder.

    SIGTERM and SIGHUP act like Ctrl-C. The line says how to continue: by `lssvwm resume` if the folder holds a
    `resumable` run, otherwise by `again`.
    """

    def advice(otherwise: str) -> str:
        holds_run = (folder / "config.yaml").is_file()
        if not (resumable and holds_run):
            return otherwise
        from lssvwm.agent.config.composition import trust_setting

        return f"continue with `lssvwm resume {shlex.quote(str(folder))}{trust_setting(folder)}`"

    try:
        with handled(interrupt):
            yield
    except KeyboardInterrupt as stop:
        where = f" {stop}" if stop.args else ""
        raise Stop(f"stopped{where}; {advice(again)}", INTERRUPTED) from None
    except Exception as error:
        if _disk_full(error, folder):
            remedy = f"free some space, then {advice('run it again')}"
            message = (
                f"the disk of {folder} is full; saved files are complete: {remedy}"
            )
            raise Stop(message, FAILED) from None
        if _cannot_write(error, folder):
            message = f"cannot write {folder} ({error}); choose another output="
            raise Stop(message, FAILED) from None
        if isinstance(error, PermissionError):
            raise Stop(
                f"cannot use {error.filename}: {error.strerror}", FAILED
            ) from None
        raise


def unexpected(error: Exception, arguments: Sequence[str]) -> str:
    """Write an unexpected error into a log file; return one line that names it."""
    reason = str(error).splitlines()[0] if str(error) else ""
    problem = f"{type(error).__name__}: {reason}"
    log = _write_log(error, arguments)
    if "EnvironmentFault" in [cls.__name__ for cls in type(error).__mro__]:
        return f"{reason} (traceback in {log})"
    if isinstance(error, MemoryError) or MEMORY.search(reason):
        return f"too little memory ({problem}): lower train.batch, train.length or planner.candidates"
    return (
        f"unexpected error ({problem}); please report it with {log}, "
        f"which holds traceback, version and settings"
    )


def _write_log(error: Exception, arguments: Sequence[str]) -> str:
    """Write traceback, version and command line into a new file; return its name."""
    name = f"lssvwm-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    file = Path(tempfile.gettempdir()) / name
    text = "".join(traceback.format_exception(error))
    about = f"lssvwm {_version()}, Python {sys.version}\nlssvwm {shlex.join(arguments)}"
    try:
        file.write_text(f"{about}\n\n{text}", encoding="utf-8")
    except OSError as failed:
        return f"no log, which could not be written ({failed})"
    return str(file)


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("lssvwm")
    return "(not installed)"


def _cannot_write(error: Exception, folder: Path) -> bool:
    """Return whether the system refused to make or change a file of the folder."""
    if not isinstance(error, OSError):
        return False
    file, whole = str(error.filename or ""), str(folder)
    inside = file.startswith(whole)
    above = whole.startswith(file)  # also without a file name
    denied = error.errno in DENIED and (inside or above)
    return denied or (inside and error.errno in UNUSABLE)


def _disk_full(error: BaseException | None, folder: Path) -> bool:
    """Return true if a write failed for lack of space. Torch only says that it failed."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or "No space left" in str(error):
            return True
        if isinstance(error, RuntimeError):
            above = (folder, *folder.absolute().parents)
            existing = next(path for path in above if path.exists())
            return shutil.disk_usage(existing).free < FULL_BYTES
        error = error.__cause__ or error.__context__
    return False
