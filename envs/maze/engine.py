"""The batched maze engine: maps, poses, views and distances of B mazes at once; `tasks` builds on it.

Shapes: B slots, R x C a map, K objects. A pose is (row, column, heading), headings as in `layout`.
A task overrides `_begin` (lay out one slot's episode) and `_rules` (what a step leads to).
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
)
from lssvwm.envs.maze import rendering as picture
from lssvwm.envs.maze.layout import FAR, FORWARD, distance_field

LEFT, RIGHT, AHEAD, STAY = range(4)
_TURN = np.array([-1, 1, 0, 0])


class GridMaze(BatchedEnv):
    """B mazes seen from inside, stepped together.

    Actions: left, right (turn by 90 degrees), forward (one tile, not into walls), stay.
    Observation: uint8 [B, 3, 64, 64], the 3 x 3 tiles ahead without those that walls hide, and a border that
    shows the cue colour when the task shows one. No frame shows the reward: it must be foreseen.
    """

    actions = Discrete(4, ("left", "right", "forward", "stay"))
    frame_shape = (3, picture.SIDE, picture.SIDE)

    def __init__(self, batch: int, rows: int, cols: int, labels: int):
        self.batch, self.rows, self.cols, self.labels = batch, rows, cols, labels
        self.width = cols + 2 * picture.PAD
        self.tiles = np.full(
            (batch, rows + 2 * picture.PAD, self.width), picture.WALL, np.uint8
        )
        self.floor = np.zeros((batch, rows, cols), bool)
        self.row, self.col, self.heading = (np.zeros(batch, np.int64) for _ in range(3))
        self.slots = np.arange(batch)
        self.episode = np.zeros(batch, np.int64)
        self.seeds = np.zeros(batch, np.int64)
        self.phase = np.zeros(
            batch, np.int64
        )  # changes whenever a plan made before is void
        self.clock = np.zeros(batch, np.int64)  # frames since the reset
        self.dark = np.zeros(batch, np.int64)  # dark frames left, this one included
        self.cue = np.zeros(batch, np.int64)
        self.border = np.zeros(batch, np.int64)
        self.disguise = np.zeros(batch, bool)  # all objects look alike
        self.outcome = np.zeros(batch, np.int64)
        self.rewarded = np.zeros(batch, bool)
        self.goal_field = np.full((batch, 4, rows, cols), FAR, np.int16)
        self.seen_at = np.full(
            (batch, labels), -1, np.int64
        )  # clock when evidence k was last in view
        self._terminated, self._truncated = np.zeros(batch, bool), np.zeros(batch, bool)
        self._action = np.zeros(batch, np.int64)
        self._fields: list[dict] = [{} for _ in range(batch)]
        self._offsets = picture.flat_offsets(self.width)
        self._base = self.slots * self.tiles[0].size + picture.PAD * (self.width + 1)
        self._view = np.zeros((batch, picture.VIEW, picture.VIEW), np.uint8)
        self._frames = np.zeros((batch, *self.frame_shape), np.uint8)
        self._drawn = False

    # What a task fills in.

    first_evidence = picture.OBJECT  # tile that is evidence 0

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        """Lay out a new episode in `slot`: floor and tiles, pose, cue, goal field."""
        raise NotImplementedError

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Return what will be done instead of `action`, int64 [B]: in the dark, nothing."""
        return np.where(self.dark > 0, STAY, action)

    def _rules(self, running: np.ndarray) -> np.ndarray:
        """Apply the task after a move; `finish` what ends, and return rewards, float32 [B]."""
        raise NotImplementedError

    def tour_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the cells that a guided tour of `slot` visits."""
        raise NotImplementedError

    def choice_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the cells of `slot` among which one without memory must choose."""
        raise NotImplementedError

    def look_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return where one who knows the map goes to see the cue, and then to reach the goal."""
        raise NotImplementedError

    def roam_cells(self, slot: int) -> np.ndarray:
        """Return the cells of `slot` that a walk without aim may head for, int64 [M, 2]."""
        return np.argwhere(self.floor[slot])

    # The protocol of BatchedEnv.

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; both int64 [M]."""
        where, seeds = np.asarray(where, np.int64), np.asarray(seeds, np.int64)
        for array in (
            self.clock,
            self.dark,
            self.border,
            self.disguise,
            self.outcome,
            self.rewarded,
        ):
            array[where] = 0
        for array in (self._terminated, self._truncated, self._action):
            array[where] = 0
        self.episode[where] += 1
        self.phase[where] += 1
        self.seeds[where] = seeds
        self.seen_at[where] = -1
        for slot, seed in zip(where.tolist(), seeds.tolist()):
            self._fields[slot] = {}
            self._begin(slot, np.random.default_rng([seed]))
        self._look()

    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, int64 [B]."""
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
        reward = np.where(running, self._rules(running), 0).astype(np.float32)
        self.rewarded = np.where(running, reward > 0, self.rewarded)
        self._look()
        return Step(reward, self._terminated.copy(), self._truncated.copy())

    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, 3, 64, 64]; drawn when first asked for."""
        if not self._drawn:
            self._frames = np.empty((self.batch, *self.frame_shape), np.uint8)
            picture.draw(self._view, self.border, self._frames)
            self._frames[self.dark > 0] = 0
            self._drawn = True
        return self._frames

    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to the current frame, int64 [B], zeros after a reset."""
        return self._action.copy()

    def truth(self) -> dict[str, np.ndarray]:
        """Return success, goal_distance, evidence_age, outcome and goal as `BatchedEnv.truth` says."""
        distance = self.distance(self.goal_field).astype(np.int64)
        seen = self.seen_at[self.slots, self.cue]
        return {
            "success": self._success(),
            "goal_distance": np.where(distance < FAR, distance, -1),
            "evidence_age": np.where(seen >= 0, self.clock - seen, -1),
            "outcome": self.outcome.copy(),
            "goal": self.cue.copy(),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`; raises ValueError with the valid names for any other."""
        from lssvwm.envs.maze.explorers import MazeExplorer

        return MazeExplorer(self, name, seed)

    # For explorers and tasks.

    def distance(self, field: np.ndarray) -> np.ndarray:
        """Read distance fields ([B, 4, R, C]) at the present poses, int16 [B]."""
        return field[self.slots, self.heading, self.row, self.col]

    def at(self, cells: np.ndarray) -> np.ndarray:
        """Return where the agents stand on `cells` (int [B, ..., 2]), bool [B, ...]."""
        here = np.stack([self.row, self.col], -1).reshape(
            self.batch, *[1] * (cells.ndim - 2), 2
        )
        return (cells == here).all(-1)

    def field(self, slot: int, cell: tuple[int, int]) -> np.ndarray:
        """Return the distances of all poses of `slot` to `cell`, int16 [4, R, C]; kept until its reset."""
        known = self._fields[slot]
        if cell not in known:
            known[cell] = distance_field(self.floor[slot], cell)
        return known[cell]

    def free(self, turn: int | np.ndarray) -> np.ndarray:
        """Return bool [B], whether the next tile `turn` quarter turns to the right is floor."""
        ahead = FORWARD[(self.heading + turn) % 4]
        return self.floor[self.slots, self.row + ahead[:, 0], self.col + ahead[:, 1]]

    def in_view(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which tiles of `tiles` (flattened) the 9 of the view are, int64 [B, 9], and which are in sight, bool
        [B, 9]."""
        at = self._base + self.row * self.width + self.col
        lit = self.view() != picture.UNSEEN
        return at[:, None] + self._offsets[self.heading], lit & (self.dark == 0)[
            :, None
        ]

    def view(self) -> np.ndarray:
        """Return the tiles of the view as they are drawn, int64 [B, 9]."""
        return self._view.reshape(self.batch, -1).astype(np.int64)

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the map of `slot` with its agent, uint8 [3, 12 R, 12 C]; for people, never for a model."""
        pad = picture.PAD
        pose = int(self.row[slot]), int(self.col[slot]), int(self.heading[slot])
        return picture.draw_map(self.tiles[slot, pad:-pad, pad:-pad], pose)

    def bearing(self, slot: int) -> float:
        """Return which way the agent of `slot` faces on its map, in radians clockwise from up."""
        return int(self.heading[slot]) * np.pi / 2

    # The engine.

    def lay(self, slot: int, floor: np.ndarray) -> None:
        """Give `slot` the map `floor`, bool [R, C]."""
        pad = picture.PAD
        self.floor[slot] = floor
        self.tiles[slot, pad:-pad, pad:-pad] = np.where(
            floor, picture.FLOOR, picture.WALL
        )

    def put_tile(self, slot: int, cell: tuple[int, int], tile: int) -> None:
        """Show `tile` at `cell` of `slot`."""
        self.tiles[slot, cell[0] + picture.PAD, cell[1] + picture.PAD] = tile

    def put_agent(self, slot: int, row: int, col: int, heading: int) -> None:
        """Set the pose of `slot`."""
        self.row[slot], self.col[slot], self.heading[slot] = row, col, heading

    def finish(self, outcome: int, where: np.ndarray) -> None:
        """End the episodes `where` (bool [B]): SUCCESS and WRONG terminate, TIMEOUT truncates."""
        where = where & (self.outcome == RUNNING)
        self.outcome[where] = outcome
        (self._truncated if outcome == TIMEOUT else self._terminated)[where] = True
        assert outcome in (SUCCESS, WRONG, TIMEOUT)

    def _success(self) -> np.ndarray:
        return self.outcome == SUCCESS

    def next_pose(
        self, action: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return heading, row and column after `action`, int64 [B] each."""
        heading = (self.heading + _TURN[action]) % 4
        forward = (
            FORWARD[heading]
            * (np.broadcast_to(action, heading.shape) == AHEAD)[:, None]
        )
        row, col = self.row + forward[:, 0], self.col + forward[:, 1]
        free = self.floor[self.slots, row, col]
        return heading, np.where(free, row, self.row), np.where(free, col, self.col)

    def _look(self) -> None:
        """Bring view and evidence up to date with the poses."""
        at = self._base + self.row * self.width + self.col
        view = self.tiles.reshape(-1)[at[:, None] + self._offsets[self.heading]]
        if self.disguise.any():
            ball = (
                (view >= picture.OBJECT)
                & (view < picture.PANEL)
                & self.disguise[:, None]
            )
            view = np.where(ball, picture.GREY, view)
        self._view = picture.hide_occluded(view)
        flat = self._view.reshape(self.batch, -1)
        for k in range(self.labels):
            shown = (flat == self.first_evidence + k).any(1) & (self.dark == 0)
            self.seen_at[:, k] = np.where(shown, self.clock, self.seen_at[:, k])
        self._drawn = False
