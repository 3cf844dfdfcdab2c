"""Test the linear probes of a memory."""

import numpy as np
import pytest
import torch
from lssvwm.agent.benchmarks import linear_probes as probe
from lssvwm.agent.benchmarks import maze_walks as walks
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.envs.maze.layout import FORWARD


@pytest.mark.parametrize("heading", range(4))
def test_from_start_points_heading_up(heading):
    start = np.array([heading, 4, 5])
    ahead, right = FORWARD[heading], FORWARD[(heading + 1) % 4]
    assert probe.from_start(start[1:] + ahead, start).tolist() == [-1, 0]
    assert probe.from_start(start[1:] + 2 * right + ahead, start).tolist() == [-1, 2]


@pytest.fixture(scope="module")
def tour():
    return walks.walk(
        compose(["experiment=memory_benchmark", "env.n=7"]),
        "reasoning",
        40,
        1,
        task_seeds(3, 6),
    )


def test_score_probes_separates_truth_from_its_negation(tour):
    truth = probe.targets(tour)
    for result in probe.score_probes(tour, truth, truth, slice(2, None)).values():
        assert len(result.correct) and result.correct.all()
        assert result.age.min() >= 1 and result.age.max() <= 40
    wrong = {name: -value for name, value in truth.items()}
    scores = probe.score_probes(tour, truth, wrong, slice(2, None))
    assert not scores["walls"].correct.any()
    assert scores["objects"].correct.mean() < 0.5


def test_ridge_fits_linear_targets_and_predicts_mean():
    g = torch.Generator().manual_seed(0)
    small, large = (
        torch.randn(300, 3, generator=g),
        100 * torch.randn(300, 40, generator=g),
    )
    y = (small @ torch.randn(3, 2, generator=g)).numpy()
    kernel = probe._kernel(small, 200) + probe._kernel(large, 200)
    assert kernel.shape == (300, 200)
    error = np.square(probe._ridge(kernel, y) - y)[200:].mean()
    assert error < 0.1 * y.var()
    assert np.allclose(probe._ridge(torch.zeros(300, 200).double(), y), y[:200].mean(0))


def test_probes_skip_too_large_memories(monkeypatch):
    monkeypatch.setattr(probe, "MAX_FEATURES", 10)
    config = compose(["experiment=memory_benchmark"], BenchmarkRunConfig)
    from lssvwm.worldmodel import WorldModel

    assert probe.probes(config, WorldModel(config.model, (3, 64, 64), 4)) == []
