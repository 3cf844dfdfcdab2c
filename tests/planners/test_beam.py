"""Beam search: exact if wide; by scores or step by step."""

import itertools

import pytest
import torch
from lssvwm.planners import BeamConfig, Discrete, Proposals, Simulation, build
from torch import Tensor

from tests.planners.conftest import (
    BOX,
    CORRIDOR,
    assert_same,
    corridor,
    seed,
    tree_score,
)


def test_wide_beam_is_exhaustive_narrow_follows_value():
    depth = 6
    rewards = torch.randn(2 ** (depth + 1), generator=seed(5))
    score = tree_score(rewards, torch.zeros(2 ** (depth + 1)))
    every = torch.tensor(list(itertools.product(range(2), repeat=depth)))
    size = {"candidates": 8, "elites": 4, "keep_elites": 2}
    wide = build(BeamConfig(horizon=depth, width=2**depth, **size), Discrete(2))
    plan = wide.plan(score, batch=1, generator=seed())
    torch.testing.assert_close(plan.score, score(every[None]).max()[None])
    narrow = build(BeamConfig(horizon=8, width=1, **size), Discrete(4))
    plan = narrow.plan(corridor, batch=1, generator=seed())
    assert torch.equal(plan.actions[0], CORRIDOR)
    assert plan.elites.shape == (1, 4, 8) and plan.state.shape == (1, 8, 4)


class TreeSteps:
    """The binary tree of `tree_score`, step by step; it counts the steps."""

    def __init__(self, rewards: Tensor, ends: Tensor, batch: int):
        self.score = tree_score(rewards, ends)
        self.root = torch.zeros(batch, 1, 0, dtype=torch.int64)
        self.steps = 0

    def step(self, paths: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        self.steps += action.numel()
        paths = torch.cat([paths, action[..., None]], -1)
        return self.score(paths), paths

    def select(self, paths: Tensor, index: Tensor) -> Tensor:
        return paths.take_along_dim(index[..., None], 1)


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("warm", [True, False])
def test_beam_by_steps_equals_beam_by_scores(width, warm):
    depth = 6
    rewards = torch.randn(2 ** (depth + 1), generator=seed(5))
    ends = (torch.rand(2 ** (depth + 1), generator=seed(6)) < 0.1).float()
    tree = TreeSteps(rewards, ends, batch=2)
    imagined = []

    def score(actions: Tensor) -> Tensor:
        imagined.append(actions.numel())
        return tree.score(actions)

    planner = build(BeamConfig(horizon=depth, width=width), Discrete(2))
    random = torch.randint(2, (2, 4, depth), generator=seed(7))
    arguments = {"batch": 2, "generator": seed(), "proposals": Proposals(random)}
    if warm:
        arguments["warm"] = planner.plan(score, **arguments).shift(1)
    imagined.clear()
    scored = planner.plan(score, **arguments)
    by_scores = sum(imagined)
    imagined.clear()
    simulation = Simulation(tree.root, tree.step, tree.select)
    stepped = planner.plan(score, **arguments, simulation=simulation)
    assert_same(scored, stepped)
    assert tree.steps + sum(imagined) < by_scores


def test_beam_considers_proposals_and_last_plan():
    """Only whole plans pay, which a narrow beam cannot know."""
    target = torch.randint(4, (2, 8), generator=seed(1))

    def score(actions: Tensor) -> Tensor:
        if actions.shape[-1] < 8:
            return torch.zeros(actions.shape[:2])
        return (actions == target[:, None]).all(-1).float()

    planner = build(BeamConfig(horizon=8, width=4), Discrete(4))
    assert (planner.plan(score, batch=2, generator=seed()).score == 0).all()
    proposals = torch.stack([torch.zeros_like(target), target], 1)
    for scores in (None, score(proposals)):
        plan = planner.plan(
            score, batch=2, generator=seed(), proposals=Proposals(proposals, scores)
        )
        assert torch.equal(plan.actions, target)
    again = planner.plan(score, batch=2, generator=seed(), warm=plan)
    assert torch.equal(again.actions, target)
    first = torch.tensor([0])
    alone = planner.plan(
        lambda a: score(a.expand(2, -1, -1))[:1],
        batch=1,
        generator=seed(),
        warm=plan.select(first),
    )
    assert_same(alone, again.select(first))
    with pytest.raises(ValueError, match="needs discrete actions"):
        build(BeamConfig(), BOX)
