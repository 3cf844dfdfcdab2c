"""Run B mazes at once: maps, poses, views, distances, and the frame of an episode.

Shapes: B slots, R x C a map. A pose is (row, column, heading), headings as in `layout`.
A task overrides `_begin` (lay out one slot's episode) and `_rules` (apply its rules
after a move).
"""

from __future__ import annotations

import numpy as np
from lssvwm.envs.base import (
    RUNNING,
    SUCCESS,
    TIMEOUT,
    WRONG,
    BatchedEnv,
    Discrete,
    Explorer,
    Step,
    blank_frames,
    counts,
    flags,
    unknown_explorer,
)
from lssvwm.envs.maze import rendering
from lssvwm.envs.maze.explorers import RECIPES, MazeExplorer
from lssvwm.envs.maze.layout import (
    AHEAD,
    FAR,
    FORWARD,
    STAY,
    Cell,
    distance_field,
    no_path,
)
from lssvwm.envs.tile_view import view_offsets

Fields = dict[Cell, np.ndarray]
"""Distances of all poses to a cell, int32 [4, R, C], by cell."""
_TURN = np.array([-1, 1, 0, 0])
"""Change of heading by action."""


class GridWorld:
    """Hold maps and poses of B mazes, move agents and look ahead of them."""

    def __init__(self, batch: int, rows: int, cols: int):
        self.batch = batch
        self.rows = rows
        self.cols = cols
        self.slots = np.arange(batch)
        self.floor = np.zeros((batch, rows, cols), bool)
        self.row = counts(batch)
        self.col = counts(batch)
        self.heading = counts(batch)
        self.disguise = flags(batch)
        """Slots in which all objects are grey, bool [B]."""
        pad = rendering.PAD
        width = cols + 2 * pad
        height = rows + 2 * pad
        self.tiles = np.full((batch, height, width), rendering.WALL, np.uint8)
        """Tiles of every map with a margin of wall, uint8 [B, R + 4, C + 4]."""
        self._width = width
        self._offsets = view_offsets(rendering.VIEW, FORWARD, width)
        size = height * width
        first_cell = pad * width + pad
        self._starts = self.slots * size + first_cell
        view_shape = (batch, rendering.VIEW, rendering.VIEW)
        self._view = np.zeros(view_shape, np.uint8)
        self._fields: list[Fields] = [{} for _ in range(batch)]

    def lay(self, slot: int, floor: np.ndarray) -> None:
        """Give `slot` the map `floor`, bool [R, C]."""
        inside = slice(rendering.PAD, -rendering.PAD)
        tiles = np.where(floor, rendering.FLOOR, rendering.WALL)
        self.floor[slot] = floor
        self.tiles[slot, inside, inside] = tiles

    def put_tile(self, slot: int, cell: Cell, tile: int) -> None:
        """Show `tile` at `cell` of `slot`."""
        row, col = cell
        pad = rendering.PAD
        self.tiles[slot, row + pad, col + pad] = tile

    def put_agent(self, slot: int, row: int, col: int, heading: int) -> None:
        """Set the pose of `slot`."""
        self.row[slot] = row
        self.col[slot] = col
        self.heading[slot] = heading

    def next_pose(
        self, action: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return heading, row and column after `action`, int64 [B] each."""
        heading = (self.heading + _TURN[action]) % 4
        next_row, next_col = self.next_cell(heading)
        is_free = self.floor[self.slots, next_row, next_col]
        moves = is_free & (action == AHEAD)
        row = np.where(moves, next_row, self.row)
        col = np.where(moves, next_col, self.col)
        return heading, row, col

    def next_cell(self, heading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return row and column of the next tile towards `heading`, int64 [B] each."""
        down, right = FORWARD[heading].T
        return self.row + down, self.col + right

    def is_free(self, turn: int | np.ndarray) -> np.ndarray:
        """Return bool [B]: the next tile, `turn` quarter turns right, is floor."""
        heading = (self.heading + turn) % 4
        row, col = self.next_cell(heading)
        return self.floor[self.slots, row, col]

    def at(self, cells: np.ndarray) -> np.ndarray:
        """Return bool [B, ...], true where an agent stands on its cell.

        cells: int [B, ..., 2]
        """
        same_row = self.row == cells[..., 0].T
        same_col = self.col == cells[..., 1].T
        return (same_row & same_col).T

    def distance(self, field: np.ndarray) -> np.ndarray:
        """Read distance fields [B, 4, R, C] at the present poses, int32 [B]."""
        return field[self.slots, self.heading, self.row, self.col]

    def field(self, slot: int, cell: Cell) -> np.ndarray:
        """Return the distances of all poses of `slot` to `cell`, int32 [4, R, C]."""
        known = self._fields[slot]
        if cell not in known:
            known[cell] = distance_field(self.floor[slot], cell)
        return known[cell]

    def view(self) -> np.ndarray:
        """Return the tiles of the view as they are drawn, int64 [B, 9]."""
        flat = self._view.reshape(self.batch, -1)
        return flat.astype(np.int64)

    def tiles_in_view(self) -> np.ndarray:
        """Return the view's tiles as positions in flattened `tiles`, int64 [B, 3, 3]."""
        cell = self.row * self._width + self.col
        here = self._starts + cell
        return here[:, None, None] + self._offsets[self.heading]

    def _update_view(self) -> None:
        """Bring the view up to date with maps and poses."""
        view = self.tiles.reshape(-1)[self.tiles_in_view()]
        if self.disguise.any():
            is_ball = (view >= rendering.OBJECT) & (view < rendering.PANEL)
            is_grey = is_ball & self.disguise[:, None, None]
            view = np.where(is_grey, rendering.GREY, view)
        self._view = rendering.hide_occluded(view)

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the map of `slot` with its agent, uint8 [3, 20 R, 20 C]."""
        inside = slice(rendering.PAD, -rendering.PAD)
        tiles = self.tiles[slot, inside, inside]
        cell = self.row[slot], self.col[slot]
        return rendering.draw_map(tiles, cell, self.heading[slot])

    def bearing(self, slot: int) -> float:
        """Return the heading on the map, in radians clockwise from up."""
        return int(self.heading[slot]) * np.pi / 2


class GridMaze(GridWorld, BatchedEnv):
    """Run B episodes in mazes seen from inside.

    ## Actions
    left, right (turn by 90 degrees), forward (one tile, not into walls), stay.

    ## Observation
    uint8 [B, 3, 64, 64]: the 3 x 3 tiles ahead, without those that walls hide. The
    border shows the cue colour when the task shows one. No frame shows the reward.
    """

    actions = Discrete(4, ("left", "right", "forward", "stay"))
    frame_shape = (3, rendering.SIDE, rendering.SIDE)
    first_evidence = rendering.OBJECT
    """Tile that is evidence 0."""

    def __init__(self, batch: int, rows: int, cols: int, labels: int):
        super().__init__(batch, rows, cols)
        self.labels = self.answers = labels
        self.episode = counts(batch)
        self.seeds = counts(batch)
        self.phase = counts(batch)
        """Number that changes whenever an earlier plan is void, int64 [B]."""
        self.clock = counts(batch)
        """Frames since the reset, int64 [B]."""
        self.dark = counts(batch)
        """Dark frames left, the present one included, int64 [B]."""
        self.cue = counts(batch)
        self.border = counts(batch)
        self.outcome = counts(batch)
        self.rewarded = flags(batch)
        self.goal_field = no_path(batch, rows, cols)
        self.seen_at = np.full((batch, labels), -1, np.int64)
        """Clock when evidence k was last in view, int64 [B, K]."""
        self._terminated = flags(batch)
        self._truncated = flags(batch)
        self._action = counts(batch)
        self._frames = blank_frames(batch, rendering.SIDE)
        self._drawn = False

    # A task fills in the following methods.

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        """Lay out a new episode in `slot`: floor and tiles, pose, cue, goal field."""
        raise NotImplementedError

    def _rules(self, running: np.ndarray) -> np.ndarray:
        """Apply the task after a move: `finish` episodes, return rewards float32 [B]."""
        raise NotImplementedError

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Return the actions executed instead of `action`: none in the dark."""
        return np.where(self.dark > 0, STAY, action)

    def tour_cells(self, slot: int) -> list[Cell]:
        """Return the cells that a guided tour of `slot` visits."""
        raise NotImplementedError

    def choice_cells(self, slot: int) -> list[Cell]:
        """Return the cells among which an agent without memory must choose."""
        raise NotImplementedError

    def look_cells(self, slot: int) -> list[Cell]:
        """Return a cell that shows the cue, then the goal."""
        raise NotImplementedError

    def roam_cells(self, slot: int) -> np.ndarray:
        """Return the cells of aimless walks in `slot`, int64 [M, 2]."""
        return np.argwhere(self.floor[slot])

    # The interface of every environment.

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; both int64 [M]."""
        where = np.asarray(where, np.int64)
        seeds = np.asarray(seeds, np.int64)
        for array in (self.clock, self.dark, self.border, self.outcome, self._action):
            array[where] = 0
        for array in (self.disguise, self.rewarded, self._terminated, self._truncated):
            array[where] = False
        self.episode[where] += 1
        self.phase[where] += 1
        self.seeds[where] = seeds
        self.seen_at[where] = -1
        for slot, seed in zip(where.tolist(), seeds.tolist()):
            self._fields[slot] = {}
            self._begin(slot, np.random.default_rng([seed]))
        self._look()

    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, int64 [B].

        Raises ValueError for actions of another shape or outside 0..3.
        """
        action = np.asarray(action)
        if action.shape != (self.batch,) or action.min() < 0 or action.max() > STAY:
            raise ValueError(
                f"actions must be {self.batch} integers from 0 to 3, got {action!r}"
            )
        running = ~(self._terminated | self._truncated)
        executed = np.where(running, self._executed(action), STAY)
        self._action = np.where(running, executed, self._action)
        self.heading, self.row, self.col = self.next_pose(executed)
        self.clock += running
        reward = self._rules(running)
        reward = np.where(running, reward, 0).astype(np.float32)
        self.rewarded = np.where(running, reward > 0, self.rewarded)
        self._look()
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, 3, 64, 64]; drawn at the first call."""
        if not self._drawn:
            # A new array: frames returned earlier stay as they are.
            self._frames = np.empty_like(self._frames)
            rendering.draw(self._view, self.border, self._frames)
            self._frames[self.dark > 0] = 0
            self._drawn = True
        return self._frames

    def last_action(self) -> np.ndarray:
        """Return the last executed action, int64 [B], zeros after a reset."""
        return self._action.copy()

    def truth(self) -> dict[str, np.ndarray]:
        """Return the ground truth that `BatchedEnv.truth` describes."""
        distance = self.distance(self.goal_field).astype(np.int64)
        reachable = distance < FAR
        seen = self.of_cue(self.seen_at)
        return {
            "success": self._success(),
            "goal_distance": np.where(reachable, distance, -1),
            "evidence_age": np.where(seen >= 0, self.clock - seen, -1),
            "outcome": self.outcome.copy(),
            "goal": self.cue.copy(),
        }

    def pose(self) -> np.ndarray:
        """Return heading and position of each agent, float32 [B, 3]."""
        angle = self.heading * np.pi / 2
        return np.stack((angle, -self.row, self.col), -1).astype(np.float32)

    def answer(self) -> np.ndarray:
        """Return the cue of each episode, int64 [B]."""
        return self.cue.copy()

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`; raises ValueError for an unknown one."""
        if name not in self.explorers:
            raise unknown_explorer("this maze", name, self.explorers)
        return MazeExplorer(self, RECIPES[name], seed)

    def in_view(self) -> tuple[np.ndarray, np.ndarray]:
        """Return positions in flattened `tiles` of the view, and which are in sight.

        positions: int64 [B, 9]
        in sight: bool [B, 9]
        """
        is_lit = (self.dark == 0)[:, None]
        in_sight = is_lit & (self.view() != rendering.UNSEEN)
        positions = self.tiles_in_view().reshape(self.batch, -1)
        return positions, in_sight

    def of_cue(self, values: np.ndarray) -> np.ndarray:
        """Return the entries of `values`, [B, K], for the cues, [B]."""
        return values[self.slots, self.cue]

    def finish(self, outcome: int, where: np.ndarray) -> None:
        """End the running episodes `where`, bool [B].

        SUCCESS and WRONG terminate, TIMEOUT truncates.
        """
        assert outcome in (SUCCESS, WRONG, TIMEOUT)
        ending = where & (self.outcome == RUNNING)
        self.outcome[ending] = outcome
        ended = self._truncated if outcome == TIMEOUT else self._terminated
        ended[ending] = True

    def _success(self) -> np.ndarray:
        return self.outcome == SUCCESS

    def _look(self) -> None:
        """Bring view and evidence up to date with the poses."""
        self._update_view()
        view = self._view.reshape(self.batch, -1)
        is_lit = self.dark == 0
        for k in range(self.labels):
            evidence = self.first_evidence + k
            shown = is_lit & (view == evidence).any(1)
            self.seen_at[shown, k] = self.clock[shown]
        self._drawn = False
