"""Write files and folders atomically: readers never see a part of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFT = "draft-"
"""Start of the name of a file or folder that is being written."""


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


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
