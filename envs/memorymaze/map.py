"""Draw a maze from above, with its targets and the agent."""

from __future__ import annotations

import numpy as np
from lssvwm.envs.memorymaze.places import from_agent

TILE = 20
"""Pixels along a side of a tile."""
WALL, FLOOR, AGENT = (90, 84, 60), (40, 44, 60), (255, 255, 255)
TARGET, CUED = 0.3, 0.42
"""Radii of a target, and of the ring around the cued one, in tiles."""


def draw_map(
    floor: np.ndarray,
    targets: np.ndarray,
    colours: np.ndarray,
    cued: int,
    pose: np.ndarray,
) -> np.ndarray:
    """Draw a maze, uint8 [3, S, S], up at the top.

    floor: bool [n, n]
    targets: [K, 2], positions
    colours: [K, 3], from 0 to 1
    pose: [3]
    """
    walled = np.pad(floor, 1)[::-1]
    tiles = np.where(walled[..., None], FLOOR, WALL).astype(np.uint8)
    picture = tiles.repeat(TILE, 0).repeat(TILE, 1)
    places = _pixel_positions(len(walled))
    for k, (target, colour) in enumerate(zip(targets, colours)):
        away = np.linalg.norm(places - target, axis=-1)
        picture[away < TARGET] = colour * 255
        if k == cued:
            picture[(away > TARGET) & (away < CUED)] = AGENT
    to_right, to_front = np.moveaxis(from_agent(pose, places), -1, 0)
    in_length = (to_front > -0.25) & (to_front < 0.45)
    in_width = np.abs(to_right) < 0.35 * (0.45 - to_front)
    picture[in_length & in_width] = AGENT
    return picture.transpose(2, 0, 1).copy()


def _pixel_positions(tiles: int) -> np.ndarray:
    """Return the positions of the pixels' middles, [S, S, 2]."""
    along = (np.arange(tiles * TILE) + 0.5) / TILE - 1
    up = np.broadcast_to(along[::-1, None], (len(along), len(along)))
    return np.stack([up, up.T[:, ::-1]], -1)
