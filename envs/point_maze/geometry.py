"""Hold rooms, walls, doors and routes of B point mazes, and move points among them.

Lengths are in pixels of a frame that shows 64 x 64 of them; x is the column, y the row.
Shapes: B slots, M points in the slots `slots`, R walls, n rooms numbered row by row.
"""

from __future__ import annotations

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

DEPTH = WALL / 2 + RADIUS
"""Distance from the middle of a wall within which an agent is in a doorway."""
GROWTH = np.array([-RADIUS, -RADIUS, RADIUS, RADIUS])

Box = tuple[float, float, float, float]
"""x and y of two opposite corners."""
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
        inside = self.size - 2 * BORDER
        room = inside / max(self.rows, self.cols)
        smallest_room = room * (1 - 2 * SHIFT)
        if smallest_room < 2 * (self.door + WALL + RADIUS):
            raise ValueError(
                f"point maze: size={self.size} is too small for "
                f"{self.rows} x {self.cols} rooms with door={self.door}"
            )


@dataclass(frozen=True)
class Wall:
    """Describe the wall between two neighbours."""

    is_vertical: bool
    """It runs along y, between neighbours in a row."""
    at: float
    """Its x if it is vertical, else its y."""
    low: float
    """Its first end along its length."""
    high: float

    def point(self, along: float) -> tuple[float, float]:
        """Return x and y of the point `along` the wall."""
        if self.is_vertical:
            return self.at, along
        return along, self.at

    def box(self, start: float, end: float) -> Box:
        """Return the part of the wall from `start` to `end`."""
        near = self.at - WALL / 2
        far = self.at + WALL / 2
        if self.is_vertical:
            return near, start, far, end
        return start, near, end, far


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
        boxes = 4 + 2 * len(self.edges)
        pairs = (batch, self.count, self.count)
        vertical_lines = np.zeros((batch, plan.cols - 1))
        horizontal_lines = np.zeros((batch, plan.rows - 1))
        self.walls = np.zeros((batch, boxes, 4))
        self.lines = [vertical_lines, horizontal_lines]
        self.gates = np.zeros((*pairs, 2))
        self.onward = np.zeros(pairs, np.int64)

    # Building.

    def build(self, slot: int, rng: np.random.Generator) -> None:
        """Lay walls, doors and routes of `slot`."""
        plan = self.plan
        self.lines[0][slot] = self._draw_lines(plan.cols, rng)
        self.lines[1][slot] = self._draw_lines(plan.rows, rng)
        opened = self.edges
        if plan.random:
            opened = passages(self.edges, self.count, rng)
        boxes = self._outer_walls()
        for edge in self.edges:
            wall = self._wall(slot, edge)
            gate = self._draw_gate(slot, edge, wall, rng)
            # Without a door, the parts overlap.
            half_width = plan.door if edge in opened else -1.0
            door_low = gate - half_width
            door_high = gate + half_width
            boxes.append(wall.box(wall.low, door_low))
            boxes.append(wall.box(door_high, wall.high))
        self.walls[slot] = np.array(boxes) + GROWTH
        self.onward[slot] = routes(opened, self.count)

    def _draw_lines(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return where the inner walls of `count` rooms in a line lie, [count - 1]."""
        end = self.plan.size - BORDER
        even = np.linspace(BORDER, end, count + 1)
        room = even[1] - even[0]
        shift = rng.uniform(-SHIFT, SHIFT, size=count - 1)
        shift = shift * room * self.plan.random
        return even[1:-1] + shift

    def _outer_walls(self) -> list[Box]:
        size = float(self.plan.size)
        near, far = -BORDER, size + BORDER
        inner_near, inner_far = BORDER, size - BORDER
        return [
            (near, near, far, inner_near),
            (near, inner_far, far, far),
            (near, near, inner_near, far),
            (inner_far, near, far, far),
        ]

    def _wall(self, slot: int, edge: Edge) -> Wall:
        """Return the wall between the two rooms of `edge`."""
        plan = self.plan
        first, second = edge
        row, col = divmod(first, plan.cols)
        x_lines = self.lines[0][slot]
        y_lines = self.lines[1][slot]
        is_vertical = plan.cols > 1 and second == first + 1
        if is_vertical:
            at = x_lines[col]
            across, along = y_lines, row
        else:
            at = y_lines[row]
            across, along = x_lines, col
        ends = [BORDER, *across, plan.size - BORDER]
        low = ends[along] - WALL / 2
        high = ends[along + 1] + WALL / 2
        return Wall(is_vertical, at, low, high)

    def _draw_gate(
        self, slot: int, edge: Edge, wall: Wall, rng: np.random.Generator
    ) -> float:
        """Set the middle of the door in `wall`, and return it along the wall."""
        length = wall.high - wall.low
        gate = wall.low + length / 4
        if self.plan.random:
            room = self.plan.door + WALL + RADIUS
            first_end = wall.low + room
            last_end = wall.high - room
            gate = rng.uniform(first_end, last_end)
        first, second = edge
        middle = wall.point(gate)
        self.gates[slot, first, second] = middle
        self.gates[slot, second, first] = middle
        return gate

    def draw_position(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a free position, [2]."""
        least = BORDER + RADIUS
        most = self.plan.size - BORDER - RADIUS
        while True:
            position = rng.uniform(least, most, size=2)
            if not inside(position, self.walls[slot]).any():
                return position

    # Moving.

    def move(
        self, position: np.ndarray, action: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the ends of moves: first along x, then along y, up to the walls.

        position, action: [M, 2]
        """
        position = position.copy()
        walls = self.walls[slots]
        for axis in (0, 1):
            step = self.plan.speed * action[:, axis]
            position[:, axis] += step
            hit = inside(position, walls)
            stopped = _stops(hit, walls, axis, forward=step > 0)
            blocked = hit.any(1)
            position[blocked, axis] = stopped[blocked]
        return position

    def room(self, position: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return the rooms of positions [M, 2], int64 [M]."""
        x_lines, y_lines = self.lines
        right_of = position[:, :1] > x_lines[slots]
        below = position[:, 1:] > y_lines[slots]
        row = below.sum(1)
        col = right_of.sum(1)
        return row * self.plan.cols + col

    def steer(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the actions that lead through doors towards `target`.

        position, target, actions: [M, 2]
        """
        here = self.room(position, slots)
        there = self.room(target, slots)
        in_room = self._out_of_door(position, target, slots)
        following = self.onward[slots, here, there]
        through = self._through_door(position, here, following, slots)
        same_room = (here == there)[:, None]
        away = np.where(same_room, in_room, through) - position
        longest = np.abs(away).max(1)
        scale = np.maximum(longest, self.plan.speed)
        return away / scale[:, None]

    def _through_door(
        self,
        position: np.ndarray,
        here: np.ndarray,
        following: np.ndarray,
        slots: np.ndarray,
    ) -> np.ndarray:
        """Return a point before or behind the door to the next room, [M, 2].

        Before it, until the agent is in line with the door.
        """
        gate = self.gates[slots, here, following]
        hop = following - here
        # Rooms of one row are neighbours along x, others along y.
        axis = (np.abs(hop) != 1).astype(np.int64)
        points = np.arange(len(slots))
        off = np.abs(position - gate)
        off_centre = off[points, 1 - axis]
        aligned = off_centre < self.plan.door - RADIUS - 0.25
        behind = np.sign(hop) * (DEPTH + CLEARANCE)
        gate[points, axis] += np.where(aligned, behind, -behind)
        return gate

    def _out_of_door(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return `target`, or the end of the doorway for points that must leave it.

        position, target, result: [M, 2]
        """
        stop = target.copy()
        for axis in (0, 1):
            lines = self.lines[axis][slots]
            off = position[:, axis, None] - lines
            target_off = target[:, axis, None] - lines
            in_door = np.abs(off) < DEPTH
            both_in_door = in_door & (np.abs(target_off) < DEPTH)
            leave = in_door.any(1) & ~both_in_door.any(1)
            side = np.where(off > 0, 1, -1)
            ends = lines + side * (DEPTH + CLEARANCE)
            end = np.where(in_door, ends, 0).sum(1)
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
            arrived = here == there
            stop = np.where(arrived[:, None], target, gate)
            total += np.abs(stop - position).max(1)
            position = stop
            if arrived.all():
                break
            here = onward
        steps = np.ceil(total / self.plan.speed)
        return steps.astype(np.int64)


def inside(position: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Return the walls around positions, bool [..., R].

    position: [..., 2]
    walls: [..., R, 4]
    """
    at = position[..., None, :]
    beyond = at > walls[..., :2]
    before = at < walls[..., 2:]
    around = beyond & before
    return around[..., 0] & around[..., 1]


def _stops(
    hit: np.ndarray, walls: np.ndarray, axis: int, forward: np.ndarray
) -> np.ndarray:
    """Return where the walls that points would enter stop them, [M].

    hit: bool [M, R]
    forward: bool [M], true for moves towards higher numbers
    """
    low = walls[..., axis] - GAP
    high = walls[..., axis + 2] + GAP
    before_first = np.where(hit, low, np.inf).min(1)
    behind_last = np.where(hit, high, -np.inf).max(1)
    return np.where(forward, before_first, behind_last)


def shrink(walls: np.ndarray) -> np.ndarray:
    """Return walls [R, 4] as they look, not grown by the agent's radius."""
    return walls - GROWTH


def neighbours(rows: int, cols: int) -> list[Edge]:
    """Return pairs of rooms that share a wall."""
    count = rows * cols
    right = [(room, room + 1) for room in range(count) if (room + 1) % cols]
    below = [(room, room + cols) for room in range(count - cols)]
    return right + below


def passages(edges: list[Edge], rooms: int, rng: np.random.Generator) -> list[Edge]:
    """Return edges that connect all rooms, and half of the others.

    Kruskal's algorithm in random order.
    """
    group = list(range(rooms))
    opened = []
    for i in rng.permutation(len(edges)):
        first, second = edges[i]
        kept, merged = group[first], group[second]
        if kept != merged or rng.random() < 0.5:
            opened.append((first, second))
            group = [kept if g == merged else g for g in group]
    return opened


def routes(edges: list[Edge], rooms: int) -> np.ndarray:
    """Return the next room on a way with fewest doors, int64 [n, n].

    Indexed by the present room and the target. The algorithm of Floyd and Warshall.
    """
    same = np.eye(rooms, dtype=bool)
    length = np.where(same, 0, rooms + 1)
    onward = np.tile(np.arange(rooms), (rooms, 1))
    for first, second in edges:
        length[first, second] = 1
        length[second, first] = 1
    for k in range(rooms):
        through = length[:, [k]] + length[k]
        better = through < length
        onward = np.where(better, onward[:, [k]], onward)
        length = np.minimum(length, through)
    return onward
