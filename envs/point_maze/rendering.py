"""Draw point mazes: all of a maze from above, or the part around the agent.

Shapes: B slots, S pixels along a side of a stored picture.
"""

from __future__ import annotations

import math

import numpy as np
from lssvwm.envs.maze.rendering import COLOURS, MARGIN, SIDE
from lssvwm.envs.point_maze.geometry import RADIUS

AGENT, SPOTS = COLOURS[0], COLOURS[1:]
"""Colours of the agent and of the spots."""
SPOT = 3.0
"""Radius of a spot, in pixels of the maze."""
WINDOW = 30
"""Side of the view around the agent, in pixels of the maze."""


class Canvas:
    """Keep the pictures of B mazes without their agents, and cut frames from them.

    picture: uint8 [B, 3, S, S]
    """

    def __init__(self, batch: int, size: int, around: bool):
        self.slots = np.arange(batch)
        self.size = size
        self.around = around
        inside = SIDE - 2 * MARGIN
        self.scale = inside / WINDOW if around else SIDE / size
        """Pixels of the picture per pixel of the maze."""
        self.margin = WINDOW / 2 if around else 0.0
        """Wall around the maze in the picture, in pixels of the maze."""
        side = round((size + 2 * self.margin) * self.scale)
        self.picture = np.zeros((batch, 3, side, side), np.uint8)

    def to_pixels(self, length: np.ndarray) -> np.ndarray:
        """Return pixels of the picture for positions in the maze."""
        return (length + self.margin) * self.scale

    def draw_maze(self, slot: int, walls: np.ndarray, spots: np.ndarray) -> None:
        """Draw the maze of `slot`: spots [K, 2] and walls [R, 4] grown by RADIUS."""
        picture = self.picture[slot]
        centre = (np.arange(picture.shape[-1]) + 0.5) / self.scale - self.margin
        x, y = centre[None, :], centre[:, None]
        picture[:] = 255
        for (spot_x, spot_y), colour in zip(spots, SPOTS):
            is_spot = np.hypot(x - spot_x, y - spot_y) <= SPOT
            picture[:, is_spot] = colour[:, None]
        shrunk = walls + np.array([RADIUS, RADIUS, -RADIUS, -RADIUS])
        for x0, y0, x1, y1 in shrunk.tolist():
            is_wall = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
            picture[:, is_wall] = 0
        x_outside = (x < 0) | (x >= self.size)
        y_outside = (y < 0) | (y >= self.size)
        picture[:, x_outside | y_outside] = 0

    def frames(self, position: np.ndarray, border: np.ndarray) -> np.ndarray:
        """Return the frames of agents at `position`, uint8 [B, 3, 64, 64].

        position: [B, 2]
        border: [B, 3], colours of the border in the view around the agent
        """
        if self.around:
            return self._frames_around(position, border)
        centre = self.to_pixels(position)
        corner = np.floor(centre).astype(np.int64)
        frames = self.picture.copy()
        self._draw_agents(frames, centre, corner, np.arange(-3, 4))
        return frames

    def _frames_around(self, position: np.ndarray, border: np.ndarray) -> np.ndarray:
        batch = len(self.slots)
        inside = SIDE - 2 * MARGIN
        corner = np.round(self.to_pixels(position)).astype(np.int64) - inside // 2
        cols = corner[:, 0, None] + np.arange(inside)
        rows = corner[:, 1, None] + np.arange(inside)
        slots = self.slots[:, None, None]
        part = self.picture[slots, :, rows[:, :, None], cols[:, None, :]]
        frames = np.empty((batch, 3, SIDE, SIDE), np.uint8)
        frames[:] = border[:, :, None, None]
        frames[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN] = part.transpose(0, 3, 1, 2)
        reach = math.ceil(RADIUS * self.scale)
        centre = np.full((batch, 2), SIDE / 2)
        corner = np.full((batch, 2), SIDE // 2)
        self._draw_agents(frames, centre, corner, np.arange(-reach - 1, reach + 2))
        return frames

    def _draw_agents(
        self,
        frames: np.ndarray,
        centre: np.ndarray,
        corner: np.ndarray,
        square: np.ndarray,
    ) -> None:
        """Draw smooth discs at `centre`, [B, 2], into `frames`.

        Only the pixels `square`, counted from `corner` along both axes, can change.
        """
        x = corner[:, 0, None] + square
        y = corner[:, 1, None] + square
        off_x = x[:, None, :] + 0.5 - centre[:, 0, None, None]
        off_y = y[:, :, None] + 0.5 - centre[:, 1, None, None]
        away = np.hypot(off_x, off_y)
        cover = (RADIUS * self.scale + 0.5 - away).clip(0, 1)[..., None]
        at = self.slots[:, None, None], slice(None), y[:, :, None], x[:, None, :]
        blended = frames[at] * (1 - cover) + AGENT * cover
        frames[at] = np.round(blended).astype(np.uint8)

    def draw_disc(
        self, picture: np.ndarray, place: np.ndarray, colour: np.ndarray, ring: bool
    ) -> None:
        """Draw the agent's disc, or a ring around it, into `picture` [3, S, S]."""
        y, x = np.indices(picture.shape[1:])
        off_x = x + 0.5 - self.to_pixels(place[0])
        off_y = y + 0.5 - self.to_pixels(place[1])
        away = np.hypot(off_x, off_y) / self.scale
        shown = away <= RADIUS
        if ring:
            shown = (away <= RADIUS + 1) & (away >= RADIUS)
        picture[:, shown] = colour[:, None]
