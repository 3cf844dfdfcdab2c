"""Benchmarks measure what they say, and write it."""

import json

import pytest

from agent import benchmark, cli


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"ROUNDS": 1, "SECONDS": 0.01, "CONTEXTS": (4, 8), "LENGTHS": (4, 8)}.items():
        monkeypatch.setattr(benchmark, name, value)


def test_speed_of_every_model_operation_and_context(tmp_path, capsys):
    assert cli.main(["benchmark", "speed", "threads=1", f"output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    found = {(r["model"], r["operation"], r["context"]) for r in rows}
    assert found == {(m, o, c) for m in benchmark.MODELS for o in ("observe", "imagine", "train") for c in (4, 8)}
    assert all(r["seconds_per_frame"] > 0 for r in rows)
    size = {(r["model"], r["context"]): r["memory_bytes"] for r in rows if r["operation"] == "observe"}
    assert size["small", 4] == size["small", 8] and size["gru", 4] == size["gru", 8]
    assert size["attention", 8] > 1.9 * size["attention", 4]
    assert "wrote" in capsys.readouterr().out


def test_frames_per_second_of_every_maze(tmp_path):
    assert cli.main(["benchmark", "envs", f"output={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "envs.json").read_text())["rows"]
    assert {r["env"] for r in rows} == set(benchmark.MAZES)
    assert all(r["engine"] > 0 and r["torchrl"] > 0 for r in rows)


@pytest.mark.parametrize("settings", [[], ["speeed"], ["threads=1"]])
def test_an_unknown_benchmark_is_one_line(settings, capsys):
    assert cli.main(["benchmark", *settings]) == 2
    assert "which benchmark? there are: envs, speed" in capsys.readouterr().err
