"""Draw point mazes: all of a maze from above, or the part around the agent.

Shapes: B slots, S pixels along a side of a stored picture, P along a side of a patch.
"""

from __future__ import annotations

import math

import numpy as np
from lssvwm.envs.base import blank_frames
from lssvwm.envs.maze.rendering import COLOURS, MARGIN, SIDE
from lssvwm.envs.point_maze.geometry import RADIUS, shrink

AGENT, SPOTS = COLOURS[0], COLOURS[1:]
"""Colours of the agent and of the spots."""
BLACK = np.zeros(3, np.uint8)
SPOT = 3.0
"""Radius of a spot, in pixels of the maze."""
WINDOW = 30
"""Side of the view around the agent, in pixels of the maze."""
INSIDE = SIDE - 2 * MARGIN
"""Side of the view around the agent in a frame, without the border."""
REACH = 3
"""Pixels around the agent, seen from above, that it can cover."""
NO_BORDER = slice(MARGIN, -MARGIN)


class Canvas:
    """Keep the pictures of B mazes without their agents, and cut frames from them.

    picture: uint8 [B, 3, S, S]
    """

    def __init__(self, batch: int, size: int, around: bool):
        self.slots = np.arange(batch)
        self.size = size
        self.around = around
        self.scale = INSIDE / WINDOW if around else SIDE / size
        """Pixels of the picture per pixel of the maze."""
        self.margin = WINDOW / 2 if around else 0.0
        """Wall around the maze in the picture, in pixels of the maze."""
        length = size + 2 * self.margin
        side = round(length * self.scale)
        self.picture = blank_frames(batch, side)

    def to_pixels(self, length: np.ndarray) -> np.ndarray:
        """Return pixels of the picture for positions in the maze."""
        return (length + self.margin) * self.scale

    def _pixel_centres(self) -> np.ndarray:
        """Return positions in the maze of the picture's pixels along an axis, [S]."""
        side = self.picture.shape[-1]
        centres = np.arange(side) + 0.5
        return centres / self.scale - self.margin

    def draw_maze(self, slot: int, walls: np.ndarray, spots: list[np.ndarray]) -> None:
        """Draw the maze of `slot`: spots [2] and walls [R, 4] grown by RADIUS."""
        picture = self.picture[slot]
        picture[:] = 255
        x = self._pixel_centres()
        y = x[:, None]
        for (spot_x, spot_y), colour in zip(spots, SPOTS):
            away = np.hypot(x - spot_x, y - spot_y)
            _fill(picture, away <= SPOT, colour)
        for x0, y0, x1, y1 in shrink(walls).tolist():
            in_cols = (x >= x0) & (x < x1)
            in_rows = (y >= y0) & (y < y1)
            _fill(picture, in_cols & in_rows, BLACK)
        outside = (x < 0) | (x >= self.size)
        picture[:, outside] = 0
        picture[:, :, outside] = 0

    def frames(self, position: np.ndarray, border: np.ndarray) -> np.ndarray:
        """Return the frames of agents at `position`, uint8 [B, 3, 64, 64].

        position: [B, 2]
        border: [B, 3], colours of the border in the view around the agent
        """
        if self.around:
            return self._frames_around(position, border)
        centre = self.to_pixels(position)
        corner = np.floor(centre).astype(np.int64)
        corner = corner.clip(REACH, self.picture.shape[-1] - 1 - REACH)
        frames = self.picture.copy()
        self._draw_agents(frames, centre, corner, REACH)
        return frames

    def _frames_around(self, position: np.ndarray, border: np.ndarray) -> np.ndarray:
        batch = len(self.slots)
        frames = blank_frames(batch, SIDE)
        frames[:] = border[:, :, None, None]
        frames[:, :, NO_BORDER, NO_BORDER] = self._cut(position)
        reach = math.ceil(RADIUS * self.scale) + 1
        centre = np.full((batch, 2), SIDE / 2)
        corner = np.full((batch, 2), SIDE // 2)
        self._draw_agents(frames, centre, corner, reach)
        return frames

    def _cut(self, position: np.ndarray) -> np.ndarray:
        """Return the pictures around positions [B, 2], uint8 [B, 3, 60, 60]."""
        centre = np.round(self.to_pixels(position))
        corner = centre.astype(np.int64) - INSIDE // 2
        inside = np.arange(INSIDE)
        cols = corner[:, :1] + inside
        rows = corner[:, 1:] + inside
        pixels = _pixels(self.slots, rows, cols)
        return self.picture[pixels].transpose(0, 3, 1, 2)

    def _draw_agents(
        self, frames: np.ndarray, centre: np.ndarray, corner: np.ndarray, reach: int
    ) -> None:
        """Draw smooth discs at `centre`, [B, 2], into `frames`.

        Only pixels up to `reach` from `corner`, int64 [B, 2], can change.
        """
        offsets = np.arange(-reach, reach + 1)
        x = corner[:, :1] + offsets
        y = corner[:, 1:] + offsets
        off_x = (x + 0.5 - centre[:, :1])[:, None, :]
        off_y = (y + 0.5 - centre[:, 1:])[:, :, None]
        away = np.hypot(off_x, off_y)
        edge = RADIUS * self.scale + 0.5
        cover = (edge - away).clip(0, 1)
        cover = cover[..., None]
        pixels = _pixels(self.slots, y, x)
        behind = frames[pixels] * (1 - cover)
        blended = np.round(behind + AGENT * cover)
        frames[pixels] = blended.astype(np.uint8)

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
        _fill(picture, shown, colour)


def _pixels(slots: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> tuple:
    """Return the index of patches of pictures [B, 3, S, S], as [B, P, P, 3].

    rows, cols: int64 [B, P]
    """
    slot = slots[:, None, None]
    row = rows[:, :, None]
    col = cols[:, None, :]
    return slot, slice(None), row, col


def _fill(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Give the pixels `mask` of a picture [3, S, S] one colour."""
    picture[:, mask] = colour[:, None]
