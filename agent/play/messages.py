"""Check the messages of the page, and write replies.

A message is one JSON object with a `type`; unknown fields, other types and numbers out of range are refused. The
page may also send the bytes of a memory file.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Annotated, Any, Literal

import numpy as np
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import finite
from lssvwm.agent.video.rendering import as_image
from lssvwm.planners import PLANNER_CONFIGS
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

TEXT_BYTES = 4096
"""Longest text of a message."""
SEARCHED = 10_000
"""Most imagined steps of a plan: candidates x iterations x horizon."""
LARGEST_PICTURE = 480
"""Longest side of a map that is sent, in pixels."""
STRICT = ConfigDict(extra="forbid", strict=True)

Index = Annotated[int, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Start:
    """Begin an episode with a model of the list; no seed: a new one."""

    type: Literal["start"]
    model: Annotated[str, Field(max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    unlimited: bool = True


@dataclass(frozen=True, config=STRICT)
class Step:
    """Take the action of a control."""

    type: Literal["step"]
    control: Index


@dataclass(frozen=True, config=STRICT)
class Guide:
    """Take the next step of a scripted walk."""

    type: Literal["guide"]


@dataclass(frozen=True, config=STRICT)
class SetMode:
    """Open the eyes, close them, or imagine only."""

    type: Literal["mode"]
    mode: Literal["open", "closed", "imagine"]


@dataclass(frozen=True, config=STRICT)
class Compare:
    """Carry out the imagined actions in a copy of the world."""

    type: Literal["compare"]


@dataclass(frozen=True, config=STRICT)
class Fork:
    """Keep this moment as a branch."""

    type: Literal["fork"]


@dataclass(frozen=True, config=STRICT)
class Branch:
    """Return to a branch, or drop it."""

    type: Literal["branch", "drop"]
    index: Index


@dataclass(frozen=True, config=STRICT)
class Rewind:
    """Go back some steps."""

    type: Literal["rewind"]
    steps: Annotated[int, Field(ge=1, le=10_000)]


@dataclass(frozen=True, config=STRICT)
class Forget:
    """Erase memory, swap it with that of another episode, or keep the last frames only."""

    type: Literal["forget"]
    how: Literal["erase", "swap", "window"]


@dataclass(frozen=True, config=STRICT)
class Save:
    """Send the memory as a file."""

    type: Literal["save"]


@dataclass(frozen=True, config=STRICT)
class ReadMap:
    """Send the real map, and the map decoded from memory."""

    type: Literal["map"]


@dataclass(frozen=True, config=STRICT)
class SetGoal:
    """Choose as goal the task, a place on the map, or a frame."""

    type: Literal["goal"]
    goal: Literal["task", "place", "image"]
    x: Share = 0.5
    y: Share = 0.5


@dataclass(frozen=True, config=STRICT)
class MakePlan:
    """Plan for the goal."""

    type: Literal["plan"]
    planner: Literal[tuple(PLANNER_CONFIGS)]  # type: ignore[valid-type]
    candidates: Annotated[int, Field(ge=4, le=1024)]
    iterations: Annotated[int, Field(ge=1, le=16)]
    horizon: Annotated[int, Field(ge=1, le=128)]

    def __post_init__(self) -> None:
        if self.candidates * self.iterations * self.horizon > SEARCHED:
            raise ValueError("budget too large: lower candidates, rounds or horizon")


@dataclass(frozen=True, config=STRICT)
class Follow:
    """Take the next action of a candidate plan."""

    type: Literal["follow"]
    plan: Index


@dataclass(frozen=True, config=STRICT)
class Change:
    """Make an object of the real world the goal, or move it out of view."""

    type: Literal["ask", "move"]
    object: Index


Message = Annotated[
    Start
    | Step
    | Guide
    | SetMode
    | Compare
    | Fork
    | Branch
    | Rewind
    | Forget
    | Save
    | ReadMap
    | SetGoal
    | MakePlan
    | Follow
    | Change,
    Field(discriminator="type"),
]
_MESSAGES: TypeAdapter[Any] = TypeAdapter(Message)


def read(text: str) -> Any:
    """Return the message in a text; raises UserError with one line about a mistake."""
    if len(text) > TEXT_BYTES:
        raise UserError(f"a message has more than {TEXT_BYTES} characters")
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"cannot read this message: {where} {first['msg']}") from None


def write(reply: dict[str, Any]) -> str:
    """Return a reply as JSON."""
    return json.dumps(finite(reply), allow_nan=False)


def frame(pixels: np.ndarray | None) -> dict[str, Any] | None:
    """Return a frame uint8 [C, H, W] with its raw colours."""
    if pixels is None:
        return None
    rgb = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    text = base64.b64encode(np.ascontiguousarray(rgb).tobytes()).decode()
    return {"width": rgb.shape[1], "height": rgb.shape[0], "rgb": text}


def picture(pixels: np.ndarray) -> str:
    """Return a picture uint8 [C, H, W] as the address of a PNG image."""
    image = as_image(pixels)
    largest = max(image.size)
    if largest > LARGEST_PICTURE:
        ratio = LARGEST_PICTURE / largest
        size = [max(1, round(side * ratio)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def strip(frames: np.ndarray) -> dict[str, Any]:
    """Return frames uint8 [N, C, H, W], one next to the other, as one image."""
    count, _, height, width = frames.shape
    rgb = np.broadcast_to(frames, (count, 3, height, width))
    row = rgb.transpose(1, 2, 0, 3).reshape(3, height, count * width)
    file = io.BytesIO()
    as_image(row).save(file, "PNG", compress_level=1)
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"count": count, "width": width, "height": height, "image": address}
