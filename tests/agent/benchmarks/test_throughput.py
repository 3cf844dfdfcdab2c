"""Test the benchmarks of speed: models, mazes, rollouts and decisions."""

import json
import sys

import pytest
import torch
from lssvwm.agent.benchmarks import decision_latency as decide
from lssvwm.agent.benchmarks import throughput as benchmark
from lssvwm.agent.cli import main as cli


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {
        "ROUNDS": 1,
        "SECONDS": 0.01,
        "CONTEXTS": (4, 8),
        "LENGTHS": (4, 8),
    }.items():
        monkeypatch.setattr(benchmark, name, value)


def test_speed_measures_every_model_and_context(tmp_path, capsys):
    assert cli.main(["benchmark", "speed", "threads=1", f"output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    found = {(r["model"], r["operation"], r["context"]) for r in rows}
    assert found == {
        (m, o, c)
        for m in benchmark.MODELS
        for o in ("observe", "imagine", "train")
        for c in (4, 8)
    }
    assert all(r["seconds_per_frame"] > 0 for r in rows)
    size = {
        (r["model"], r["context"]): r["memory_bytes"]
        for r in rows
        if r["operation"] == "observe"
    }
    assert size["small", 4] == size["small", 8] and size["gru", 4] == size["gru", 8]
    assert size["attention", 8] > 1.9 * size["attention", 4]
    assert "wrote" in capsys.readouterr().out


def test_envs_measures_every_maze(tmp_path):
    assert cli.main(["benchmark", "envs", f"output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "envs.json").read_text())
    assert {r["env"] for r in found["rows"]} == set(benchmark.MAZES)
    assert all(r["engine"] > 0 and r["torchrl"] > 0 for r in found["rows"])
    assert found["origin"]["version"] and found["settings"] == {"threads": 0, "seed": 0}


def test_benchmark_keeps_results_of_other_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "MAZES", ("tmaze",))
    command = ["benchmark", "envs", f"output={tmp_path}"]
    assert cli.main(command) == cli.main(command) == 0
    before = (tmp_path / "envs.json").read_text()
    assert cli.main([*command, "seed=1"]) == 2
    assert "envs.json holds results of other settings" in capsys.readouterr().err
    assert (tmp_path / "envs.json").read_text() == before


@pytest.mark.parametrize(
    ("given", "hint"),
    [([], ""), (["planing"], "did you mean planning? "), (["threads=1"], "")],
)
def test_unknown_benchmark_is_reported_in_one_line(given, hint, capsys):
    assert cli.main(["benchmark", *given]) == 2
    assert f"which benchmark? {hint}there are: envs, speed" in capsys.readouterr().err


def test_decide_measures_every_variant(tmp_path, monkeypatch):
    small = {
        "candidates": 16,
        "horizon": 4,
        "iterations": 2,
        "elites": 4,
        "keep_elites": 2,
    }
    beam = {"width": 4, "horizon": 4, "elites": 4, "keep_elites": 2}
    for name, value in {
        "ROUNDS": 1,
        "CONTINUOUS": small,
        "DISCRETE": small,
        "BEAM": beam,
        "AGES": (8, 40),
    }.items():
        monkeypatch.setattr(decide, name, value)
    assert cli.main(["benchmark", "decide", "threads=1", f"output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "decide.json").read_text())["rows"]
    assert [(row["actions"], row["planner"]) for row in rows] == [
        ("continuous", "cem"),
        ("continuous", "torchrl CEMPlanner"),
        ("discrete", "cem"),
        ("discrete", "cem, nothing shared"),
        ("discrete", "beam, 4 wide"),
        ("discrete", "cem, at frame 8"),
        ("discrete", "cem, at frame 40"),
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert "| continuous, cem | 16 x 4 x 2 |" in (tmp_path / "decide.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone reports the peak")
def test_peak_measures_memory_of_a_call():
    assert decide.peak(lambda: torch.ones(50_000_000).sum()) == pytest.approx(
        200e6, rel=0.2
    )
    assert decide.peak(lambda: None) < 20e6
