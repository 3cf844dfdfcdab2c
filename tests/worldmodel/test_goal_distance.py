"""Test that steps to a goal image are learnt from trajectories that wander."""

import pytest
import torch
from lssvwm.worldmodel import Batch, LossWeights, Masks, ModelConfig, WorldModel
from lssvwm.worldmodel.goal_distance import (
    NEAR,
    GoalDistance,
    Trajectories,
    later,
    loss,
)
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from torch.nn import functional as F


def build(**weights: float) -> WorldModel:
    """Return a small model for continuous actions in two dimensions."""
    torch.manual_seed(0)
    mixer = TiledSSDConfig(tiles=(1,), state=16, head_dim=16)
    config = ModelConfig(
        width=32, mixer=mixer, attention_heads=2, loss=LossWeights(**weights)
    )
    return WorldModel(config, (3, 64, 64), 2, discrete=False).eval()


def test_later_stays_in_the_episode_and_half_near():
    first = torch.zeros(3, 40, dtype=torch.bool)
    first[:, 0] = True
    first[1, 11] = True
    first[2, 39] = True
    draws = [later(first, 8, torch.Generator().manual_seed(i)) for i in range(50)]
    steps = torch.stack(draws, 2)
    episode = first.long().cumsum(1)
    at = torch.arange(40)[:, None, None] + steps
    rows = torch.arange(3)[:, None, None, None]
    assert int(steps.min()) == 0 and int(at.max()) <= 39
    assert (episode[rows, at] == episode[..., None, None]).all()
    assert int(steps[:, :, :, :4].max()) == NEAR
    assert int(steps[0, 0, :, 4:].max()) > 30
    assert (steps[1, 10] == 0).all() and (steps[2, 38] == 0).all()


def wandering(sequences: int = 64, frames: int = 40, places: int = 12) -> torch.Tensor:
    """Return places [B, T] on a line; every third step on average goes back."""
    g = torch.Generator().manual_seed(0)
    back = torch.rand(sequences, frames, generator=g) < 0.3
    step = torch.where(back, -1, 1)
    place = torch.randint(places, (sequences, 1), generator=g)[:, 0]
    forward = torch.where(torch.rand(sequences, generator=g) < 0.5, 1, -1)
    path = [place]
    for move in step[:, 1:].T * forward:
        path.append((path[-1] + move).clamp(0, places - 1))
    return torch.stack(path, 1)


def learnt_and_true(
    path: torch.Tensor, places: int, updates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return learnt and true steps between all places, from paths [B, T]."""
    torch.manual_seed(0)
    tokens = F.one_hot(path, places).float()[:, :, None]  # one token per frame
    head = GoalDistance(1, places, hidden=32, expectile=0.05)
    first = torch.zeros(path.shape, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    g = torch.Generator().manual_seed(1)
    for _ in range(updates):
        batch = Trajectories(tokens, head.embed_goal(tokens), first)
        optimizer.zero_grad()
        loss(head, tokens, torch.ones_like(first), batch, g).backward()
        optimizer.step()
    every = torch.eye(places)[:, None]
    with torch.no_grad():
        learnt = head(every[:, None], head.embed_goal(every)[None])
    place = torch.arange(places)
    return learnt, (place[:, None] - place).abs()


def test_shortest_steps_are_learnt_from_wandering():
    learnt, true = learnt_and_true(wandering(), 12, 300)
    means = torch.stack([learnt[true == steps].mean() for steps in range(12)])
    assert learnt.diagonal().max() < 1.0 and (means.diff() > 0.8).all()
    assert (means[1:] < 1.8 * torch.arange(1, 12)).all()


def test_steps_join_parts_of_different_trajectories():
    places, length = 20, 6
    start = torch.arange(places - length)[:, None]
    forth = (start + torch.arange(length)).repeat(8, 1)
    learnt, true = learnt_and_true(torch.cat((forth, forth.flip(1))), places, 1000)
    inner = slice(2, -2)  # the ends are goals of few trajectories
    learnt, true = learnt[inner, inner], true[inner, inner]
    for steps in (8, 10, 12):
        assert abs(learnt[true == steps].mean() - steps) < 0.2 * steps, steps


def test_imagine_predicts_steps_to_each_goal():
    model = build(distance=1.0)
    g = torch.Generator().manual_seed(0)
    goal = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=g)
    actions = torch.randn(2, 5, 4, 2, generator=g)
    with torch.no_grad():
        both = model.imagine(model.initial(2), actions, goal=goal)
        one = model.imagine(model.initial(1), actions[1:], goal=goal[1:])
        without = model.imagine(model.initial(2), actions)
    assert both.distance is not None and both.distance.shape == (2, 5, 4)
    assert float(both.distance.min()) >= 0
    assert torch.allclose(both.distance[1:], one.distance, atol=1e-5)
    assert not torch.allclose(both.distance[0], both.distance[1], atol=1e-5)
    assert without.distance is None and torch.equal(without.reward, both.reward)
    with pytest.raises(ValueError, match=r"train it with model\.loss\.distance"):
        build().imagine(model.initial(2), actions, goal=goal)


def room(g: torch.Generator) -> Batch:
    """Return sequences in rooms of one colour, which the first frame shows."""
    colour = torch.randint(0, 256, (8, 1, 3, 1, 1), dtype=torch.uint8, generator=g)
    first = torch.zeros(8, 6, dtype=torch.bool)
    first[:, 0] = True
    never = torch.zeros(8, 6, dtype=torch.bool)
    pixels = colour.expand(8, 6, 3, 64, 64)
    still = torch.zeros(8, 6, 2)
    return Batch(pixels, still, torch.zeros(8, 6), never, never, first)


def test_surprise_is_low_for_observed_rooms():
    model = build(surprise=1.0).train()
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        batch = room(g)
        reset = torch.rand(8, 6, generator=g) < 0.2
        optimizer.zero_grad()
        loss, _, _ = model.loss(batch, masks=Masks(state_reset=reset), generator=g)
        loss.backward()
        optimizer.step()
    model.eval()
    still = torch.zeros(8, 1, 1, 2)
    start = batch[:1]
    with torch.no_grad():
        known, _ = model.observe(
            model.initial(8), start.pixels, start.action, start.is_first
        )
        of_known, of_new = (
            model.imagine(memory, still).surprise.mean()
            for memory in (known, model.initial(8))
        )
    assert of_new > 3 * of_known


def test_heads_are_optional():
    model = build()
    assert model.distance is None and model.heads.error is None
