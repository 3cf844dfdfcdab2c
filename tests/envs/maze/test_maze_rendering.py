"""Test the pictures of mazes: occlusion, tiles in frames, the map."""

import numpy as np
from lssvwm.envs import ReturnConfig
from lssvwm.envs.base import HasMap
from lssvwm.envs.maze import rendering


def process_vis(clear):
    """Compute MiniGrid's Grid.process_vis for a 3 x 3 view, clear bool [row, column]."""
    mask = np.zeros((3, 3), bool)
    mask[2, 1] = True
    rightwards = [(i, 1) for i in range(2)]
    leftwards = [(i, -1) for i in range(2, 0, -1)]
    for j in reversed(range(3)):
        for i, side in rightwards + leftwards:
            if mask[j, i] and clear[j, i]:
                mask[j, i + side] = True
                if j > 0:
                    mask[j - 1, i + side] = True
                    mask[j - 1, i] = True
    return mask


def test_occlusion_equals_minigrids():
    rng = np.random.default_rng(1)
    is_wall = rng.random((200, 9)) < 0.4
    views = np.where(is_wall, rendering.WALL, rendering.FLOOR).astype(np.uint8)
    views[:, 7] = rendering.FLOOR
    expected = [process_vis(view.reshape(3, 3) != rendering.WALL) for view in views]
    seen = rendering.hide_occluded(views.reshape(-1, 3, 3)) != rendering.UNSEEN
    assert np.array_equal(seen, np.stack(expected))


def test_frame_shows_tiles_relative_to_the_agent(start):
    env = start(ReturnConfig(n=9, objects=2), [0])
    floor = np.zeros((9, 9), bool)
    floor[1:8, 1:8] = True
    env.lay(0, floor)
    env.put_tile(0, (2, 5), rendering.OBJECT + 1)
    tile = rendering.ATLAS[rendering.OBJECT + 1].transpose(2, 0, 1)
    shown_at = {
        (4, 4, 0): (0, 2),
        (2, 3, 1): (0, 1),
        (1, 6, 2): (1, 2),
        (1, 6, 3): (1, 0),
    }
    for pose, (row, col) in shown_at.items():
        env.put_agent(0, *pose)
        env._look()
        inside = env.frames()[0, :, 2:-2, 2:-2]
        rows = slice(row * 20, row * 20 + 20)
        cols = slice(col * 20, col * 20 + 20)
        assert np.array_equal(inside[:, rows, cols], tile), pose


def test_top_view_draws_the_whole_map(start):
    env = start(ReturnConfig(n=9), [0])
    assert isinstance(env, HasMap)
    view = env.top_view(0)
    assert view.shape == (3, 180, 180) and view.dtype == np.uint8
    row, col = env.objects[0, 0]
    rows = slice(row * 20, row * 20 + 20)
    cols = slice(col * 20, col * 20 + 20)
    ball = rendering.ATLAS[rendering.OBJECT].transpose(2, 0, 1)
    assert np.array_equal(view[:, rows, cols], ball)
