"""Distributions of candidates: noise, refits and mutation."""

import pytest
import torch
from lssvwm.planners import Box, Discrete, ShootingConfig, build, distributions
from lssvwm.planners.distributions import coloured, mutate
from torch import Tensor

from tests.planners.conftest import BOX, NAN, OPTIMISERS, matches, seed


def test_mutate_removes_replaces_or_inserts_one_step():
    parents = torch.arange(1, 6).expand(1, 200, 5)
    edited = (
        mutate(parents, torch.zeros_like(parents), [seed()]).unique(dim=1)[0].tolist()
    )
    before = [[*range(1, t + 1)] for t in range(5)]
    after = [[*range(t + 2, 6)] for t in range(5)]
    replaced = [[*b, 0, *a] for b, a in zip(before, after)]
    removed = [[*b, *a, 0] for b, a in zip(before, after)]
    inserted = [[*b, 0, len(b) + 1, *a][:5] for b, a in zip(before, after)]
    assert {*map(tuple, edited)} == {*map(tuple, replaced + removed + inserted)}


@pytest.mark.parametrize("config", OPTIMISERS)
def test_bad_candidates_have_no_weight(config, monkeypatch):
    """Also when there are fewer good candidates than elites."""

    def score(actions: Tensor) -> Tensor:
        return torch.zeros(actions.shape[:2]).masked_fill(actions[..., 0] != 2, NAN)

    monkeypatch.setattr(distributions, "SMOOTHING", 0.0)
    monkeypatch.setattr(distributions, "MIN_PROB", 0.0)
    size = {"candidates": 64, "elites": 64, "iterations": 1}
    plan = build(config(**size), Discrete(4)).plan(score, batch=1, generator=seed())
    torch.testing.assert_close(plan.state[0, 0], torch.tensor([0.0, 0.0, 1.0, 0.0]))


@pytest.mark.parametrize("config", OPTIMISERS)
def test_refit_keeps_exploring(config, monkeypatch):
    monkeypatch.setattr(distributions, "MIN_PROB", 0.03)
    monkeypatch.setattr(distributions, "MIN_STD", 0.05)
    size = {"horizon": 4, "iterations": 20}
    choice = build(config(**size), Discrete(4))
    plan = choice.plan(matches(torch.zeros(1, 4)), batch=1, generator=seed())
    assert 0.03 <= plan.state.min().item() < 0.034
    torch.testing.assert_close(plan.state.sum(-1), torch.ones(1, 4))
    plan = build(config(**size), BOX).plan(
        lambda actions: -actions.square().sum((-1, -2)), batch=1, generator=seed()
    )
    assert plan.state[:, :, 1].min().item() == pytest.approx(0.5)


@pytest.mark.parametrize("config", OPTIMISERS)
@pytest.mark.parametrize("space", [Discrete(4), BOX], ids=["discrete", "box"])
def test_candidates_contain_the_mode(config, space):
    seen = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return -(actions.float() - 2).square().flatten(2).sum(-1)

    state = (
        build(config(iterations=1), space).plan(score, batch=2, generator=seed()).state
    )
    build(config(iterations=2), space).plan(score, batch=2, generator=seed())
    mode = state[:, :, 0] if isinstance(space, Box) else state.argmax(-1)
    torch.testing.assert_close(seen[-1][:, -1], mode)


def test_held_noise_keeps_action_probabilities(monkeypatch):
    def first_candidates(sticky: float) -> Tensor:
        seen = []

        def score(actions: Tensor) -> Tensor:
            seen.append(actions)
            return torch.zeros(actions.shape[:2])

        monkeypatch.setattr(distributions, "HOLD_DISCRETE", sticky)
        config = ShootingConfig(candidates=8000, horizon=6)
        build(config, Discrete(4)).plan(score, batch=1, generator=seed())
        return seen[0][0]

    for sticky in (0.0, 0.6):
        actions = first_candidates(sticky)
        repeats = (actions[:, 1:] == actions[:, :-1]).float().mean().item()
        assert repeats == pytest.approx(sticky + (1 - sticky) / 4, abs=0.02)
        odds = torch.nn.functional.one_hot(actions, 4).float().mean(0)
        torch.testing.assert_close(odds, torch.full_like(odds, 0.25), rtol=0, atol=0.03)


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_coloured_noise_has_spectrum_and_unit_variance(colour):
    noise = coloured((20000, 32), colour, seed())
    assert ((noise.square().mean(0) - 1).abs() < 0.05).all()
    power = torch.fft.rfft(noise * torch.hann_window(32)).abs().square().mean(0)
    slope = torch.log(power[8] / power[2]) / torch.log(
        torch.tensor(4.0)
    )  # eight and two turns in the window
    assert abs(slope + colour) < 0.25
