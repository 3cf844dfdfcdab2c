"""What memory holds, drawn: where the agent takes itself to be, and what it expects to see at any other place.

Places are those of the odometer in the last layer: (heading, ahead, right), in radians to the right and in tokens, from
where the episode began; in weights from before all layers began at one place, other layers' may lie half a token off.
Shapes: B memories, n futures or poses, H steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lssvwm.worldmodel import imagination
from lssvwm.worldmodel.imagination import StepOptions
from lssvwm.worldmodel.mixers.path_integrator import rotate2d
from torch import Tensor

if TYPE_CHECKING:
    from lssvwm.worldmodel.memory import Memory
    from lssvwm.worldmodel.model import WorldModel

CHUNK = 256
"""Poses looked from, or compared with, at once."""


def has_map(model: WorldModel) -> bool:
    """Whether the model carries an odometer, and so has places."""
    return bool(_odometers(model))


def pose(model: WorldModel, memory: Memory) -> Tensor:
    """Where each agent takes itself to be, [B, 3]; raises ValueError for a model that carries no odometer."""
    return memory.layers[str(_last(model))]["mixer"]["pose"].mean(1)


@torch.no_grad()
def routes(model: WorldModel, memory: Memory, actions: Tensor) -> Tensor:
    """Where it expects actions [B, n, H(, A)] to lead it, [B, n, H, 3]; walls that it foresees stop it."""
    n, horizon = actions.shape[1:3]
    layer = _last(model)
    state = imagination.start(model, memory, n, horizon)
    poses = []
    for h in range(actions.shape[2]):
        imagination.step(model, state, actions[:, :, h])
        poses.append(state.caches[layer].mixer.pose.mean(2))
    return torch.stack(poses, 2)


@torch.no_grad()
def look(model: WorldModel, memory: Memory, poses: Tensor) -> Tensor:
    """What would be seen from `poses` [B, n, 3], as memory has it, uint8 [B, n, C, H, W]. What lay before the agent in
    the last frames, which it sees by attention, is left out."""
    state = imagination.start(model, memory, poses.shape[1], 1)
    state.visible = torch.zeros_like(state.visible)
    action, motion = _stillest(model)
    before = torch.cat(
        (
            poses[..., :1] - motion[0],
            poses[..., 1:] - rotate2d(motion[1:], poses[..., :1]),
        ),
        -1,
    )
    for i in _odometers(model):
        trace = state.caches[i].mixer
        trace.pose = before[:, :, None].expand(-1, -1, trace.pose.shape[2], -1)
    given = action.expand(*poses.shape[:2], *action.shape)
    decoded = StepOptions(decode=True)
    _, frames = imagination.step(model, state, given, decoded, last=True)
    assert frames is not None
    return frames


def survey(
    model: WorldModel,
    memory: Memory,
    trail: Tensor,
    low: tuple[int, int],
    high: tuple[int, int],
    up: float = 0.0,
) -> Tensor:
    """The map of the first memory, uint8 [C, rows, columns]: one token for every place from `low` to `high`, both
    included, as seen by an agent that faces `up`, a heading; (ahead, right) as that agent has them. Places that were
    not in view from any of the poses `trail` [T, 3] stay black, as memory can only guess."""
    rows, columns = model.patches.grid
    row, column = (
        max(0, rows - 2),
        (columns - 1) // 2,
    )  # a token before the agent, which nothing hides
    offset = torch.tensor([float(rows - 1 - row), column - (columns - 1) / 2]).to(
        model.embedding.pos_embed
    )
    ahead, right = (
        torch.arange(a, b + 1).to(model.embedding.pos_embed) for a, b in zip(low, high)
    )
    places = torch.stack(torch.meshgrid(ahead.flip(0), right, indexing="ij"), -1)
    heading = torch.tensor([up]).to(model.embedding.pos_embed)
    known = torch.zeros(places.shape[:2], dtype=torch.bool, device=places.device)
    for part in trail.to(model.embedding.pos_embed).split(CHUNK):
        there = rotate2d(
            rotate2d(places, heading)[:, :, None] - part[:, 1:], -part[:, :1]
        )  # from the agent, at each pose
        aside = there[..., 1].abs() < columns / 2
        known |= ((there[..., 0] > -0.5) & (there[..., 0] < rows - 0.5) & aside).any(-1)
    points = rotate2d(places[known] - offset, heading)
    poses = torch.cat((heading.expand(len(points), 1), points), -1)
    seen = torch.cat(
        [look(model, memory[:1], part[None])[0] for part in poses.split(CHUNK)]
    )
    size, (left, _, above, _) = model.patches.patch, model.patches.pad
    top, side = row * size - above, column * size - left
    seen = seen[..., max(0, top) : top + size, max(0, side) : side + size]
    tokens = seen.new_zeros(*known.shape, *seen.shape[1:])
    tokens[known] = seen
    return tokens.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _odometers(model: WorldModel) -> list[int]:
    """The layers with an odometer."""
    return [i for i, block in enumerate(model.layers) if block.mixer.has_poses]


def _last(model: WorldModel) -> int:
    """The last layer with an odometer."""
    found = _odometers(model)
    if not found:
        raise ValueError(
            f"a model of kind {model.config.mixer.kind} carries no odometer: it has no map"
        )
    return found[-1]


def _stillest(model: WorldModel) -> tuple[Tensor, Tensor]:
    """The action that moves the agent least, and its motion [3]: the map is looked at without going anywhere."""
    odometer = model.layers[_last(model)].mixer.integrator()
    if not model.discrete:
        return torch.zeros(model.actions, device=model.device), torch.zeros(
            3, device=model.device
        )
    motion = odometer.motion(
        torch.eye(model.actions + 1, device=model.device)[: model.actions]
    )
    action = (
        motion[:, 1:].abs().sum(-1) + 0.01 * motion[:, 0].abs()
    ).argmin()  # nothing can stop a turn
    return action, motion[action]
