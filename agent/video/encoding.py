"""Write pictures as MP4, GIF and PNG; files appear only when complete.

Shapes: a picture is uint8 [R, S, 3], R rows and S columns of pixels.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from lssvwm.agent.files import replacing
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from PIL import Image

GIF_COLOURS = 255
"""Colours of a GIF."""


def write_mp4(
    path: Path, pictures: Iterable[np.ndarray], size: tuple[int, int], fps: int
) -> int:
    """Write pictures as H.264 and return how many.

    `size` is (S, R), both even. The file is read back and counted.
    Raises OSError if a picture is missing; then there is no file.
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
        _, complaint = process.communicate()  # `close` would hide the return code
        if process.returncode:
            raise OSError(complaint.decode(errors="replace"))
    except OSError as error:
        raise _short_error(error, path) from None
    finally:
        process.kill()
        process.wait()
    return written


def _short_error(error: OSError, path: Path) -> OSError:
    """Return ffmpeg's complaint as one line; a full disk keeps its error number."""
    complaint = str(error)
    if error.errno == errno.ENOSPC or "No space left" in complaint:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent))
    lines = [line for line in complaint.splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "it stopped"
    return OSError(f"ffmpeg could not write into {path.parent}: {reason}")


def count_frames(path: Path) -> int:
    """Return how many frames of a video can be decoded; 0 if unreadable."""
    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        next(reader)  # the first item describes the file
        return sum(1 for _ in reader)
    except (OSError, RuntimeError, StopIteration):
        return 0
    finally:
        reader.close()


def write_gif(
    path: Path,
    pictures: Iterable[np.ndarray],
    fps: int,
    samples: Sequence[np.ndarray],
) -> None:
    """Write a GIF that repeats; players round the time of a frame to 10 ms.

    All pictures share the colours of `samples`, which halves the size of the file.
    """
    montage = Image.fromarray(np.concatenate(samples))
    palette = montage.quantize(GIF_COLOURS, dither=Image.Dither.NONE)
    images = (
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        for picture in pictures
    )
    first = next(images)
    duration = round(1000 / fps)
    with replacing(path) as part:
        first.save(
            part, "GIF", save_all=True, append_images=images, duration=duration, loop=0
        )


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write one picture."""
    with replacing(path) as part:
        Image.fromarray(picture).save(part, "PNG")
