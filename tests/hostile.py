"""Files that an attack or a broken disk could leave."""

from __future__ import annotations

import os
from pathlib import Path


class Shout:
    """Make a folder when it is unpickled, as an attack would run a program."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def flipped(file: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
