"""Simulate one Memory Maze with MuJoCo, as the package does, but faster.

The package loops in Python over all contacts of each of the 50 physics steps of an
action. It also evaluates observations that nothing reads. This module builds the same
maze from the package's parts, and replaces the loop by one comparison. Frames, rewards
and poses stay those of the package.

Positions are (up, right) on the map, in tiles from its lower left corner.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np

SIDE = 64
"""Side of a frame, in pixels."""
BORDER = 2
"""Width of the border that shows the target's colour, in pixels."""
BORDER_LIGHT = 255 * 0.7
"""Brightness of the border, in the package's colours from 0 to 1."""
SUBSTEPS = 50
"""Physics steps of an action: four actions a second, 5 ms each."""
METRES = 2.0
"""Side of a tile."""
CONTROLS = np.array(
    [(0, 0), (-1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1)], dtype=np.float64
)
"""Controls (roll, steer) of every action, in the order of the package."""
ROOMS = {
    9: (3, 6, 5),
    11: (4, 6, 5),
    13: (5, 6, 5),
    15: (6, 9, 3),
}
"""Targets, most rooms, and side of the largest room, by size, as in the package."""
MISSING = (
    "env=memorymaze needs Memory Maze; install it with: pip install 'mujoco>=3.17,<4' "
    "dm_control labmaze && pip install --no-deps memory-maze==1.0.3"
)
BLIND = (
    "env=memorymaze cannot render with MUJOCO_GL={backend} ({error}); without a display "
    "use MUJOCO_GL=egl (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0) or "
    "MUJOCO_GL=osmesa (libosmesa6)"
)


class Simulator:
    """Run episodes of one maze; `reset` comes before everything else.

    floor: bool [n, n], row 0 at the bottom, as the package's `maze_layout`
    targets: float64 [K, 2], positions of the targets
    pose: float64 [3], heading in radians clockwise from up, then the position
    """

    floor: np.ndarray
    targets: np.ndarray
    pose: np.ndarray

    def __init__(self, size: int):
        self.size = size
        self.mujoco = _load("mujoco")
        self.maze = _load("memory_maze.maze")
        self.task = _make_task(self.maze, size)
        self.physics: Any = None

    @property
    def target(self) -> int:
        """Number of the present target."""
        return int(self.task._current_target_ix)

    def reset(self, seed: int) -> None:
        """Start the episode that the package's maze has first with this seed.

        Raises ImportError with the remedy if there is no way to render.
        """
        task = self.task
        arena = task.root_entity
        self.rng = np.random.RandomState(seed)
        text_seed = self.rng.randint(2**31)
        arena._maze = _make_text_maze(self.maze, self.size, text_seed)
        entities = list(arena.iter_entities())
        task.initialize_episode_mjcf(self.rng)
        for entity in entities:
            entity.initialize_episode_mjcf(self.rng)
        self.close()
        mjcf = _load("dm_control.mjcf")
        self.physics = mjcf.Physics.from_mjcf_model(arena.mjcf_model)
        with self.physics.reset_context():
            task.initialize_episode(self.physics, self.rng)
            for entity in entities:
                entity.initialize_episode(self.physics, self.rng)
        self.camera = self._make_camera()
        self._read_layout()
        self._read_pose()

    def _make_camera(self) -> Any:
        engine = _load("dm_control.mujoco.engine")
        name = self.task._walker.egocentric_camera.full_identifier
        try:
            return engine.Camera(self.physics, SIDE, SIDE, name)
        except Exception as error:  # there is no display, or no such device
            raise _blind(error) from error

    def _read_layout(self) -> None:
        text = self.task.root_entity.maze.entity_layer[1:-1, 1:-1]
        self.floor = np.isin(text, [" ", "P", "G"])[::-1]
        geoms = [target.geom for target in self.task._targets]
        bound = self.physics.bind(geoms)
        self.target_geoms = np.array(bound.element_id)
        self.targets = self._on_map(bound.xpos)
        body = self.physics.bind(self.task._walker.root_body)
        self.body = int(body.element_id)

    def _on_map(self, place: np.ndarray) -> np.ndarray:
        """Return positions (up, right) of places (x, y, z) in metres."""
        return place[..., 1::-1] / METRES + self.size / 2

    def _read_pose(self) -> None:
        data = self.physics.data
        ahead = data.xmat[self.body].reshape(3, 3)[:, 1]
        heading = np.arctan2(ahead[0], ahead[1])
        self.pose = np.append(heading, self._on_map(data.xpos[self.body]))

    def step(self, action: int) -> float:
        """Advance by one action, a quarter of a second, and return the reward."""
        model, data = self.physics.model.ptr, self.physics.data.ptr
        step1, step2 = self.mujoco.mj_step1, self.mujoco.mj_step2
        geoms = self.target_geoms[:, None, None]
        touched = np.zeros(len(geoms), bool)
        data.ctrl[:] = CONTROLS[action]
        for _ in range(SUBSTEPS):
            step2(model, data)
            step1(model, data)
            touched |= (data.contact.geom == geoms).any((1, 2))
        for target, touch in zip(self.task._targets, touched):
            target._activated |= bool(touch)  # `after_step` reads and clears it
        self.task.after_step(self.physics, self.rng)
        self._read_pose()
        return float(self.task.get_reward(self.physics))

    def frame(self) -> np.ndarray:
        """Render the present frame, uint8 [3, 64, 64]."""
        picture = self.camera.render()
        colour = self.colour(self.target) * BORDER_LIGHT
        inside = picture[BORDER:-BORDER, BORDER:-BORDER].copy()
        picture[:] = colour
        picture[BORDER:-BORDER, BORDER:-BORDER] = inside
        return picture.transpose(2, 0, 1)

    def colour(self, target: int) -> np.ndarray:
        """Return the colour of a target, float64 [3], from 0 to 1."""
        return self.task._target_colors[target]

    def close(self) -> None:
        """Free the physics and its rendering context."""
        if self.physics is not None:
            self.physics.free()
            self.physics = None


def _make_task(maze: ModuleType, size: int) -> Any:
    """Return the package's task with an arena, as its `tasks._memory_maze` makes them.

    One set of wall textures serves all parts of the maze. The package loads ten.
    """
    targets, rooms, side = ROOMS[size]
    textures = _load("dm_control.locomotion.arenas.labmaze_textures")
    walls = dict.fromkeys("0123456789", textures.WallTextures("style_01"))
    arena = maze.MazeWithTargetsArena(
        x_cells=size + 2,
        y_cells=size + 2,
        xy_scale=METRES,
        z_height=1.5,
        max_rooms=rooms,
        room_min_size=3,
        room_max_size=side,
        spawns_per_room=1,
        targets_per_room=1,
        floor_textures=maze.FixedFloorTexture("style_01", ["blue", "blue_bright"]),
        wall_textures={"*": maze.FixedWallTexture("style_01", "yellow"), **walls},
        skybox_texture=None,
        random_seed=1,
    )
    return maze.MemoryMazeTask(
        walker=maze.RollingBallWithFriction(camera_height=0.3, add_ears=False),
        maze_arena=arena,
        n_targets=targets,
        target_radius=0.6,
        target_height_above_ground=-0.6,
        control_timestep=0.25,
        camera_resolution=SIDE,
    )


def _make_text_maze(maze: ModuleType, size: int, seed: int) -> Any:
    _, rooms, side = ROOMS[size]
    return maze.TextMazeVaryingWalls(
        height=size + 2,
        width=size + 2,
        max_rooms=rooms,
        room_min_size=3,
        room_max_size=side,
        max_variations=26,
        spawns_per_room=1,
        objects_per_room=1,
        simplify=True,
        random_seed=seed,
    )


@cache
def _load(name: str) -> ModuleType:
    """Import a module of the package or of what it needs.

    Raises ImportError with the pip command, or with the remedy if there is no way to
    render.
    """
    logging.getLogger("absl").addFilter(_is_news)
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    for package in ("mujoco", "dm_control", "labmaze", "memory_maze"):
        if find_spec(package) is None:
            raise ImportError(MISSING)
    with warnings.catch_warnings():  # dm_control shows all deprecations otherwise
        try:
            import_module("dm_control._render")
        except Exception as error:  # a library of OpenGL is missing
            raise _blind(error) from error
        if name.startswith("memory_maze."):
            return _import_without_init(name)
        return import_module(name)


def _import_without_init(name: str) -> ModuleType:
    """Import a module without its package's `__init__`, which needs the old gym."""
    package = name.split(".")[0]
    if package in sys.modules:
        return import_module(name)
    spec = find_spec(package)
    assert spec is not None
    sys.modules[package] = module_from_spec(spec)
    try:
        return import_module(name)
    finally:
        del sys.modules[package]


def _blind(error: Exception) -> ImportError:
    """Return the error with the remedy where there is no way to render."""
    backend = os.environ.get("MUJOCO_GL", "")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ImportError(BLIND.format(backend=backend, error=lines[0]))


def _is_news(record: logging.LogRecord) -> bool:
    """Return false for what dm_control logs at every reset of this maze."""
    return "no free joint" not in record.getMessage()
