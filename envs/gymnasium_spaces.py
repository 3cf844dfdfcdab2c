"""Translate Gymnasium spaces: images to RGB frames, actions to `Discrete` or `Box`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from lssvwm.envs.base import Box, Discrete

if TYPE_CHECKING:
    import gymnasium
    from gymnasium import spaces

MIN_SIDE = 8
"""Least rows and columns of an image. MiniGrid's symbolic 7 x 7 view is none."""
MAX_COMBINATIONS = 256
"""Largest number of combined choices that become one discrete action."""
CHANNELS = (1, 3)
"""Numbers of channels of grey and RGB images."""
ALPHA = 4
"""Channels of a rendered RGBA picture. As an observation it may be a stack of frames."""
MAX_BOUND = 1e6
"""Largest bound of a continuous action; differences of larger ones are not exact."""

ImageFinder = Callable[[Any, "gymnasium.Env"], np.ndarray]
"""Takes the image out of an observation of an environment."""


def rendered(observation: Any, env: gymnasium.Env) -> np.ndarray:
    """Return the rendered image of `env`, without alpha.

    Raises ValueError if it renders anything but an array.
    """
    image = env.render()
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"{env} renders {type(image).__name__}, not an array; "
            "env.render=true needs rgb_array"
        )
    has_alpha = image.ndim == 3 and image.shape[2] == ALPHA
    return image[..., :3] if has_alpha else image


def image_finder(space: gymnasium.Space, name: str | None) -> ImageFinder:
    """Return the function that takes the image out of an observation of `space`.

    Raises ValueError if there is no image, or more than one to choose from.
    """
    if _is_image(space):
        return lambda observation, env: observation
    images = _image_keys(space)
    if len(images) == 1:
        return lambda observation, env: observation[images[0]]
    several = f"more than one image ({', '.join(images)})"
    raise ValueError(
        f"{name} observes {space}: {several if images else 'no image'} "
        f"(uint8, at least {MIN_SIDE} x {MIN_SIDE}; grey or RGB, not a stack of "
        "frames, which the memory replaces); "
        "set env.render=true to take what it renders, or wrap it in a factory "
        "(gymnasium.wrappers.AddRenderObservation)"
    )


def _image_keys(space: gymnasium.Space) -> list[str]:
    """Return the keys of a dictionary's images; only the usual one if it is there."""
    from gymnasium import spaces

    if not isinstance(space, spaces.Dict):
        return []
    images = [key for key, entry in space.spaces.items() if _is_image(entry)]
    usual = [key for key in ("pixels", "image") if key in images]
    return usual[:1] or images


def _is_image(space: gymnasium.Space) -> bool:
    from gymnasium import spaces

    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    sides = space.shape
    if len(sides) == 3:
        if sides[2] in CHANNELS:
            sides = sides[:2]
        elif sides[0] in CHANNELS:
            sides = sides[1:]
    return len(sides) == 2 and min(sides) >= MIN_SIDE


def to_frame(image: Any, size: int) -> np.ndarray:
    """Return uint8 [3, size, size] of an image.

    image: [H, W], [H, W, 1|3] or [1|3, H, W]; whole numbers from 0 to 255, or floats from 0 to 1
    Raises ValueError for anything else.
    """
    return resize(_to_rgb(to_bytes(np.asarray(image))), size).transpose(2, 0, 1)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Return pixels as uint8; floats from 0 to 1 are scaled to 255.

    Raises ValueError for other types, and for numbers outside of these ranges.
    """
    if pixels.dtype == np.uint8:
        return pixels
    limit = {"f": 1, "i": 255, "u": 255}.get(pixels.dtype.kind)
    if limit is None:
        raise ValueError(f"its type is {pixels.dtype}, not uint8")
    if not ((pixels >= 0) & (pixels <= limit)).all():  # false for NaN, too
        raise ValueError(
            f"its {pixels.dtype} numbers go from {pixels.min()} to {pixels.max()}; "
            "they must be uint8, whole from 0 to 255, or floats from 0 to 1"
        )
    scaled = np.rint(pixels * 255.0) if limit == 1 else pixels
    return scaled.astype(np.uint8)


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and shape[2] not in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in CHANNELS or 0 in shape:
        raise ValueError(f"its shape is {shape}, not that of a grey or RGB image")
    is_grey = pixels.shape[2] == 1
    return np.repeat(pixels, 3, axis=2) if is_grey else pixels


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 [size, size, 3]: averaged areas to shrink, interpolation to grow.

    pixels: uint8 [H, W, 3]
    """
    from PIL import Image

    if pixels.shape[:2] == (size, size):
        return pixels
    shrinks = min(pixels.shape[:2]) >= size
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), method))


def to_actions(env: gymnasium.Env, name: str | None) -> Discrete | Box:
    """Return the actions of `env`; raises ValueError for a space without translation.

    Every combination of several choices becomes one discrete action. Dimensions of a
    Box with low = high are fixed and left out.
    """
    from gymnasium import spaces

    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return _named(env, int(space.n))
    choices = _choices(space)
    if choices is not None and math.prod(choices) <= MAX_COMBINATIONS:
        combinations = itertools.product(*map(range, choices))
        return Discrete(math.prod(choices), tuple(map(str, combinations)))
    if isinstance(space, spaces.Box) and _is_bounded_float(space):
        free = _free(space)
        low = tuple(space.low[free].tolist())
        high = tuple(space.high[free].tolist())
        return Box(low, high)
    raise ValueError(
        f"{name} acts through {space}: only Discrete, MultiDiscrete and MultiBinary "
        f"(up to {MAX_COMBINATIONS} combinations) and bounded float Box (up to "
        f"{MAX_BOUND:g}, a dimension not fixed) are supported; wrap it in a factory "
        "(gymnasium.wrappers.TransformAction, RescaleAction)"
    )


def _is_bounded_float(space: spaces.Box) -> bool:
    if not np.issubdtype(space.dtype, np.floating):
        return False
    bounds = np.abs([space.low, space.high])
    bounded = bool((bounds <= MAX_BOUND).all())  # false for NaN, too
    return bounded and bool(_free(space).any())


def _free(space: spaces.Box) -> np.ndarray:
    """Return the dimensions of an action that can vary, bool; low = high fixes others."""
    return space.low < space.high


def _named(env: gymnasium.Env, n: int) -> Discrete:
    """Return `n` actions with the names that Atari environments give them."""
    meanings: list[Any] = []
    with suppress(Exception):  # names are no reason to refuse an environment
        meanings = list(env.unwrapped.get_action_meanings())  # type: ignore[attr-defined]
    names = meanings if len(meanings) == n else [f"action {i}" for i in range(n)]
    return Discrete(n, tuple(str(name) for name in names))


def _choices(space: gymnasium.Space) -> tuple[int, ...] | None:
    """Return the options of every choice of an action; None if it is not several."""
    from gymnasium import spaces

    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.ravel().tolist())
    return None


def from_action(action: np.ndarray, actions: Discrete | Box, space: Any) -> Any:
    """Return an action of ours as an element of Gymnasium's `space`."""
    choices = _choices(space)
    if choices is not None:
        options = np.array(np.unravel_index(int(action), choices), space.dtype)
        start = getattr(space, "start", space.dtype.type(0))
        return options.reshape(space.shape) + start
    if isinstance(actions, Discrete):
        return int(action) + int(space.start)
    full = space.low.copy()
    full[_free(space)] = np.clip(action, actions.low, actions.high)
    return full
