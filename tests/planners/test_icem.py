"""iCEM: fewer candidates in each iteration, coloured noise."""

import torch
from lssvwm.planners import Discrete, ICEMConfig, build
from torch import Tensor

from tests.planners.conftest import seed


def test_icem_decays_candidates_and_keeps_probabilities():
    counts = []

    def score(actions: Tensor) -> Tensor:
        counts.append(actions.shape[1])
        return torch.zeros(actions.shape[:2])

    config = ICEMConfig(horizon=6, candidates=100, elites=10, iterations=5, decay=2.0)
    build(config, Discrete(3)).plan(score, batch=1, generator=seed())
    assert counts == [100, 50, 25, 20, 20]
    planner = build(ICEMConfig(horizon=6, candidates=30000, colour=2.0), Discrete(3))
    state = torch.tensor([0.2, 0.3, 0.5]).expand(1, 6, 3)
    actions = planner.distribution.sample(state, planner.draw([seed()], 0))[0]
    odds = torch.nn.functional.one_hot(actions, 3).float().mean(0)
    assert (odds - state[0]).abs().max() < 0.015
    assert (actions[:, 1:] == actions[:, :-1]).float().mean() > 0.5  # at random: 0.38
