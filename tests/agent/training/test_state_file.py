"""The file of a run holds no code, and damage is noticed."""

import random

import numpy as np
import pytest
import torch
from lssvwm.agent.errors import UserError
from lssvwm.agent.training.state_file import (
    OLD_STATE,
    STATE,
    has_state,
    read_state,
    write_state,
)

from tests.hostile import Shout, flipped


def state_after_a_step() -> dict:
    """Return the state of a tiny model after one step of its optimizer."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.98))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "ema": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 1,
        "best": float("-inf"),
        "shards": ["shard-000000"],
        "rng": np.random.default_rng(0).bit_generator.state,
        "generator": torch.Generator().get_state(),
        "lengths": [None, 0.25],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }


def old_file(folder):
    """Return the file of formats 1 and 2 in a new folder."""
    file = folder / OLD_STATE
    file.parent.mkdir()
    return file


def test_state_survives_a_file(tmp_path):
    state = state_after_a_step()
    write_state(tmp_path, state)
    again = read_state(tmp_path, {})
    for key in ("step", "best", "shards", "rng", "lengths", "python"):
        assert again[key] == state[key]
    moments = again["optimizer"]["state"][1]["exp_avg"]
    assert torch.equal(moments, state["optimizer"]["state"][1]["exp_avg"])
    assert torch.equal(again["model"]["weight"], state["model"]["weight"])
    optimizer = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    optimizer.load_state_dict(again["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_state_of_earlier_formats_is_read_once(tmp_path):
    state = state_after_a_step()
    torch.save({"format_version": 2} | state, old_file(tmp_path))
    assert has_state(tmp_path)
    again = read_state(tmp_path, {})
    assert again["python"] == state["python"]
    write_state(tmp_path, again)
    assert not (tmp_path / OLD_STATE).exists()
    assert has_state(tmp_path)


def test_state_of_earlier_formats_runs_nothing(tmp_path):
    file, shout = old_file(tmp_path), tmp_path / "shout"
    torch.save(state_after_a_step() | {"lengths": Shout(shout)}, file)
    with pytest.raises(UserError, match="more than tensors and plain values"):
        read_state(tmp_path, {})
    assert not shout.exists()


@pytest.mark.parametrize("place", [30, 2000, -1])
def test_read_state_notices_flipped_bits(tmp_path, place):
    write_state(tmp_path, state_after_a_step())
    flipped(tmp_path / STATE, place)
    with pytest.raises(UserError, match=r"last\.safetensors is damaged.*train\.init="):
        read_state(tmp_path, {})


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_read_state_notices_cut_files(tmp_path, size):
    write_state(tmp_path, state_after_a_step())
    file = tmp_path / STATE
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="is damaged"):
        read_state(tmp_path, {})


def test_read_state_refuses_newer_formats(tmp_path):
    torch.save({"format_version": 5}, old_file(tmp_path))
    with pytest.raises(UserError, match=r"has format 5, .* up to 4"):
        read_state(tmp_path, {})
