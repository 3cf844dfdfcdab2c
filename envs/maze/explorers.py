"""Script explorers of the mazes: they read the map, so they need no memory.

An explorer is a recipe: its behaviour in the context and after it, and how often it
errs. All its randomness comes from its seed and the episode's seed, so a walk does not
depend on the other slots. Shapes: B slots, R x C a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from lssvwm.envs.base import Explorer, counts, flags, never, slots_where
from lssvwm.envs.maze.layout import AHEAD, LEFT, RIGHT, STAY, Cell, no_path


@dataclass(frozen=True)
class Recipe:
    """Set the behaviour in the context and after it, and the odds of random actions.

    - `goal`: the shortest path to the goal.
    - `tour`: all objects, the nearest first, then random cells.
    - `shuffle`: all objects in random order, then random cells.
    - `cells`: shortest paths to random cells.
    - `seek`: objects (or arms) in random order, with a map but no memory of colours.
    - `look`: to a cell that shows the cue, then to the goal.
    - `forage`: along the wall until the cued object is in view, then to it.
    - `wall`: along the wall. `momentum`: straight on, with turns. Both use no map.
    - `random`: turns and steps. `noop`: stay.
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
    # Many random actions show what follows from actions that lead nowhere.
    "stumble": Recipe("cells", "seek", 0.40, 0.40),
    "momentum": Recipe("momentum", "momentum"),
    # The noise frees it from circling a wall that stands alone.
    "wall": Recipe("wall", "wall", 0.05, 0.05),
    "forage": Recipe("wall", "forage", 0.05, 0.05),
    "random": Recipe("random", "random"),
    "noop": Recipe("noop", "noop"),
}
Cells = list[Cell]
CHUNK = 128
"""Steps for which random numbers are drawn ahead, per slot."""


class ExploredMaze(Protocol):
    """List everything that an explorer reads of a live maze."""

    batch: int
    rows: int
    cols: int
    slots: np.ndarray
    row: np.ndarray
    col: np.ndarray
    heading: np.ndarray
    clock: np.ndarray
    episode: np.ndarray
    seeds: np.ndarray
    phase: np.ndarray
    seen_at: np.ndarray
    goal_field: np.ndarray

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the guided part."""
        ...

    def distance(self, field: np.ndarray) -> np.ndarray:
        """Read distance fields at the present poses, int32 [B]."""
        ...

    def of_cue(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of `values`, [B, K], for the cues, [B]."""
        ...

    def field(self, slot: int, cell: Cell) -> np.ndarray:
        """Return the distances of all poses of `slot` to `cell`, int32 [4, R, C]."""
        ...

    def next_cell(self, heading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column of the next tile towards `heading`, int64 [B] each."""
        ...

    def is_free(self, turn: int | np.ndarray) -> np.ndarray:
        """Return bool [B]: the next tile, `turn` quarter turns right, is floor."""
        ...

    def tour_cells(self, slot: int) -> list[Cell]:
        """Return the cells that a guided tour visits."""
        ...

    def choice_cells(self, slot: int) -> list[Cell]:
        """Return the cells among which an agent without memory must choose."""
        ...

    def look_cells(self, slot: int) -> list[Cell]:
        """Return a cell that shows the cue, then the goal."""
        ...

    def roam_cells(self, slot: int) -> np.ndarray:
        """Return the cells of aimless walks, int64 [M, 2]."""
        ...


class MazeExplorer(Explorer):
    """Act for all slots of a maze by one recipe."""

    def __init__(self, env: ExploredMaze, recipe: Recipe, seed: int):
        self.env = env
        self.recipe = recipe
        self.seed = seed
        batch = env.batch
        self.episode = never(batch)
        self.phase = never(batch)
        self.count = counts(batch)
        self.draws = np.zeros((batch, CHUNK, 3))
        self.rngs = [np.random.default_rng(0) for _ in range(batch)]
        self.field = no_path(batch, env.rows, env.cols)
        self.pending: list[Cells] = [[] for _ in range(batch)]
        # Side of the wall that `wall` follows: 1 right, -1 left.
        self.hand = np.ones(batch, np.int64)
        # Slots that turned towards that wall in the previous step.
        self.turned = flags(batch)

    def act(self) -> np.ndarray:
        """Return one action per slot, int64 [B]."""
        begun = self.env.episode != self.episode
        for slot in slots_where(begun):
            self._begin(slot)
        draws = self._draw()
        context = self.env.in_context()
        recipe = self.recipe
        action = np.full(self.env.batch, STAY)
        for mode, where in ((recipe.context, context), (recipe.after, ~context)):
            acting = where if self.active is None else where & self.active
            if acting.any():
                chosen = self._choose(mode, acting, draws)
                action = np.where(acting, chosen, action)
        noise = np.where(context, recipe.noise_context, recipe.noise_after)
        noise_draw, action_draw, _ = draws.T
        any_action = (action_draw * 4).astype(np.int64)
        return np.where(noise_draw < noise, any_action, action)

    def _begin(self, slot: int) -> None:
        seeds = [self.seed, int(self.env.seeds[slot]), 3]
        rng = np.random.default_rng(seeds)
        self.rngs[slot] = rng
        self.episode[slot] = self.env.episode[slot]
        self.phase[slot] = -1
        self.count[slot] = 0
        self.hand[slot] = rng.choice([-1, 1])
        self.turned[slot] = False

    def _draw(self) -> np.ndarray:
        """Return three uniform numbers per slot, [B, 3], from the slot's generator."""
        at = self.count % CHUNK
        used_up = at == 0
        for slot in slots_where(used_up):
            rng = self.rngs[slot]
            self.draws[slot] = rng.random((CHUNK, 3))
        self.count += 1
        return self.draws[self.env.slots, at]

    def _choose(self, mode: str, acting: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Return actions of `mode`, int64 [B], used in the slots `acting` only."""
        match mode:
            case "noop":
                return np.full(self.env.batch, STAY)
            case "random":
                return (draws[:, 1] * 3).astype(np.int64)  # left, right, ahead
            case "momentum":
                return self._momentum(draws)
            case "wall":
                return self._follow_wall(acting)
            case "goal":
                return self._descend(self.env.goal_field, draws)
            case "forage":
                return self._forage(acting, draws)
        self._plan(mode, acting)
        return self._descend(self.field, draws)

    def _momentum(self, draws: np.ndarray) -> np.ndarray:
        """Walk on while the way is free, with a turn in 15 % of the steps."""
        turn_draw, side_draw, _ = draws.T
        goes_on = self.env.is_free(0) & (turn_draw > 0.15)
        turn = np.where(side_draw < 0.5, LEFT, RIGHT)
        return np.where(goes_on, AHEAD, turn)

    def _follow_wall(self, acting: np.ndarray) -> np.ndarray:
        """Keep one hand on the wall; only the slots `acting` take the step."""
        right_handed = self.hand > 0
        turn_in = self.env.is_free(self.hand) & ~self.turned
        towards_wall = np.where(right_handed, RIGHT, LEFT)
        off_wall = np.where(right_handed, LEFT, RIGHT)
        action = np.where(turn_in, towards_wall, off_wall)
        goes_on = ~turn_in & self.env.is_free(0)
        action = np.where(goes_on, AHEAD, action)
        self.turned = np.where(acting, turn_in, self.turned)
        return action

    def _forage(self, acting: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Follow the wall until the cued object is in view, then go to it."""
        env = self.env
        in_view = env.of_cue(env.seen_at) == env.clock
        to_object = self._descend(env.goal_field, draws)
        return np.where(in_view, to_object, self._follow_wall(acting))

    def _descend(self, field: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Take the action that leads nearest to the target of a distance field.

        Of two equally good turns, take a random one.
        """
        env = self.env
        heading, row, col = env.heading, env.row, env.col
        left = field[env.slots, (heading - 1) % 4, row, col]
        right = field[env.slots, (heading + 1) % 4, row, col]
        next_row, next_col = env.next_cell(heading)
        ahead = field[env.slots, heading, next_row, next_col]
        tie_goes_left = (left == right) & (draws[:, 2] < 0.5)
        turn = np.where((left < right) | tie_goes_left, LEFT, RIGHT)
        goes_on = (ahead <= left) & (ahead <= right)
        action = np.where(goes_on, AHEAD, turn)
        arrived = env.distance(field) == 0
        return np.where(arrived, STAY, action)

    def _plan(self, mode: str, acting: np.ndarray) -> None:
        """Give the next target to slots that have arrived or whose plan is void."""
        void = acting & (self.env.phase != self.phase)
        for slot in slots_where(void):
            self.phase[slot] = self.env.phase[slot]
            self.pending[slot] = self._itinerary(mode, slot)
        arrived = acting & (self.env.distance(self.field) == 0)
        for slot in slots_where(void | arrived):
            target = self._next_target(mode, slot)
            self.field[slot] = self.env.field(slot, target)

    def _itinerary(self, mode: str, slot: int) -> list[Cell]:
        """Return the cells to visit; the last one comes first."""
        env = self.env
        if mode == "cells":
            return []
        if mode == "look":
            return env.look_cells(slot)[::-1]
        cells = env.choice_cells(slot) if mode == "seek" else env.tour_cells(slot)
        order = self.rngs[slot].permutation(len(cells))
        return [cells[i] for i in order]

    def _next_target(self, mode: str, slot: int) -> Cell:
        env = self.env
        here = int(env.row[slot]), int(env.col[slot])
        pending = self.pending[slot]
        if here in pending:
            pending.remove(here)
        if mode == "seek" and not pending:
            again = self._itinerary(mode, slot)
            pending.extend(cell for cell in again if cell != here)
        if mode == "tour":
            pose = int(env.heading[slot]), *here
            pending.sort(key=lambda cell: -int(env.field(slot, cell)[pose]))
        if pending:
            return pending[-1]
        cells = env.roam_cells(slot)
        drawn = self.rngs[slot].integers(len(cells))
        row, col = cells[drawn]
        return int(row), int(col)
