"""Videos of what was and what was imagined: scenes are drawn as pictures, pictures become files.

A picture, from top to bottom: phase, step and action; the panels real | imagined | absolute error (and the
map); rewards and PSNR; in `plan` mode the whole imagined plan as a strip; a bar of how far the episode is.
Shapes: C x H x W a frame (uint8), R x S the rows and columns of a picture.
"""

from __future__ import annotations

import errno
import math
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from PIL import Image, ImageDraw, ImageFont

CONTEXT, IMAGINED = "context", "imagined"
BEST_PSNR = 99.0  # of equal frames, whose own is infinite
INK, DIM, GROUND, EMPTY = (236, 236, 240), (150, 152, 160), (22, 23, 28), (42, 44, 52)
TINTS = {CONTEXT: (134, 138, 148), IMAGINED: (255, 140, 26)}
GOOD, BAD = (70, 200, 110), (240, 84, 84)
HEAT = np.array([(0, 0, 0), (150, 20, 40), (255, 140, 26), (255, 240, 170)], np.float32)


@dataclass(frozen=True)
class Strip:
    """A plan as it was imagined: frames [n, C, H, W], each with its action and its predicted reward."""

    frames: np.ndarray
    actions: tuple[str, ...]
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """One frame of an episode and what the model said of it.

    `action` led to the frame (None: the first); `taken` is the same as a number or numbers. `imagined`, the
    `predicted` reward and the probability that the episode goes on (`goes_on`) come from a memory that holds
    the frames up to `known_to` (None: nothing was predicted). `outcome` is set when the episode has ended.
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
    plan: Strip | None = None
    outcome: str | None = None

    @property
    def ahead(self) -> int:
        """Frames since the memory behind the prediction was last told the truth; 0 without a prediction."""
        return 0 if self.known_to is None else self.step - self.known_to

    @property
    def psnr(self) -> float | None:
        """Peak signal-to-noise ratio of the imagined frame in dB, at most BEST_PSNR; None without one."""
        return None if self.imagined is None else psnr(self.real, self.imagined)


def psnr(real: np.ndarray, imagined: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB, at most BEST_PSNR."""
    error = np.square(real.astype(np.float64) - imagined).mean()
    return BEST_PSNR if error == 0 else min(BEST_PSNR, 10 * math.log10(255**2 / error))


def heat(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """The largest error of any channel as a colour from black (0) to pale yellow (255): uint8 [3, H, W]."""
    error = np.abs(real.astype(np.float32) - imagined).max(0) / 255
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(error, stops, HEAT[:, c]) for c in range(3)]).astype(
        np.uint8
    )


def as_image(frame: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] with one or three channels -> picture"""
    rgb = np.broadcast_to(frame, (3, *frame.shape[1:]))
    return Image.fromarray(np.ascontiguousarray(rgb.transpose(1, 2, 0)))


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels of all pictures of one video, from `scale` and what its scenes hold.

    frame is (H, W) of a frame, map (H, W) of the map or None, plan the longest plan in steps (0: no strip).
    """

    scale: int
    frame: tuple[int, int]
    map: tuple[int, int] | None
    plan: int

    @classmethod
    def of(cls, scenes: Sequence[Scene], scale: int) -> Layout:
        """The layout that fits all scenes."""
        maps = [scene.map.shape[1:] for scene in scenes if scene.map is not None]
        plan = max(
            (len(scene.plan.frames) for scene in scenes if scene.plan), default=0
        )
        return cls(
            scale, _two(scenes[0].real.shape[1:]), _two(maps[0]) if maps else None, plan
        )

    @property
    def text(self) -> int:
        return 15 if self.scale >= 3 else 12

    @property
    def line(self) -> int:
        return self.text + 8

    @property
    def gap(self) -> int:
        return 14

    @property
    def panel(self) -> tuple[int, int]:
        """Rows and columns of a panel."""
        return self.frame[0] * self.scale, self.frame[1] * self.scale

    @cached_property
    def map_panel(self) -> tuple[int, int]:
        """Rows and columns of the map: as high as a panel, at most as wide as one and a half."""
        if self.map is None:
            return 0, 0
        zoom = min(self.panel[0] / self.map[0], 1.5 * self.panel[1] / self.map[1])
        return max(1, round(self.map[0] * zoom)), max(1, round(self.map[1] * zoom))

    @property
    def width(self) -> int:
        panels = 3 * (self.panel[1] + self.gap) + self.gap
        beside = self.map_panel[1] + self.gap if self.map else 0
        return _even(max(panels + beside, 45 * self.text))

    @property
    def panels_top(self) -> int:
        return 2 * self.line + self.gap + 6

    @property
    def numbers_top(self) -> int:
        return self.panels_top + self.panel[0] + self.gap

    @property
    def strip_top(self) -> int:
        return self.numbers_top + self.line + 6

    @property
    def thumb(self) -> tuple[int, int]:
        """Rows and columns of a picture of the strip."""
        if not self.plan:
            return 0, 0
        columns = min(self.frame[1], (self.width - 2 * self.gap) // self.plan - 6)
        return max(1, round(self.frame[0] * columns / self.frame[1])), max(1, columns)

    @property
    def strip(self) -> int:
        """Rows of the strip with its captions."""
        return self.thumb[0] + 3 * self.line if self.plan else 0

    @property
    def height(self) -> int:
        return _even(self.strip_top + self.strip + 6 + self.gap)


def _two(shape: Sequence[int]) -> tuple[int, int]:
    return int(shape[0]), int(shape[1])


def _even(length: int) -> int:
    return length + length % 2


class Painter:
    """Draws the scenes of one episode; pictures are uint8 [R, S, 3], R and S even as video wants them."""

    def __init__(self, scenes: Sequence[Scene], scale: int, title: str):
        self.scenes, self.title, self.layout = scenes, title, Layout.of(scenes, scale)
        self.font = ImageFont.load_default(size=self.layout.text)
        self.small = ImageFont.load_default(size=max(9, self.layout.text - 4))

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.layout.width, self.layout.height

    def pictures(self) -> Iterator[np.ndarray]:
        """All scenes in order."""
        return (self.draw(index) for index in range(len(self.scenes)))

    def draw(self, index: int) -> np.ndarray:
        """The picture of one scene."""
        scene = self.scenes[index]
        self.canvas = Image.new("RGB", self.size, GROUND)
        self.pen = ImageDraw.Draw(self.canvas)
        self._head(scene)
        self._panels(scene)
        self._numbers(scene)
        if self.layout.plan:
            self._strip(scene)
        self._bar(index)
        return np.asarray(self.canvas)

    def _say(
        self, x: float, y: float, words: str, ink=INK, anchor: str = "la", font=None
    ) -> int:
        """Write words at (x, y); returns the x where they end."""
        font = font or self.font
        self.pen.text((x, y), words, ink, font, anchor)
        return int(x + self.pen.textlength(words, font))

    def _fitting(self, columns: int, *choices: str) -> str:
        """The first of the choices that fits into so many columns, or the last."""
        return next(
            (
                words
                for words in choices
                if self.pen.textlength(words, self.font) <= columns
            ),
            choices[-1],
        )

    def _head(self, scene: Scene) -> None:
        """Phase on its colour, step, action, and the title at the right."""
        lay, name = self.layout, scene.kind.upper()
        end = lay.gap + int(self.pen.textlength("IMAGINED", self.font)) + 16
        self.pen.rounded_rectangle(
            (lay.gap, 8, end, 8 + lay.line), 4, TINTS[scene.kind]
        )
        self._say((lay.gap + end) / 2, 8 + lay.line / 2, name, GROUND, "mm")
        action = (
            "first frame"
            if scene.action is None
            else f"action  {scene.action.removeprefix('action ')}"
        )
        x = self._say(end + 16, 8 + lay.line / 2, f"step {scene.step:>3}", anchor="lm")
        self._say(x + 20, 8 + lay.line / 2, action, anchor="lm")
        self._say(lay.width - lay.gap, 8 + lay.line / 2, self.title, DIM, "rm")

    def _panels(self, scene: Scene) -> None:
        lay = self.layout
        error = None if scene.imagined is None else heat(scene.real, scene.imagined)
        names = ("real", _prediction(scene), "absolute error")
        for place, (name, frame) in enumerate(
            zip(names, (scene.real, scene.imagined, error))
        ):
            left = lay.gap + place * (lay.panel[1] + lay.gap)
            self._panel(left, lay.panel, name, frame, TINTS[scene.kind])
        if lay.map is not None:
            left = lay.gap + 3 * (lay.panel[1] + lay.gap)
            self._panel(
                left, lay.map_panel, "map (not shown to the agent)", scene.map, EMPTY
            )

    def _panel(
        self,
        left: int,
        size: tuple[int, int],
        name: str,
        frame: np.ndarray | None,
        tint,
    ) -> None:
        """A framed picture under its name; dimmed and empty without one."""
        top, (rows, columns) = self.layout.panels_top, size
        name = self._fitting(columns, name, name.split(" (")[0], name.split(" ")[0])
        self._say(left, top - 8, name, DIM if frame is None else INK, "ls")
        self.pen.rectangle(
            (left - 4, top - 4, left + columns + 3, top + rows + 3), tint
        )
        self.pen.rectangle((left, top, left + columns - 1, top + rows - 1), EMPTY)
        if frame is None:
            words = self._fitting(columns, "nothing predicted yet", "none yet")
            self._say(left + columns / 2, top + rows / 2, words, DIM, "mm")
        else:
            exact = rows % frame.shape[1] == 0
            method = Image.Resampling.NEAREST if exact else Image.Resampling.BOX
            self.canvas.paste(
                as_image(frame).resize((columns, rows), method), (left, top)
            )

    def _numbers(self, scene: Scene) -> None:
        """Under each panel its number: real reward, predicted reward, PSNR; and the outcome once known."""
        lay = self.layout
        numbers = [
            ("real reward", _decimal(scene.reward)),
            ("predicted reward", "-"),
            ("PSNR", "-"),
        ]
        if scene.predicted is not None and scene.psnr is not None:
            numbers[1:] = [
                ("predicted reward", _decimal(scene.predicted)),
                ("PSNR", f"{scene.psnr:.1f} dB"),
            ]
        for place, (name, value) in enumerate(numbers):
            words = self._fitting(
                lay.panel[1],
                f"{name}  {value}",
                f"{name.split(' ')[0]}  {value}",
                value,
            )
            self._say(
                lay.gap + place * (lay.panel[1] + lay.gap), lay.numbers_top, words
            )
        if scene.outcome:
            ink = {"success": GOOD, "wrong": BAD, "timeout": BAD}.get(
                scene.outcome, DIM
            )
            self._say(
                lay.width - lay.gap, lay.numbers_top, scene.outcome.upper(), ink, "ra"
            )

    def _strip(self, scene: Scene) -> None:
        """The plan being followed, as it was imagined when it was made; the present step is framed."""
        lay, plan = self.layout, scene.plan
        top = lay.strip_top
        if plan is None:
            self._say(lay.gap, top, "no plan yet: the agent only observes", DIM)
            return
        known = scene.known_to
        self._say(
            lay.gap,
            top,
            f"the whole plan, as imagined at step {known} (framed: what happened by now)",
        )
        top += lay.line + 4
        for i, frame in enumerate(plan.frames):
            left = lay.gap + i * (lay.thumb[1] + 6)
            self._thumb(left, top, frame, i + 1 - scene.ahead)
            ink = INK if i + 1 == scene.ahead else DIM
            self._caption(left, top + lay.thumb[0] + 5, plan.actions[i], ink)
            if abs(plan.rewards[i]) >= 0.05:
                self._caption(
                    left,
                    top + lay.thumb[0] + 5 + lay.text,
                    f"{plan.rewards[i]:+.2f}",
                    GOOD,
                )

    def _thumb(self, left: int, top: int, frame: np.ndarray, after: int) -> None:
        """A picture of the strip, `after` steps from the present one; framed if it is present or past."""
        rows, columns = self.layout.thumb
        if after <= 0:
            edge = 3 if after == 0 else 1
            box = (
                left - edge,
                top - edge,
                left + columns + edge - 1,
                top + rows + edge - 1,
            )
            self.pen.rectangle(box, TINTS[IMAGINED])
        self.canvas.paste(
            as_image(frame).resize((columns, rows), Image.Resampling.BOX), (left, top)
        )

    def _caption(self, left: int, top: int, words: str, ink) -> None:
        while (
            len(words) > 1
            and self.pen.textlength(words, self.small) > self.layout.thumb[1] + 4
        ):
            words = words[:-1]
        self._say(left + self.layout.thumb[1] / 2, top, words, ink, "ma", self.small)

    def _bar(self, index: int) -> None:
        """How far the episode is: each scene a piece in its colour, those to come dark."""
        lay, count = self.layout, len(self.scenes)
        top, length = lay.height - 6, lay.width
        for i, scene in enumerate(self.scenes):
            tint = TINTS[scene.kind]
            colour = tint if i <= index else tuple(c // 4 for c in tint)
            self.pen.rectangle(
                (length * i / count, top, length * (i + 1) / count, lay.height), colour
            )


def _decimal(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no minus before a zero


def _prediction(scene: Scene) -> str:
    if scene.imagined is None:
        return "imagined"
    if scene.kind == CONTEXT:
        return "predicted one step ahead"
    return f"imagined from step {scene.known_to} (+{scene.ahead})"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block succeeds, and vanishes when it fails."""
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_mp4(
    path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int], fps: int
) -> int:
    """Write pictures uint8 [R, S, 3] (`size` is (S, R), both even) as H.264, and return how many.

    The file is read back, and appears under its name only if all pictures are in it; else raises OSError.
    """
    with replacing(path) as part:
        written = _encode(part, pictures, size, fps)
        found = count_frames(part)
        if found != written:
            raise OSError(
                f"{path} should hold {written} frames, {found} can be read back; is the disk full?"
            )
    return written


def _encode(
    path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int], fps: int
) -> int:
    options = ["-crf", "18", "-movflags", "+faststart"]
    writer = FFMPEG_VideoWriter(str(path), size, fps, ffmpeg_params=options, threads=1)
    process: subprocess.Popen[bytes] = writer.proc  # type: ignore[assignment]
    written = 0
    try:
        for picture in pictures:
            writer.write_frame(picture)
            written += 1
        _, complaint = (
            process.communicate()
        )  # closes the pipe; unlike `close`, tells how it ended
        if process.returncode:
            raise OSError(complaint.decode(errors="replace"))
    except OSError as error:
        raise _mended(error, path) from None
    finally:
        process.kill()
        process.wait()
    return written


def _mended(error: OSError, path: Path) -> OSError:
    """One line for what ffmpeg said; a full disk keeps its own error number."""
    said = str(error)
    if error.errno == errno.ENOSPC or "No space left" in said:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    lines = [line for line in said.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "it stopped"
    return OSError(f"ffmpeg could not write into {path.parent}: {reason}")


def count_frames(path: Path) -> int:
    """How many frames of a video can be decoded; 0 if it cannot be read."""
    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        next(reader)  # what ffmpeg says of the file
        return sum(1 for _ in reader)
    except (OSError, RuntimeError, StopIteration):
        return 0
    finally:
        reader.close()


def write_gif(path: Path, pictures: Iterable[np.ndarray], fps: int) -> None:
    """Write an endless GIF; players round the time of a frame to 10 ms."""
    images = (
        Image.fromarray(picture).quantize(128, dither=Image.Dither.NONE)
        for picture in pictures
    )
    timing = {"duration": round(1000 / fps), "loop": 0}
    with replacing(path) as part:
        next(images).save(part, "GIF", save_all=True, append_images=images, **timing)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write one picture."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, "PNG")
