"""Test moves among the walls and doors of point mazes."""

import numpy as np
import pytest
from lssvwm.envs import PointMazeConfig
from lssvwm.envs.point_maze.geometry import BORDER, RADIUS, WALL

IMAGE = PointMazeConfig(offset=20)
ROOMS = PointMazeConfig(rows=2, cols=3, size=100, random=True, offset=30)


@pytest.mark.parametrize("config", [IMAGE, ROOMS], ids=["two", "six"])
def test_move_enters_no_wall(config, start):
    env = start(config, 100)
    walls = env.rooms.walls
    rng = np.random.default_rng(0)
    for _ in range(100):
        before = env.position.copy()
        action = rng.uniform(-1.5, 1.5, size=(100, 2))
        env.step(action)
        position = env.position[:, None]
        inside = (position > walls[..., :2]) & (position < walls[..., 2:])
        assert not inside.all(-1).any()
        moved = env.position - before
        wanted = action.clip(-1, 1) * 2
        running = env.outcome == 0
        at_least = moved >= np.minimum(0, wanted) - 1e-5
        at_most = moved <= np.maximum(0, wanted) + 1e-5
        assert (at_least & at_most)[running].all()
        if config is IMAGE:
            middle = config.size / 2
            from_middle = np.abs(before - middle).max(1)
            x_lines, _ = env.rooms.lines
            from_line = np.abs(before[:, 0] - x_lines[:, 0])
            is_clear = from_line > WALL / 2 + RADIUS + 2
            free = running & is_clear & (from_middle < 3 * WALL)
            assert moved[free] == pytest.approx(wanted[free], abs=1e-5)


def test_move_stops_at_a_wall_but_not_at_a_door(start):
    env = start(PointMazeConfig(goal="none"), 2)
    gate = env.rooms.gates[0, 0, 1]
    env.position[:] = [[20.0, gate[1]], [20.0, gate[1] + 20]]
    for _ in range(15):
        env.step(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert env.position[0, 0] > gate[0] + WALL
    wall = gate[0] - WALL / 2 - RADIUS
    assert env.position[1, 0] == pytest.approx(wall, abs=1e-3)


def test_drawn_positions_lie_inside_the_border(start):
    env = start(ROOMS, 1)
    assert env.position.min() > BORDER
