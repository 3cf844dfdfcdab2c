"""What a maze looks like: tile pictures, the 3 x 3 egocentric view with occlusion, and the frame around it.

Nothing in a frame tells the absolute direction. Shapes: B slots; view row 0 lies four tiles ahead of the
agent, row 4 is its own, column 2 its own column.
"""

from __future__ import annotations

import numpy as np
from lssvwm.envs.maze.layout import FORWARD

UNSEEN, WALL, FLOOR, GREY = 0, 1, 2, 3
OBJECT = 4  # tile OBJECT + k: a ball of colour k
PANEL = 10  # tile PANEL + k: a wall panel of colour k
TILES = 16

COLOURS = np.array(
    [
        (235, 45, 40),
        (40, 205, 70),
        (60, 95, 255),
        (225, 60, 225),
        (50, 215, 225),
        (255, 130, 20),
    ],
    np.uint8,
)
"""Red, green, blue, magenta, cyan, orange: RGB of cue k, ball k and panel k."""
NO_BORDER, CUE_BORDER = 0, 1  # CUE_BORDER + k: colour k
BORDERS = np.concatenate([np.zeros((1, 3), np.uint8), COLOURS])

VIEW, TILE, MARGIN = 3, 20, 2
SIDE = VIEW * TILE + 2 * MARGIN
PAD = VIEW - 1  # rows and columns of wall that a stored map needs around it

_OPAQUE = np.zeros(TILES, bool)
_OPAQUE[[UNSEEN, WALL, *range(PANEL, TILES)]] = True


def _ball(colour: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:TILE, :TILE] - (TILE - 1) / 2
    inside = (x**2 + y**2 <= 7.6**2)[..., None]
    light = (((x + 2.5) ** 2 + (y + 2.5) ** 2) <= 2**2)[..., None]
    ball = np.where(light, np.minimum(colour.astype(int) + 90, 255), colour)
    return np.where(inside, ball, _floor()).astype(np.uint8)


def _floor() -> np.ndarray:
    tile = np.full((TILE, TILE, 3), 38, np.uint8)
    tile[0, :], tile[:, 0] = 50, 50
    return tile


def _bricks(face: np.ndarray, mortar: np.ndarray) -> np.ndarray:
    tile = np.tile(face.astype(np.uint8), (TILE, TILE, 1))
    tile[4::5] = mortar
    for row in range(0, TILE, 5):
        tile[row : row + 4, 9 if row % 10 == 0 else 19] = mortar
    return tile


def _agent_on(tile: np.ndarray) -> np.ndarray:
    marked = tile.copy()
    for row in range(13, 18):
        half = row - 13
        marked[row, 9 - half : 11 + half] = 250
    return marked


def _draw_atlas() -> np.ndarray:
    atlas = np.zeros((TILES, TILE, TILE, 3), np.uint8)
    atlas[WALL] = _bricks(np.array([120, 116, 108]), np.array([84, 80, 74]))
    atlas[FLOOR] = _floor()
    atlas[GREY] = _ball(np.array([150, 150, 150], np.uint8))
    for k, colour in enumerate(COLOURS):
        atlas[OBJECT + k] = _ball(colour)
        atlas[PANEL + k] = _bricks(colour, colour // 2)
    return np.concatenate([atlas, np.stack([_agent_on(tile) for tile in atlas])])


ATLAS = _draw_atlas()
"""Tile pictures, uint8 [2 * TILES, 20, 20, 3]: the second half with the agent on them."""
_STRIP = np.dtype(
    ("V", TILE)
)  # one pixel row of one tile and one channel, moved as a unit
_STRIPS = np.ascontiguousarray(ATLAS.transpose(0, 3, 1, 2)).view(_STRIP)[..., 0]


def _view_offsets() -> np.ndarray:
    ahead, aside = np.arange(PAD, -1, -1), np.arange(VIEW) - VIEW // 2
    front, right = FORWARD[:, None, None], FORWARD[[1, 2, 3, 0], None, None]
    return ahead[None, :, None, None] * front + aside[None, None, :, None] * right


_OFFSETS = _view_offsets()  # [4, 3, 3, 2]


def flat_offsets(width: int) -> np.ndarray:
    """Return offsets of the view's tiles in a flattened map of `width` columns, int64 [4, 9], by heading."""
    return (_OFFSETS[..., 0] * width + _OFFSETS[..., 1]).reshape(4, VIEW * VIEW)


def _light_tables() -> tuple[np.ndarray, np.ndarray]:
    """Tabulate MiniGrid's `Grid.process_vis` for a row: (lit, clear tiles) -> lit tiles here, and ahead."""
    size, last = 2**VIEW, VIEW - 1
    here, ahead = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    for lit in range(size):
        for clear in range(size):
            mask, front = lit, 0
            for i, side in [
                *((i, 1) for i in range(last)),
                *((i, -1) for i in range(last, 0, -1)),
            ]:
                if mask >> i & clear >> i & 1:
                    mask |= 1 << (i + side)
                    front |= 1 << i | 1 << (i + side)
            here[lit, clear], ahead[lit, clear] = mask, front
    return here, ahead


_HERE, _AHEAD = _light_tables()
_BITS = (1 << np.arange(VIEW)).astype(np.uint8)
_UNPACK = (np.arange(2**VIEW)[:, None] >> np.arange(VIEW) & 1).astype(np.uint8)


def hide_occluded(view: np.ndarray) -> np.ndarray:
    """Return `view` (uint8 [B, 9]) as [B, 3, 3] with every tile that walls hide set to UNSEEN."""
    view = view.reshape(-1, VIEW, VIEW)
    clear = (~_OPAQUE)[view] @ _BITS
    seen = np.empty((len(view), VIEW), np.uint8)
    lit = np.full(len(view), 1 << VIEW // 2, np.uint8)
    for row in range(VIEW - 1, -1, -1):
        seen[:, row] = _HERE[lit, clear[:, row]]
        lit = _AHEAD[lit, clear[:, row]]
    return view * _UNPACK[seen]


def draw(view: np.ndarray, border: np.ndarray, out: np.ndarray) -> None:
    """Draw views (uint8 [B, 3, 3]) and BORDERS (by index, int [B]) into `out`, uint8 [B, 3, 64, 64]."""
    tiles = view.astype(np.intp)
    tiles[:, -1, VIEW // 2] += TILES
    strips = _STRIPS[tiles]  # [B, 3, 3, 3, 20]
    np.copyto(_as_strips(out), strips.transpose(0, 3, 1, 4, 2))
    colour = BORDERS[border][:, :, None, None]
    out[:, :, :MARGIN], out[:, :, -MARGIN:] = colour, colour
    out[:, :, :, :MARGIN], out[:, :, :, -MARGIN:] = colour, colour


def _as_strips(frames: np.ndarray) -> np.ndarray:
    """View the inside of frames as tile strips, [B, 3, 3, 20, 3], each of 20 bytes."""
    shape = (len(frames), 3, VIEW, TILE, VIEW)
    strides = (3 * SIDE * SIDE, SIDE * SIDE, SIDE * TILE, SIDE, TILE)
    return np.ndarray(
        shape, _STRIP, frames, offset=MARGIN * SIDE + MARGIN, strides=strides
    )


def draw_map(tiles: np.ndarray, pose: tuple[int, int, int]) -> np.ndarray:
    """Draw a whole map (uint8 [R, C]) with the agent at (row, col, heading): uint8 [3, 12 R, 12 C]."""
    row, col, heading = pose
    picture = ATLAS[tiles]
    marked = np.rot90(ATLAS[TILES + tiles[row, col]], -heading)
    picture[row, col] = marked
    rows, cols = tiles.shape
    return np.ascontiguousarray(
        picture.transpose(4, 0, 2, 1, 3).reshape(3, rows * TILE, cols * TILE)
    )
