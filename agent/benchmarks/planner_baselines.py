"""Compare planners with those of other packages: `lssvwm benchmark planners`.

The model of each problem is exact and no memory is needed, so that only the search matters.
Every planner controls each problem in closed loop from the state alone.
All planners have the same number of imagined steps per decision.

Shapes: M states, S dimensions of a state, A dimensions of an action.
Actions lie between -1 and 1.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent.benchmarks.seed_runs import spread
from lssvwm.agent.config.settings import Config
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.origin import machine_settings
from lssvwm.agent.progress import Progress
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import ModelBasedEnvBase
from torchrl.modules import CEMPlanner, MPPIPlanner

from lssvwm import planners

HORIZON, SAMPLES, ROUNDS, ELITES = 16, 128, 3, 16
"""Imagined steps, candidates of one round, rounds, and elites.

Planners without rounds draw all candidates at once.
"""
SEEDS = 20
Act = Callable[[Tensor], Tensor]
"""Map a state [S] to an action [A]."""


@dataclass(frozen=True)
class Problem:
    """Define a control problem with a known model.

    start [S]: initial state
    steps: length of an episode
    move(x [M, S], u [M, A]): next states [M, S]
    reward(x [M, S]): rewards [M] for arriving there
    """

    name: str
    start: tuple[float, ...]
    actions: int
    steps: int
    move: Callable[[Tensor, Tensor], Tensor]
    reward: Callable[[Tensor], Tensor]

    def score(self, x: Tensor, actions: Tensor) -> Tensor:
        """Return the sums of rewards [M] of action sequences [M, H, A] from x [S]."""
        state, total = x.expand(len(actions), -1), torch.zeros(len(actions))
        for u in actions.clamp(-1, 1).unbind(1):
            state = self.move(state, u)
            total = total + self.reward(state)
        return total


def _push(x: Tensor, u: Tensor) -> Tensor:
    """Push a mass on a line; the state is position and speed."""
    speed = x[:, 1] + 0.2 * u[:, 0]
    return torch.stack((x[:, 0] + 0.2 * speed, speed), -1)


def _move_around_wall(x: Tensor, u: Tensor) -> Tensor:
    """Move a point in a plane with a wall at x = 0, |y| < 1."""
    moved = x + 0.15 * u
    crossed = (x[:, 0] * moved[:, 0] < 0) & (x[:, 1].abs() < 1)
    return torch.where(crossed[:, None], x, moved)


def _move_freely(x: Tensor, u: Tensor) -> Tensor:
    return x + 0.15 * u


def _swing(x: Tensor, u: Tensor) -> Tensor:
    """Swing a pendulum that is too heavy to be lifted in one go.

    The state is the angle from hanging down, and its speed.
    """
    speed = (x[:, 1] - 0.5 * torch.sin(x[:, 0]) + 0.15 * u[:, 0]).clamp(-3, 3)
    return torch.stack((x[:, 0] + 0.3 * speed, speed), -1)


PROBLEMS = (
    Problem(
        "mass",
        (2.0, 0.0),
        1,
        40,
        _push,
        lambda x: -x[:, 0].square() - 0.1 * x[:, 1].square(),
    ),
    Problem(
        "detour",
        (-0.6, 0.0),
        2,
        40,
        _move_around_wall,
        lambda x: -(x - torch.tensor([0.6, 0.0])).norm(dim=-1),
    ),
    Problem(
        "two peaks",  # a broad low one is near, a narrow high one farther away
        (0.0, 0.0),
        2,
        30,
        _move_freely,
        lambda x: (
            torch.exp(-(x - torch.tensor([-0.7, 0.0])).square().sum(-1) / 0.5)
            + 3 * torch.exp(-(x - torch.tensor([1.5, 0.8])).square().sum(-1) / 0.08)
        ),
    ),
    Problem("pendulum", (0.0, 0.0), 1, 60, _swing, lambda x: -torch.cos(x[:, 0])),
)


class ProblemEnv(ModelBasedEnvBase):
    """Present a problem as a TorchRL model-based environment."""

    def __init__(self, problem: Problem):
        super().__init__(torch.nn.Identity(), batch_size=torch.Size([]))  # type: ignore[arg-type]
        self.problem, one = problem, torch.Size([1])
        self.observation_spec = Composite(
            state=Unbounded(torch.Size([len(problem.start)]))
        )
        self.action_spec = Bounded(-1, 1, shape=torch.Size([problem.actions]))
        self.reward_spec = Unbounded(one)
        flag = Binary(1, shape=one, dtype=torch.bool)
        self.done_spec = Composite(done=flag, terminated=flag.clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        lead, x, u = tensordict.batch_size, tensordict["state"], tensordict["action"]
        state = self.problem.move(
            x.reshape(-1, x.shape[-1]), u.reshape(-1, u.shape[-1])
        )
        no = torch.zeros(*lead, 1, dtype=torch.bool)
        reward = self.problem.reward(state).reshape(*lead, 1)
        return TensorDict(
            {
                "state": state.reshape(x.shape),
                "reward": reward,
                "done": no,
                "terminated": no,
            },
            lead,
        )

    def _reset(
        self, tensordict: TensorDictBase | None = None, **_: Any
    ) -> TensorDictBase:
        return TensorDict({"state": torch.tensor(self.problem.start)}, [])


def _ours(kind: str) -> Callable[[Problem, int], Act]:
    def build(problem: Problem, seed: int) -> Act:
        size = {
            "horizon": HORIZON,
            "candidates": SAMPLES,
            "elites": ELITES,
            "iterations": ROUNDS,
        }
        config = planners.PLANNER_CONFIGS[kind](**size)  # type: ignore[call-arg]
        space = planners.Box(-torch.ones(problem.actions), torch.ones(problem.actions))
        planner, generator = (
            planners.build(config, space),
            torch.Generator().manual_seed(seed),
        )
        last: list[planners.Plan] = []

        def act(x: Tensor) -> Tensor:
            warm = last.pop().shift(1) if last else None
            score = lambda actions: problem.score(x, actions[0])[None]  # noqa: E731
            last.append(planner.plan(score, batch=1, generator=generator, warm=warm))
            return last[0].actions[0, 0]

        return act

    return build


def _torchrl_cem(problem: Problem, seed: int) -> Act:
    planner = CEMPlanner(ProblemEnv(problem), HORIZON, ROUNDS, SAMPLES, ELITES)
    return lambda x: planner(TensorDict({"state": x}, []))["action"]


class _ReturnAsAdvantage(torch.nn.Module):
    """Write the return of each trajectory as the `advantage` of every step.

    MPPIPlanner expects it in this form.
    """

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward = tensordict["next", "reward"]
        return tensordict.set(
            "advantage", reward.sum(-2, keepdim=True).expand_as(reward)
        )


def _torchrl_mppi(problem: Problem, seed: int) -> Act:
    planner = MPPIPlanner(
        ProblemEnv(problem), _ReturnAsAdvantage(), 1.0, HORIZON, ROUNDS, SAMPLES, ELITES
    )
    return lambda x: planner(TensorDict({"state": x}, []))["action"]


def _pytorch_mppi(problem: Problem, seed: int) -> Act:
    mppi = importlib.import_module("pytorch_mppi")
    planner = mppi.MPPI(
        problem.move,
        lambda x, u: -problem.reward(x),
        len(problem.start),
        0.5 * torch.eye(problem.actions),
        num_samples=SAMPLES * ROUNDS,
        horizon=HORIZON,
        lambda_=0.1,
        u_min=-torch.ones(problem.actions),
        u_max=torch.ones(problem.actions),
    )
    return planner.command


def _pytorch_icem(problem: Problem, seed: int) -> Act:
    icem = importlib.import_module("pytorch_icem")
    planner = icem.iCEM(
        lambda x, u: problem.move(x, u.clamp(-1, 1)),
        lambda x, u: (
            -torch.stack([problem.reward(state) for state in x.unbind(-2)], -1).sum(-1)
        ),
        len(problem.start),
        problem.actions,
        sigma=torch.full(
            [1] * (problem.actions - 1) + [problem.actions], 0.7
        ),  # the package expects A dimensions
        num_samples=SAMPLES,
        num_elites=ELITES,
        horizon=HORIZON,
        warmup_iters=ROUNDS,
        online_iters=ROUNDS,
    )
    return lambda x: planner.command(x).clamp(-1, 1)


def _stable_worldmodel(solver: str) -> Callable[[Problem, int], Act]:
    """Wrap a solver of stable-worldmodel, which minimises `get_cost`.

    Each plan starts from the previous plan, shifted by one step.
    """

    def build(problem: Problem, seed: int) -> Act:
        module = importlib.import_module("stable_worldmodel.solver")

        class Costs:
            def get_cost(self, info: dict[str, Tensor], candidates: Tensor) -> Tensor:
                return -problem.score(info["state"][0, 0], candidates[0])[None]

        planner = getattr(module, solver)(
            Costs(), num_samples=SAMPLES, n_steps=ROUNDS, topk=ELITES, seed=seed
        )
        spaces = importlib.import_module("gymnasium.spaces")
        box = spaces.Box(-1.0, 1.0, (1, problem.actions))
        settings = type(
            "Settings",
            (),
            {"horizon": HORIZON, "receding_horizon": 1, "action_block": 1},
        )
        planner.configure(action_space=box, n_envs=1, config=settings)
        last: list[Tensor] = []

        def act(x: Tensor) -> Tensor:
            with contextlib.redirect_stdout(
                io.StringIO()
            ):  # some solvers print timings
                actions = planner.solve(
                    {"state": x[None]}, last.pop()[:, 1:] if last else None
                )["actions"]
            last.append(actions)
            return actions[0, 0].clamp(-1, 1)

        return act

    return build


PLANNERS: dict[str, tuple[str | None, Callable[[Problem, int], Act]]] = {
    "cem": (None, _ours("cem")),
    "icem": (None, _ours("icem")),
    "mppi": (None, _ours("mppi")),
    "shooting": (None, _ours("shooting")),
    "torchrl CEMPlanner": (None, _torchrl_cem),
    "torchrl MPPIPlanner": (None, _torchrl_mppi),
    "pytorch-mppi": ("pytorch_mppi", _pytorch_mppi),
    "pytorch-icem": ("pytorch_icem", _pytorch_icem),
    "stable-worldmodel CEMSolver": (
        "stable_worldmodel.solver",
        _stable_worldmodel("CEMSolver"),
    ),
    "stable-worldmodel ICEMSolver": (
        "stable_worldmodel.solver",
        _stable_worldmodel("ICEMSolver"),
    ),
    "stable-worldmodel MPPISolver": (
        "stable_worldmodel.solver",
        _stable_worldmodel("MPPISolver"),
    ),
}
"""Planners by name: the module that must be installed (None: a dependency), and the builder."""


def compare_planners(
    config: Config,
    output: Path,
    problems: tuple[Problem, ...] = PROBLEMS,
    seeds: int = SEEDS,
) -> Path:
    """Measure return and decision time of every planner on every problem.

    Planners that are not installed are named and left out. Returns the JSON file.
    """
    torch.set_num_threads(1)
    present = {
        name: build
        for name, (module, build) in PLANNERS.items()
        if module is None or _installed(name, module)
    }
    progress = Progress("benchmark", len(problems) * len(present) * seeds, "episodes")
    rows = []
    for problem in problems:
        for name, build in present.items():
            returns, seconds = [], []
            for seed in range(seeds):
                torch.manual_seed(seed)
                total, duration = episode(problem, build(problem, seed))
                returns.append(total)
                seconds.append(duration)
                progress.update(progress.done + 1, name)
            row: dict[str, Any] = {"problem": problem.name, "planner": name}
            row["return"] = spread(returns)
            row["seconds_per_decision"] = sum(seconds) / len(seconds)
            rows.append(row)
    progress.close()
    settings = machine_settings(config) | {
        "horizon": HORIZON,
        "candidates": SAMPLES,
        "rounds": ROUNDS,
        "elites": ELITES,
        "seeds": seeds,
    }
    found = {
        "command": "lssvwm benchmark planners",
        "settings": settings,
        "rows": rows,
    }
    results.write_json(output / "planners.json", found)
    tables.publish([tables.planner_grid(found)], output / "planners.md")
    return output / "planners.json"


@torch.no_grad()
def episode(problem: Problem, act: Act) -> tuple[float, float]:
    """Run a planner in closed loop; returns the sum of rewards and seconds per decision."""
    x, total, began = torch.tensor(problem.start), 0.0, time.perf_counter()
    for _ in range(problem.steps):
        action = act(x).reshape(1, -1).clamp(-1, 1)
        x = problem.move(x[None], action)[0]
        total += float(problem.reward(x[None]))
    return total, (time.perf_counter() - began) / problem.steps


def _installed(name: str, module: str) -> bool:
    """Return whether a module can be imported; print a line if it cannot."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return False
    return True
