"""Test that memory is constant in size and survives files and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lssvwm.worldmodel import Memory

import lssvwm
from lssvwm import worldmodel


def test_memory_has_constant_size(kind, tiny, sequences):
    model = tiny(**kind)
    memory, _ = model.observe(model.initial(2), *sequences())
    assert memory.nbytes() == model.initial(2).nbytes()


def test_memory_survives_a_file(tmp_path, kind, tiny, sequences):
    model = tiny(**kind)
    frames, action, first = sequences()
    memory, _ = model.observe(
        model.initial(2), frames[:, :6], action[:, :6], first[:, :6]
    )
    memory.write(tmp_path / "memory.safetensors")
    back = Memory.read(tmp_path / "memory.safetensors")
    rest = frames[:, 6:], action[:, 6:], first[:, 6:] & False
    a, _ = model.observe(memory, *rest)
    b, _ = model.observe(back, *rest)
    assert a.diff(b).max() == 0


CONTINUE = """if True:
    import sys, torch
    from lssvwm import worldmodel
    model = worldmodel.load(sys.argv[1])
    rest = torch.load(sys.argv[1] + "/rest.pt")
    memory = worldmodel.Memory.read(sys.argv[1] + "/memory.safetensors")
    memory, heads = model.observe(memory, *rest)
    memory.write(sys.argv[1] + "/after.safetensors")"""


def test_memory_continues_in_another_process(tmp_path, tiny, sequences):
    model = tiny(torch.float32)
    frames, action, first = sequences()
    worldmodel.save(model, tmp_path)
    memory, _ = model.observe(
        model.initial(2), frames[:, :7], action[:, :7], first[:, :7]
    )
    memory.write(tmp_path / "memory.safetensors")
    rest = frames[:, 7:], action[:, 7:], first[:, 7:]
    torch.save(rest, tmp_path / "rest.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(lssvwm.__file__).parent)}
    command = [sys.executable, "-c", CONTINUE, str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    after, _ = model.observe(memory, *rest)
    assert Memory.read(tmp_path / "after.safetensors").diff(after).max() < 1e-6


@pytest.mark.parametrize("is_attention", [False, True])
def test_memory_of_format1_is_migrated(tmp_path, is_attention):
    layer = {"key": torch.ones(2, 2), "value": torch.ones(2, 2)}
    layer |= (
        {"valid": torch.ones(2, 2)} if is_attention else {"state": torch.ones(2, 3)}
    )
    saved = {
        "layers": {"0": layer},
        "seen": torch.ones(2, 2, dtype=torch.bool),
        "reach": torch.zeros(2, 0),
        "frames": torch.ones(2, dtype=torch.int64),
    }
    torch.save(saved, tmp_path / "memory.pt")
    memory = Memory.read(tmp_path / "memory.pt")
    inside = memory.layers["0"]
    assert set(inside["mixer"].keys()) == ({*layer} if is_attention else {"state"})
    assert set(inside["attention"].keys()) == (
        set() if is_attention else {"key", "value"}
    )
    assert memory.visible.all() and memory.action_limits.shape == (2, 0)


@pytest.mark.parametrize(
    ("saved", "message"),
    [({"format_version": 9}, "has format 9"), ({}, "holds no memory")],
)
def test_memory_refuses_other_files(tmp_path, saved, message):
    torch.save(saved, tmp_path / "memory.pt")
    with pytest.raises(ValueError, match=message):
        Memory.read(tmp_path / "memory.pt")
