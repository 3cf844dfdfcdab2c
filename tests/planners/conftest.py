"""Problems with known optima, and comparisons, that the tests of planners share."""

from dataclasses import fields

import torch
from lssvwm.planners import (
    BeamConfig,
    Box,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    MultiDiscrete,
    Plan,
    ShootingConfig,
    discounted_return,
)
from torch import Tensor

BOX = Box(torch.tensor([-10.0]), torch.tensor([10.0]))
SEVERAL = MultiDiscrete((3, 1, 5))
INF, NAN = float("inf"), float("nan")
OPTIMISERS = [CEMConfig, ICEMConfig, MPPIConfig]
"""Planners that move their distribution."""
SAMPLERS = [*OPTIMISERS, ShootingConfig]
"""Planners that draw candidates."""
SEARCHERS = [*OPTIMISERS, BeamConfig]
"""Planners that find good plans."""


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def assert_same(one: Plan, other: Plan) -> None:
    for field in fields(Plan):
        torch.testing.assert_close(
            getattr(one, field.name), getattr(other, field.name), rtol=1e-5, atol=1e-6
        )


def matches(target: Tensor):
    """Score by the number of actions that agree with target [B, H], 0 to H."""
    return lambda actions: (actions == target[:, None]).sum(-1).float()


def prefix(target: Tensor):
    """Score by the number of actions before the first mistake, 0 to H.

    One sequence of n ** H is right.
    """
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


def tree_score(rewards: Tensor, ends: Tensor):
    """Score paths of a binary tree with reward and termination by node.

    The value is 3 at leaves that no termination precedes.
    """

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


CORRIDOR = torch.tensor([1, 1, 3, 3, 0, 0, 3, 3])
"""The only way to the goal in eight steps: right, right, down, down, left, left, down, down."""


def corridor(actions: Tensor) -> Tensor:
    """Score walks through a winding corridor that pays at its end.

    The value is the progress.
    Actions: 0 left, 1 right, 2 up, 3 down.
    """
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


def numbered_plan(horizon: int = 5) -> Plan:
    """Build the plans of two environments whose actions number the steps."""
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
