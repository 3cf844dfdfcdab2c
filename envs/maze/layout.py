"""Carve mazes, and find shortest paths for an agent that also has to turn.

A maze is an array of floor tiles, bool [R, C]. Headings are 0 up, 1 right, 2 down,
3 left. Every layout keeps wall all round its edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

Cell = tuple[int, int]
"""Row and column."""

LEFT, RIGHT, AHEAD, STAY = range(4)
"""Actions: turn left, turn right, one tile forward, nothing."""
STEPS = (
    (-1, 0),  # up
    (0, 1),  # right
    (1, 0),  # down
    (0, -1),  # left
)
FORWARD = np.array(STEPS, np.int64)
"""Row and column change of one step forward, by heading, [4, 2]."""
FAR = 10_000_000
"""Distance of a pose from which no path leads to the target."""
LARGE = 10_000
"""Tiles of a map from which on poses are searched one by one: the cost of a level of bits grows with the map."""


def carve(n: int, loops: float, rng: np.random.Generator) -> np.ndarray:
    """Return the floor of a random maze, bool [n, n], cells at odd coordinates.

    A depth-first spanning tree, from which each wall left between two cells is removed
    with probability `loops`. Raises ValueError unless `n` is odd and at least 5.
    """
    if n < 5 or n % 2 == 0:
        raise ValueError(f"maze size n must be odd and at least 5, got n={n}")
    floor = np.zeros((n, n), bool)
    floor[1::2, 1::2] = True
    _spanning_tree(floor, rng)
    if loops > 0:
        _knock_out(floor, loops, rng)
    return floor


def _spanning_tree(floor: np.ndarray, rng: np.random.Generator) -> None:
    """Open passages between cells, depth first, until all cells are connected."""
    n = len(floor)
    side = n // 2
    count = 2 * side * side
    draws = iter(rng.random(count).tolist())

    def draw(options: int) -> int:
        return int(next(draws) * options)

    row = 2 * draw(side) + 1
    col = 2 * draw(side) + 1
    seen = {(row, col)}
    path = [(row, col)]
    while path:
        row, col = path[-1]
        near = [cell for cell in _cells_around(row, col, n) if cell not in seen]
        if not near:
            path.pop()
            continue
        following = near[draw(len(near))]
        floor[_between(path[-1], following)] = True
        seen.add(following)
        path.append(following)


def _between(cell: Cell, other: Cell) -> Cell:
    row = cell[0] + other[0]
    col = cell[1] + other[1]
    return row // 2, col // 2


def _cells_around(row: int, col: int, n: int) -> list[Cell]:
    """Return the cells two tiles away, in the order up, right, down, left."""
    cells = []
    for down, right in STEPS:
        next_row = row + 2 * down
        next_col = col + 2 * right
        if 0 < next_row < n and 0 < next_col < n:
            cells.append((next_row, next_col))
    return cells


def _knock_out(floor: np.ndarray, loops: float, rng: np.random.Generator) -> None:
    """Remove walls between two cells of a row, or of a column, by chance."""
    removed = rng.random(floor.shape) < loops
    in_rows = slice(1, -1, 2), slice(2, -2, 2)
    in_cols = slice(2, -2, 2), slice(1, -1, 2)
    floor[in_rows] |= removed[in_rows]
    floor[in_cols] |= removed[in_cols]


def reachable(floor: np.ndarray, start: Cell, cells: Iterable[Cell]) -> bool:
    """Return whether paths from `start` to each of `cells` avoid all the others."""
    cols = floor.shape[1]
    targets = sum(_bit(cell, cols) for cell in cells)
    open_bits = _as_bits(floor) & ~targets
    wave = _bit(start, cols)
    before = 0
    while wave != before:
        before = wave
        wave = wave | _spread(wave, cols) & open_bits
    return _spread(wave, cols) & targets == targets


def _bit(cell: Cell, cols: int) -> int:
    row, col = cell
    return 1 << (int(row) * cols + int(col))


def _spread(bits: int, cols: int) -> int:
    sideways = bits << 1 | bits >> 1
    up_and_down = bits << cols | bits >> cols
    return sideways | up_and_down


def _as_bits(floor: np.ndarray) -> int:
    """Return the floor as one integer, a bit per tile in row-major order."""
    packed = np.packbits(floor.ravel(), bitorder="little")
    return int.from_bytes(packed.tobytes(), "little")


def no_path(batch: int, rows: int, cols: int) -> np.ndarray:
    """Return distance fields without any path, int32 [B, 4, R, C]."""
    return np.full((batch, 4, rows, cols), FAR, np.int32)


def distance_field(
    floor: np.ndarray, target: Cell, heading: int | None = None
) -> np.ndarray:
    """Return the least number of actions from every pose to `target`, int32 [4, R, C].

    Turns count as actions. The field is indexed by heading, row and column; `FAR`: no
    path. With a `heading`, the path ends with looking there.

    floor: bool [R, C]
    """
    if floor.size > LARGE:
        return _search_by_pose(floor, target, heading)
    # A breadth-first search backwards from the target. Per heading, one Python integer
    # of R * C bits holds the poses reached, so that a level costs a few operations.
    rows, cols = floor.shape
    size = (rows * cols + 7) // 8
    open_bits = _as_bits(floor)
    there = _bit(target, cols)
    reached = [there if heading in (None, h) else 0 for h in range(4)]
    levels: list[bytes] = []
    before: list[int] = []
    while reached != before:
        before = reached
        levels += [bits.to_bytes(size, "little") for bits in reached]
        up, right, down, left = reached
        vertical = up | down
        horizontal = right | left
        # A turn leads from one pair of headings to the other, a step back by a tile.
        reached = [
            up | horizontal | (up << cols & open_bits),
            right | vertical | (right >> 1 & open_bits),
            down | horizontal | (down >> cols & open_bits),
            left | vertical | (left << 1 & open_bits),
        ]
    return _count_levels(levels, rows, cols)


def _search_by_pose(floor: np.ndarray, target: Cell, heading: int | None) -> np.ndarray:
    """Do as `distance_field`, by a breadth-first search backwards over single poses."""
    distance = np.full((4, *floor.shape), FAR, np.int32)
    begins = range(4) if heading is None else (heading,)
    waiting = deque((h, *target) for h in begins)
    for pose in waiting:
        distance[pose] = 0
    while waiting:
        h, row, col = waiting.popleft()
        steps = distance[h, row, col] + 1
        down, right = STEPS[h]
        for pose in (
            ((h + 1) % 4, row, col),
            ((h - 1) % 4, row, col),
            (h, row - down, col - right),
        ):
            if distance[pose] == FAR and floor[pose[1:]]:
                distance[pose] = steps
                waiting.append(pose)
    return distance


def _count_levels(levels: list[bytes], rows: int, cols: int) -> np.ndarray:
    """Return the level at which every pose is reached first, int32 [4, R, C].

    Every level is 4 entries of `levels`, one per heading.
    """
    count = len(levels) // 4
    packed = np.frombuffer(b"".join(levels), np.uint8)
    packed = packed.reshape(count, 4, -1)
    reached = np.unpackbits(packed, axis=2, count=rows * cols, bitorder="little")
    times = reached.sum(axis=0, dtype=np.int32)
    distance = np.where(times > 0, count - times, FAR)
    distance = distance.astype(np.int32)
    return distance.reshape(4, rows, cols)
