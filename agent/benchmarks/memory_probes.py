"""Read walls and objects off a memory by trained probes, as published for Memory Maze.

The protocol is that of Pasukonis et al. 2022 (arXiv 2210.13383) and of their code, `pydreamer/models/probes.py` and
`config/defaults.yaml` in jurgisp/pydreamer. No gradient reaches the world model.

    walls     floor or wall of every tile of the maze, in the maze's own frame of reference
              The probe also gets the agent's position and direction, because nothing in frames shows that frame.
    objects   right and ahead of every object from the agent, in tiles; from the memory alone

A probe has four hidden layers with layer norm and ELU, of 1024 units for walls and 400 for objects. There are three
differences. Memories are projected to SIZE numbers. Every EVERY-th frame is used. The weights with the smallest loss on
a tenth of the training walks are kept.

Shapes: W walks, F frames of each, K objects, n x n tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lssvwm.agent.benchmarks.linear_probes import features
from lssvwm.agent.benchmarks.pose_walks import PoseWalk, Segment
from lssvwm.agent.evaluation.statistics import gain
from lssvwm.worldmodel import Memory, WorldModel
from lssvwm.worldmodel.data import Trajectory
from torch import Tensor, nn

SIZE = 2048
"""Numbers that a memory is projected to, about."""
LEAST = 32
"""Numbers that each tensor of a memory is projected to, at least."""
EVERY = 5
"""Frames between two frames whose memory is probed. Neighbours are nearly the same."""
WIDTHS = {"walls": 1024, "objects": 400}
"""Units of the hidden layers, as published."""
LAYERS = 4
"""Hidden layers, as published."""
LEARNING_RATE, EPSILON = 3e-4, 1e-5
"""Settings of Adam, as published."""
BATCH = 512
"""Frames in a training batch."""
CHECK = 50
"""Training steps between two checks on the validation walks."""
VALIDATED = 10
"""One in so many training walks is for validation."""
LARGEST = 6e4
"""Largest size of a projected number, near that of float16."""
STANDARDISED = 64
"""Walks from which means and standard deviations are taken, at least."""
SMALLEST = 1e-6
"""Smallest standard deviation by which a number is divided."""

Tick = Callable[[], None]


class Sketch:
    """Project tensors to about SIZE numbers by a fixed random projection.

    Each number of a tensor is added to one of its outputs, with a random sign (Charikar et al. 2002). A tensor has
    outputs in proportion to its size; a small one is kept as it is.
    """

    def __init__(self, sizes: list[int]):
        generator = torch.Generator().manual_seed(0)
        total = sum(sizes)
        self.parts: list[tuple[int, Tensor, Tensor]] = []
        for size in sizes:
            outputs = min(size, max(LEAST, SIZE * size // total))
            output = torch.randint(outputs, (size,), generator=generator)
            sign = 1.0 - 2.0 * torch.randint(2, (size,), generator=generator)
            if outputs == size:
                output, sign = torch.arange(size), torch.ones(size)
            self.parts.append((outputs, output, sign))

    def __call__(self, tensors: list[Tensor]) -> Tensor:
        """Return [B, about SIZE] for tensors [B, m]."""
        projected = []
        for value, (outputs, output, sign) in zip(tensors, self.parts):
            out = value.new_zeros(len(value), outputs)
            out.index_add_(1, output.to(value.device), value * sign.to(value.device))
            projected.append(out)
        return torch.cat(projected, 1)


@torch.no_grad()
def memory_features(
    model: WorldModel, walks: list[PoseWalk], erased: bool, tick: Tick
) -> np.ndarray:
    """Return the projected memory after every EVERY-th frame of walks, float16 [W, F, m].

    The tokens that the heads read belong to it. With `erased`, the memory holds that frame only.
    """
    walk = Segment.of(walks, 0, 0, len(walks[0].frames))
    count = walk.action.shape[1] // EVERY
    memory = model.initial(len(walks))
    found = []
    for i in range(count):
        some = slice(i * EVERY, (i + 1) * EVERY)
        if erased:
            some = slice(some.stop - 1, some.stop)
        inputs = (walk.frames, walk.action, walk.pose)
        frames, action, pose = (v[:, some].to(model.device) for v in inputs)
        first = torch.zeros_like(action, dtype=torch.bool)
        first[:, 0] = erased or i == 0
        path = Trajectory(action, first, torch.ones_like(first), pose=pose)
        memory, tokens = model.write(memory, frames, path)
        numbers = _numbers(memory, tokens).cpu().float()
        found.append(numbers.clamp(-LARGEST, LARGEST).half())
        tick()
    return torch.stack(found, 1).numpy()


def _numbers(memory: Memory, tokens: Tensor) -> Tensor:
    """Project a memory and the last of the tokens [B, T, S, D] that heads read."""
    tensors = [*features(memory), tokens[:, -1].flatten(1)]
    sizes = [value.shape[1] for value in tensors]
    return sketch_of(tuple(sizes))(tensors)


_SKETCHES: dict[tuple[int, ...], Sketch] = {}


def sketch_of(sizes: tuple[int, ...]) -> Sketch:
    """Return the projection of tensors of these sizes, the same one each time."""
    if sizes not in _SKETCHES:
        _SKETCHES[sizes] = Sketch(list(sizes))
    return _SKETCHES[sizes]


@dataclass(frozen=True)
class Answers:
    """Hold the targets of the probes after every EVERY-th frame.

    coordinates float32 [W, F, 4]: position in tiles, and direction as a unit vector
    walls float32 [W, n * n]: 1 for floor
    objects float32 [W, F, 2 K]
    """

    coordinates: np.ndarray
    walls: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, walks: list[PoseWalk]) -> Answers:
        """Return the targets of walks."""
        at = slice(EVERY - 1, None, EVERY)
        pose = np.stack([walk.pose[at] for walk in walks])
        heading = pose[..., 0]
        ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
        objects = np.stack([walk.objects[at] for walk in walks])
        layouts = np.stack([walk.layout for walk in walks]).astype(np.float32)
        return cls(
            np.concatenate([pose[..., 1:], ahead], -1).astype(np.float32),
            layouts.reshape(len(walks), -1),
            objects.reshape(*objects.shape[:2], -1).astype(np.float32),
        )


class Probe(nn.Module):
    """Predict a target from a memory, whose numbers are standardised first."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Tensor, outputs: int, width: int):
        super().__init__()
        some = inputs[:: max(1, len(inputs) // STANDARDISED)]
        flat = some.flatten(0, 1).float()
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("std", flat.std(0).clamp(min=SMALLEST))
        layers: list[nn.Module] = []
        size = flat.shape[1]
        for _ in range(LAYERS):
            norm = nn.LayerNorm(width, eps=1e-3)
            layers += [nn.Linear(size, width), norm, nn.ELU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions [..., outputs] from numbers [..., m]."""
        return self.layers((x.float() - self.mean) / self.std)


def fit(name: str, x: Tensor, y: Tensor, steps: int, tick: Tick) -> Probe:
    """Train the probe `name` on numbers x [W, F, m] and targets y [W, F, k].

    It has the weights that were best on the last tenth of the walks.
    """
    torch.manual_seed(0)
    kept = max(1, len(x) // VALIDATED)
    fitted, checked = slice(0, len(x) - kept), slice(len(x) - kept, None)
    probe = Probe(x[fitted], y.shape[-1], WIDTHS[name]).to(x.device)
    optimizer = torch.optim.Adam(probe.parameters(), LEARNING_RATE, eps=EPSILON)
    inputs, targets = x[fitted].flatten(0, 1), y[fitted].flatten(0, 1)
    best, weights = np.inf, probe.state_dict()
    for step in range(steps):
        if step % CHECK == 0:
            error = float(_loss(name, predict(probe, x[checked]), y[checked]))
            if error < best:
                best = error
                weights = {k: v.clone() for k, v in probe.state_dict().items()}
        some = torch.randint(len(inputs), (BATCH,))
        loss = _loss(name, probe(inputs[some]), targets[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick()
    probe.load_state_dict(weights)
    return probe


def _loss(name: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Return the loss of a probe: cross entropy for walls, squared error for objects."""
    if name == "walls":
        return nn.functional.binary_cross_entropy_with_logits(predicted, target)
    return nn.functional.mse_loss(predicted, target)


@torch.no_grad()
def predict(probe: Probe, x: Tensor) -> Tensor:
    """Return the predictions [W, F, k] from numbers [W, F, m], walk by walk."""
    return torch.stack([probe(walk) for walk in x])


def constant(name: str, y: Tensor, count: int) -> Tensor:
    """Return the best constant prediction [count, 1, k] after targets [W, F, k]."""
    mean = y.mean((0, 1))
    if name == "walls":
        mean = mean - 0.5
    return mean.expand(count, 1, -1)


def score(name: str, predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Score predictions [W, F, k] of held-out walks, with a 95 % interval over walks.

    Share of right tiles for walls. For objects, the root of the mean squared distance, in tiles.
    Only the second half of the frames counts, as published.
    """
    half = target.shape[1] // 2
    wanted = target[:, half:]
    guessed = predicted.expand_as(target)[:, half:]
    if name == "walls":
        right = ((guessed > 0) == (wanted > 0.5)).float().mean((1, 2))
        return _interval(right.cpu().numpy())
    distances = (guessed - wanted).square().unflatten(-1, (-1, 2)).sum(-1)
    squared = _interval(distances.mean((1, 2)).cpu().numpy())
    return {key: float(np.sqrt(max(0.0, value))) for key, value in squared.items()}


def _interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of values [W] with its 95 % interval."""
    found = gain(values, np.zeros_like(values))
    return {key: found[key] for key in ("mean", "low", "high")}
