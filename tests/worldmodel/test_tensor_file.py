"""Files of tensors notice every change, and run nothing when they are read."""

import pytest
import torch
from lssvwm.worldmodel import Memory
from lssvwm.worldmodel.tensor_file import (
    CHECKED,
    read_tensors,
    read_torch_file,
    write_tensors,
)
from safetensors.torch import save_file

from lssvwm import worldmodel
from tests.hostile import Shout, flipped

TENSORS = {
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(2, 0),
    "flags": torch.tensor([True, False]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "expanded": torch.arange(4).expand(2, 4),
}


def test_tensors_and_plain_data_survive_a_file(tmp_path):
    about = {"format_version": CHECKED, "numbers": [2**127, 0.1, None]}
    file = tmp_path / "new" / "file.safetensors"
    write_tensors(file, TENSORS, about)
    again, tensors = read_tensors(file, CHECKED)
    assert again == about
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("bit", [0, 5])
def test_read_tensors_notices_flipped_bits(tmp_path, bit):
    file = tmp_path / "file.safetensors"
    write_tensors(file, TENSORS, {"format_version": CHECKED, "step": 12})
    whole = file.read_bytes()
    for place in range(bit, len(whole), 6):
        flipped(file, place, bit)
        with pytest.raises(ValueError, match=r"damaged|has format"):
            read_tensors(file, CHECKED)
        file.write_bytes(whole)


def test_read_tensors_notices_a_cut_file(tmp_path):
    file = tmp_path / "file.safetensors"
    write_tensors(file, TENSORS, {"format_version": CHECKED})
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        read_tensors(file, CHECKED)


def test_read_tensors_needs_the_checksum_of_format3(tmp_path):
    file = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(2)}, file, {"lssvwm": '{"format_version": 2}'})
    assert set(read_tensors(file, CHECKED)[1]) == {"a"}
    save_file({"a": torch.ones(2)}, file, {"lssvwm": '{"format_version": 3}'})
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(file, CHECKED)


def test_load_notices_flipped_weights(tmp_path, tiny):
    file = worldmodel.save(tiny(torch.float32), tmp_path)
    flipped(file, file.stat().st_size - 1)
    with pytest.raises(ValueError, match="damaged: its checksum is wrong"):
        worldmodel.load(tmp_path)


def test_load_names_a_file_of_something_else(tmp_path):
    write_tensors(tmp_path / "weights.safetensors", TENSORS, {"format_version": 3})
    with pytest.raises(ValueError, match="holds no world model"):
        worldmodel.load(tmp_path)


def test_memory_notices_flipped_bits(tmp_path, tiny):
    file = tmp_path / "memory.safetensors"
    tiny(torch.float32).initial(1).write(file)
    flipped(file, file.stat().st_size - 100)
    with pytest.raises(ValueError, match="damaged"):
        Memory.read(file)


def test_torch_file_runs_nothing(tmp_path):
    file, shout = tmp_path / "memory.pt", tmp_path / "shout"
    torch.save({"format_version": 2, "layers": Shout(shout)}, file)
    for read in (read_torch_file, Memory.read):
        with pytest.raises(ValueError, match="more than tensors and plain values"):
            read(file)
    assert not shout.exists()
    torch.load(file, weights_only=False)  # the file is dangerous elsewhere
    assert shout.exists()


def test_torch_file_notices_flipped_bits(tmp_path):
    file = tmp_path / "memory.pt"
    torch.save({"value": torch.zeros(100)}, file)
    assert set(read_torch_file(file)) == {"value"}
    place = file.read_bytes().index(bytes(64))
    flipped(file, place)
    with pytest.raises(ValueError, match="is damaged"):
        read_torch_file(file)
