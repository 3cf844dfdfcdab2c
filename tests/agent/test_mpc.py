"""The planning agent: warm start, replanning, repeated actions, and its random numbers."""

import dataclasses

import pytest
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config.composition import compose
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent, MPCConfig
from lssvwm.agent.objective import ObjectiveConfig
from lssvwm.envs import TMazeConfig, make
from lssvwm.planners import PLANNERS, BeamConfig
from lssvwm.worldmodel import WorldModel, imagination

from tests.agent.conftest import (
    MPC,
    PLANNER,
    TINY,
    frames_of,
    observe,
    random_model,
)
from tests.host_reads import host_reads


def test_plan_depends_on_seed_and_observation():
    env = make(TMazeConfig(length=5), 2)
    model = random_model(env.frame_shape)
    planner = dataclasses.replace(PLANNER, candidates=64, horizon=8, elites=8)
    frame = frames_of(env)

    def plan(seed, frames):
        generator = torch.Generator().manual_seed(seed)
        agent = Agent(model, planner, mpc=MPC, generator=generator)
        state = observe(agent, agent.initial(2), frames, first=True)
        return agent.act(state)[1].plan

    a, b, c = plan(0, frame), plan(0, frame), plan(0, 255 - frame)
    assert torch.equal(a.actions, b.actions) and torch.equal(a.score, b.score)
    assert not torch.allclose(a.score, c.score)


def test_agent_follows_plan_then_replans():
    env = make(TMazeConfig(length=5), 2)
    agent = Agent(WorldModel(TINY, env.frame_shape, 4), PLANNER, mpc=MPC)
    state = agent.initial(2)
    replans = []
    for t in range(5):
        state = observe(agent, state, frames_of(env), first=t == 0)
        action, state = agent.act(state, torch.tensor([True, t > 0]))
        replans.append(state.replanned.tolist())
        if t > 0:
            followed = state.plan.actions[torch.arange(2), state.used - 1]
            assert action.tolist() == followed.tolist()
    assert replans == [
        [True, False],
        [False, True],
        [True, False],
        [False, True],
        [True, False],
    ]


@pytest.mark.parametrize("kind", PLANNERS, ids=lambda kind: kind.kind)
def test_plan_reads_once_on_the_host(kind):
    env = make(TMazeConfig(length=5), 2)
    planner = kind(horizon=5, candidates=12, iterations=2, elites=4)
    agent = Agent(random_model(env.frame_shape), planner, mpc=MPC)
    state = observe(agent, agent.initial(2), frames_of(env), first=True)
    with host_reads() as reads:
        _, state = agent.act(state)
        state = observe(agent, state, frames_of(env), first=True)
        _, state = agent.act(state)
    assert state.replanned.all()
    assert reads == ["tolist"] * 2  # which environments plan


def test_late_environment_makes_its_own_plan():
    """An environment whose frames are observed from the middle of an episode, too."""
    env = make(TMazeConfig(length=5), 2)
    agent = Agent(random_model(env.frame_shape), PLANNER, mpc=MPC)
    state = observe(agent, agent.initial(2), frames_of(env), first=False)
    _, state = agent.act(state, torch.tensor([True, False]))
    _, state = agent.act(state, torch.tensor([True, True]))
    assert state.replanned.tolist() == [False, True]


@pytest.mark.parametrize("way", ["act", "sample"])
def test_actions_depend_on_the_seed_of_the_environment(way):
    env = make(TMazeConfig(length=5), 8)
    agent = Agent(random_model(env.frame_shape), PLANNER, mpc=MPC)
    env.reset(torch.arange(8).numpy(), torch.zeros(8, dtype=torch.int64).numpy())
    state = observe(agent, agent.initial(8, torch.arange(8) // 2), frames_of(env), True)
    state = dataclasses.replace(state, policy=torch.zeros_like(state.policy))
    active = torch.arange(8) % 2 == 0
    taken = []
    for on in (active, ~active, None, None):
        action, state = getattr(agent, way)(state, on)
        taken.append(action)
    first, late, *both = taken
    assert torch.equal(first[active], late[~active])
    for action in both:
        assert torch.equal(action[active], action[~active])
    assert len(set(first[active].tolist())) > 1


def test_agent_repeats_each_planned_action():
    env = make(TMazeConfig(length=5), 2)
    model = random_model(env.frame_shape)
    agent = Agent(model, PLANNER, mpc=dataclasses.replace(MPC, action_repeat=3))
    state = agent.initial(2)
    followed, replans = [], []
    for t in range(8):
        state = observe(agent, state, frames_of(env), first=t == 0)
        action, state = agent.act(state)
        planned = state.plan.actions[:, (t % 6) // 3]
        followed.append((action == planned).all().item())
        replans.append(state.replanned.all().item())
    assert all(followed)
    assert [t for t, new in enumerate(replans) if new] == [0, 6]
    once = Agent(model, PLANNER, mpc=MPC).objective
    proposals = agent.objective.propose(
        state.memory,
        state.policy,
        MPC.proposals,
        PLANNER.horizon,
        [agent.generator] * 2,
    )
    actions, scores = proposals.actions, proposals.scores
    assert actions.shape == (2, MPC.proposals, PLANNER.horizon)
    close = {"rtol": 1e-4, "atol": 1e-4}  # sums are in another order
    same = agent.objective.score(state.memory, actions)
    torch.testing.assert_close(scores, same, **close)
    repeated = once.score(state.memory, actions.repeat_interleave(3, 2))
    torch.testing.assert_close(scores, repeated, **close)


@pytest.mark.parametrize("training", [True, False])
def test_agent_keeps_mode_of_model(training):
    model = random_model().train(training)
    Agent(model, PLANNER, mpc=MPC)
    assert model.training == training


@pytest.mark.parametrize(
    ("mpc", "message"),
    [
        (MPCConfig(replan=6, proposals=4), "mpc.replan=6 must be at most planner.hor"),
        (
            MPCConfig(proposals=13),
            "mpc.proposals=13 must be at most planner.candidates",
        ),
    ],
)
def test_settings_of_mpc_must_fit_planner(mpc, message):
    with pytest.raises(ValueError, match=message):
        Agent(random_model(), PLANNER, mpc=mpc)


@pytest.mark.parametrize("repeat", [1, 2])
def test_beam_search_imagines_each_prefix_once(repeat, monkeypatch):
    """The plans equal those from scores alone, up to rounding."""
    env = make(TMazeConfig(length=5), 3)
    model = random_model(env.frame_shape)
    imagined = []
    step = imagination.step

    def counted(model, state, action, *args, **more):
        imagined.append(action.numel())
        return step(model, state, action, *args, **more)

    monkeypatch.setattr(imagination, "step", counted)
    beam = BeamConfig(horizon=6, width=5, elites=4, keep_elites=2)
    mpc = MPCConfig(proposals=4, replan=2, action_repeat=repeat)
    plans, counts = [], []
    for shares_prefixes in (True, False):
        agent = Agent(model, beam, ObjectiveConfig(discount=0.9), mpc)
        agent.planner.branches *= shares_prefixes
        state = observe(agent, agent.initial(3), frames_of(env), first=True)
        for _ in range(2 * repeat + 1):  # two plans; the second has a warm start
            imagined.clear()
            _, state = agent.act(state)
            if state.replanned.all():
                plans.append(state.plan)
                counts.append(sum(imagined))
    shared, scored = plans[:2], plans[2:]
    for one, other in zip(shared, scored):
        assert torch.equal(one.actions, other.actions)
        torch.testing.assert_close(
            one.elite_scores, other.elite_scores, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(one.state, other.state)
    assert counts[0] < counts[2] and counts[1] < counts[3]


def test_agent_refuses_models_of_given_poses():
    env = make(TMazeConfig(length=5), 1)
    config = compose(["env=tmaze"])
    model = WorldModel(dataclasses.replace(TINY, pose="given"), env.frame_shape, 4)
    with pytest.raises(UserError, match=r"cannot plan with model\.pose=given"):
        build_agent(config, model, env)
