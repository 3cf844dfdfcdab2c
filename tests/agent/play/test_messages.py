"""Messages of the page: everything unexpected is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.play import messages


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "null",
        '{"type": "none"}',
        '{"type": "step"}',
        '{"type": "step", "control": -1}',
        '{"type": "step", "control": "0"}',
        '{"type": "step", "control": 1.5}',
        '{"type": "step", "control": true}',
        '{"type": "step", "control": 0, "more": 1}',
        '{"type": "goal", "goal": "place", "x": NaN}',
        '{"type": "goal", "goal": "place", "x": 1e999}',
        '{"type": "plan", "planner": "cem", "candidates": 1024, "iterations": 16, "horizon": 128}',
        '{"type": "plan", "planner": "../cem", "candidates": 8, "iterations": 1, "horizon": 4}',
        '{"type": "rewind", "steps": 0}',
        '{"type": "start", "model": "a", "seed": -1}',
        '{"type": "fork", "type": "none"}',
        '{"type": "fork"' + " " * messages.TEXT_BYTES + "}",
        "[" * 3000,
    ],
)
def test_read_refuses_what_the_page_never_sends(text) -> None:
    with pytest.raises(UserError) as error:
        messages.read(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_read_returns_checked_messages() -> None:
    found = messages.read('{"type": "goal", "goal": "place", "x": 0.25, "y": 1}')
    assert (found.goal, found.x, found.y) == ("place", 0.25, 1)


def test_write_replaces_numbers_that_json_lacks() -> None:
    assert messages.write({"a": float("nan"), "b": [float("inf"), 1]}) == (
        '{"a": null, "b": [null, 1]}'
    )


def test_strip_joins_grey_frames() -> None:
    found = messages.strip(np.zeros((3, 1, 5, 4), np.uint8))
    assert (found["count"], found["width"], found["height"]) == (3, 4, 5)
