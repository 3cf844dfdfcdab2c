"""Define the interface of memory mixers, and keep the list of them.

A mixer is the layer of a block that carries memory over time. To add one, write a module of this package with a
config class and, below it, a `Mixer` decorated with `register`. Then import that module in `__init__.py`.

Shapes
    u [B, T, R, S, D]    tokens: B sequences, T frames, R copies of a frame, S tokens per frame, width D.
                         The last copy of a frame is the one that memory may keep. A copy before it only reads.
    u [B, n, R, S, D]    tokens of R successive imagined frames of each of n candidates, R at most 2.
                         Of two frames, the first is written and the second reads.
    action [..., A]      action that led to the frame, as numbers; the last one is 1 if there was none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from lssvwm.worldmodel.mixers.path_integrator import PathIntegrator
from pydantic import ConfigDict
from torch import Tensor, nn

SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""Options of every config class: unknown settings are errors, docstrings describe the fields."""

MixerMemory = dict[str, Tensor]
"""Memory of one mixer: tensors whose first axis is the batch."""


class MixerConfig(Protocol):
    """Describe the settings that all mixers have. The classes themselves are frozen pydantic dataclasses."""

    @property
    def kind(self) -> Any:
        """Name of the mixer."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...


@dataclass(frozen=True)
class MixerContext:
    """Describe the model around the mixer of one block."""

    layer: int
    """Index of the block."""

    width: int
    """Numbers per token."""

    grid: tuple[int, int]
    """Rows and columns of tokens."""

    actions: int
    """Numbers of an action."""

    pose: Literal["integrated", "learned", "given", "none"]
    """Source of the poses that rotate keys; none: keys do not stand for places."""

    walls: bool
    """Predict from the frame if a step was blocked. Otherwise blocked actions are corrected beforehand."""

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return self.grid[0] * self.grid[1]


class SequenceInputs(NamedTuple):
    """Hold what the layers need of the frames of a sequence besides their tokens."""

    action: Tensor
    """Action that led to each frame, as executed, [B, T, A]."""

    writes: Tensor
    """True where memory keeps the frame, [B, T]."""

    reset: Tensor
    """True where memory is erased before the frame, [B, T]."""

    visible: Tensor
    """True for past frames that local attention may see, [B, T, k-1]."""

    seen: Tensor
    """Tokens of the written copy before all blocks, [B, T, S, D]. Write gates look at them."""

    pose: Tensor | None = None
    """Pose of each copy, [B, T, R, 3]; None: each layer integrates its own."""


class RolloutInputs(NamedTuple):
    """Hold what the layers need of successive imagined frames besides their tokens."""

    action: Tensor
    """Action that led to each frame, as executed, [B, n, R, A]."""

    visible: Tensor
    """True for frames before the first one that local attention may see, [B, n, k-1]."""

    seen: Tensor
    """Tokens of the first frame before all blocks, [B, n, S, D]."""

    write: bool
    """Keep the first frame in the cache."""

    read: bool = True
    """Compute the output of a written frame. With false it is undefined."""

    pose: Tensor | None = None
    """Poses [B, n, R, 3]; None: each layer integrates its own."""


class MixerOutput(NamedTuple):
    """Hold what a mixer makes of sequences."""

    tokens: Tensor
    """[B, T, R, S, D]"""

    memory: MixerMemory
    """Memory after the last frame"""

    gates: Tensor | None = None
    """Openings of the write gate for the tokens of each frame, [B, T, k], which are clipped to write strengths 0 ... 1.
    None: the mixer writes every token"""


class RolloutCache(Protocol):
    """Hold what n candidates of each memory imagined, apart from the memory that they share."""

    def select(self, index: Tensor) -> None:
        """Keep the candidates `index` [B, m], each once or more often."""

    def nbytes(self) -> int:
        """Return the bytes of all candidates, without the shared memory."""
        ...


class PoseCache(RolloutCache, Protocol):
    """Hold also the poses of the candidates, in mixers that have poses."""

    pose: Tensor
    """Pose of each tile, [B, n, G, 3]; it may be set."""


class Mixer(nn.Module):
    """Carry memory over time. Subclasses take their config and a `MixerContext`."""

    @property
    def has_poses(self) -> bool:
        """Memory has an entry `pose` [B, G, 3], and the rollout cache is a `PoseCache`."""
        return self.integrator() is not None

    def integrator(self) -> PathIntegrator | None:
        """Return what sums up the agent's motion, if keys stand for places.

        A mixer that has one must have poses.
        """
        return None

    def initial(self, batch: int, like: Tensor) -> MixerMemory:
        """Return the empty memory of `batch` agents, with device and type of `like`."""
        raise NotImplementedError

    def forward(
        self, u: Tensor, frames: SequenceInputs, memory: MixerMemory
    ) -> MixerOutput:
        """Process sequences u [B, T, R, S, D]."""
        raise NotImplementedError

    def start_rollout(self, memory: MixerMemory, n: int, frames: int) -> Any:
        """Return the `RolloutCache` of n candidates that imagine at most `frames` frames. The memory is only read."""
        raise NotImplementedError

    def rollout_step(self, u: Tensor, frame: RolloutInputs, cache: Any) -> Tensor:
        """Process successive imagined frames u [B, n, R, S, D]. Returns the same shape.

        With `frame.write`, the cache keeps the first one.
        """
        raise NotImplementedError

    def use_backend(self, name: str, device: torch.device) -> None:
        """Compute the scan by a backend, see `scan.backends`. Mixers without a scan ignore it."""


Class = TypeVar("Class", bound=type[Mixer])

_MIXERS: dict[type, type[Mixer]] = {}


def register(config: type) -> Callable[[Class], Class]:
    """Add the decorated mixer, configured by the class `config`, to the list of mixers."""

    def add(mixer: Class) -> Class:
        _MIXERS[config] = mixer
        return mixer

    return add


def config_classes() -> tuple[type, ...]:
    """Return the config classes of all mixers, in the order of registration."""
    return tuple(_MIXERS)


def build_mixer(config: MixerConfig, context: MixerContext) -> Mixer:
    """Build the mixer of one block. Raises ValueError for settings that do not fit the model."""
    return _MIXERS[type(config)](config, context)


def put(buffer: Tensor, value: Tensor, begin: int, axis: int) -> Tensor:
    """Return the buffer with `value` from `begin` on along an axis.

    The buffer itself is changed, unless gradients are recorded. A graph that saved it could not go backward. It would
    also refer to itself and never be freed.
    """
    size = value.shape[axis]
    if not torch.is_grad_enabled():
        buffer.narrow(axis, begin, size).copy_(value)
        return buffer
    end = begin + size
    missing = buffer.shape[axis] - end
    before = buffer.narrow(axis, 0, begin)
    after = buffer.narrow(axis, end, missing)
    return torch.cat((before, value, after), axis)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Select candidates `index` [B, m] of x [B, n, ...]. Returns [B, m, ...]."""
    number = torch.arange(len(x), device=x.device)
    first_row = number[:, None] * x.shape[1]
    rows = (first_row + index).flatten()
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)
