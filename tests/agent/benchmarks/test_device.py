"""Test the benchmark of a machine on small sizes."""

import json

import pytest
import torch
from lssvwm.agent.benchmarks import decision_latency, device
from lssvwm.agent.benchmarks.device import Sizes, limit
from lssvwm.agent.config.composition import compose

SMALL = {"candidates": 8, "horizon": 2, "iterations": 1, "elites": 4}


@pytest.fixture
def found(monkeypatch, tmp_path) -> dict:
    monkeypatch.setattr(device, "SECONDS", 0)
    monkeypatch.setattr(device, "SIZES", {"cpu": Sizes(8, 64, (1, 8), (2, 4))})
    monkeypatch.setattr(device, "MODELS", ("small", "delta"))
    monkeypatch.setattr(device, "CANDIDATES", (4,))
    monkeypatch.setattr(device, "HORIZON", 2)
    for module in (device, decision_latency):
        monkeypatch.setattr(module, "CONTINUOUS", SMALL)
        monkeypatch.setattr(module, "DISCRETE", SMALL)
    file = device.device(compose(["device=cpu"]), tmp_path)
    assert "matrix products" in (tmp_path / "device.md").read_text()
    return json.loads(file.read_text())


def test_device_measures_every_section(found) -> None:
    rows = found["rows"]
    assert not [row for row in rows if "error" in row or "skipped" in row]
    assert {row["section"] for row in rows} == {
        "scans",
        "training",
        "observe",
        "imagine",
        "decide",
    }
    chunked = [row for row in rows if row.get("backend") == "chunked"]
    assert len(chunked) == 2
    assert all(row["relative_error"] < 1e-4 for row in chunked)
    speeds = [row["frames_per_second"] for row in rows if "frames_per_second" in row]
    assert min(speeds) > 0


def test_device_reports_errors_and_goes_on(monkeypatch, tmp_path) -> None:
    def broken(*_):
        raise RuntimeError("no kernel")

    def one(*_):
        yield {"section": "observe", "model": "small"}, broken
        yield {"section": "observe", "model": "delta"}, lambda: {"milliseconds": 1.0}

    monkeypatch.setattr(device, "SECONDS", 0)
    monkeypatch.setattr(device, "_measurements", one)
    monkeypatch.setattr(device, "SIZES", {"cpu": Sizes(8, 64, (1, 8), (2, 4))})
    file = device.device(compose(["device=cpu"]), tmp_path)
    first, second = json.loads(file.read_text())["rows"]
    assert first["error"] == "RuntimeError: no kernel"
    assert second["milliseconds"] == 1.0


def test_limit_depends_on_growth_and_share() -> None:
    assert limit(1.1, 0.6) == "calls"
    assert limit(1.9, 0.6) == "matrix products"
    assert limit(1.9, 0.1) == "memory traffic"


def test_operations_count_a_matrix_product() -> None:
    a = torch.ones(4, 5)
    assert device._operations(lambda: a @ a.T) == 2 * 4 * 5 * 4
