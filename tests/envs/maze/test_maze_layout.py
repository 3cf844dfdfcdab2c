"""Test mazes as arrays, and distances against a plain search."""

from collections import deque

import numpy as np
import pytest
from lssvwm.envs.maze import layout
from lssvwm.envs.maze.layout import FAR, FORWARD, carve, distance_field, reachable


def searched_distances(floor, target):
    """Compute distances with a queue, one pose at a time."""
    field = np.full((4, *floor.shape), FAR)
    field[:, target[0], target[1]] = 0
    queue = deque((h, *target) for h in range(4))
    while queue:
        h, r, c = queue.popleft()
        to_right = (h + 1) % 4
        to_left = (h - 1) % 4
        before = [(to_right, r, c), (to_left, r, c)]
        down, right = FORWARD[h]
        back = r - down, c - right
        if floor[back]:
            before.append((h, *back))
        steps = field[h, r, c] + 1
        for pose in before:
            if field[pose] == FAR:
                field[pose] = steps
                queue.append(pose)
    return field


@pytest.mark.parametrize("shape", [(9, 9), (15, 15), (12, 7)])
def test_distance_field_equals_a_plain_search(shape):
    rng = np.random.default_rng(0)
    rows, cols = shape
    floor = np.zeros(shape, bool)
    floor[1:-1, 1:-1] = rng.random((rows - 2, cols - 2)) < 0.65
    for row, col in np.argwhere(floor)[::7]:
        expected = searched_distances(floor, (row, col))
        assert np.array_equal(distance_field(floor, (row, col)), expected)


def test_large_maps_are_searched_by_pose(monkeypatch):
    floor = carve(9, 0.2, np.random.default_rng(1))
    small = [distance_field(floor, (1, 1)), distance_field(floor, (7, 7), 2)]
    monkeypatch.setattr(layout, "LARGE", 10)
    large = [distance_field(floor, (1, 1)), distance_field(floor, (7, 7), 2)]
    assert all(np.array_equal(a, b) for a, b in zip(small, large))


@pytest.mark.parametrize("loops", [0.0, 0.3])
def test_carve_connects_cells_and_loops_add_passages(loops):
    floor = carve(15, loops, np.random.default_rng(3))
    field = distance_field(floor, (1, 1))
    assert (field[0][floor] < FAR).all()
    assert (field[0][~floor] == FAR).all()
    assert not floor[[0, -1]].any()
    assert not floor[:, [0, -1]].any()
    passages = floor.sum() - 49
    assert passages == 48 if loops == 0 else passages > 50


def test_carve_refuses_even_and_small_sizes():
    for n in (8, 3):
        with pytest.raises(ValueError, match=f"odd and at least 5, got n={n}"):
            carve(n, 0.0, np.random.default_rng(0))


def test_reachable_refuses_an_object_behind_another():
    corridor = np.zeros((3, 7), bool)
    corridor[1, 1:6] = True
    assert reachable(corridor, (1, 3), [(1, 1), (1, 5)])
    assert not reachable(corridor, (1, 1), [(1, 3), (1, 5)])
