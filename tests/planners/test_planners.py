"""Planners against known optima, and what `planners/` promises: seeds, batches, bad scores, warm starts."""

import itertools
from dataclasses import fields

import pytest
import torch
from lssvwm.planners import (
    PLANNER_CONFIGS,
    BeamConfig,
    Box,
    CEMConfig,
    Discrete,
    ICEMConfig,
    MPPIConfig,
    MultiDiscrete,
    Plan,
    Proposals,
    SearchConfig,
    ShootingConfig,
    build,
    discounted_return,
    distributions,
)
from lssvwm.planners.distributions import coloured, mutate
from lssvwm.planners.search import WORST, Clock
from torch import Tensor

BOX = Box(torch.tensor([-10.0]), torch.tensor([10.0]))
SEVERAL = MultiDiscrete((3, 1, 5))
OPTIMISERS = [CEMConfig, ICEMConfig, MPPIConfig]
KINDS = [
    kind for kind in PLANNER_CONFIGS.values() if kind is not BeamConfig
]  # those that draw candidates
SEARCHERS = [*OPTIMISERS, BeamConfig]
INF, NAN = float("inf"), float("nan")


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def assert_same(one: Plan, other: Plan) -> None:
    for field in fields(Plan):
        torch.testing.assert_close(
            getattr(one, field.name), getattr(other, field.name), rtol=1e-5, atol=1e-6
        )


def matches(target: Tensor):
    """A score in [0, H]: how many actions agree with target [B, H]."""
    return lambda actions: (actions == target[:, None]).sum(-1).float()


def prefix(target: Tensor):
    """A score in [0, H]: the actions before the first mistake; one sequence of n ** H is right."""
    return lambda actions: (
        (actions == target[:, None, : actions.shape[-1]])
        .long()
        .cumprod(-1)
        .sum(-1)
        .float()
    )


class LinearQuadratic:
    """A double integrator with quadratic cost, its optimum from the Riccati recursion."""

    A = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    B = torch.tensor([[0.0], [0.1]], dtype=torch.float64)
    Q = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
    R = torch.tensor([[0.01]], dtype=torch.float64)
    horizon, last = 10, 5.0
    start = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.2, -0.3]], dtype=torch.float64)

    def score(self, actions: Tensor) -> Tensor:
        state = self.start[:, None].expand(-1, actions.shape[1], -1)
        cost = torch.zeros(actions.shape[:2], dtype=torch.float64)
        for action in actions.double().unbind(2):
            cost += ((state @ self.Q) * state).sum(-1) + (
                (action @ self.R) * action
            ).sum(-1)
            state = state @ self.A.T + action @ self.B.T
        return -(cost + self.last * ((state @ self.Q) * state).sum(-1))

    def optimum(self) -> Tensor:
        P = self.last * self.Q
        for _ in range(self.horizon):
            gain = torch.linalg.solve(
                self.R + self.B.T @ P @ self.B, self.B.T @ P @ self.A
            )
            P = self.Q + self.A.T @ P @ (self.A - self.B @ gain)
        return -torch.einsum("bi,ij,bj->b", self.start, P, self.start)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_linear_quadratic_optimum(config):
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


def tree_score(rewards: Tensor, ends: Tensor):
    """A binary tree of depth H: reward and termination by node, value 3 at the leaves still alive."""

    def score(actions: Tensor) -> Tensor:
        node = torch.zeros_like(actions[..., 0])
        path = []
        for action in actions.unbind(-1):
            node = 2 * node + 1 + action
            path.append(node)
        nodes = torch.stack(path, -1)
        return discounted_return(
            rewards[nodes], 1 - ends[nodes], torch.full(node.shape, 3.0), 0.9
        )

    return score


@pytest.mark.parametrize("config", SEARCHERS)
def test_discrete_tree_with_early_termination(config):
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
def test_goal_that_needs_an_exact_sequence(config, steps, iterations):
    target = torch.randint(4, (6, steps), generator=seed(1))
    planner = build(
        config(horizon=steps, candidates=256, iterations=iterations), Discrete(4)
    )
    plan = planner.plan(prefix(target), batch=6, generator=seed())
    assert torch.equal(plan.actions, target)


CORRIDOR = torch.tensor([1, 1, 3, 3, 0, 0, 3, 3])
"""The only way to the goal in eight steps: right, right, down, down, left, left, down, down."""


def corridor(actions: Tensor) -> Tensor:
    """A winding corridor (0 left, 1 right, 2 up, 3 down) that pays at its end; the value is its progress."""
    moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
    cells = torch.cat([torch.zeros(1, 2, dtype=torch.long), moves[CORRIDOR].cumsum(0)])
    here = torch.zeros_like(actions[..., 0])
    reward, alive = torch.zeros(actions.shape), torch.ones(actions.shape)
    for t, action in enumerate(actions.unbind(-1)):
        aim = cells[here] + moves[action]
        found = (aim[..., None, :] == cells).all(-1)
        here = torch.where(found.any(-1), found.long().argmax(-1), here)
        arrived = here == len(CORRIDOR)
        reward[..., t], alive[..., t] = arrived.float(), 1 - arrived.float()
    return discounted_return(reward, alive, 0.9 ** (len(CORRIDOR) - here.float()), 0.97)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_corridor_with_bootstrapped_value(config):
    """Wasting one early step is a local optimum here, which only edited elites leave."""

    def solved(rate: float) -> int:
        planner = build(
            config(horizon=8, candidates=256, iterations=8, mutation_rate=rate),
            Discrete(4),
        )
        plans = [planner.plan(corridor, batch=1, generator=seed(s)) for s in range(10)]
        best = torch.tensor([0.97**7])
        return sum(
            torch.equal(p.actions[0], CORRIDOR) and torch.allclose(p.score, best)
            for p in plans
        )

    assert solved(rate=0.25) >= 9
    assert solved(rate=0.0) < 9


def test_edits_remove_replace_or_insert_one_step():
    parents = torch.arange(1, 6).expand(1, 200, 5)
    edited = (
        mutate(parents, torch.zeros_like(parents), seed()).unique(dim=1)[0].tolist()
    )
    before = [[*range(1, t + 1)] for t in range(5)]
    after = [[*range(t + 2, 6)] for t in range(5)]
    replaced = [[*b, 0, *a] for b, a in zip(before, after)]
    removed = [[*b, *a, 0] for b, a in zip(before, after)]
    inserted = [[*b, 0, len(b) + 1, *a][:5] for b, a in zip(before, after)]
    assert {*map(tuple, edited)} == {*map(tuple, replaced + removed + inserted)}


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize(
    "space", [Discrete(4), SEVERAL, BOX], ids=["discrete", "several", "box"]
)
def test_batch_elements_are_independent(config, space):
    goal = torch.tensor([1.0, -3.0, 2.0, 0.5])

    def score(actions: Tensor, rows: slice = slice(None)) -> Tensor:
        values = actions.float() if actions.ndim == 3 else actions.float().sum(-1)
        return -(values - goal[rows, None, None]).square().sum(-1)

    planner = build(config(horizon=6, candidates=64), space)
    warm = planner.plan(score, batch=4, generator=seed()).shift(
        torch.tensor([1, 6, 2, 0])
    )
    together = planner.plan(score, batch=4, generator=seed(1), warm=warm)
    for b in range(4):
        row = slice(b, b + 1)
        alone = planner.plan(
            lambda actions, row=row: score(actions, row),
            batch=1,
            generator=seed(1),
            warm=warm.select(torch.tensor([b])),
        )
        assert_same(together.select(torch.tensor([b])), alone)


@pytest.mark.parametrize("config", KINDS)
def test_same_seed_same_plan(config):
    planner = build(config(horizon=6), BOX)
    plans = [
        planner.plan(LinearQuadratic().score, batch=3, generator=seed(s))
        for s in (5, 5, 6)
    ]
    assert_same(plans[0], plans[1])
    assert not torch.equal(plans[0].actions, plans[2].actions)


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize(
    "space", [Discrete(3), SEVERAL, BOX], ids=["discrete", "several", "box"]
)
@pytest.mark.parametrize("constant", [NAN, -INF, INF, 0.0, 1e30, -7.0])
def test_equal_scores_survive(config, space, constant):
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
def test_bad_scores_are_avoided(config, bad):
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
def test_infinite_score_is_best_and_finite(config):
    def score(actions: Tensor) -> Tensor:
        return matches(torch.zeros(1, 4))(actions).masked_fill(
            (actions == 1).all(-1), INF
        )

    plan = build(config(horizon=4), Discrete(2)).plan(score, batch=1, generator=seed())
    assert (plan.actions == 1).all()
    assert plan.score.item() == pytest.approx(-WORST)


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
def test_distributions_keep_exploring(config, monkeypatch):
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
def test_the_mode_is_among_the_candidates(config, space):
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


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9, 1e25])
def test_mppi_does_not_depend_on_the_scale_of_rewards(scale):
    target = torch.randint(3, (2, 8), generator=seed(2))
    planner = build(MPPIConfig(horizon=8), Discrete(3))
    base = planner.plan(matches(target), batch=2, generator=seed())
    scaled = planner.plan(
        lambda actions: matches(target)(actions) * scale, batch=2, generator=seed()
    )
    torch.testing.assert_close(base.state, scaled.state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", KINDS)
def test_bounds_are_respected(config):
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


@pytest.mark.parametrize("config", KINDS)
def test_proposals_come_first_and_a_perfect_one_wins(config):
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


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("count", [3, 64])
def test_scores_known_already_change_nothing(config, count):
    target = torch.randint(4, (2, 8), generator=seed(4))
    score, planner = (
        matches(target),
        build(config(horizon=8, candidates=64), Discrete(4)),
    )
    proposals, asked = torch.randint(4, (2, count, 8), generator=seed(5)), []

    def counted(actions: Tensor) -> Tensor:
        asked.append(actions.shape[1])
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
    assert sum(asked) == 64 * planner.config.iterations - count
    with pytest.raises(ValueError, match="expected"):
        planner.plan(
            score,
            batch=2,
            generator=seed(),
            proposals=Proposals(proposals, torch.zeros(2, count + 1)),
        )


@pytest.mark.parametrize("config", KINDS)
def test_the_best_candidate_is_never_lost(config):
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


@pytest.mark.parametrize("config", KINDS)
def test_warm_start_helps(config):
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
@pytest.mark.parametrize("config", KINDS)
def test_a_plan_shifted_away_is_forgotten(config, space):
    planner = build(config(horizon=5), space)

    def score(actions: Tensor) -> Tensor:
        return -actions.float().square().flatten(2).sum(-1)

    old = planner.plan(score, batch=2, generator=seed())
    cold = planner.plan(score, batch=2, generator=seed(1))
    gone = planner.plan(score, batch=2, generator=seed(1), warm=old.shift(5))
    assert_same(cold, gone)


def numbered_plan(horizon: int = 5) -> Plan:
    steps = torch.arange(horizon)
    actions = torch.stack([steps, steps + 10])
    return Plan(
        actions=actions,
        score=torch.tensor([1.0, 2.0]),
        state=actions[..., None].float(),
        elites=torch.stack([actions, actions + 100], 1),
        elite_scores=torch.tensor([[1.0, 0.0], [2.0, 1.0]]),
        planned=torch.tensor([horizon, horizon]),
    )


def test_shift():
    shifted = numbered_plan().shift(torch.tensor([2, 0])).shift(1)
    assert shifted.actions.tolist() == [[3, 4, 4, 4, 4], [11, 12, 13, 14, 14]]
    assert shifted.state[..., 0].tolist() == shifted.actions.tolist()
    assert shifted.elites[:, 1].tolist() == (shifted.actions + 100).tolist()
    assert shifted.planned.tolist() == [2, 4]
    assert numbered_plan().shift(99).planned.tolist() == [0, 0]
    with pytest.raises(ValueError, match="negative"):
        numbered_plan().shift(-1)


def test_select_and_put():
    plan = numbered_plan()
    mask = torch.tensor([False, True])
    one = plan.select(mask)
    assert one.actions.tolist() == [[10, 11, 12, 13, 14]]
    both = plan.put(mask, one.shift(3))
    assert both.actions.tolist() == [[0, 1, 2, 3, 4], [13, 14, 14, 14, 14]]
    assert both.planned.tolist() == [5, 2]
    assert plan.planned.tolist() == [5, 5]


def test_returns_by_hand():
    reward = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]])
    cont = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]])
    value = torch.tensor([[8.0, 8.0, 8.0]])
    expected = torch.tensor([[1 + 1 + 1 + 1, 1 + 1, 1 + 0.5 + 0.5]])
    torch.testing.assert_close(discounted_return(reward, cont, value, 0.5), expected)
    torch.testing.assert_close(
        discounted_return(reward, cont, None, 0.5), torch.tensor([[3.0, 2.0, 2.0]])
    )


def test_sticky_repeats_actions_without_changing_their_odds():
    def first_candidates(sticky: float) -> Tensor:
        seen = []

        def score(actions: Tensor) -> Tensor:
            seen.append(actions)
            return torch.zeros(actions.shape[:2])

        config = ShootingConfig(candidates=8000, noise_hold_prob=sticky, horizon=6)
        build(config, Discrete(4)).plan(score, batch=1, generator=seed())
        return seen[0][0]

    for sticky in (0.0, 0.6):
        actions = first_candidates(sticky)
        repeats = (actions[:, 1:] == actions[:, :-1]).float().mean().item()
        assert repeats == pytest.approx(sticky + (1 - sticky) / 4, abs=0.02)
        odds = torch.nn.functional.one_hot(actions, 4).float().mean(0)
        torch.testing.assert_close(odds, torch.full_like(odds, 0.25), rtol=0, atol=0.03)


def test_build_and_config_order():
    for kind, config in PLANNER_CONFIGS.items():
        assert fields(config)[0].name == "kind"
        assert config().kind == kind
        assert type(build(config(), Discrete(2))).__name__.lower() == kind
    with pytest.raises(TypeError, match="known: BeamConfig, CEMConfig"):
        build(SearchConfig(kind="nothing"), Discrete(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidates", 0),
        ("horizon", 0),
        ("iterations", 0),
        ("elites", 129),
        ("keep_elites", 0),
        ("noise_hold_prob", -0.1),
        ("init_std", 0.0),
        ("mutation_rate", 2.0),
        ("time_budget", -1.0),
        ("temperature", 0.0),
    ],
)
def test_config_mistakes_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"(?s){field}.*{value}"):
        MPPIConfig(**{field: value})


def test_call_mistakes_are_one_clear_line():
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
    with pytest.raises(ValueError, match="at most 50 discrete actions, got 99"):
        build(CEMConfig(), Discrete(99))


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_coloured_noise_has_its_spectrum_and_variance_one_at_every_step(colour):
    noise = coloured((20000, 32), colour, seed())
    assert ((noise.square().mean(0) - 1).abs() < 0.05).all()
    power = torch.fft.rfft(noise * torch.hann_window(32)).abs().square().mean(0)
    slope = torch.log(power[8] / power[2]) / torch.log(
        torch.tensor(4.0)
    )  # eight and two turns in the window
    assert abs(slope + colour) < 0.25


def test_icem_draws_fewer_candidates_and_keeps_the_odds_of_every_step():
    asked = []

    def score(actions: Tensor) -> Tensor:
        asked.append(actions.shape[1])
        return torch.zeros(actions.shape[:2])

    config = ICEMConfig(horizon=6, candidates=100, elites=10, iterations=5, decay=2.0)
    build(config, Discrete(3)).plan(score, batch=1, generator=seed())
    assert asked == [100, 50, 25, 20, 20]
    planner = build(ICEMConfig(horizon=6, candidates=30000, colour=2.0), Discrete(3))
    state = torch.tensor([0.2, 0.3, 0.5]).expand(1, 6, 3)
    actions = planner.distribution.sample(state, planner.draw(seed(), 0))[0]
    odds = torch.nn.functional.one_hot(actions, 3).float().mean(0)
    assert (odds - state[0]).abs().max() < 0.015
    assert (actions[:, 1:] == actions[:, :-1]).float().mean() > 0.5  # at random: 0.38


def test_a_wide_beam_is_exhaustive_and_a_narrow_one_follows_the_value():
    depth, noise = 6, seed(5)
    rewards, ends = (
        torch.randn(2 ** (depth + 1), generator=noise),
        torch.zeros(2 ** (depth + 1)),
    )
    score = tree_score(rewards, ends)
    every = torch.tensor(list(itertools.product(range(2), repeat=depth)))
    size = {
        "horizon": depth,
        "candidates": 8,
        "elites": 4,
        "keep_elites": 2,
    }
    plan = build(BeamConfig(**size, width=2**depth), Discrete(2)).plan(
        score, batch=1, generator=seed()
    )
    torch.testing.assert_close(plan.score, score(every[None]).max()[None])
    plan = build(BeamConfig(**size | {"horizon": 8}, width=1), Discrete(4)).plan(
        corridor, batch=1, generator=seed()
    )
    assert torch.equal(plan.actions[0], CORRIDOR)
    assert plan.elites.shape == (1, 4, 8) and plan.state.shape == (1, 8, 4)


def test_a_beam_counts_proposals_and_the_last_plan():
    """Only whole plans pay, which a narrow beam cannot know."""
    target = torch.randint(4, (2, 8), generator=seed(1))

    def score(actions: Tensor) -> Tensor:
        whole = actions.shape[-1] == 8
        return (
            (actions == target[:, None]).all(-1).float()
            if whole
            else torch.zeros(actions.shape[:2])
        )

    planner = build(BeamConfig(horizon=8, width=4), Discrete(4))
    assert (planner.plan(score, batch=2, generator=seed()).score == 0).all()
    proposals = torch.stack([torch.zeros_like(target), target], 1)
    for scores in (None, score(proposals)):
        plan = planner.plan(
            score, batch=2, generator=seed(), proposals=Proposals(proposals, scores)
        )
        assert torch.equal(plan.actions, target)
    assert torch.equal(
        planner.plan(score, batch=2, generator=seed(), warm=plan).actions, target
    )
    first = torch.tensor([0])
    alone = planner.plan(
        lambda a: score(a.expand(2, -1, -1))[:1],
        batch=1,
        generator=seed(),
        warm=plan.select(first),
    )
    assert_same(
        alone, planner.plan(score, batch=2, generator=seed(), warm=plan).select(first)
    )
    with pytest.raises(ValueError, match="needs discrete actions"):
        build(BeamConfig(), BOX)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_several_choices_at_once_are_found_and_each_stays_within_its_own_number(config):
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


def test_mistakes_with_several_choices_are_one_clear_line():
    with pytest.raises(ValueError, match="needs a choice"):
        MultiDiscrete(())
    with pytest.raises(ValueError, match=r"actions 0 to \[2, 0, 4\], got 0 to 1"):
        build(CEMConfig(horizon=4), SEVERAL).distribution.validate(
            torch.tensor([[[[0, 1, 0], [0, 0, 0]]]])
        )
    with pytest.raises(ValueError, match="needs discrete actions"):
        build(BeamConfig(), SEVERAL)


@pytest.mark.parametrize("config", OPTIMISERS)
def test_a_time_budget_leaves_out_the_iterations_that_would_exceed_it(
    config, monkeypatch
):
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


def test_the_clock_expects_another_round_to_take_as_long_as_the_longest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lssvwm.planners.search.time.perf_counter", lambda: now[0])
    clock, answers = Clock(10.0), []
    for seconds in (1.0, 4.0, 1.0, 1.0):
        now[0] += seconds
        answers.append(clock.allows_another())
    assert answers == [True, True, True, False]
