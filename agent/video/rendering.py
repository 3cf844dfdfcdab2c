"""Draw the frames of an episode next to their predictions.

A picture shows, from top to bottom:

- phase, step and action
- the panels real, imagined and absolute error, and the map if there is one
- rewards and PSNR
- in mode `plan`, the whole imagined plan as a strip
- a bar of the progress through the episode

Shapes: C x H x W a frame (uint8); R rows and S columns of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CONTEXT, IMAGINED = "context", "imagined"
"""Phases: the agent observes; frames are imagined."""
BEST_PSNR = 99.0
"""PSNR in dB of equal frames, instead of infinity."""
Colour = tuple[int, int, int]
INK: Colour = (236, 236, 240)
DIM: Colour = (150, 152, 160)
GROUND: Colour = (22, 23, 28)
EMPTY: Colour = (42, 44, 52)
GOOD: Colour = (70, 200, 110)
BAD: Colour = (240, 84, 84)
TINTS: dict[str, Colour] = {CONTEXT: (134, 138, 148), IMAGINED: (255, 140, 26)}
"""Colours of the phases."""
HEAT = np.array([(0, 0, 0), (150, 20, 40), (255, 140, 26), (255, 240, 170)], np.float32)
"""Colours of errors from 0 to 255, evenly spaced."""
SHOWN_REWARD = 0.05
"""Predicted rewards below this size are not written under a plan."""


@dataclass(frozen=True)
class PlannedFrames:
    """Hold an imagined plan: frames [n, C, H, W], and the action and predicted reward of each."""

    frames: np.ndarray
    actions: tuple[str, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """Hold one frame of an episode and its prediction.

    action: led to the frame; None for the first one
    taken: the same as a number or numbers
    imagined, predicted, goes_on: frame, reward, probability that the episode continues
    known_to: last step in the memory of the prediction; None without prediction
    outcome: set when the episode has ended
    """

    step: int
    kind: str
    real: np.ndarray
    action: str | None
    reward: float
    taken: int | list[float] | None = None
    imagined: np.ndarray | None = None
    predicted: float | None = None
    goes_on: float | None = None
    known_to: int | None = None
    map: np.ndarray | None = None
    plan: PlannedFrames | None = None
    outcome: str | None = None

    @property
    def ahead(self) -> int:
        """Steps between the last observed frame and this one; 0 without a prediction."""
        return 0 if self.known_to is None else self.step - self.known_to

    @property
    def psnr(self) -> float | None:
        """PSNR of the imagined frame in dB, at most BEST_PSNR; None without one."""
        return None if self.imagined is None else psnr(self.real, self.imagined)


def psnr(real: np.ndarray, imagined: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 pictures in dB, at most BEST_PSNR."""
    difference = real.astype(np.float64) - imagined
    error = np.square(difference).mean()
    if error == 0:
        return BEST_PSNR
    return min(BEST_PSNR, 10 * math.log10(255**2 / error))


def heat(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Return the largest error of any channel as a colour, uint8 [3, H, W].

    An error of 0 is black, one of 255 pale yellow.
    """
    difference = real.astype(np.float32) - imagined
    error = np.abs(difference).max(0) / 255
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(error, stops, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels).astype(np.uint8)


def as_image(frame: np.ndarray) -> Image.Image:
    """Turn uint8 [C, H, W] with one or three channels into a picture."""
    rgb = np.broadcast_to(frame, (3, *frame.shape[1:]))
    return Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))


def to_even(length: int) -> int:
    """Round a length up to an even number, which video encoders require."""
    return length + length % 2


@dataclass(frozen=True)
class Layout:
    """Derive the sizes in pixels of all pictures of one video.

    frame: rows and columns of a frame
    map: rows and columns of the map; None without one
    plan: steps of the longest plan; 0 for no strip
    """

    scale: int
    frame: tuple[int, int]
    map: tuple[int, int] | None
    plan: int

    @classmethod
    def of(cls, scenes: Sequence[Scene], scale: int) -> Layout:
        """Return the layout that fits all scenes."""
        maps = [scene.map.shape for scene in scenes if scene.map is not None]
        plans = [len(scene.plan.frames) for scene in scenes if scene.plan]
        _, rows, columns = scenes[0].real.shape
        size = (maps[0][1], maps[0][2]) if maps else None
        return cls(scale, (rows, columns), size, max(plans, default=0))

    @property
    def text(self) -> int:
        """Font size."""
        return 15 if self.scale >= 3 else 12

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return self.text + 8

    @property
    def gap(self) -> int:
        """Space between parts."""
        return 14

    @property
    def panel(self) -> tuple[int, int]:
        """Rows and columns of a panel."""
        return self.frame[0] * self.scale, self.frame[1] * self.scale

    def panel_left(self, place: int) -> int:
        """Return the left edge of panel `place`."""
        return self.gap + place * (self.panel[1] + self.gap)

    @cached_property
    def map_panel(self) -> tuple[int, int]:
        """Rows and columns of the map: a panel's height, at most 1.5 times its width."""
        if self.map is None:
            return 0, 0
        by_rows = self.panel[0] / self.map[0]
        by_columns = 1.5 * self.panel[1] / self.map[1]
        zoom = min(by_rows, by_columns)
        return max(1, round(self.map[0] * zoom)), max(1, round(self.map[1] * zoom))

    @property
    def width(self) -> int:
        """Columns of the picture."""
        panels = self.panel_left(3)
        map_columns = self.map_panel[1] + self.gap if self.map else 0
        return to_even(max(panels + map_columns, 45 * self.text))

    @property
    def panels_top(self) -> int:
        """Upper edge of the panels."""
        return 2 * self.line + self.gap + 6

    @property
    def numbers_top(self) -> int:
        """Upper edge of the line with rewards and PSNR."""
        return self.panels_top + self.panel[0] + self.gap

    @property
    def strip_top(self) -> int:
        """Upper edge of the strip."""
        return self.numbers_top + self.line + 6

    @property
    def thumb(self) -> tuple[int, int]:
        """Rows and columns of a frame in the strip."""
        if not self.plan:
            return 0, 0
        available = (self.width - 2 * self.gap) // self.plan - 6
        columns = min(self.frame[1], available)
        rows = round(self.frame[0] * columns / self.frame[1])
        return max(1, rows), max(1, columns)

    @property
    def strip(self) -> int:
        """Rows of the strip with its captions."""
        return self.thumb[0] + 3 * self.line if self.plan else 0

    @property
    def height(self) -> int:
        """Rows of the picture."""
        return to_even(self.strip_top + self.strip + 6 + self.gap)


class Canvas:
    """Draw text and frames on an empty picture of S columns and R rows."""

    def __init__(self, size: tuple[int, int], text: int):
        self.image = Image.new("RGB", size, GROUND)
        self.pen = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(size=text)
        self.small = ImageFont.load_default(size=max(9, text - 4))

    def write(
        self,
        at: tuple[float, float],
        words: str,
        ink: Colour = INK,
        anchor: str = "la",
        font: Any = None,
    ) -> int:
        """Write words at (x, y) and return the x where they end."""
        font = font or self.font
        self.pen.text(at, words, ink, font, anchor)
        return int(at[0] + self.pen.textlength(words, font))

    def first_fitting(self, columns: int, *choices: str) -> str:
        """Return the first choice that fits into so many columns, or the last one."""
        for words in choices:
            if self.pen.textlength(words, self.font) <= columns:
                return words
        return choices[-1]

    def border(
        self, corner: tuple[int, int], size: tuple[int, int], colour: Colour, width: int
    ) -> None:
        """Draw a border around a panel: its corner (x, y), its rows and columns."""
        (left, top), (rows, columns) = corner, size
        right, bottom = left + columns - 1, top + rows - 1
        box = (left - width, top - width, right + width, bottom + width)
        self.pen.rectangle(box, colour)

    def paste(
        self, corner: tuple[int, int], size: tuple[int, int], frame: np.ndarray
    ) -> None:
        """Draw a frame [C, H, W] at (x, y), scaled to rows and columns."""
        rows, columns = size
        whole_pixels = rows % frame.shape[1] == 0 and columns % frame.shape[2] == 0
        method = Image.Resampling.NEAREST if whole_pixels else Image.Resampling.BOX
        self.image.paste(as_image(frame).resize((columns, rows), method), corner)


class Painter:
    """Draw the scenes of one episode as pictures, uint8 [R, S, 3], R and S even."""

    def __init__(self, scenes: Sequence[Scene], scale: int, title: str):
        self.scenes = scenes
        self.title = title
        self.layout = Layout.of(scenes, scale)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.layout.width, self.layout.height

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def still(self) -> int:
        """Index of the scene in the middle of the imagined ones."""
        kinds = [scene.kind for scene in self.scenes]
        imagined = [i for i, kind in enumerate(kinds) if kind == IMAGINED]
        return imagined[len(imagined) // 2] if imagined else len(kinds) // 2

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the pictures of all scenes in order."""
        return (self.draw(index) for index in range(len(self.scenes)))

    def draw(self, index: int) -> np.ndarray:
        """Return the picture of one scene."""
        scene = self.scenes[index]
        canvas = Canvas(self.size, self.layout.text)
        self._head(canvas, scene)
        self._panels(canvas, scene)
        self._numbers(canvas, scene)
        if self.layout.plan:
            self._strip(canvas, scene)
        self._bar(canvas, index)
        return np.asarray(canvas.image)

    def _head(self, canvas: Canvas, scene: Scene) -> None:
        """Draw the phase on its colour, step, action, and at the right the title."""
        layout = self.layout
        middle = 8 + layout.line / 2
        left = layout.gap
        right = left + int(canvas.pen.textlength("IMAGINED", canvas.font)) + 16
        box = (left, 8, right, 8 + layout.line)
        canvas.pen.rounded_rectangle(box, 4, TINTS[scene.kind])
        center = (left + right) / 2
        canvas.write((center, middle), scene.kind.upper(), GROUND, "mm")
        end = canvas.write((right + 16, middle), f"step {scene.step:>3}", anchor="lm")
        action = "first frame"
        if scene.action is not None:
            action = f"action  {scene.action.removeprefix('action ')}"
        canvas.write((end + 20, middle), action, anchor="lm")
        canvas.write((layout.width - layout.gap, middle), self.title, DIM, "rm")

    def _panels(self, canvas: Canvas, scene: Scene) -> None:
        layout = self.layout
        error = None
        if scene.imagined is not None:
            error = heat(scene.real, scene.imagined)
        panels = (
            ("real", scene.real),
            (_prediction(scene), scene.imagined),
            ("absolute error", error),
        )
        for place, (name, frame) in enumerate(panels):
            left = layout.panel_left(place)
            self._panel(canvas, left, name, frame, TINTS[scene.kind])
        if layout.map is not None:
            name = "map (not shown to the agent)"
            self._panel(canvas, layout.panel_left(3), name, scene.map, EMPTY)

    def _panel(
        self,
        canvas: Canvas,
        left: int,
        name: str,
        frame: np.ndarray | None,
        tint: Colour,
    ) -> None:
        """Draw a framed picture under its name; empty without a picture."""
        layout = self.layout
        is_map = left == layout.panel_left(3)
        size = layout.map_panel if is_map else layout.panel
        rows, columns = size
        corner = (left, layout.panels_top)
        shorter = name.split(" (")[0], name.split(" ")[0]
        fitting = canvas.first_fitting(columns, name, *shorter)
        above = (left, layout.panels_top - 8)
        canvas.write(above, fitting, DIM if frame is None else INK, "ls")
        canvas.border(corner, size, tint, 4)
        canvas.border(corner, size, EMPTY, 0)
        if frame is None:
            words = canvas.first_fitting(columns, "nothing predicted yet", "none yet")
            center = (left + columns / 2, layout.panels_top + rows / 2)
            canvas.write(center, words, DIM, "mm")
        else:
            canvas.paste(corner, size, frame)

    def _numbers(self, canvas: Canvas, scene: Scene) -> None:
        """Write real reward, predicted reward and PSNR under the panels, and the outcome."""
        layout = self.layout
        predicted, quality = "-", "-"
        if scene.predicted is not None and scene.psnr is not None:
            predicted = _two_decimals(scene.predicted)
            quality = f"{scene.psnr:.1f} dB"
        numbers = (
            ("real reward", _two_decimals(scene.reward)),
            ("predicted reward", predicted),
            ("PSNR", quality),
        )
        for place, (name, value) in enumerate(numbers):
            short = f"{name.split(' ')[0]}  {value}"
            columns = layout.panel[1]
            words = canvas.first_fitting(columns, f"{name}  {value}", short, value)
            canvas.write((layout.panel_left(place), layout.numbers_top), words)
        if scene.outcome:
            right = (layout.width - layout.gap, layout.numbers_top)
            canvas.write(right, scene.outcome.upper(), outcome_ink(scene.outcome), "ra")

    def _strip(self, canvas: Canvas, scene: Scene) -> None:
        """Draw the followed plan as imagined when it was made; the present step is framed."""
        layout = self.layout
        plan = scene.plan
        top = layout.strip_top
        if plan is None:
            words = "no plan yet: the agent only observes"
            canvas.write((layout.gap, top), words, DIM)
            return
        when = f"the whole plan, as imagined at step {scene.known_to}"
        canvas.write((layout.gap, top), f"{when} (framed: executed so far)")
        top += layout.line + 4
        rows, columns = layout.thumb
        for i, frame in enumerate(plan.frames):
            left = layout.gap + i * (columns + 6)
            self._thumb(canvas, (left, top), frame, i + 1 - scene.ahead)
            below = (left + columns / 2, top + rows + 5)
            ink = INK if i + 1 == scene.ahead else DIM
            self._caption(canvas, below, plan.actions[i], ink)
            if abs(plan.rewards[i]) >= SHOWN_REWARD:
                lower = (below[0], below[1] + layout.text)
                self._caption(canvas, lower, f"{plan.rewards[i]:+.2f}", GOOD)

    def _thumb(
        self, canvas: Canvas, corner: tuple[int, int], frame: np.ndarray, after: int
    ) -> None:
        """Draw a frame of the strip, `after` steps from the present; framed up to 0."""
        if after <= 0:
            width = 3 if after == 0 else 1
            canvas.border(corner, self.layout.thumb, TINTS[IMAGINED], width)
        canvas.paste(corner, self.layout.thumb, frame)

    def _caption(
        self, canvas: Canvas, at: tuple[float, float], words: str, ink: Colour
    ) -> None:
        """Write as many letters as fit under a frame of the strip."""
        columns = self.layout.thumb[1] + 4
        while len(words) > 1 and canvas.pen.textlength(words, canvas.small) > columns:
            words = words[:-1]
        canvas.write(at, words, ink, "ma", canvas.small)

    def _bar(self, canvas: Canvas, index: int) -> None:
        """Draw the progress: one piece per scene in its phase's colour."""
        layout = self.layout
        piece = layout.width / len(self.scenes)
        for i, scene in enumerate(self.scenes):
            red, green, blue = TINTS[scene.kind]
            dark = (red // 4, green // 4, blue // 4)
            colour = (red, green, blue) if i <= index else dark
            box = (piece * i, layout.height - 6, piece * (i + 1), layout.height)
            canvas.pen.rectangle(box, colour)


def outcome_ink(outcome: str) -> Colour:
    """Return the colour in which an outcome is written."""
    return {"success": GOOD, "wrong": BAD, "timeout": BAD}.get(outcome, DIM)


def _two_decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # adding 0.0 drops the sign of -0.0


def _prediction(scene: Scene) -> str:
    if scene.imagined is None:
        return "imagined"
    if scene.kind == CONTEXT:
        return "predicted one step ahead"
    return f"imagined from step {scene.known_to} (+{scene.ahead})"
