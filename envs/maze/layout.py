"""Mazes as arrays of floor, and shortest paths through them for an agent that also has to turn.

Headings are 0 up, 1 right, 2 down, 3 left. Every layout keeps wall all round its edge.
"""

from __future__ import annotations

import numpy as np

FORWARD = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)], np.int64)
"""Row and column change of one step forward, by heading, [4, 2]."""
FAR = 10_000
"""Distance of a pose from which there is no way."""


def carve(n: int, loops: float, rng: np.random.Generator) -> np.ndarray:
    """Return the floor of a random maze, bool [n, n], cells at odd coordinates.

    A depth-first spanning tree, from which each wall left between two cells is then removed with
    probability `loops`. Raises ValueError unless `n` is odd and at least 5.
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
    n = len(floor)
    side = n // 2
    draws = iter(rng.random(2 * side * side).tolist())
    cell = (2 * int(next(draws) * side) + 1, 2 * int(next(draws) * side) + 1)
    seen, stack = {cell}, [cell]
    while stack:
        row, col = stack[-1]
        near = [(row - 2, col), (row, col + 2), (row + 2, col), (row, col - 2)]
        near = [
            (r, c) for r, c in near if 0 < r < n and 0 < c < n and (r, c) not in seen
        ]
        if not near:
            stack.pop()
            continue
        r, c = near[int(next(draws) * len(near))]
        floor[(row + r) // 2, (col + c) // 2] = True
        seen.add((r, c))
        stack.append((r, c))


def _knock_out(floor: np.ndarray, loops: float, rng: np.random.Generator) -> None:
    chance = rng.random(floor.shape) < loops
    floor[1:-1:2, 2:-2:2] |= chance[1:-1:2, 2:-2:2]
    floor[2:-2:2, 1:-1:2] |= chance[2:-2:2, 1:-1:2]


def reachable(
    floor: np.ndarray, start: tuple[int, int], cells: list[tuple[int, int]]
) -> bool:
    """Return whether from `start` a way leads to each of `cells` that touches no other of them."""
    cols = floor.shape[1]
    targets = [1 << (row * cols + col) for row, col in cells]
    closed = sum(targets)
    open_bits = _as_bits(floor) & ~closed
    wave, before = 1 << (int(start[0]) * cols + int(start[1])), 0
    while wave != before:
        before, wave = wave, wave | _spread(wave, cols) & open_bits
    return _spread(wave, cols) & closed == closed


def _spread(bits: int, cols: int) -> int:
    return bits << 1 | bits >> 1 | bits << cols | bits >> cols


def _as_bits(floor: np.ndarray) -> int:
    return int.from_bytes(
        np.packbits(floor.ravel(), bitorder="little").tobytes(), "little"
    )


def distance_field(
    floor: np.ndarray, target: tuple[int, int], heading: int | None = None
) -> np.ndarray:
    """Return the least number of actions (turns included) from every pose to cell `target`, int16 [4, R, C].

    `floor` is bool [R, C]; the field is indexed by heading, row, column and is `FAR` where no way leads.
    With a `heading`, the way ends with looking there.
    A breadth-first search backwards from the target, on one Python integer of R * C bits per heading.
    """
    rows, cols = floor.shape
    size = (rows * cols + 7) // 8
    open_bits = _as_bits(floor)
    there = 1 << (int(target[0]) * cols + int(target[1]))
    up, right, down, left = (there if heading in (None, h) else 0 for h in range(4))
    levels = []
    before = None
    while before != (up, right, down, left):
        before = (up, right, down, left)
        levels.append(b"".join([bits.to_bytes(size, "little") for bits in before]))
        sides, ends = (
            up | down,
            right | left,
        )  # a turn leads from one pair of headings to the other
        up, down = (
            up | ends | (up << cols & open_bits),
            down | ends | (down >> cols & open_bits),
        )
        right, left = (
            right | sides | (right >> 1 & open_bits),
            left | sides | (left << 1 & open_bits),
        )
    return _count_levels(levels, rows, cols)


def _count_levels(levels: list[bytes], rows: int, cols: int) -> np.ndarray:
    packed = np.frombuffer(b"".join(levels), np.uint8).reshape(len(levels), 4, -1)
    reached = np.unpackbits(packed, axis=2, count=rows * cols, bitorder="little")
    times = reached.sum(axis=0, dtype=np.int16)
    return (
        np.where(times > 0, len(levels) - times, FAR)
        .astype(np.int16)
        .reshape(4, rows, cols)
    )
