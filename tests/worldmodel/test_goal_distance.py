"""Goal images: steps to them are learnt from walks that wander, and plans lead to them."""

import dataclasses

import pytest
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config.composition import compose
from lssvwm.agent.errors import UserError
from lssvwm.agent.policies import PlanPolicy
from lssvwm.agent.training.loop import train
from lssvwm.agent.training.run import build_model
from lssvwm.envs import make
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel
from lssvwm.worldmodel.goal_distance import (
    NEAR,
    GoalDistance,
    Trajectories,
    later,
    loss,
)
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from torch.nn import functional as F

from lssvwm import planners

TINY = {
    "width": 32,
    "patch": 22,
    "mixer": TiledSSDConfig(tiles=(1,), state=16, head_dim=16),
    "attention_heads": 2,
}


def model(distance=1.0) -> WorldModel:
    torch.manual_seed(0)
    loss = dataclasses.replace(ModelConfig().loss, distance=distance)
    return WorldModel(
        ModelConfig(**TINY, loss=loss), (3, 64, 64), 2, discrete=False
    ).eval()


def test_goals_lie_later_in_the_same_episode_and_half_of_them_are_close():
    first = torch.zeros(3, 40, dtype=torch.bool)
    first[:, 0] = True
    first[1, 11] = first[2, 39] = True
    draws = torch.cat(
        [later(first, 8, torch.Generator().manual_seed(i)) for i in range(50)], 2
    ).unflatten(2, (50, 8))
    episode, t = first.long().cumsum(1), torch.arange(40)[:, None, None]
    at = t + draws
    assert int(draws.min()) == 0 and int(at.max()) <= 39
    assert (
        episode[torch.arange(3)[:, None, None, None], at] == episode[..., None, None]
    ).all()
    assert int(draws[:, :, :, :4].max()) == NEAR and int(draws[0, 0, :, 4:].max()) > 30
    assert (draws[1, 10] == 0).all() and (draws[2, 38] == 0).all()


def wandering(walks=64, steps=40, places=12):
    """Walks on a line that go back every third step on average: [B, T] places."""
    g = torch.Generator().manual_seed(0)
    way = torch.where(torch.rand(walks, steps, generator=g) < 0.3, -1, 1)
    at = torch.randint(places, (walks, 1), generator=g)
    path = [at[:, 0]]
    for step in way[:, 1:].T * torch.where(torch.rand(walks, generator=g) < 0.5, 1, -1):
        path.append((path[-1] + step).clamp(0, places - 1))
    return torch.stack(path, 1)


def told_and_true(
    path: torch.Tensor, places: int, updates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps between all places, as a head tells them that learnt from paths [B, T], and as they are."""
    torch.manual_seed(0)
    tokens = F.one_hot(path, places).float()[:, :, None]  # one token a frame
    head, first = (
        GoalDistance(1, places, 32, 0.05),
        torch.zeros(path.shape, dtype=torch.bool),
    )
    optimizer, g = (
        torch.optim.Adam(head.parameters(), lr=5e-3),
        torch.Generator().manual_seed(1),
    )
    for _ in range(updates):
        batch = Trajectories(tokens, head.embed_goal(tokens), first)
        optimizer.zero_grad()
        loss(head, tokens, torch.ones_like(first), batch, g).backward()
        optimizer.step()
    every = torch.eye(places)[:, None]
    with torch.no_grad():
        told = head(every[:, None], head.embed_goal(every)[None])
    return told, (torch.arange(places)[:, None] - torch.arange(places)).abs()


def test_the_steps_of_the_shortest_way_are_learnt_from_walks_that_wander():
    told, true = told_and_true(wandering(), 12, 300)
    means = torch.stack([told[true == steps].mean() for steps in range(12)])
    assert told.diagonal().max() < 1.0 and (means.diff() > 0.8).all()
    assert (means[1:] < 1.8 * torch.arange(1, 12)).all()


def test_steps_are_told_between_places_that_nobody_walked_between_in_one_go():
    places, length = 20, 6
    forth = (torch.arange(places - length)[:, None] + torch.arange(length)).repeat(8, 1)
    told, true = told_and_true(torch.cat((forth, forth.flip(1))), places, 1000)
    told, true = told[2:-2, 2:-2], true[2:-2, 2:-2]  # the ends are goals of few walks
    for steps in (8, 10, 12):
        assert abs(told[true == steps].mean() - steps) < 0.2 * steps, steps


def test_imagination_tells_steps_to_each_goal_alone_and_only_if_it_has_learnt_to():
    world, g = model(), torch.Generator().manual_seed(0)
    goal = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=g)
    actions = torch.randn(2, 5, 4, 2, generator=g)
    with torch.no_grad():
        both = world.imagine(world.initial(2), actions, goal=goal)
        one = world.imagine(world.initial(1), actions[1:], goal=goal[1:])
        without = world.imagine(world.initial(2), actions)
    assert (
        both.distance is not None
        and both.distance.shape == (2, 5, 4)
        and float(both.distance.min()) >= 0
    )
    assert torch.allclose(both.distance[1:], one.distance, atol=1e-5)
    assert not torch.allclose(both.distance[0], both.distance[1], atol=1e-5)
    assert without.distance is None and torch.equal(without.reward, both.reward)
    with pytest.raises(ValueError, match=r"train it with model\.loss\.distance"):
        model(distance=0.0).imagine(world.initial(2), actions, goal=goal)


def test_plans_weigh_rewards_and_steps_to_the_goal():
    setting = compose(
        ["experiment=tworoom", "planner.horizon=4", "mpc.replan=2", "threads=1"]
    )
    env, world = make(setting.env, 2), model()
    goal, memory = torch.from_numpy(env.goals()), world.initial(2)
    actions = torch.randn(2, 6, 4, 2, generator=torch.Generator().manual_seed(0)).clamp(
        -1, 1
    )
    scores = {}
    for reward, weight in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        objective = dataclasses.replace(setting.objective, reward=reward, goal=weight)
        changed = dataclasses.replace(setting, objective=objective)
        agent = build_agent(changed, world, env)
        scores[reward, weight] = agent.objective.score(
            memory, actions, goal if weight else None
        )
    assert torch.allclose(
        scores[2.0, 0.5], 2 * scores[1.0, 0.0] + 0.5 * scores[0.0, 1.0], atol=1e-5
    )
    future = world.imagine(memory, actions, goal=goal)
    assert future.distance is not None
    assert torch.allclose(scores[0.0, 1.0], -future.distance.mean(2), atol=1e-5)
    state = agent.observe(
        agent.initial(2),
        torch.from_numpy(env.frames()),
        torch.zeros(2, 2),
        torch.ones(2) > 0,
    )
    with pytest.raises(ValueError, match="no goal image"):
        agent.act(state)


@pytest.mark.slow
def test_tworoom_trains_and_its_head_is_part_of_the_checkpoint(tmp_path):
    small = [
        "experiment=tworoom",
        "train.steps=2",
        "train.collect.frames=2000",
        "train.batch=2",
        "train.length=16",
    ]
    setting = compose([*small, "train.min_length=16", "threads=1"])
    train(setting, tmp_path / "run")
    assert (tmp_path / "run" / "export" / "weights.safetensors").is_file()
    assert build_model(setting, make(setting.env, 1)).distance is not None


def test_what_is_known_is_less_surprising_than_what_was_never_seen_and_plans_may_seek_it():
    torch.manual_seed(0)
    loss = dataclasses.replace(ModelConfig().loss, surprise=1.0)
    world = WorldModel(ModelConfig(**TINY, loss=loss), (3, 64, 64), 2, discrete=False)
    g, still = torch.Generator().manual_seed(0), torch.zeros(8, 6, 2)
    optimizer = torch.optim.Adam(world.parameters(), lr=3e-3)
    for _ in range(
        120
    ):  # rooms of one colour: known after the first frame, not before it
        colour = torch.randint(0, 256, (8, 1, 3, 1, 1), dtype=torch.uint8, generator=g)
        pixels = colour.expand(8, 6, 3, 64, 64)
        first = torch.zeros(8, 6, dtype=torch.bool)
        first[:, 0] = True
        no = torch.zeros(8, 6, dtype=torch.bool)
        batch = Batch(pixels, still, torch.zeros(8, 6), no, no, first)
        optimizer.zero_grad()
        world.loss(batch, generator=g, state_reset=torch.rand(8, 6, generator=g) < 0.2)[
            0
        ].backward()
        optimizer.step()
    world.eval()
    with torch.no_grad():
        known, _ = world.observe(
            world.initial(8), pixels[:, :1], still[:, :1], first[:, :1]
        )
        of_known, of_new = (
            world.imagine(m, still[:, None, :1]).surprise.mean()
            for m in (known, world.initial(8))
        )
    assert of_new > 3 * of_known
    setting = compose(
        ["experiment=tworoom", "objective.goal=0", "objective.novelty=2", "threads=1"]
    )
    agent = build_agent(setting, world, make(setting.env, 2))
    future = world.imagine(world.initial(2), still[:2, None, :4])
    expected = 2 * planners.discounted_return(
        future.surprise, future.cont, None, world.config.discount
    )
    torch.testing.assert_close(
        agent.objective.score(world.initial(2), still[:2, None, :4]), expected
    )
    with pytest.raises(UserError, match="no surprise head: train it"):
        build_agent(setting, model(), make(setting.env, 2))


def test_what_the_planner_asks_for_and_is_not_there_is_one_clear_line():
    setting = compose(["experiment=tworoom", "threads=1"])
    with pytest.raises(
        UserError,
        match=r"objective\.goal=1: this environment has no goal images; or set",
    ):
        build_agent(
            setting, model(), make(dataclasses.replace(setting.env, goal="none"), 2)
        )
    with pytest.raises(
        UserError, match=r"objective\.goal=1: this model has no distance head"
    ):
        build_agent(setting, model(distance=0.0), make(setting.env, 2))


def test_an_agent_with_a_goal_is_a_torchrl_policy():
    setting = compose(
        [
            "experiment=tworoom",
            "planner.horizon=3",
            "mpc.replan=2",
            "planner.candidates=16",
            "threads=1",
        ]
    )
    env = make(setting.env, 2)
    policy = PlanPolicy(build_agent(setting, model(), env))
    out = TorchRLEnv(env).rollout(4, policy, break_when_any_done=False)
    assert out["action"].shape == (2, 4, 2) and out["action"].abs().max() <= 1
