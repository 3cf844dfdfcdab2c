"""Scripted explorers of the mazes: they read the map, so they need no memory.

An explorer is a recipe: what it does while the context lasts, what afterwards, and how often it errs.
All its randomness comes from its seed and the episode's, so a walk does not depend on the other slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lssvwm.envs.base import Explorer
from lssvwm.envs.maze.engine import AHEAD, LEFT, RIGHT, STAY, GridMaze
from lssvwm.envs.maze.layout import FAR, FORWARD


@dataclass(frozen=True)
class Recipe:
    """What to do in the context and after it, and the odds of a random action in each.

    `goal`: the shortest path to the goal. `tour`: all objects, nearest next, then cells. `shuffle`: the same
    in random order. `cells`: shortest paths to random cells. `seek`: objects (or arms) in random order, with
    a map but no memory of colours. `look`: to where the cue can be seen, then to the goal. `forage`: along the
    wall until the cued object is in view, then to it. `momentum`, `wall`, `random`, `noop`: without a map.
    """

    context: str
    after: str
    noise_context: float = 0.0
    noise_after: float = 0.0


RECIPES = {
    "oracle": Recipe("tour", "goal"),
    "guide": Recipe("tour", "tour"),
    "tour": Recipe("shuffle", "shuffle"),
    "cells": Recipe("cells", "cells", 0.15, 0.15),
    "seek": Recipe("cells", "seek", 0.15, 0.10),
    "look": Recipe("look", "look"),
    "stumble": Recipe(
        "cells", "seek", 0.40, 0.40
    ),  # shows what comes of actions that lead nowhere
    "momentum": Recipe("momentum", "momentum"),
    "wall": Recipe("wall", "wall", 0.05, 0.05),  # the noise frees it from islands
    "forage": Recipe("wall", "forage", 0.05, 0.05),
    "random": Recipe("random", "random"),
    "noop": Recipe("noop", "noop"),
}
CHUNK = 128  # random numbers drawn ahead per slot, in steps


class MazeExplorer(Explorer):
    """Acts for all slots of a `GridMaze` by one recipe; raises ValueError for an unknown name."""

    def __init__(self, env: GridMaze, name: str, seed: int):
        if name not in env.explorers:
            raise ValueError(
                f"unknown explorer {name!r}: choose one of {', '.join(env.explorers)}"
            )
        self.env, self.recipe, self.seed = env, RECIPES[name], seed
        self.episode = np.full(env.batch, -1, np.int64)
        self.phase = np.full(env.batch, -1, np.int64)
        self.count = np.zeros(env.batch, np.int64)
        self.draws = np.zeros((env.batch, CHUNK, 3))
        self.rngs = [np.random.default_rng(0) for _ in range(env.batch)]
        self.field = np.full((env.batch, 4, env.rows, env.cols), FAR, np.int16)
        self.pending: list[list[tuple[int, int]]] = [[] for _ in range(env.batch)]
        self.hand = np.ones(env.batch, np.int64)  # wall side: 1 right, -1 left
        self.turned = np.zeros(
            env.batch, bool
        )  # towards the wall side, in the step before

    def act(self) -> np.ndarray:
        """Return one action per slot, int64 [B]."""
        for slot in np.flatnonzero(self.env.episode != self.episode).tolist():
            self._begin(slot)
        draws = self._draw()
        context = self.env.in_context()
        action = np.full(self.env.batch, STAY)
        for mode, where in (
            (self.recipe.context, context),
            (self.recipe.after, ~context),
        ):
            where = where if self.active is None else where & self.active
            if where.any():
                action = np.where(where, self._mode(mode, where, draws), action)
        noise = np.where(context, self.recipe.noise_context, self.recipe.noise_after)
        return np.where(draws[:, 0] < noise, (draws[:, 1] * 4).astype(np.int64), action)

    def _begin(self, slot: int) -> None:
        self.episode[slot] = self.env.episode[slot]
        self.phase[slot] = -1
        self.rngs[slot] = np.random.default_rng(
            [self.seed, int(self.env.seeds[slot]), 3]
        )
        self.count[slot] = 0
        self.hand[slot] = self.rngs[slot].choice([-1, 1])
        self.turned[slot] = False

    def _draw(self) -> np.ndarray:
        """Return three uniform numbers per slot, [B, 3], from the slot's own generator."""
        at = self.count % CHUNK
        for slot in np.flatnonzero(at == 0).tolist():
            self.draws[slot] = self.rngs[slot].random((CHUNK, 3))
        self.count += 1
        return self.draws[self.env.slots, at]

    def _mode(self, mode: str, where: np.ndarray, draws: np.ndarray) -> np.ndarray:
        match mode:
            case "noop":
                return np.full(self.env.batch, STAY)
            case "random":
                return (draws[:, 1] * 3).astype(np.int64)  # left, right, forward
            case "momentum":
                return self._momentum(draws)
            case "wall":
                return self._follow_wall(where)
            case "goal":
                return self._descend(self.env.goal_field, draws)
            case "forage":
                in_view = (
                    self.env.seen_at[self.env.slots, self.env.cue] == self.env.clock
                )
                return np.where(
                    in_view,
                    self._descend(self.env.goal_field, draws),
                    self._follow_wall(where),
                )
            case _:
                self._plan(mode, where)
                return self._descend(self.field, draws)

    def _momentum(self, draws: np.ndarray) -> np.ndarray:
        """Walk on while nothing stands in the way, turning away in one step of seven."""
        on = self.env.free(0) & (draws[:, 0] > 0.15)
        return np.where(on, AHEAD, np.where(draws[:, 1] < 0.5, LEFT, RIGHT))

    def _follow_wall(self, where: np.ndarray) -> np.ndarray:
        """Keep one hand on the wall; only slots `where` (bool [B]) take the step."""
        beside, ahead = self.env.free(self.hand), self.env.free(0)
        turn_in = beside & ~self.turned
        action = np.where(
            turn_in,
            np.where(self.hand > 0, RIGHT, LEFT),
            np.where(self.hand > 0, LEFT, RIGHT),
        )
        action = np.where(~turn_in & ahead, AHEAD, action)
        self.turned = np.where(where, turn_in, self.turned)
        return action

    def _descend(self, field: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Take the action that leads nearest to the field's target, a random one of equal turns."""
        env, slots = self.env, self.env.slots
        ahead = FORWARD[env.heading]
        left = field[slots, (env.heading - 1) % 4, env.row, env.col]
        right = field[slots, (env.heading + 1) % 4, env.row, env.col]
        forward = field[
            slots, env.heading, env.row + ahead[:, 0], env.col + ahead[:, 1]
        ]
        turn = np.where(
            (left < right) | ((left == right) & (draws[:, 2] < 0.5)), LEFT, RIGHT
        )
        action = np.where(forward <= np.minimum(left, right), AHEAD, turn)
        return np.where(env.distance(field) == 0, STAY, action)

    def _plan(self, mode: str, where: np.ndarray) -> None:
        """Give every slot `where` that has arrived, or whose plan is void, the next target."""
        void = where & (self.env.phase != self.phase)
        for slot in np.flatnonzero(void).tolist():
            self.phase[slot] = self.env.phase[slot]
            self.pending[slot] = self._itinerary(mode, slot)
        for slot in np.flatnonzero(
            void | (where & (self.env.distance(self.field) == 0))
        ).tolist():
            self.field[slot] = self.env.field(slot, self._next(mode, slot))

    def _itinerary(self, mode: str, slot: int) -> list[tuple[int, int]]:
        if mode == "cells":
            return []
        if mode == "look":
            return self.env.look_cells(slot)[::-1]
        cells = (
            self.env.choice_cells(slot) if mode == "seek" else self.env.tour_cells(slot)
        )
        return [cells[i] for i in self.rngs[slot].permutation(len(cells))]

    def _next(self, mode: str, slot: int) -> tuple[int, int]:
        here = int(self.env.row[slot]), int(self.env.col[slot])
        pending = self.pending[slot]
        if here in pending:
            pending.remove(here)
        if mode == "seek" and not pending:
            pending.extend(cell for cell in self._itinerary(mode, slot) if cell != here)
        if mode == "tour":
            pose = int(self.env.heading[slot]), *here
            pending.sort(key=lambda cell: -int(self.env.field(slot, cell)[pose]))
        if pending:
            return pending[-1]
        cells = self.env.roam_cells(slot)
        row, col = cells[self.rngs[slot].integers(len(cells))]
        return int(row), int(col)
