"""Test that the drift of estimated poses is measured in walks of an environment."""

import json

import pytest
import torch
from lssvwm.agent.benchmarks.pose_error import Drift, _row
from lssvwm.agent.cli.main import main
from lssvwm.worldmodel import ModelConfig, WorldModel

COMMAND = ["benchmark", "pose", "output=pose", "benchmark.walks=6", "threads=1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_packaged_model_knows_where_it_is(tmp_path):
    walks = ["checkpoint=recall9", "benchmark.contexts=[5,40]"]
    assert main([*COMMAND, *walks, "env.tour=64"]) == 0
    rows = json.loads((tmp_path / "pose/pose.json").read_text())["rows"]
    assert [row["frames"] for row in rows] == [5, 40]
    assert rows[1]["tiles_walked"] > 10
    assert rows[1]["error_per_tile"]["mean"] < 0.05
    assert main([*COMMAND, *walks, "env.tour=64"]) == 0  # its own results are replaced
    assert main([*COMMAND, *walks, "env.tour=65"]) == 2


def test_episodes_that_are_too_short_are_named(capsys):
    walks = ["checkpoint=recall9", "benchmark.contexts=[5000]"]
    assert main([*COMMAND, *walks]) == 2
    assert (
        "no episode has 5000 frames: lower benchmark.contexts"
        in capsys.readouterr().err
    )


def test_error_is_a_share_of_the_way():
    true = torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    estimated = true + torch.tensor([[0.1, 0.0, 0.4], [0.1, 0.0, 0.4]])
    drift = Drift(estimated, true, torch.tensor([8.0, 0.0]), 0.2 * torch.ones(2, 3))
    row = _row(5, [drift], WorldModel(ModelConfig(pose="learned"), (3, 64, 64), 4))
    assert row["error"] == pytest.approx(0.4)
    assert row["error_per_tile"]["mean"] == pytest.approx(
        0.05
    )  # who stood does not count
    assert row["heading_error"] == pytest.approx(5.73, abs=0.01)
