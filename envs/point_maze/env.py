"""Rooms seen from above, in which a dot moves freely: the published TwoRoom task, and a Return task that needs memory.

Lengths are in pixels of a frame that shows 64 x 64 of them; x is the column, y the row. Shapes: B slots, M of them
given by `slots`, R walls, n rooms (numbered row by row), K spots.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from lssvwm.envs.base import RUNNING, SUCCESS, TIMEOUT, BatchedEnv, Box, Explorer, Step
from lssvwm.envs.maze.rendering import COLOURS, MARGIN, SIDE

BORDER, WALL = 4.0, 3.0  # thickness of outer and inner walls
RADIUS = 2.0  # of the agent
SPOT = 3.0  # radius of a spot
SHIFT = 0.1  # how far random walls lie from where they would be, at most, in sides of a room
NEAR = 4.5  # this close to a goal, it is reached
FAR, WANDER = (
    25,
    3.0,
)  # goals by image: steps to what is walked to, and the noise of that walk, as published
GAP = 1e-6  # between an agent and the wall that stopped it
NOISE = 0.7  # of the explorers `walk` and `seek`
AGENT, SPOTS = COLOURS[0], COLOURS[1:]


@dataclass(frozen=True)
class PointMazeConfig:
    """`rows` x `cols` rooms in a square of `size` pixels, with a door of half width `door` between neighbours.

    With `random`, walls and doors lie elsewhere in every episode, and of the doors that no room needs to be reached,
    half are missing. The agent moves by up to `speed` pixels a step along x and along y. Goals:
    `image`: a picture of where a noisy walk from the start led after `offset` steps; twice as many may be taken.
    `spot`: `objects` coloured spots, a walk of `tour` frames back to the start, then a colour to go to, as in Return,
    on a budget of `slack` times the shortest way. `none`: walk about for `steps` steps.
    The view is all from `above`, or what lies `around` the agent, up to half of `window` pixels away.
    """

    kind: str = "pointmaze"
    rows: int = 1
    cols: int = 2
    size: int = 64
    door: float = 5.0
    random: bool = False
    speed: float = 2.0
    goal: Literal["image", "spot", "none"] = "image"
    view: Literal["above", "around"] = "above"
    window: int = 30
    offset: int = 50
    objects: int = 3
    tour: int = 128
    slack: float = 1.5
    steps: int = 100

    def build(self, batch: int) -> PointMaze:
        """Return `batch` point mazes; raises ValueError for a size that cannot be built."""
        return PointMaze(self, batch)


class PointMaze(BatchedEnv):
    """B point mazes, stepped together.

    Actions: two numbers from -1 to 1, the move along x and y in units of `speed`; walls stop the part that leads
    into them. Observation: uint8 [B, 3, 64, 64], all of the maze (`above`), or the part around the agent with a border
    that shows the cued colour (`around`). Reward: 1 at the goal. Termination: at the goal, within `NEAR` pixels;
    truncated when the budget is spent.
    """

    actions = Box((-1.0, -1.0), (1.0, 1.0))
    frame_shape = (3, SIDE, SIDE)
    explorers = ("oracle", "guide", "walk", "seek", "momentum", "random", "noop")

    def __init__(self, config: PointMazeConfig, batch: int):
        c = config
        _check(c)
        self.config, self.batch, self.slots = c, batch, np.arange(batch)
        self.rooms, self.labels = c.rows * c.cols, c.objects if c.goal == "spot" else 1
        self.edges = _neighbours(c.rows, c.cols)
        self.walls = np.zeros(
            (batch, 4 + 2 * len(self.edges), 4)
        )  # x, y of two corners, grown by RADIUS
        self.lines = [
            np.zeros((batch, c.cols - 1)),
            np.zeros((batch, c.rows - 1)),
        ]  # where inner walls lie: x; y
        self.gates = np.zeros(
            (batch, self.rooms, self.rooms, 2)
        )  # middle of the door between neighbours
        self.onward = np.zeros(
            (batch, self.rooms, self.rooms), np.int64
        )  # next room on the way from one to another
        self.position, self.start, self.goal = (np.zeros((batch, 2)) for _ in range(3))
        self.spots = np.zeros((batch, self.labels, 2))
        self.cue, self.clock, self.outcome, self.episode, self.seeds, self.budget = (
            np.zeros((6, batch), np.int64)
        )
        self.seen_at = np.full((batch, self.labels), -1, np.int64)
        self._action = np.zeros((batch, 2), np.float32)
        self.scale = (
            SIDE / c.size if c.view == "above" else (SIDE - 2 * MARGIN) / c.window
        )
        self._goals: np.ndarray | None = None
        self.margin = (
            0.0 if c.view == "above" else c.window / 2
        )  # of wall around the picture
        side = round((c.size + 2 * self.margin) * self.scale)
        self.picture = np.zeros((batch, 3, side, side), np.uint8)

    # The protocol of BatchedEnv.

    def reset(self, where: np.ndarray, seeds: np.ndarray) -> None:
        """Start episode `seeds[i]` in slot `where[i]`; both int64 [M]."""
        where, seeds = np.asarray(where, np.int64), np.asarray(seeds, np.int64)
        self.clock[where] = self.outcome[where] = 0
        self._action[where], self.seen_at[where] = 0, -1
        self.episode[where] += 1
        self.seeds[where] = seeds
        rngs = [np.random.default_rng([seed]) for seed in seeds.tolist()]
        for slot, rng in zip(where.tolist(), rngs):
            self._build(slot, rng)
            self.start[slot] = self.position[slot] = self.goal[slot] = self.place(
                slot, rng
            )
        if self.config.goal == "image":
            self.goal[where] = self._after_a_walk(where, rngs)
            self.budget[where] = 2 * self.config.offset
        elif self.config.goal == "spot":
            for slot, rng in zip(where.tolist(), rngs):
                self._lay_spots(slot, rng)
            way = self.distance(self.start[where], self.goal[where], where)
            self.budget[where] = np.ceil(self.config.slack * way) + 1
        else:
            self.budget[where] = self.config.steps
        for slot in where.tolist():
            self._draw(slot)
        if (
            self.config.goal == "image"
        ):  # a new array: what was handed out before stays as it is
            self._goals = self._seen(self.goal, np.zeros((self.batch, 3)))
        self._look()

    def step(self, action: np.ndarray) -> Step:
        """Advance every running slot by `action`, float [B, 2]; numbers beyond the bounds are moved to them."""
        action = np.asarray(action, np.float32)
        if action.shape != (self.batch, 2) or not np.isfinite(action).all():
            raise ValueError(
                f"actions must be {self.batch} pairs of finite numbers, got {action!r}"
            )
        running = self.outcome == RUNNING
        executed = np.where(running[:, None], self._executed(action.clip(-1, 1)), 0)
        self._action = np.where(running[:, None], executed, self._action).astype(
            np.float32
        )
        self.position = self.move(self.position, executed, self.slots)
        self.clock += running
        asked = running & (self.clock > self.context)
        reached = asked & self.reached(self.goal) & (self.config.goal != "none")
        self.outcome[reached] = SUCCESS
        spent = (
            running
            & (self.outcome == RUNNING)
            & (self.clock - self.context >= self.budget)
        )
        self.outcome[spent] = TIMEOUT
        self._look()
        return Step(
            reached.astype(np.float32), self.outcome == SUCCESS, self.outcome == TIMEOUT
        )

    def frames(self) -> np.ndarray:
        """Return the current frames, uint8 [B, 3, 64, 64]."""
        asked = (self.clock >= self.context) & (self.config.goal == "spot")
        return self._seen(self.position, np.where(asked[:, None], SPOTS[self.cue], 0))

    def goals(self) -> np.ndarray | None:
        """Return what the agent would see at its goal, uint8 [B, 3, 64, 64], where the goal is an image."""
        return self._goals

    def last_action(self) -> np.ndarray:
        """Return the action executed on the way to the current frame, float32 [B, 2], zeros after a reset."""
        return self._action.copy()

    @property
    def context(self) -> int:
        """Frames before the agent is asked to go somewhere."""
        return self.config.tour if self.config.goal == "spot" else 0

    def in_context(self) -> np.ndarray:
        """Return bool [B], true during the tour."""
        return self.clock < self.context

    def truth(self) -> dict[str, np.ndarray]:
        """Return success, goal_distance, evidence_age, outcome and goal as `BatchedEnv.truth` says."""
        away = np.where(
            self.reached(self.goal),
            0,
            self.distance(self.position, self.goal, self.slots),
        )
        seen = self.seen_at[self.slots, self.cue]
        known = (self.config.goal == "spot") & (seen >= 0)
        return {
            "success": self.outcome == SUCCESS,
            "goal_distance": np.full(self.batch, -1)
            if self.config.goal == "none"
            else away,
            "evidence_age": np.where(known, self.clock - seen, -1),
            "outcome": self.outcome.copy(),
            "goal": self.cue.copy(),
        }

    def explorer(self, name: str, seed: int) -> Explorer:
        """Return the scripted explorer `name`; raises ValueError with the valid names for any other."""
        return PointExplorer(self, name, seed)

    def top_view(self, slot: int) -> np.ndarray:
        """Draw the maze of `slot` with its agent, and a ring around the goal, uint8 [3, H, W]; for people."""
        picture, scale = self.picture[slot].copy(), self.scale
        y, x = np.indices(picture.shape[1:])
        for place, colour, inner in (
            (self.position[slot], AGENT, 0.0),
            (self.goal[slot], SPOTS[0], RADIUS),
        ):
            away = (
                np.hypot(x + 0.5 - self._at(place[0]), y + 0.5 - self._at(place[1]))
                / scale
            )
            shown = (away <= RADIUS + (inner > 0)) & (away >= inner)
            if inner == 0 or self.config.goal != "none":
                picture[:, shown] = colour[:, None]
        return picture

    # Moving.

    def move(
        self, position: np.ndarray, action: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return where `action` [M, 2] leads from `position` [M, 2]: first along x, then along y, up to the walls."""
        position, walls = position.copy(), self.walls[slots]
        low, high = walls[..., :2], walls[..., 2:]
        for axis in (0, 1):
            step = self.config.speed * action[:, axis]
            position[:, axis] += step
            inside = np.all(
                (position[:, None] > low) & (position[:, None] < high), axis=-1
            )
            before = np.where(inside, low[..., axis] - GAP, np.inf).min(1)
            after = np.where(inside, high[..., axis] + GAP, -np.inf).max(1)
            stopped = np.where(step > 0, before, after)
            position[:, axis] = np.where(inside.any(1), stopped, position[:, axis])
        return position

    def _executed(self, action: np.ndarray) -> np.ndarray:
        """Whoever would not be back from the tour in time is led to the start."""
        if not self.context or self.clock.min() >= self.context:
            return action
        left = self.context - self.clock
        home = self.distance(
            self.move(self.position, action, self.slots), self.start, self.slots
        )
        late = (1.1 * home + 8 >= left) & (
            left > 0
        )  # doors take some steps more than the distance says
        return np.where(
            late[:, None], self.steer(self.position, self.start, self.slots), action
        )

    def room(self, position: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return the rooms of positions [M, 2], int64 [M]."""
        col, row = (
            (position[:, i, None] > self.lines[i][slots]).sum(1) for i in (0, 1)
        )
        return row * self.config.cols + col

    def steer(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the action that leads from `position` towards `target`, both [M, 2], through doors."""
        here, there = self.room(position, slots), self.room(target, slots)
        following = self.onward[slots, here, there]
        gate = self.gates[slots, here, following]
        axis = (np.abs(following - here) != 1).astype(
            np.int64
        )  # the wall is crossed along x, or along y
        rows = np.arange(len(slots))
        forth = np.sign(following - here) * (WALL / 2 + RADIUS + 0.5)
        aligned = (
            np.abs((position - gate)[rows, 1 - axis]) < self.config.door - RADIUS - 0.25
        )
        gate[rows, axis] += np.where(aligned, forth, -forth)
        away = (
            np.where(
                (here == there)[:, None],
                self._out_of_door(position, target, slots),
                gate,
            )
            - position
        )
        return away / np.maximum(np.abs(away).max(1), self.config.speed)[:, None]

    def _out_of_door(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """The target, or for those in a doorway that it does not lie in: the end of the doorway, [M, 2]."""
        stop = target.copy()
        for axis in (0, 1):
            lines = self.lines[axis][slots]
            off = position[:, axis, None] - lines
            inside = np.abs(off) < WALL / 2 + RADIUS
            both = inside & (np.abs(target[:, axis, None] - lines) < WALL / 2 + RADIUS)
            leave = inside.any(1) & ~both.any(1)
            end = np.where(
                inside, lines + np.where(off > 0, 1, -1) * (WALL / 2 + RADIUS + 0.5), 0
            ).sum(1)
            stop[leave] = position[leave]
            stop[leave, axis] = end[leave]
        return stop

    def distance(
        self, position: np.ndarray, target: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """Return the steps of about the shortest way from `position` to `target`, both [M, 2], int64 [M]."""
        here, there = self.room(position, slots), self.room(target, slots)
        total = np.zeros(len(slots))
        for _ in range(self.rooms):
            onward = self.onward[slots, here, there]
            stop = np.where(
                (here == there)[:, None], target, self.gates[slots, here, onward]
            )
            total += np.abs(stop - position).max(1)
            position, here = stop, onward
            if (here == there).all() and (position == target).all():
                break
        return np.ceil(total / self.config.speed).astype(np.int64)

    def reached(self, target: np.ndarray) -> np.ndarray:
        """Return who is near `target` [B, 2], bool [B]."""
        return np.hypot(*(self.position - target).T) < NEAR

    # Laying out an episode.

    def place(self, slot: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a free position, [2]."""
        while True:
            at = rng.uniform(
                BORDER + RADIUS, self.config.size - BORDER - RADIUS, size=2
            )
            walls = self.walls[slot]
            if not ((at > walls[:, :2]) & (at < walls[:, 2:])).all(1).any():
                return at

    def _build(self, slot: int, rng: np.random.Generator) -> None:
        """Walls, doors and ways of `slot`."""
        c = self.config
        for lines, count in zip(self.lines, (c.cols, c.rows)):
            even = np.linspace(BORDER, c.size - BORDER, count + 1)
            shift = (
                rng.uniform(-SHIFT, SHIFT, size=count - 1)
                * (even[1] - even[0])
                * c.random
            )
            lines[slot] = even[1:-1] + shift
        opened = _passages(self.edges, self.rooms, rng) if c.random else self.edges
        s, b = float(c.size), BORDER
        walls = [
            (-b, -b, s + b, b),
            (-b, s - b, s + b, s + b),
            (-b, -b, b, s + b),
            (s - b, -b, s + b, s + b),
        ]
        for edge in self.edges:
            walls += self._wall(slot, edge, edge in opened, rng)
        self.walls[slot] = np.array(walls) + np.array(
            [-RADIUS, -RADIUS, RADIUS, RADIUS]
        )
        self.onward[slot] = _routes(opened, self.rooms)

    def _wall(
        self, slot: int, edge: tuple[int, int], opened: bool, rng: np.random.Generator
    ) -> list[tuple]:
        """The two parts of the wall between neighbours, a door between them; where there is none, they overlap."""
        c, (a, b) = self.config, edge
        axis = 0 if b - a == 1 and c.cols > 1 else 1
        row, col = divmod(a, c.cols)
        at = self.lines[axis][slot, col if axis == 0 else row]
        ends = np.array([BORDER, *self.lines[1 - axis][slot], c.size - BORDER])
        k = row if axis == 0 else col
        low, high = ends[k] - WALL / 2, ends[k + 1] + WALL / 2
        room = c.door + WALL + RADIUS
        gate = (
            rng.uniform(low + room, high - room) if c.random else low + (high - low) / 4
        )
        self.gates[slot, a, b] = self.gates[slot, b, a] = (
            (at, gate) if axis == 0 else (gate, at)
        )
        width = c.door if opened else -1.0
        spans = (low, gate - width), (gate + width, high)
        boxes = [(at - WALL / 2, f, at + WALL / 2, t) for f, t in spans]
        return boxes if axis == 0 else [(y0, x0, y1, x1) for x0, y0, x1, y1 in boxes]

    def _lay_spots(self, slot: int, rng: np.random.Generator) -> None:
        """Spots out of sight from the start and apart from each other; one of them is the goal."""
        placed: list[np.ndarray] = []
        away = max(self.config.size / 4, self.config.window / 2 + SPOT)
        for _ in range(1000):
            at = self.place(slot, rng)
            apart = all(np.hypot(*(at - other)) > 2 * NEAR + SPOT for other in placed)
            if apart and np.hypot(*(at - self.start[slot])) > away:
                placed.append(at)
            if len(placed) == self.labels:
                break
        else:
            raise ValueError(
                f"size={self.config.size} is too small for {self.labels} objects"
            )
        self.spots[slot] = placed
        self.cue[slot] = rng.integers(self.labels)
        self.goal[slot] = self.spots[slot, self.cue[slot]]

    def _after_a_walk(
        self, slots: np.ndarray, rngs: list[np.random.Generator]
    ) -> np.ndarray:
        """Where a very noisy walk to places at least `FAR` steps away leads in `offset` steps, [M, 2]."""
        position, noise = (
            self.start[slots],
            [rng.normal(size=(self.config.offset, 2)) for rng in rngs],
        )
        noise = WANDER * np.stack(noise)
        target = np.stack(
            [self._far(*each) for each in zip(slots.tolist(), position, rngs)]
        )
        for t in range(self.config.offset):
            action = self.steer(position, target, slots) + noise[:, t]
            position = self.move(position, action.clip(-1, 1), slots)
            for i in np.flatnonzero(np.hypot(*(position - target).T) < NEAR).tolist():
                target[i] = self._far(int(slots[i]), position[i], rngs[i])
        return position

    def _far(
        self, slot: int, position: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """A place at least `FAR` steps from `position` [2], or the farthest of some."""
        places = np.stack([self.place(slot, rng) for _ in range(10)])
        steps = self.distance(
            np.broadcast_to(position, places.shape), places, np.full(len(places), slot)
        )
        return places[np.argmax(np.where(steps >= FAR, FAR + 1, steps))]

    # Looking.

    def _at(self, length: np.ndarray) -> np.ndarray:
        """Pixels of the stored picture at positions."""
        return (length + self.margin) * self.scale

    def _draw(self, slot: int) -> None:
        """The maze without its agent."""
        picture = self.picture[slot]
        centre = (np.arange(picture.shape[-1]) + 0.5) / self.scale - self.margin
        x, y = centre[None, :], centre[:, None]
        picture[:] = 255
        for spot, colour in (
            zip(self.spots[slot], SPOTS) if self.config.goal == "spot" else ()
        ):
            picture[:, np.hypot(x - spot[0], y - spot[1]) <= SPOT] = colour[:, None]
        grown = self.walls[slot] + np.array([RADIUS, RADIUS, -RADIUS, -RADIUS])
        for x0, y0, x1, y1 in grown.tolist():
            picture[:, (x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = 0
        outside = (x < 0) | (x >= self.config.size) | (y < 0) | (y >= self.config.size)
        picture[:, outside] = 0

    def _seen(self, position: np.ndarray, border: np.ndarray) -> np.ndarray:
        """What agents see at `position` [B, 2]; the border's colours [B, 3] show in the view around them."""
        if self.config.view == "above":
            frames, centre = self.picture.copy(), self._at(position)
            corner = np.floor(centre).astype(np.int64)
            cut = np.arange(-3, 4)
        else:
            inside = SIDE - 2 * MARGIN
            corner = np.round(self._at(position)).astype(np.int64) - inside // 2
            rows, cols = (corner[:, i, None] + np.arange(inside) for i in (1, 0))
            frames = np.empty((self.batch, 3, SIDE, SIDE), np.uint8)
            frames[:] = border[:, :, None, None]
            part = self.picture[
                self.slots[:, None, None], :, rows[:, :, None], cols[:, None, :]
            ]
            frames[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN] = part.transpose(0, 3, 1, 2)
            corner, centre = (
                np.full((self.batch, 2), SIDE // 2),
                np.full((self.batch, 2), SIDE / 2),
            )
            cut = np.arange(
                -math.ceil(RADIUS * self.scale) - 1, math.ceil(RADIUS * self.scale) + 2
            )
        x, y = (corner[:, i, None] + cut for i in (0, 1))
        away = np.hypot(
            x[:, None, :] + 0.5 - centre[:, 0, None, None],
            y[:, :, None] + 0.5 - centre[:, 1, None, None],
        )
        cover = (RADIUS * self.scale + 0.5 - away).clip(0, 1)[..., None]
        at = self.slots[:, None, None], slice(None), y[:, :, None], x[:, None, :]
        frames[at] = np.round(frames[at] * (1 - cover) + AGENT * cover).astype(np.uint8)
        return frames

    def _look(self) -> None:
        """Note which spots are in view."""
        if self.config.goal == "spot":
            away = np.abs(self.spots - self.position[:, None]).max(-1)
            shown = (away < self.config.window / 2 + SPOT / 2) | (
                self.config.view == "above"
            )
            self.seen_at = np.where(shown, self.clock[:, None], self.seen_at)


class PointExplorer(Explorer):
    """Scripted walkers, which know the map.

    `oracle`: round all spots, then to the goal. `guide`: round all spots, then anywhere. `walk`: from one random place
    to another, with noise. `seek`: so too, and after the context to the spots in random order. `momentum`: straight on,
    turning now and then. `random`, `noop`. A walk depends on its seed and the episode's only.
    """

    def __init__(self, env: PointMaze, name: str, seed: int):
        if name not in env.explorers:
            raise ValueError(
                f"unknown explorer {name!r}: choose one of {', '.join(env.explorers)}"
            )
        self.env, self.name, self.seed = env, name, seed
        self.episode = np.full(env.batch, -1, np.int64)
        self.asked = np.zeros(env.batch, bool)
        self.target, self.way = np.zeros((2, env.batch, 2))
        self.pending: list[list[np.ndarray]] = [[] for _ in range(env.batch)]
        self.rngs = [np.random.default_rng(0) for _ in range(env.batch)]

    def act(self) -> np.ndarray:
        """Return one action per slot, float32 [B, 2]."""
        env = self.env
        for slot in np.flatnonzero(env.episode != self.episode).tolist():
            self.episode[slot] = env.episode[slot]
            self.rngs[slot] = np.random.default_rng(
                [self.seed, int(env.seeds[slot]), 3]
            )
            self._plan(slot, asked=False)
        for slot in np.flatnonzero(~env.in_context() & ~self.asked).tolist():
            self._plan(slot, asked=True)
        noise = np.stack([rng.normal(size=2) for rng in self.rngs])
        match self.name:
            case "noop":
                return np.zeros((env.batch, 2), np.float32)
            case "random":
                return noise.clip(-1, 1).astype(np.float32)
            case "momentum":
                turn = np.abs(noise).max(1) > 2.0
                self.way[turn] = noise[turn]
                return (
                    self.way / np.abs(self.way).max(1, keepdims=True).clip(min=1e-6)
                ).astype(np.float32)
        for slot in np.flatnonzero(env.reached(self.target)).tolist():
            self.target[slot] = self._next(slot)
        action = env.steer(env.position, self.target, env.slots)
        noisy = NOISE * noise * (self.name in ("walk", "seek"))
        return (action + noisy).clip(-1, 1).astype(np.float32)

    def _plan(self, slot: int, asked: bool) -> None:
        """Where to go in the context, or after it."""
        env, rng = self.env, self.rngs[slot]
        self.asked[slot], self.way[slot] = asked, rng.normal(size=2)
        spots = list(env.spots[slot]) if env.config.goal == "spot" else []
        self.pending[slot] = (
            [spots[i] for i in rng.permutation(len(spots))]
            if self._visits(asked)
            else []
        )
        self.target[slot] = self._next(slot)

    def _visits(self, asked: bool) -> bool:
        return self.name == "seek" if asked else self.name in ("oracle", "guide")

    def _next(self, slot: int) -> np.ndarray:
        env = self.env
        if self.name == "oracle" and self.asked[slot] and env.config.goal != "none":
            return env.goal[slot]
        return (
            self.pending[slot].pop()
            if self.pending[slot]
            else env.place(slot, self.rngs[slot])
        )


def _check(c: PointMazeConfig) -> None:
    for name, value, least in (
        ("rows", c.rows, 1),
        ("cols", c.cols, 1),
        ("offset", c.offset, 1),
        ("tour", c.tour, 1),
    ):
        if value < least:
            raise ValueError(f"point maze: {name}={value} must be at least {least}")
    if not c.door > RADIUS or not 0 < c.speed <= WALL:
        raise ValueError(
            f"point maze: needs door > {RADIUS} and 0 < speed <= {WALL}; got {c.door} and {c.speed}"
        )
    side = (c.size - 2 * BORDER) / max(c.rows, c.cols) * (1 - 2 * SHIFT)
    if side < 2 * (c.door + WALL + RADIUS):
        raise ValueError(
            f"point maze: size={c.size} is too small for {c.rows} x {c.cols} rooms with door={c.door}"
        )
    if c.goal == "spot" and not 2 <= c.objects <= len(SPOTS):
        raise ValueError(
            f"point maze: objects must be 2 to {len(SPOTS)}, got {c.objects}"
        )


def _neighbours(rows: int, cols: int) -> list[tuple[int, int]]:
    """Pairs of rooms that share a wall."""
    cells = list(itertools.product(range(rows), range(cols)))
    right = [(r * cols + k, r * cols + k + 1) for r, k in cells if k + 1 < cols]
    return right + [
        (r * cols + k, (r + 1) * cols + k) for r, k in cells if r + 1 < rows
    ]


def _passages(
    edges: list[tuple[int, int]], rooms: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Edges that join all rooms (Kruskal's algorithm in random order), and half of the others."""
    group, opened = list(range(rooms)), []
    for i in rng.permutation(len(edges)):
        a, b = edges[i]
        if group[a] != group[b] or rng.random() < 0.5:
            opened.append((a, b))
            group = [group[a] if g == group[b] else g for g in group]
    return opened


def _routes(edges: list[tuple[int, int]], rooms: int) -> np.ndarray:
    """The next room on a way with fewest doors from each room to each, int64 [n, n] (Floyd and Warshall)."""
    length = np.where(np.eye(rooms, dtype=bool), 0, rooms + 1)
    onward = np.tile(np.arange(rooms), (rooms, 1))
    for a, b in edges:
        length[a, b] = length[b, a] = 1
    for k in range(rooms):
        through = length[:, k, None] + length[k]
        better = through < length
        onward = np.where(better, onward[:, k, None], onward)
        length = np.minimum(length, through)
    return onward
