"""Test ways, lines of sight and steering on a small floor, without a simulator."""

import numpy as np
import pytest
from lssvwm.envs.memorymaze.explorers import steer
from lssvwm.envs.memorymaze.map import draw_map
from lssvwm.envs.memorymaze.places import Floor, from_agent

FLOOR = Floor(
    np.array(
        [
            [1, 1, 1],
            [1, 0, 1],
            [1, 0, 1],
        ],
        bool,
    )
)
"""Row 0 is at the bottom: a corridor in the shape of a U."""
UP, RIGHT = 0.0, np.pi / 2


def clear(start, end, radius=0.0):
    return bool(FLOOR.is_clear(np.array(start), np.array([end]), radius)[0])


def test_walls_end_the_view():
    assert clear((0.5, 0.5), (2.5, 0.5))
    assert not clear((2.5, 0.5), (2.5, 2.5))
    assert not clear((0.5, 0.5), (0.5, 3.5))  # beyond the edge


def test_ball_needs_more_room_than_the_view():
    assert clear((0.9, 0.5), (0.9, 2.5))
    assert not clear((0.9, 0.5), (0.9, 2.5), radius=0.2)


def test_way_leads_around_the_wall():
    cells = FLOOR.way((2, 0), (2, 2))
    assert cells == [(1, 0), (0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]
    assert FLOOR.steps_to((2, 2))[2, 0] == 6
    assert FLOOR.steps_to((2, 2))[1, 1] == -1
    assert FLOOR.way((2, 2), (2, 2)) == []


def test_places_are_right_and_ahead_of_the_agent():
    pose = np.array([RIGHT, 0.5, 0.5])
    seen = from_agent(pose, np.array([(0.5, 2.5), (2.5, 0.5)]))
    assert seen == pytest.approx(np.array([(0, 2), (-2, 0)]))


@pytest.mark.parametrize(
    ("heading", "action"), [(UP, 1), (RIGHT, 2), (-RIGHT, 3), (np.pi - 0.1, 2)]
)
def test_ball_turns_to_its_goal(heading, action):
    """Forward when it is ahead; left and right turns without rolling for large errors."""
    pose = np.array([heading, 0.5, 0.5])
    assert steer(FLOOR, pose, 0.0, np.array((2.5, 0.5))) == action


def test_map_shows_walls_targets_and_the_agent():
    """Draw a target up right and an agent low left that looks up."""
    pose = np.array([UP, 0.5, 0.5])
    red = np.array([[1.0, 0.0, 0.0]])
    picture = draw_map(FLOOR.cells, np.array([(2.5, 2.5)]), red, 0, pose)
    assert picture.shape == (3, 100, 100)
    assert picture[:, 30, 70].tolist() == [255, 0, 0]
    assert (picture[:, 70, 30] == 255).all()
    assert (picture[:, 63, 30] == 255).all()  # its tip
    assert not (picture[:, 77, 30] == 255).all()
    assert (picture[:, 50, 50] == picture[:, 5, 5]).all()  # wall
    assert (picture[:, 50, 30] != picture[:, 5, 5]).any()  # floor
