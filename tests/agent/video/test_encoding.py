"""Files: every picture arrives, in order, or there is no file."""

from __future__ import annotations

import errno

import imageio_ffmpeg
import numpy as np
import pytest
from lssvwm.agent.video import encoding


def greys(count, size=32):
    return [np.full((size, size, 3), 20 + 2 * i, np.uint8) for i in range(count)]


def read_back(path):
    frames = imageio_ffmpeg.read_frames(str(path))
    columns, rows = next(frames)["size"]
    pictures = [np.frombuffer(frame, np.uint8) for frame in frames]
    return [picture.reshape(rows, columns, 3) for picture in pictures]


@pytest.mark.parametrize(("count", "fps"), [(1, 6), (2, 30), (100, 24)])
def test_write_mp4_keeps_every_frame_in_order(tmp_path, count, fps):
    path = tmp_path / "x.mp4"
    assert encoding.write_mp4(path, iter(greys(count)), (32, 32), fps) == count
    means = np.array([picture.mean() for picture in read_back(path)])
    np.testing.assert_allclose(means, 20 + 2 * np.arange(count), atol=2.5)
    assert (np.diff(means) > 0).all()


def test_write_mp4_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "x.mp4"
    encoding.write_mp4(path, greys(3), (32, 32), 6)
    before = path.read_bytes()

    def broken():
        yield from greys(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoding.write_mp4(path, broken(), (32, 32), 6)
    monkeypatch.setattr(encoding, "count_frames", lambda _: 4)
    with pytest.raises(OSError, match="should hold 5 frames, 4 can be read"):
        encoding.write_mp4(path, greys(5), (32, 32), 6)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_ffmpeg_errors_are_one_line(tmp_path):
    with pytest.raises(OSError, match=r"ffmpeg could not write into .*gone") as caught:
        encoding.write_mp4(tmp_path / "gone" / "x.mp4", greys(60, 256), (256, 256), 6)
    assert "\n" not in str(caught.value)
    complaint = OSError("[out] Error writing trailer: No space left on device")
    full = encoding._short_error(complaint, tmp_path / "x.mp4")
    assert full.errno == errno.ENOSPC


def test_count_frames_of_a_truncated_video(tmp_path):
    path = tmp_path / "x.mp4"
    encoding.write_mp4(path, greys(30), (32, 32), 6)
    assert encoding.count_frames(path) == 30
    path.write_bytes(path.read_bytes()[:400])
    assert encoding.count_frames(path) == 0
