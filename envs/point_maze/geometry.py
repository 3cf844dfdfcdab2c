"""Hold rooms, walls, doors and routes of B point mazes, and move points among them.

Lengths are in pixels of a frame that shows 64 x 64 of them; x is the column, y the row.
Shapes: B slots, M points in the slots `slots`, R walls, n rooms numbered row by row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

BORDER, WALL = 4.0, 3.0
"""Thickness of outer and inner walls."""
RADIUS = 2.0
"""Radius of the agent."""
SHIFT = 0.1
"""Largest shift of random walls, in sides of a room."""
GAP = 1e-6
"""Distance between an agent and the wall that stopped it."""
CLEARANCE = 0.5
"""Distance that an agent keeps from a wall when it goes through a door."""

Edge = tuple[int, int]
"""Two rooms that share a wall, the smaller number first."""


@dataclass(frozen=True)
class Plan:
    """Set up the rooms of every slot."""

    rows: int
    cols: int
    size: int
    """Side of the maze."""
    door: float
    """Half width of a door."""
    random: bool
    """Draw other walls and doors in every episode."""
    speed: float
    """Longest move along x and along y in one step."""

    def check(self) -> None:
        """Raise ValueError if the rooms are too small for their doors."""
        largest = max(self.rows, self.cols)
        side = (self.size - 2 * BORDER) / largest * (1 - 2 * SHIFT)
        if side < 2 * (self.door + WALL + RADIUS):
            raise ValueError(
                f"point maze: size={self.size} is too small for "
                f"{self.rows} x {self.cols} rooms with door={self.door}"
            )


class Rooms:
    """Hold the rooms of B mazes, find routes through them and move points.

    walls: [B, R, 4], x and y of two corners, grown by RADIUS
    lines: two arrays [B, cols - 1] and [B, rows - 1], x and y of the inner walls
    gates: [B, n, n, 2], middle of the door between neighbours
    onward: int64 [B, n, n], next room on the way from one room to another
    """

    def __init__(self, plan: Plan, batch: int):
        self.plan = plan
        self.count = plan.rows * plan.cols
        self.edges = neighbours(plan.rows, plan.cols)
        self.walls = np.zeros((batch, 4 + 2 * len(self.edges), 4))
        self.lines = [
            np.zeros((batch, plan.cols - 1)),
            np.zeros((batch, plan.rows - 1)),
        ]
        self.gates = np.zeros((batch, self.count, self.count, 2))
        self.onward = np.zeros((batch, self.count, self.count), np.int64)

    # Building.

    def build(self, slot: int, rng: np.random.Generator) -> None:
        """Lay walls, doors and routes of `slot`."""
        plan = self.plan
        for lines, count in zip(self.lines, (plan.cols, plan.rows)):
            even = np.linspace(BORDER, plan.size - BORDER, count + 1)
            room = even[1] - even[0]
            shift = rng.uniform(-SHIFT, SHIFT, size=count - 1) * room * plan.random
            lines[slot] = even[1:-1] + shift
        opened = self.edges
        if plan.random:
            opened = passages(self.edges, self.count, rng)
        walls = self._outer_walls()
        for edge in self.edges:
            walls += self._wall(slot, edge, edge in opened, rng)
        grown = np.array([-RADIUS, -RADIUS, RADIUS, RADIUS])
        self.walls[slot] = np.array(walls) + grown
        self.onward[slot] = routes(opened, self.count)

    def _outer_walls(self) -> list[tuple[float, ...]]:
        near, far = -BORDER, float(self.plan.size) + BORDER
        inner_near, inner_far = BORDER, self.plan.size - BORDER
        return [
            (near, near, far, inner_near),
            (near, inner_far, far, far),
            (near, near, inner_near, far),
            (inner_far, near, far, far),
        ]

    def _wall(
        self, slot: int, edge: Edge, is_open: bool, rng: np.random.Generator
    ) -> list[tuple[float, ...]]:
        """Return two boxes, the wall between neighbours on either side of its door.

        Without a door, the boxes overlap.
        """
        plan = self.plan
        first, second = edge
        row, col = divmod(first, plan.cols)
        is_vertical = second - first == 1 and plan.cols > 1
        axis, at_line, along = (0, col, row) if is_vertical else (1, row, col)
        at = self.lines[axis][slot, at_line]
        ends = np.array([BORDER, *self.lines[1 - axis][slot], plan.size - BORDER])
        low = ends[along] - WALL / 2
        high = ends[along + 1] + WALL / 2
        room = plan.door + WALL + RADIUS
        gate = low + (high - low) / 4
        if plan.random:
            gate = rng.uniform(low + room, high - room)
        middle = (at, gate) if is_vertical else (gate, at)
        self.gates[slot, first, second] = middle
        self.gates[slot, second, first] = middle
        half_width = plan.door if is_open else -1.0
        near, far = at - WALL / 2, at + WALL / 2
        spans = (low, gate - half_width), (gate + half_width, high)
        if is_vertical:
            return [(near, start, far, end) for start, end in spans]
        return [(start, near, end, far) for start, end in spans]

    def draw_position(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a free position, [2]."""
        margin = BORDER + RADIUS
        while True:
            at = rng.uniform(margin, self.plan.size - margin, size=2)
            walls = self.walls[slot]
            inside = (at > walls[:, :2]) & (at < walls[:, 2:])
            if not inside.all(1).any():
                return at

    # Moving.

    def move(
        self, position: np.ndarray, action: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the ends of moves: first along x, then along y, up to the walls.

        position, action: [M, 2]
        """
        position = position.copy()
        walls = self.walls[slots]
        low, high = walls[..., :2], walls[..., 2:]
        for axis in (0, 1):
            step = self.plan.speed * action[:, axis]
            position[:, axis] += step
            beyond_low = position[:, None] > low
            before_high = position[:, None] < high
            inside = np.all(beyond_low & before_high, axis=-1)
            before = np.where(inside, low[..., axis] - GAP, np.inf).min(1)
            after = np.where(inside, high[..., axis] + GAP, -np.inf).max(1)
            stopped = np.where(step > 0, before, after)
            blocked = inside.any(1)
            position[:, axis] = np.where(blocked, stopped, position[:, axis])
        return position

    def room(self, position: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return the rooms of positions [M, 2], int64 [M]."""
        col = (position[:, 0, None] > self.lines[0][slots]).sum(1)
        row = (position[:, 1, None] > self.lines[1][slots]).sum(1)
        return row * self.plan.cols + col

    def steer(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the actions that lead through doors towards `target`.

        position, target, actions: [M, 2]
        """
        here = self.room(position, slots)
        there = self.room(target, slots)
        following = self.onward[slots, here, there]
        gate = self.gates[slots, here, following]
        # Rooms of one row are neighbours along x, others along y.
        axis = (np.abs(following - here) != 1).astype(np.int64)
        rows = np.arange(len(slots))
        reach = WALL / 2 + RADIUS + CLEARANCE
        through = np.sign(following - here) * reach
        off_centre = np.abs((position - gate)[rows, 1 - axis])
        aligned = off_centre < self.plan.door - RADIUS - 0.25
        gate[rows, axis] += np.where(aligned, through, -through)
        same_room = (here == there)[:, None]
        in_room = self._out_of_door(position, target, slots)
        away = np.where(same_room, in_room, gate) - position
        longest = np.maximum(np.abs(away).max(1), self.plan.speed)
        return away / longest[:, None]

    def _out_of_door(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return `target`, or the end of the doorway for points that must leave it.

        position, target, result: [M, 2]
        """
        stop = target.copy()
        depth = WALL / 2 + RADIUS
        for axis in (0, 1):
            lines = self.lines[axis][slots]
            off = position[:, axis, None] - lines
            inside = np.abs(off) < depth
            target_inside = np.abs(target[:, axis, None] - lines) < depth
            leave = inside.any(1) & ~(inside & target_inside).any(1)
            side = np.where(off > 0, 1, -1)
            ends = lines + side * (depth + CLEARANCE)
            end = np.where(inside, ends, 0).sum(1)
            stop[leave] = position[leave]
            stop[leave, axis] = end[leave]
        return stop

    def distance(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the steps of roughly the shortest way, int64 [M].

        position, target: [M, 2]
        """
        here = self.room(position, slots)
        there = self.room(target, slots)
        total = np.zeros(len(slots))
        for _ in range(self.count):
            onward = self.onward[slots, here, there]
            gate = self.gates[slots, here, onward]
            stop = np.where((here == there)[:, None], target, gate)
            total += np.abs(stop - position).max(1)
            position = stop
            here = onward
            if (here == there).all() and (position == target).all():
                break
        return np.ceil(total / self.plan.speed).astype(np.int64)


def neighbours(rows: int, cols: int) -> list[Edge]:
    """Return pairs of rooms that share a wall."""
    cells = list(itertools.product(range(rows), range(cols)))
    right = [(r * cols + c, r * cols + c + 1) for r, c in cells if c + 1 < cols]
    below = [(r * cols + c, (r + 1) * cols + c) for r, c in cells if r + 1 < rows]
    return right + below


def passages(edges: list[Edge], rooms: int, rng: np.random.Generator) -> list[Edge]:
    """Return edges that connect all rooms, and half of the others.

    Kruskal's algorithm in random order.
    """
    group = list(range(rooms))
    opened = []
    for i in rng.permutation(len(edges)):
        first, second = edges[i]
        if group[first] != group[second] or rng.random() < 0.5:
            opened.append((first, second))
            merged, kept = group[second], group[first]
            group = [kept if g == merged else g for g in group]
    return opened


def routes(edges: list[Edge], rooms: int) -> np.ndarray:
    """Return the next room on a way with fewest doors, int64 [n, n].

    Indexed by the present room and the target. The algorithm of Floyd and Warshall.
    """
    length = np.where(np.eye(rooms, dtype=bool), 0, rooms + 1)
    onward = np.tile(np.arange(rooms), (rooms, 1))
    for first, second in edges:
        length[first, second] = 1
        length[second, first] = 1
    for k in range(rooms):
        through = length[:, k, None] + length[k]
        better = through < length
        onward = np.where(better, onward[:, k, None], onward)
        length = np.minimum(length, through)
    return onward
