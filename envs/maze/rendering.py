"""Draw mazes: tile pictures, the 3 x 3 egocentric view with occlusion, the border.

No frame shows the absolute direction. Shapes: B slots. Row 0 of a view lies two tiles
ahead of the agent, row 2 is its own. Column 1 is its own column.
"""

from __future__ import annotations

import numpy as np
from lssvwm.envs.maze.layout import Cell
from lssvwm.envs.tile_view import draw_tiles, tile_strips, visible

UNSEEN, WALL, FLOOR, GREY = 0, 1, 2, 3
OBJECT = 4
"""Tile OBJECT + k is a ball of colour k."""
PANEL = 10
"""Tile PANEL + k is a wall panel of colour k."""
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
"""RGB of cue k, ball k and panel k."""
COLOUR_NAMES = ("red", "green", "blue", "magenta", "cyan", "orange")
STONE = np.array([120, 116, 108])
MORTAR = np.array([84, 80, 74])
GREY_BALL = np.array([150, 150, 150], np.uint8)
NO_BORDER = 0
CUE_BORDER = 1
"""Border CUE_BORDER + k has colour k."""
BORDERS = np.insert(COLOURS, NO_BORDER, 0, axis=0)

VIEW, TILE, MARGIN = 3, 20, 2
"""Tiles along a side of the view, pixels along a side of a tile, pixels of the border."""
SIDE = VIEW * TILE + 2 * MARGIN
PAD = VIEW - 1
"""Rows and columns of wall that a stored map needs around it."""

_CLEAR = np.ones(TILES, bool)
"""Tiles that one sees past."""
_CLEAR[[UNSEEN, WALL]] = False
_CLEAR[PANEL:] = False


def _ball(colour: np.ndarray) -> np.ndarray:
    brighter = np.minimum(colour.astype(int) + 90, 255)
    highlight = _disc(radius=2, shift=-2.5)
    ball = np.where(highlight, brighter, colour)
    inside = _disc(radius=7.6, shift=0)
    return np.where(inside, ball, _floor()).astype(np.uint8)


def _disc(radius: float, shift: float) -> np.ndarray:
    """Return the pixels of a disc, bool [20, 20, 1], shifted along both axes."""
    middle = (TILE - 1) / 2
    off = np.arange(TILE) - middle - shift
    away_squared = off**2 + off[:, None] ** 2
    return away_squared[..., None] <= radius**2


def _floor() -> np.ndarray:
    tile = np.full((TILE, TILE, 3), 38, np.uint8)
    tile[0, :] = 50
    tile[:, 0] = 50
    return tile


def _bricks(face: np.ndarray, mortar: np.ndarray) -> np.ndarray:
    tile = np.tile(face.astype(np.uint8), (TILE, TILE, 1))
    tile[4::5] = mortar
    for row in range(0, TILE, 5):
        joint = 9 if row % 10 == 0 else 19
        tile[row : row + 4, joint] = mortar
    return tile


def _agent_on(tile: np.ndarray) -> np.ndarray:
    """Return `tile` with the agent on it, a triangle that points up."""
    marked = tile.copy()
    for row in range(13, 18):
        half = row - 13
        marked[row, 9 - half : 11 + half] = 250
    return marked


def _draw_atlas() -> np.ndarray:
    atlas = np.zeros((TILES, TILE, TILE, 3), np.uint8)
    atlas[WALL] = _bricks(STONE, MORTAR)
    atlas[FLOOR] = _floor()
    atlas[GREY] = _ball(GREY_BALL)
    for k, colour in enumerate(COLOURS):
        atlas[OBJECT + k] = _ball(colour)
        atlas[PANEL + k] = _bricks(colour, colour // 2)
    with_agent = np.stack([_agent_on(tile) for tile in atlas])
    return np.concatenate([atlas, with_agent])


ATLAS = _draw_atlas()
"""Tile pictures, uint8 [2 * TILES, 20, 20, 3]; the second half with the agent on them."""
_STRIPS = tile_strips(ATLAS.transpose(0, 3, 1, 2))


def hide_occluded(view: np.ndarray) -> np.ndarray:
    """Return the view with every tile that walls hide set to UNSEEN, uint8 [B, 3, 3].

    view: uint8 [B, 3, 3]
    """
    return view * visible(_CLEAR[view])


def draw(view: np.ndarray, border: np.ndarray, out: np.ndarray) -> None:
    """Draw views and borders into `out`.

    view: uint8 [B, 3, 3]
    border: int [B], rows of BORDERS
    out: uint8 [B, 3, 64, 64]
    """
    tiles = view.astype(np.intp)
    tiles[:, -1, VIEW // 2] += TILES
    draw_tiles(_STRIPS[tiles], out, MARGIN)
    colour = BORDERS[border][:, :, None, None]
    out[:, :, :MARGIN] = colour
    out[:, :, -MARGIN:] = colour
    out[:, :, :, :MARGIN] = colour
    out[:, :, :, -MARGIN:] = colour


def draw_map(tiles: np.ndarray, cell: Cell, heading: int) -> np.ndarray:
    """Draw a whole map with the agent, uint8 [3, 20 R, 20 C].

    tiles: uint8 [R, C]
    cell: of the agent
    """
    picture = ATLAS[tiles]
    with_agent = ATLAS[TILES + tiles[cell]]
    picture[cell] = np.rot90(with_agent, -heading)
    rows, cols = tiles.shape
    planes = picture.transpose(4, 0, 2, 1, 3)
    planes = planes.reshape(3, rows * TILE, cols * TILE)
    return np.ascontiguousarray(planes)
