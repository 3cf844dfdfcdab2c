"""Four tasks that need memory: T-maze, Return, Recall and Scavenge."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from lssvwm.envs.base import SUCCESS, TIMEOUT, WRONG
from lssvwm.envs.maze import rendering as picture
from lssvwm.envs.maze.engine import AHEAD, LEFT, RIGHT, STAY, GridMaze
from lssvwm.envs.maze.layout import carve, distance_field, reachable

LEFT_END, RIGHT_END = (
    3,
    4,
)  # colours of the walls at the ends of the arms: magenta and cyan


@dataclass(frozen=True)
class TMazeConfig:
    """A corridor of `length` tiles whose foot shows red (go left) or green (right), and two arms.

    The arms have `arm` tiles and end at a magenta (left) or cyan (right) wall, in view only from inside the arm.
    `delay` dark frames follow the last frame of the cue. `steps` limits an episode (None: 4 length + 32 + delay),
    `budget` the decision, from one tile before the junction on. `cue_always` shows the cue in every frame: the
    control without memory. `autonomous`: nobody guides, and the agent starts somewhere in the corridor, the cue behind
    its back; it must go and look.
    """

    kind: str = "tmaze"
    length: int = 16
    arm: int = 2
    delay: int = 0
    cue_always: bool = False
    steps: int | None = None
    budget: int = 12
    autonomous: bool = False

    def build(self, batch: int) -> TMazeEnv:
        """Return `batch` T-mazes; raises ValueError for a size that cannot be built."""
        return TMazeEnv(self, batch)


class TMazeEnv(GridMaze):
    """Walk up a corridor and turn into the arm that the colour at its foot tells.

    Observation: as `GridMaze`; the cue is a wall panel on both sides of the second tile, in view from the
    first two. Reward: 1 on the end tile of the cued arm. Termination: on either end tile; truncated by
    `budget` or `steps`.
    """

    explorers = (
        "oracle",
        "guide",
        "look",
        "tour",
        "cells",
        "seek",
        "stumble",
        "momentum",
        "wall",
        "random",
        "noop",
    )
    first_evidence = picture.PANEL

    def __init__(self, config: TMazeConfig, batch: int):
        if config.length < 4 or config.arm < 1 or config.delay < 0:
            raise ValueError(
                f"a T-maze needs length >= 4, arm >= 1, delay >= 0; got {config}"
            )
        if config.autonomous and config.length < 7:
            raise ValueError(
                f"an autonomous T-maze needs length >= 7, got length={config.length}"
            )
        super().__init__(batch, config.length + 3, 2 * config.arm + 3, labels=2)
        self.config = config
        self.steps = (
            config.steps
            if config.steps is not None
            else 4 * config.length + 32 + config.delay
        )
        self.middle = config.arm + 1
        self.ends = np.array([(1, 1), (1, self.cols - 2)])
        self.left_at = np.full(batch, -1, np.int64)  # clock when the context ended
        self.delayed = np.zeros(batch, bool)
        self._plan = self._floor_plan()
        self._end_fields = [
            distance_field(self._plan, (int(r), int(c))) for r, c in self.ends
        ]

    def _floor_plan(self) -> np.ndarray:
        floor = np.zeros((self.rows, self.cols), bool)
        floor[1, 1:-1] = True
        floor[1:-1, self.middle] = True
        return floor

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        cue = int(rng.integers(2))
        self.lay(slot, self._plan)
        for side in (-1, 1):
            self.put_tile(
                slot, (self.rows - 3, self.middle + side), picture.PANEL + cue
            )
        self.put_tile(slot, (1, 0), picture.PANEL + LEFT_END)
        self.put_tile(slot, (1, self.cols - 1), picture.PANEL + RIGHT_END)
        start = (
            int(rng.integers(3, self.rows - 6))
            if self.config.autonomous
            else self.rows - 2
        )
        self.put_agent(slot, start, self.middle, 0)
        self.cue[slot] = cue
        self.border[slot] = (
            picture.CUE_BORDER + cue if self.config.cue_always else picture.NO_BORDER
        )
        self.goal_field[slot] = self._end_fields[cue]
        self.left_at[slot], self.delayed[slot] = -1, self.config.delay == 0

    def _rules(self, running: np.ndarray) -> np.ndarray:
        self.dark = np.maximum(self.dark - running, 0)
        enters = (
            running
            & ~self.delayed
            & (self.row <= self.rows - 4)
            & (self.seen_at[self.slots, self.cue] >= 0)
        )
        self.dark[enters], self.delayed[enters] = self.config.delay, True
        leaves = self.in_context() & (self.row <= 2) & (self.dark == 0)
        self.left_at[leaves] = self.clock[leaves]
        self.phase += leaves
        at_end = self.at(np.broadcast_to(self.ends, (self.batch, 2, 2)))
        right = at_end[self.slots, self.cue]
        self.finish(SUCCESS, right & running)
        self.finish(WRONG, at_end.any(1) & running)
        spent = (self.left_at >= 0) & (self.clock - self.left_at >= self.config.budget)
        self.finish(TIMEOUT, running & (spent | (self.clock >= self.steps)))
        return right.astype(np.float32)

    def _look(self) -> None:
        super()._look()
        if self.config.cue_always:
            self.seen_at[:] = self.clock[:, None]

    def in_context(self) -> np.ndarray:
        """Return bool [B], true until the agent first stands one tile before the junction, if it is guided."""
        return (self.left_at < 0) & (not self.config.autonomous)

    def tour_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the cell before the junction while the context lasts, then a random end."""
        return [(2, self.middle)] if self.left_at[slot] < 0 else []

    def choice_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the ends of both arms."""
        return [(1, 1), (1, self.cols - 2)]

    def look_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the foot of the corridor, then the end of the cued arm."""
        return [(self.rows - 2, self.middle), self.choice_cells(slot)[self.cue[slot]]]

    def roam_cells(self, slot: int) -> np.ndarray:
        """Return corridor cells, half of them the one before the junction; later mostly the ends."""
        rows = np.arange(2, self.rows - 1)
        corridor = np.stack([rows, np.full_like(rows, self.middle)], -1)
        if self.left_at[slot] < 0:
            return np.concatenate(
                [corridor, np.repeat(corridor[:1], len(rows), axis=0)]
            )
        return np.concatenate([self.ends, self.ends, corridor[:1]])


@dataclass(frozen=True)
class ReturnConfig:
    """A maze of n x n tiles with `objects` coloured balls, walked for `tour` frames, back to where it began.

    The way to the cued ball may take `slack` times the least number of steps. `loops` is the share of inner
    walls removed from the spanning tree. `coloured_query=False` shows all balls grey at query. Every ball lies at
    least `min_distance` steps (turns left out) from the start, so that it cannot just be seen from there.
    """

    kind: str = "return"
    n: int = 9
    objects: int = 3
    tour: int = 64
    slack: float = 1.5
    min_distance: int = 6
    coloured_query: bool = True
    loops: float = 0.1

    def build(self, batch: int) -> ReturnEnv:
        """Return `batch` return mazes; raises ValueError for a size that cannot be built."""
        return ReturnEnv(self, batch)


@dataclass(frozen=True)
class RecallConfig:
    """As Return, but `delay` dark frames follow the tour, then all balls look alike and the first counts.

    `budget` is the number of steps after the query; `coloured_query=True` is the control that shows the
    colours. `loops` as in Return.
    """

    kind: str = "recall"
    n: int = 11
    objects: int = 4
    tour: int = 128
    delay: int = 64
    budget: int = 96
    coloured_query: bool = False
    loops: float = 0.12

    def build(self, batch: int) -> RecallEnv:
        """Return `batch` recall mazes; raises ValueError for a size that cannot be built."""
        return RecallEnv(self, batch)


@dataclass(frozen=True)
class ScavengeConfig:
    """A maze of n x n tiles with `objects` coloured balls; the cue changes each time its ball is reached.

    An episode lasts `steps`; `loops` as in Return.
    """

    kind: str = "scavenge"
    n: int = 11
    objects: int = 3
    steps: int = 500
    loops: float = 0.12

    def build(self, batch: int) -> ScavengeEnv:
        """Return `batch` scavenging mazes; raises ValueError for a size that cannot be built."""
        return ScavengeEnv(self, batch)


class ObjectMaze(GridMaze):
    """What Return, Recall and Scavenge share: a random maze with balls of different colours, and a cue."""

    explorers = (
        "oracle",
        "guide",
        "tour",
        "cells",
        "seek",
        "stumble",
        "forage",
        "momentum",
        "wall",
        "random",
        "noop",
    )
    spacing = 1  # start and objects lie on any floor (1), or only on the cells at odd coordinates (2)

    def __init__(
        self, config: ReturnConfig | RecallConfig | ScavengeConfig, batch: int
    ):
        if not 2 <= config.objects <= len(picture.COLOURS):
            raise ValueError(
                f"objects must be 2 to {len(picture.COLOURS)}, got objects={config.objects}"
            )
        cells = (config.n // 2) ** 2
        if cells <= config.objects:
            raise ValueError(
                f"n={config.n} is too small for objects={config.objects}: it has {cells} cells"
            )
        super().__init__(batch, config.n, config.n, labels=config.objects)
        self.n, self.loops = config.n, config.loops
        self.objects = np.zeros((batch, config.objects, 2), np.int64)
        self.start = np.zeros((batch, 3), np.int64)

    def _begin(self, slot: int, rng: np.random.Generator) -> None:
        floor, spots = self._draw_layout(rng)
        self.lay(slot, floor)
        self.objects[slot] = spots[1:]
        for colour, (row, col) in enumerate(spots[1:].tolist()):
            self.put_tile(slot, (row, col), picture.OBJECT + colour)
        self.start[slot] = *spots[0], rng.integers(4)
        self.put_agent(slot, *self.start[slot])
        self.cue[slot] = rng.integers(self.labels)
        self._prepare(slot, rng)
        self._aim(slot)

    def _draw_layout(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return a floor, bool [n, n], and the start and object cells on it, int64 [1 + K, 2]."""
        for _ in range(1000):
            floor = carve(self.n, self.loops, rng)
            step = self.spacing
            cells = rng.permutation(np.argwhere(floor[1::step, 1::step]) * step + 1)
            spots = self._place(floor, cells[0], cells[1:])
            if len(spots) == 1 + self.labels:
                return floor, spots
        raise ValueError(
            f"n={self.n} is too small for {self.labels} objects: they block one another"
        )

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Return the start and the K first of `cells` that will do, int64 [1 + K or fewer, 2]."""
        return np.concatenate([start[None], cells[: self.labels]])

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        """Draw what else this episode of the task needs."""

    def _aim(self, slot: int) -> None:
        """Point the goal field of `slot` at its cued object."""
        self.goal_field[slot] = self.field(slot, self.goal_cell(slot))

    def goal_cell(self, slot: int) -> tuple[int, int]:
        """Return the cell of the cued object."""
        row, col = self.objects[slot, self.cue[slot]]
        return int(row), int(col)

    def touched(self) -> np.ndarray:
        """Return which object each agent stands on, bool [B, K]."""
        return self.at(self.objects)

    def tour_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the cells of all objects."""
        return [(row, col) for row, col in self.objects[slot].tolist()]

    def choice_cells(self, slot: int) -> list[tuple[int, int]]:
        """Return the cells of all objects."""
        return self.tour_cells(slot)


class TourMaze(ObjectMaze):
    """What Return and Recall share: a tour, a delay in the dark, then a query and a step budget.

    The tour leads back to the start: from when there is just time left for the way home, the agent is led there,
    and `last_action` tells the steps that it is made to take. So no jump in space interrupts what it saw.
    """

    def __init__(self, config: ReturnConfig | RecallConfig, batch: int, delay: int):
        if config.tour < 1 or delay < 0:
            raise ValueError(
                f"needs tour >= 1 and delay >= 0, got tour={config.tour}, delay={delay}"
            )
        super().__init__(config, batch)
        self.tour, self.delay, self.look_alike = (
            config.tour,
            delay,
            not config.coloured_query,
        )
        self.budget = np.zeros(batch, np.int64)
        self.home = np.zeros(
            (batch, 3), np.int64
        )  # pose in which the query finds the agent
        self.home_field = np.zeros((batch, 4, config.n, config.n), np.int16)

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        self.home[slot] = self.start[slot]

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        row, col, heading = self.home[slot].tolist()
        self.home_field[slot] = distance_field(self.floor[slot], (row, col), heading)

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Whoever would not be back in time is led home; in the dark, nothing happens."""
        late = (
            self.home_field[(self.slots, *self.next_pose(action))]
            >= self.tour - self.clock
        )
        if not (late & (self.clock < self.tour)).any():
            return super()._executed(action)
        steps = [
            self.home_field[(self.slots, *self.next_pose(way))]
            for way in (LEFT, RIGHT, AHEAD, STAY)
        ]
        return super()._executed(
            np.where(late & (self.clock < self.tour), np.argmin(steps, 0), action)
        )

    def _rules(self, running: np.ndarray) -> np.ndarray:
        asked_at = self.tour + self.delay
        self.dark = np.where(
            (self.clock >= self.tour) & (self.clock < asked_at),
            asked_at - self.clock,
            0,
        )
        for slot in np.flatnonzero(running & (self.clock == asked_at)).tolist():
            self._ask(slot)
        asked = running & (self.clock > asked_at)
        touched = self.touched()
        right = touched[self.slots, self.cue] & asked
        self.finish(SUCCESS, right)
        self._touch(touched.any(1) & asked)
        self.finish(TIMEOUT, asked & (self.clock - asked_at >= self.budget))
        return right.astype(np.float32)

    def _touch(self, where: np.ndarray) -> None:
        """Apply what touching an object other than the cued one does."""

    def _ask(self, slot: int) -> None:
        self.put_agent(
            slot, *self.home[slot]
        )  # moves those whose tour was too short to turn in
        self.border[slot] = picture.CUE_BORDER + self.cue[slot]
        self.disguise[slot] = self.look_alike
        self.phase[slot] += 1

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during tour and delay."""
        return self.clock < self.tour + self.delay


class ReturnEnv(TourMaze):
    """Walk a maze and come back to the start, then go to one of the objects seen, on a short budget.

    Observation: as `GridMaze`; at query the border shows the cued colour and the pose is that of the beginning.
    Reward: 1 on the cued object. Termination: on the cued object; truncated when the budget of
    ceil(slack x shortest path) steps is spent.
    """

    spacing = 2

    def __init__(self, config: ReturnConfig, batch: int):
        if config.slack < 1:
            raise ValueError(
                f"slack must be at least 1, or nobody can arrive; got slack={config.slack}"
            )
        super().__init__(config, batch, delay=0)
        self.slack, self.min_distance = config.slack, config.min_distance

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Leave out cells near the start."""
        steps = distance_field(floor, (int(start[0]), int(start[1]))).min(
            0
        )  # over headings: no turn counted twice
        far = steps[cells[:, 0], cells[:, 1]] >= self.min_distance
        return super()._place(floor, start, cells[far])

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        row, col, heading = self.home[slot]
        self.budget[slot] = math.ceil(
            self.slack * int(self.goal_field[slot, heading, row, col])
        )


class RecallEnv(TourMaze):
    """Walk a maze and come back, wait in the dark, then go to the ball that had the cued colour while all look alike.

    Observation: as `GridMaze`; at query the border shows the cued colour and the heading is fresh.
    Reward: 1 if the first ball touched is the cued one. Termination: on any ball; truncated after `budget`.
    Whoever did not see the tour succeeds in at most 1 / objects of the episodes.
    """

    def __init__(self, config: RecallConfig, batch: int):
        super().__init__(config, batch, delay=config.delay)
        self.budget[:] = config.budget

    def _place(
        self, floor: np.ndarray, start: np.ndarray, cells: np.ndarray
    ) -> np.ndarray:
        """Leave out cells where an object would block the way to another, or be blocked."""
        placed: list[tuple[int, int]] = []
        for row, col in cells.tolist():
            if len(placed) < self.labels and reachable(
                floor, (start[0], start[1]), [*placed, (row, col)]
            ):
                placed.append((row, col))
        return np.array([tuple(start), *placed])

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        super()._prepare(slot, rng)
        self.home[slot, 2] = rng.integers(4)

    def _aim(self, slot: int) -> None:
        super()._aim(slot)
        spots = np.concatenate([self.start[slot, None, :2], self.objects[slot]])
        self.goal_field[slot] = _apart(self.floor[slot], spots, 1 + int(self.cue[slot]))

    def _touch(self, where: np.ndarray) -> None:
        self.finish(WRONG, where)


def _apart(floor: np.ndarray, spots: np.ndarray, k: int) -> np.ndarray:
    """Return the distances to spot `k` that touch no other object (spots 1 and up), int16 [4, R, C]."""
    others = np.delete(spots[1:], k - 1, axis=0)
    without = floor.copy()
    without[others[:, 0], others[:, 1]] = False
    return distance_field(without, (int(spots[k, 0]), int(spots[k, 1])))


class ScavengeEnv(ObjectMaze):
    """ActionLimits the cued colour, then the next, until the time is up.

    Observation: as `GridMaze`; the border shows the cued colour. Reward: 1 on the cued object; the cue then
    changes. Termination: never; truncated after `steps`.
    """

    def __init__(self, config: ScavengeConfig, batch: int):
        super().__init__(config, batch)
        self.steps = config.steps
        self.hops = np.zeros(
            (batch, config.steps + 1), np.int64
        )  # steps from cue to next cue
        self.reached = np.zeros(batch, np.int64)

    def _prepare(self, slot: int, rng: np.random.Generator) -> None:
        self.hops[slot] = rng.integers(1, self.labels, size=self.steps + 1)
        self.reached[slot] = 0
        self.border[slot] = picture.CUE_BORDER + self.cue[slot]

    def _rules(self, running: np.ndarray) -> np.ndarray:
        reached = self.touched()[self.slots, self.cue] & running
        for slot in np.flatnonzero(reached).tolist():
            self.cue[slot] = (
                self.cue[slot] + self.hops[slot, self.reached[slot]]
            ) % self.labels
            self.reached[slot] += 1
            self.border[slot] = picture.CUE_BORDER + self.cue[slot]
            self.phase[slot] += 1
            self._aim(slot)
        self.finish(TIMEOUT, running & (self.clock >= self.steps))
        return reached.astype(np.float32)

    def in_context(self) -> np.ndarray:
        """Return bool [B], always false: nobody guides a scavenger."""
        return np.zeros(self.batch, bool)

    def _success(self) -> np.ndarray:
        return self.rewarded.copy()
