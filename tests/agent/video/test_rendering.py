"""Pictures: panels show the pixels, borders the phase."""

from __future__ import annotations

import numpy as np
import pytest
from lssvwm.agent.video.rendering import (
    BEST_PSNR,
    CONTEXT,
    IMAGINED,
    TINTS,
    Painter,
    PlannedFrames,
    Scene,
    heat,
    psnr,
)


def random_scene(kind):
    rng = np.random.default_rng(0)
    real, imagined = rng.integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    return Scene(
        step=4,
        kind=kind,
        real=real,
        action="left",
        reward=0.0,
        imagined=imagined,
        predicted=0.1,
        known_to=2,
    )


def test_psnr_of_known_errors():
    grey = np.full((3, 4, 4), 100, np.uint8)
    assert psnr(grey, grey) == BEST_PSNR
    assert psnr(grey, grey + 51) == pytest.approx(20 * np.log10(5))
    assert psnr(grey, grey - 51) == psnr(grey, grey + 51)  # bytes do not wrap around


def test_panels_show_pixels_within_phase_borders():
    scenes = [random_scene(CONTEXT), random_scene(IMAGINED)]
    painter = Painter(scenes, 4, "title")
    for shown, picture in zip(scenes, painter.pictures()):
        top = painter.layout.panels_top
        left = painter.layout.gap
        assert picture.shape == (*painter.size[::-1], 3)
        assert shown.imagined is not None
        error = heat(shown.real, shown.imagined)
        for frame in (shown.real, shown.imagined, error):
            panel = picture[top : top + 256, left : left + 256]
            scaled = frame.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(panel, scaled)
            around = (
                (top - 2, left + 9),
                (top + 9, left - 2),
                (top + 257, left),
                (top, left + 257),
            )
            for row, column in around:
                assert tuple(picture[row, column]) == TINTS[shown.kind]
            left += 256 + painter.layout.gap


def test_heat_is_black_without_errors():
    real = np.zeros((3, 2, 2), np.uint8)
    imagined = real.copy()
    imagined[1, 0, 0] = 255
    error = heat(real, imagined).sum(0)
    assert error[0, 0] > 500
    assert error.sum() == error[0, 0]


@pytest.mark.parametrize("size", [(1, 9, 7), (3, 33, 65)])
@pytest.mark.parametrize("scale", [1, 3])
def test_pictures_have_even_sides(size, scale):
    frame = np.zeros(size, np.uint8)
    plan = PlannedFrames(
        frames=np.zeros((40, *size), np.uint8),
        actions=("a long name",) * 40,
        rewards=(1.0,) * 40,
    )
    shown = Scene(
        step=1,
        kind=IMAGINED,
        real=frame,
        action="left",
        reward=0.0,
        imagined=frame,
        predicted=-0.001,
        goes_on=1.0,
        known_to=0,
        map=np.zeros((3, 5, 90), np.uint8),
        plan=plan,
    )
    picture = Painter([shown], scale, "title").draw(0)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
