"""Write and read tensors and plain data in one file that holds its own checksum.

It is a safetensors file with two texts in its metadata:

    lssvwm   plain data as JSON, with a `format_version`
    sha256   checksum of that text and of name, type, shape and bytes of each tensor

Reading executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lssvwm.worldmodel.migration import check_version
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

HEADER = "lssvwm"
"""Key of the metadata that holds the plain data."""
CHECKSUM = "sha256"
"""Key of the metadata that holds the checksum."""
CHECKED = 3
"""First format with a checksum, of weights, memories and training states."""
ZIP = b"PK\x03\x04"
"""First bytes of the files of earlier formats, which `torch.save` wrote."""


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write tensors and plain data; the file replaces an older one when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    layout = torch.contiguous_format  # a copy each: safetensors refuses shared memory
    own = {
        key: value.detach().cpu().clone(memory_format=layout)
        for key, value in tensors.items()
    }
    header = json.dumps(about)
    metadata = {HEADER: header, CHECKSUM: _checksum(own, header)}
    draft = file.with_name(f"draft-{file.name}")
    try:
        save_file(own, draft, metadata)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def read_tensors(file: Path, newest: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plain data and the tensors of a file, on the CPU.

    newest: format that the caller reads at most
    Raises ValueError if the file is damaged, holds something else or has a newer format.
    """
    try:
        with safe_open(file, "pt") as saved:
            metadata = saved.metadata() or {}
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
        about = json.loads(metadata[HEADER])
        version = int(about.get("format_version", 1))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged or not a file of this package ({error})"
        ) from None
    check_version(version, str(file), newest)
    is_checked = CHECKSUM in metadata or version >= CHECKED
    checksum = _checksum(tensors, metadata[HEADER])
    if is_checked and metadata.get(CHECKSUM) != checksum:
        raise ValueError(f"{file} is damaged: its checksum is wrong")
    return about, tensors


def _checksum(tensors: Mapping[str, Tensor], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_torch_file(file: Path) -> bool:
    """Return whether `torch.save` wrote a file, as in formats before `CHECKED`."""
    with file.open("rb") as opened:
        return opened.read(len(ZIP)) == ZIP


def read_torch_file(file: Path) -> dict[str, Any]:
    """Return what `torch.save` wrote: tensors and plain values, nothing else.

    Raises ValueError if the file is damaged or holds more, which is never executed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        with file.open("rb") as opened:  # torch.load guesses the format by a suffix
            saved = torch.load(opened, weights_only=True, map_location="cpu")
        if not isinstance(saved, dict):
            raise ValueError("it holds no dictionary")
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{file} is damaged, or holds more than tensors and plain values "
            f"({type(error).__name__})"
        ) from None
    return saved
