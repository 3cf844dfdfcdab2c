"""Plots: panels appear only where there is something to show."""

import json
from pathlib import Path

import pytest
from lssvwm.agent.evaluation import plots, results
from PIL import Image

COMMITTED = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.parametrize(("model", "panels"), [("tmaze", 1), ("return9", 3)])
def test_plot_success_omits_panels_with_few_groups(model, panels, tmp_path):
    found = results.read(COMMITTED / "pretrained" / model / "evaluation.json")
    plots.plot_success(found, tmp_path / "success.png")
    width = Image.open(tmp_path / "success.png").width
    assert width == pytest.approx(plots.DPI * (8 + 3.6 * (panels - 1)), abs=2)


def test_plot_curves_has_one_panel_per_metric(tmp_path):
    rows = [
        {"step": 10 * i, "psnr": 10 + i, "odds/8": 0.5, "odds/16": 0.5}
        for i in range(40)
    ]
    rows[-1]["evaluate/success"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plots.plot_curves(tmp_path)
    height = Image.open(tmp_path / "curves.png").height
    assert height == pytest.approx(plots.DPI * (0.6 + 2.1 * 3), abs=2)


def test_plot_curves_of_an_empty_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    plots.plot_curves(tmp_path)
    assert (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("name", ["scavenge", "tworoom"])
def test_plot_sweep_draws_committed_sweeps(name, tmp_path):
    plots.plot_sweep(results.read(COMMITTED / f"{name}.json"), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 0
