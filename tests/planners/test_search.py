"""The search loop: known optima, seeds, batches, bad scores, warm starts, proposals."""

import itertools
from dataclasses import fields

import pytest
import torch
from lssvwm.planners import (
    Box,
    CEMConfig,
    Discrete,
    Plan,
    Proposals,
    ShootingConfig,
    build,
    search,
)
from lssvwm.planners.search import WORST, Clock
from torch import Tensor

from tests.planners.conftest import (
    BOX,
    CORRIDOR,
    INF,
    NAN,
    OPTIMISERS,
    SAMPLERS,
    SEARCHERS,
    SEVERAL,
    LinearQuadratic,
    assert_same,
    corridor,
    matches,
    numbered_plan,
    prefix,
    seed,
    tree_score,
)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_search_finds_linear_quadratic_optimum(config):
    problem = LinearQuadratic()
    planner = build(config(horizon=problem.horizon, candidates=512, iterations=12), BOX)
    plan = planner.plan(problem.score, batch=3, generator=seed())
    regret = plan.score / problem.optimum() - 1
    assert (regret >= 0).all(), "no plan can beat the analytic optimum"
    assert (regret < 0.02).all(), regret


@pytest.mark.parametrize("config", OPTIMISERS)
def test_search_beats_random_shooting(config):
    problem = LinearQuadratic()
    size = {"horizon": problem.horizon, "candidates": 128}
    searched = build(config(**size, iterations=16), BOX).plan(
        problem.score, batch=3, generator=seed()
    )
    shot = build(ShootingConfig(**size, iterations=16), BOX).plan(
        problem.score, batch=3, generator=seed()
    )
    assert (searched.score > shot.score).all()


@pytest.mark.parametrize("config", SEARCHERS)
def test_search_solves_tree_with_early_termination(config):
    depth, noise = 8, seed(3)
    size = 2 ** (depth + 1)
    ends = (torch.rand(size, generator=noise) < 0.1).float()
    rewards = torch.randn(size, generator=noise) + 4 * ends * (
        torch.rand(size, generator=noise) < 0.5
    )
    score = tree_score(rewards, ends)
    every = torch.tensor(list(itertools.product(range(2), repeat=depth)))
    best = score(every[None]).max()
    plan = build(config(horizon=depth, iterations=6, candidates=64), Discrete(2)).plan(
        score, batch=1, generator=seed()
    )
    torch.testing.assert_close(plan.score, best[None])
    torch.testing.assert_close(score(plan.actions[:, None])[:, 0], best[None])


@pytest.mark.parametrize("config", SEARCHERS)
@pytest.mark.parametrize(("steps", "iterations"), [(8, 8), (20, 30)])
def test_search_finds_exact_sequence(config, steps, iterations):
    target = torch.randint(4, (6, steps), generator=seed(1))
    planner = build(
        config(horizon=steps, candidates=256, iterations=iterations), Discrete(4)
    )
    plan = planner.plan(prefix(target), batch=6, generator=seed())
    assert torch.equal(plan.actions, target)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_mutation_leaves_local_optimum_of_corridor(config, monkeypatch):
    """Wasting one early step is a local optimum here, which only edited elites leave."""

    def solved(rate: float) -> int:
        monkeypatch.setattr(search, "MUTATION_RATE", rate)
        planner = build(config(horizon=8, candidates=256, iterations=8), Discrete(4))
        plans = [planner.plan(corridor, batch=1, generator=seed(s)) for s in range(10)]
        best = torch.tensor([0.97**7])
        return sum(
            torch.equal(p.actions[0], CORRIDOR) and torch.allclose(p.score, best)
            for p in plans
        )

    assert solved(rate=0.25) >= 9
    assert solved(rate=0.0) < 9


@pytest.mark.parametrize("config", SAMPLERS)
@pytest.mark.parametrize(
    "space", [Discrete(4), SEVERAL, BOX], ids=["discrete", "several", "box"]
)
def test_search_plans_each_environment_alone(config, space):
    goal = torch.tensor([1.0, -3.0, 2.0, 0.5])

    def score(actions: Tensor, rows: slice = slice(None)) -> Tensor:
        values = actions.float() if actions.ndim == 3 else actions.float().sum(-1)
        return -(values - goal[rows, None, None]).square().sum(-1)

    planner = build(config(horizon=6, candidates=64), space)
    warm = planner.plan(score, batch=4, generator=seed()).shift(
        torch.tensor([1, 6, 2, 0])
    )
    own = [1, 2, 3, 2]
    for seeds in (own, [1]):  # own noise, or the same for all
        noise = [seed(s) for s in seeds]
        together = planner.plan(score, batch=4, generator=noise, warm=warm)
        for b in range(4):
            row = slice(b, b + 1)
            alone = planner.plan(
                lambda actions, row=row: score(actions, row),
                batch=1,
                generator=seed(seeds[b % len(seeds)]),
                warm=warm.select(torch.tensor([b])),
            )
            assert_same(together.select(torch.tensor([b])), alone)


@pytest.mark.parametrize("config", SAMPLERS)
def test_environments_with_own_generators_see_other_candidates(config):
    seen = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return torch.zeros(actions.shape[:2])

    noise = [seed(1), seed(2), seed(1)]
    build(config(iterations=2), Discrete(4)).plan(score, batch=3, generator=noise)
    for actions in seen:
        assert torch.equal(actions[0], actions[2])
        assert not torch.equal(actions[0], actions[1])
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        build(config(), Discrete(4)).plan(score, batch=3, generator=noise[:2])


@pytest.mark.parametrize("config", SAMPLERS)
def test_search_depends_on_seed_only(config):
    planner = build(config(horizon=6), BOX)
    plans = [
        planner.plan(LinearQuadratic().score, batch=3, generator=seed(s))
        for s in (5, 5, 6)
    ]
    assert_same(plans[0], plans[1])
    assert not torch.equal(plans[0].actions, plans[2].actions)


@pytest.mark.parametrize("config", SAMPLERS)
@pytest.mark.parametrize(
    "space", [Discrete(3), SEVERAL, BOX], ids=["discrete", "several", "box"]
)
@pytest.mark.parametrize("constant", [NAN, -INF, INF, 0.0, 1e30, -7.0])
def test_search_survives_equal_scores(config, space, constant):
    planner = build(config(horizon=5, candidates=32), space)
    plan = None
    for call in range(3):
        plan = planner.plan(
            lambda actions: torch.full(actions.shape[:2], constant),
            batch=2,
            generator=seed(call),
            warm=plan,
        )
        assert all(
            torch.isfinite(getattr(plan, field.name)).all() for field in fields(plan)
        )


@pytest.mark.parametrize("config", SEARCHERS)
@pytest.mark.parametrize("bad", [NAN, -INF, -1e38])
def test_search_avoids_bad_scores(config, bad):
    """Most candidates are broken; of the others the best is found all the same."""
    target = torch.tensor([[2, 0, 1, 1, 2, 0]])

    def score(actions: Tensor) -> Tensor:
        broken = (actions[..., 0] != 2) | (actions[..., 1:2] == 1).any(-1)
        return matches(target[:, : actions.shape[-1]])(actions).masked_fill(broken, bad)

    planner = build(config(horizon=6, iterations=8), Discrete(3))
    plan = planner.plan(score, batch=1, generator=seed())
    assert torch.equal(plan.actions, target)
    assert torch.isfinite(plan.state).all()


@pytest.mark.parametrize("config", OPTIMISERS)
def test_infinite_score_is_clamped_and_best(config):
    def score(actions: Tensor) -> Tensor:
        return matches(torch.zeros(1, 4))(actions).masked_fill(
            (actions == 1).all(-1), INF
        )

    plan = build(config(horizon=4), Discrete(2)).plan(score, batch=1, generator=seed())
    assert (plan.actions == 1).all()
    assert plan.score.item() == pytest.approx(-WORST)


@pytest.mark.parametrize("config", SAMPLERS)
def test_search_respects_bounds(config):
    space = Box(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 2.5]))
    seen = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return actions.sum((-1, -2))

    plan = build(config(horizon=4), space).plan(
        score,
        batch=2,
        generator=seed(),
        proposals=Proposals(torch.full((2, 3, 4, 2), 9.0)),
    )
    for actions in [*seen, plan.actions, plan.elites]:
        assert (actions >= space.low).all() and (actions <= space.high).all()
    assert torch.equal(plan.actions, space.high.expand(2, 4, 2))


@pytest.mark.parametrize("config", SAMPLERS)
def test_proposals_come_first_and_can_win(config):
    target = torch.randint(4, (3, 16), generator=seed(4))
    proposals = torch.stack([torch.zeros_like(target), target], 1)
    seen = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions)
        return matches(target)(actions)

    plan = build(config(), Discrete(4)).plan(
        score, batch=3, generator=seed(), proposals=Proposals(proposals)
    )
    assert torch.equal(seen[0][:, :2], proposals)
    assert torch.equal(plan.actions, target)


@pytest.mark.parametrize("config", SAMPLERS)
@pytest.mark.parametrize("count", [3, 64])
def test_proposal_scores_are_not_computed_again(config, count):
    target = torch.randint(4, (2, 8), generator=seed(4))
    score, planner = (
        matches(target),
        build(config(horizon=8, candidates=64), Discrete(4)),
    )
    proposals, counts = torch.randint(4, (2, count, 8), generator=seed(5)), []

    def counted(actions: Tensor) -> Tensor:
        counts.append(actions.shape[1])
        return score(actions)

    plain = planner.plan(
        score, batch=2, generator=seed(), proposals=Proposals(proposals)
    )
    known = planner.plan(
        counted,
        batch=2,
        generator=seed(),
        proposals=Proposals(proposals, score(proposals)),
    )
    assert torch.equal(plain.actions, known.actions) and torch.equal(
        plain.elite_scores, known.elite_scores
    )
    assert sum(counts) == 64 * planner.config.iterations - count
    with pytest.raises(ValueError, match="expected"):
        planner.plan(
            score,
            batch=2,
            generator=seed(),
            proposals=Proposals(proposals, torch.zeros(2, count + 1)),
        )


@pytest.mark.parametrize("config", SAMPLERS)
def test_search_never_loses_best_candidate(config):
    best = torch.tensor([-INF])

    def score(actions: Tensor) -> Tensor:
        scores = torch.rand(actions.shape[:2], generator=noise)
        best.copy_(best.maximum(scores.max()))
        return scores

    noise = seed(9)
    plan = build(config(iterations=6, keep_elites=1), Discrete(4)).plan(
        score, batch=1, generator=seed()
    )
    assert torch.equal(plan.score, best)
    assert torch.equal(
        plan.elite_scores, plan.elite_scores.sort(descending=True).values
    )
    assert torch.equal(plan.elites[:, 0], plan.actions)


@pytest.mark.parametrize("config", SAMPLERS)
def test_warm_start_improves_plan(config):
    target = torch.randint(4, (8, 20), generator=seed(5))
    planner = build(config(horizon=16, candidates=64, iterations=2), Discrete(4))
    first = planner.plan(matches(target[:, :16]), batch=8, generator=seed())
    cold = planner.plan(matches(target[:, 4:]), batch=8, generator=seed(1))
    warm = planner.plan(
        matches(target[:, 4:]), batch=8, generator=seed(1), warm=first.shift(4)
    )
    assert warm.score.mean() > cold.score.mean() + 0.5
    kept = (first.shift(4).actions[:, :12] == target[:, 4:16]).sum(-1)
    assert (warm.score >= kept).all(), "the shifted plan must be among the candidates"


@pytest.mark.parametrize("space", [Discrete(4), BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("config", SAMPLERS)
def test_plan_shifted_by_horizon_is_forgotten(config, space):
    planner = build(config(horizon=5), space)

    def score(actions: Tensor) -> Tensor:
        return -actions.float().square().flatten(2).sum(-1)

    old = planner.plan(score, batch=2, generator=seed())
    cold = planner.plan(score, batch=2, generator=seed(1))
    gone = planner.plan(score, batch=2, generator=seed(1), warm=old.shift(5))
    assert_same(cold, gone)


def test_plan_refuses_wrong_arguments():
    planner = build(CEMConfig(), Discrete(3))

    def plan(score=lambda actions: torch.zeros(actions.shape[:2]), **given) -> Plan:
        return planner.plan(score, batch=2, generator=seed(), **given)

    with pytest.raises(
        ValueError, match=r"score returned shape \[2\], expected \[B, N\] = \[2, 128\]"
    ):
        plan(lambda actions: torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected \[2, P <= 128, 16\]"):
        plan(proposals=Proposals(torch.zeros(2, 5, 8, dtype=torch.long)))
    with pytest.raises(ValueError, match="actions 0 to 2, got 0 to 3"):
        plan(proposals=Proposals(torch.arange(4).repeat(2, 8)[:, None, :16]))
    with pytest.raises(ValueError, match="integers"):
        plan(proposals=Proposals(torch.zeros(2, 1, 16)))
    with pytest.raises(ValueError, match="warm has state"):
        plan(warm=numbered_plan())
    with pytest.raises(ValueError, match="finite"):
        build(CEMConfig(), BOX).plan(
            lambda actions: torch.zeros(2, 128),
            batch=2,
            generator=seed(),
            proposals=Proposals(torch.full((2, 1, 16, 1), NAN)),
        )
    with pytest.raises(ValueError, match="low < high"):
        Box(torch.tensor([1.0]), torch.tensor([1.0]))


@pytest.mark.parametrize("config", OPTIMISERS)
def test_search_handles_many_actions(config):
    target = torch.tensor([[63.0, 7.0]])
    settings = {"horizon": 2, "candidates": 512, "iterations": 10}
    plan = build(config(**settings), Discrete(64)).plan(
        matches(target), batch=1, generator=seed()
    )
    assert plan.actions.tolist() == [[63, 7]]
    assert plan.state.min() > 0
    torch.testing.assert_close(plan.state.sum(-1), torch.ones(1, 2))


@pytest.mark.parametrize("config", OPTIMISERS)
def test_search_handles_several_choices_per_step(config):
    target = torch.stack(
        [torch.randint(n, (2, 6), generator=seed(n)) for n in SEVERAL.n], -1
    )

    def score(actions: Tensor) -> Tensor:
        assert (
            actions.dtype == torch.int64
            and (actions >= 0).all()
            and (actions < torch.tensor(SEVERAL.n)).all()
        )
        return (actions == target[:, None]).float().sum((-1, -2))

    plan = build(config(horizon=6, candidates=128, iterations=10), SEVERAL).plan(
        score, batch=2, generator=seed()
    )
    assert torch.equal(plan.actions, target)
    assert plan.state.shape == (2, 6, 3, 5)
    torch.testing.assert_close(plan.state.sum(-1), torch.ones(2, 6, 3))
    assert (plan.state[:, :, 0, 3:] == 0).all() and (plan.state[:, :, 1, 1:] == 0).all()


@pytest.mark.parametrize("config", OPTIMISERS)
def test_time_budget_leaves_out_late_iterations(config, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lssvwm.planners.search.time.perf_counter", lambda: now[0])

    def rounds(**settings) -> int:
        calls = []

        def score(actions: Tensor) -> Tensor:
            now[0] += 1.0
            calls.append(actions.shape)
            return actions.float().sum((-1, -2))

        build(config(iterations=9, **settings), BOX).plan(
            score, batch=1, generator=seed()
        )
        return len(calls)

    assert [
        rounds(),
        rounds(time_budget=0.1),
        rounds(time_budget=3.5),
        rounds(time_budget=100.0),
    ] == [
        9,
        1,
        3,
        9,
    ]


def test_clock_expects_longest_iteration(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lssvwm.planners.search.time.perf_counter", lambda: now[0])
    clock, answers = Clock(10.0), []
    for seconds in (1.0, 4.0, 1.0, 1.0):
        now[0] += seconds
        answers.append(clock.allows_another())
    assert answers == [True, True, True, False]
