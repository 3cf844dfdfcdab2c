"""The objective: the value of rollouts, their samples, and the discount."""

import dataclasses

import pytest
import torch
from lssvwm.agent.mpc import Agent
from lssvwm.agent.objective import ObjectiveConfig
from lssvwm.envs import TMazeConfig, make

from tests.agent.conftest import MPC, PLANNER, frames_of, observe, random_model


def test_proposals_have_the_scores_of_candidates():
    env = make(TMazeConfig(length=5), 3)
    agent = Agent(random_model(env.frame_shape), PLANNER, mpc=MPC)
    state = observe(agent, agent.initial(3), frames_of(env), first=True)
    proposals = agent.objective.propose(
        state.memory,
        state.policy,
        MPC.proposals,
        PLANNER.horizon,
        [agent.generator] * 3,
    )
    assert proposals.actions.shape == (3, MPC.proposals, PLANNER.horizon)
    scores = agent.objective.score(state.memory, proposals.actions)
    torch.testing.assert_close(proposals.scores, scores, rtol=1e-4, atol=1e-4)


def test_std_penalty_lowers_uncertain_scores():
    config = ObjectiveConfig(samples=8, std_penalty=1.0)
    agent = Agent(random_model(), PLANNER, config, MPC)
    actions = torch.randint(4, (2, 5, 5), generator=torch.Generator().manual_seed(0))

    def score(agent: Agent) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
        memory = agent.model.initial(2)
        return agent.objective.score(memory, actions, generators=noise)

    penalised = score(agent)
    mean = dataclasses.replace(config, std_penalty=0.0)
    other = Agent(agent.model, PLANNER, mean, MPC)
    plain = score(other)
    assert penalised.shape == (2, 5) and (penalised < plain).all()
    assert config.denoising_steps == 2 and ObjectiveConfig().denoising_steps == 1


def test_discount_defaults_to_that_of_the_model():
    model = random_model()
    assert Agent(model, PLANNER, mpc=MPC).objective.discount == model.config.discount
    own = Agent(model, PLANNER, ObjectiveConfig(discount=0.5), MPC)
    assert own.objective.discount == 0.5


@pytest.mark.parametrize(
    ("setting", "value"),
    [("discount", 1.1), ("bootstrap", -0.1), ("samples", 0), ("reward", float("nan"))],
)
def test_config_mistakes_name_the_setting(setting, value):
    with pytest.raises(ValueError, match=setting):
        ObjectiveConfig(**{setting: value})
