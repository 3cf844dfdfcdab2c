"""Test the problems and the table of `lssvwm benchmark planners`."""

import json

import pytest
import torch
from lssvwm.agent.benchmarks import planner_baselines as baselines
from lssvwm.agent.benchmarks.planner_baselines import (
    PLANNERS,
    PROBLEMS,
    ProblemEnv,
    compare_planners,
    episode,
)
from lssvwm.agent.config.composition import compose
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import check_env_specs


@pytest.fixture
def few(monkeypatch):
    """Shrink the search so that it takes little time."""
    for name, value in (("HORIZON", 6), ("SAMPLES", 16), ("ROUNDS", 2), ("ELITES", 4)):
        monkeypatch.setattr(baselines, name, value)


class Follow(TensorDictModuleBase):
    in_keys, out_keys = ("state",), ("action",)

    def __init__(self, moves):
        super().__init__()
        self.moves = moves

    def forward(self, td):
        return td.set("action", next(self.moves))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_score_equals_sum_of_rewards_in_torchrl(problem):
    actions = torch.randn(
        3, 5, problem.actions, generator=torch.Generator().manual_seed(0)
    )
    x = torch.tensor(problem.start)
    env = ProblemEnv(problem)
    check_env_specs(env)
    for sequence, score in zip(actions, problem.score(x, actions)):
        moves = [iter(sequence.clamp(-1, 1)) for _ in range(2)]
        total = episode(
            problem.__class__(**vars(problem) | {"steps": 5}),
            lambda _, moves=moves: next(moves[0]),
        )[0]
        rollout = env.rollout(5, Follow(moves[1]))
        assert total == pytest.approx(float(score), abs=1e-5)
        assert float(rollout["next", "reward"].sum()) == pytest.approx(
            float(score), abs=1e-5
        )


def test_detour_wall_blocks_and_its_ends_pass():
    x = torch.tensor([[-0.05, 0.0], [-0.05, 1.5], [0.05, 0.9]])
    moved = baselines._move_around_wall(
        x, torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    )
    assert moved[:, 0].tolist() == pytest.approx([-0.05, 0.10, 0.05])


def test_planning_compares_installed_and_names_missing(
    tmp_path, few, capsys, monkeypatch
):
    monkeypatch.setitem(
        PLANNERS, "absent", ("no_such_module", lambda problem, seed: None)
    )
    problem = PROBLEMS[0].__class__(**vars(PROBLEMS[0]) | {"steps": 4})
    found = json.loads(
        compare_planners(compose([]), tmp_path, (problem,), seeds=2).read_text()
    )
    assert (
        "absent is left out: No module named 'no_such_module'"
        in capsys.readouterr().out
    )
    rows = {row["planner"]: row for row in found["rows"]}
    assert {
        "cem",
        "icem",
        "mppi",
        "shooting",
        "torchrl CEMPlanner",
        "torchrl MPPIPlanner",
    } <= set(rows)
    assert all(
        len(row["return"]["seeds"]) == 2 and row["return"]["mean"] < 0
        for row in rows.values()
    )
    table = (tmp_path / "planners.md").read_text()
    assert "| planner | mass | ms a decision |" in table and "| cem |" in table
