"""Turn memories into the bytes of a file and back. Nothing in a file is executed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import Memory, WorldModel
from lssvwm.worldmodel.tensor_file import ZIP

OTHER_MODEL = "this file is the memory of another model: load it with the same model"
SPARE = 2**16
"""Bytes that a file may have beyond its tensors."""


def to_bytes(memory: Memory) -> bytes:
    """Return the file of a memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.safetensors"
        memory.write(file)
        return file.read_bytes()


def from_bytes(data: bytes, model: WorldModel) -> Memory:
    """Return the memory [1] in a file of this package.

    Raises UserError unless it is complete, undamaged, and the memory of one agent of this model.
    """
    expected = model.initial(1)
    if len(data) > expected.nbytes() + SPARE:
        raise UserError(f"{OTHER_MODEL} (it is too large)")
    if data.startswith(ZIP):
        raise UserError("this is no memory file of this version: save it again")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.safetensors"
        file.write_bytes(data)
        try:
            memory = Memory.read(file)
        except (ValueError, KeyError, TypeError, RuntimeError):
            raise UserError("this file is damaged, or no memory file") from None
    _check(memory, expected)
    return memory.to(model.device)


def _check(memory: Memory, expected: Memory) -> None:
    """Raise UserError unless two memories have the same tensors, without NaN."""
    found = dict(memory.to_tensordict().flatten_keys().items())
    wanted = dict(expected.to_tensordict().flatten_keys().items())
    if found.keys() != wanted.keys():
        raise UserError(OTHER_MODEL)
    for name, tensor in wanted.items():
        value = found[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise UserError(OTHER_MODEL)
        if value.is_floating_point() and torch.isnan(value).any():
            raise UserError("this memory holds no numbers (NaN): save it again")
