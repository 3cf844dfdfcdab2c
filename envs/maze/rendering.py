"""Draw mazes: tile pictures, the 3 x 3 egocentric view with occlusion, the border.

No frame shows the absolute direction. Shapes: B slots. Row 0 of a view lies two tiles
ahead of the agent, row 2 is its own. Column 1 is its own column.
"""

from __future__ import annotations

import numpy as np
from lssvwm.envs.maze.layout import FORWARD

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
"""Red, green, blue, magenta, cyan, orange: RGB of cue k, ball k and panel k."""
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

_OPAQUE = np.zeros(TILES, bool)
_OPAQUE[[UNSEEN, WALL, *range(PANEL, TILES)]] = True


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
# One pixel row of one tile and one channel is moved as a unit.
_STRIP = np.dtype(("V", TILE))
_PLANES = np.ascontiguousarray(ATLAS.transpose(0, 3, 1, 2))
_STRIPS = _PLANES.view(_STRIP)[..., 0]


def _view_offsets() -> np.ndarray:
    """Return row and column of the view's tiles from the agent, [4, 3, 3, 2]."""
    rows, cols = np.indices((VIEW, VIEW))
    ahead = (PAD - rows)[..., None]
    aside = (cols - VIEW // 2)[..., None]
    front = FORWARD[:, None, None]
    right = np.roll(front, -1, axis=0)
    return ahead * front + aside * right


_OFFSETS = _view_offsets()


def flat_offsets(width: int) -> np.ndarray:
    """Return the view's tiles in a flattened map from the agent, int64 [4, 9].

    Indexed by heading. `width` is the number of columns of the map.
    """
    strides = np.array([width, 1])
    flat = _OFFSETS @ strides
    return flat.reshape(4, VIEW * VIEW)


def _light_tables() -> tuple[np.ndarray, np.ndarray]:
    """Tabulate MiniGrid's `Grid.process_vis` for one row of the view.

    Both tables are indexed by the bits of lit and of clear tiles. The first holds the
    lit tiles of this row in the end, the second those of the next row ahead.
    """
    size = 2**VIEW
    here = np.zeros((size, size), np.uint8)
    ahead = np.zeros((size, size), np.uint8)
    for lit in range(size):
        for clear in range(size):
            mask, front = _spread_light(lit, clear)
            here[lit, clear] = mask
            ahead[lit, clear] = front
    return here, ahead


def _spread_light(lit: int, clear: int) -> tuple[int, int]:
    """Return the bits lit in a row in the end, and in the next row."""
    last = VIEW - 1
    rightwards = [(column, column + 1) for column in range(last)]
    leftwards = [(column, column - 1) for column in range(last, 0, -1)]
    ahead = 0
    for column, neighbour in rightwards + leftwards:
        passes = lit >> column & clear >> column & 1
        if passes:
            lit |= 1 << neighbour
            ahead |= 1 << column
            ahead |= 1 << neighbour
    return lit, ahead


_HERE, _AHEAD = _light_tables()
_COLUMNS = np.arange(VIEW)
_BITS = (1 << _COLUMNS).astype(np.uint8)
_NUMBERS = np.arange(2**VIEW)[:, None]
_UNPACK = (_NUMBERS >> _COLUMNS & 1).astype(np.uint8)


def hide_occluded(view: np.ndarray) -> np.ndarray:
    """Return the view with every tile that walls hide set to UNSEEN, uint8 [B, 3, 3].

    view: uint8 [B, 9]
    """
    view = view.reshape(-1, VIEW, VIEW)
    clear = (~_OPAQUE)[view] @ _BITS
    seen = np.empty((len(view), VIEW), np.uint8)
    lit = np.full(len(view), 1 << VIEW // 2, np.uint8)
    for row in range(VIEW - 1, -1, -1):
        clear_here = clear[:, row]
        seen[:, row] = _HERE[lit, clear_here]
        lit = _AHEAD[lit, clear_here]
    return view * _UNPACK[seen]


def draw(view: np.ndarray, border: np.ndarray, out: np.ndarray) -> None:
    """Draw views and borders into `out`.

    view: uint8 [B, 3, 3]
    border: int [B], rows of BORDERS
    out: uint8 [B, 3, 64, 64]
    """
    tiles = view.astype(np.intp)
    tiles[:, -1, VIEW // 2] += TILES
    strips = _STRIPS[tiles]  # [B, 3, 3, 3, 20]
    np.copyto(_as_strips(out), strips.transpose(0, 3, 1, 4, 2))
    colour = BORDERS[border][:, :, None, None]
    out[:, :, :MARGIN] = colour
    out[:, :, -MARGIN:] = colour
    out[:, :, :, :MARGIN] = colour
    out[:, :, :, -MARGIN:] = colour


def _as_strips(frames: np.ndarray) -> np.ndarray:
    """View the inside of frames as tile strips of 20 bytes, [B, 3, 3, 20, 3]."""
    shape = (len(frames), 3, VIEW, TILE, VIEW)
    plane = SIDE * SIDE
    strides = (3 * plane, plane, SIDE * TILE, SIDE, TILE)
    inside = MARGIN * SIDE + MARGIN
    return np.ndarray(shape, _STRIP, frames, offset=inside, strides=strides)


def draw_map(tiles: np.ndarray, pose: tuple[int, int, int]) -> np.ndarray:
    """Draw a whole map with the agent, uint8 [3, 20 R, 20 C].

    tiles: uint8 [R, C]
    pose: row, column and heading of the agent
    """
    row, col, heading = pose
    picture = ATLAS[tiles]
    with_agent = ATLAS[TILES + tiles[row, col]]
    picture[row, col] = np.rot90(with_agent, -heading)
    rows, cols = tiles.shape
    planes = picture.transpose(4, 0, 2, 1, 3)
    planes = planes.reshape(3, rows * TILE, cols * TILE)
    return np.ascontiguousarray(planes)
