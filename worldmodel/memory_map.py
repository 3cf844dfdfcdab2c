"""Draw what memory holds: the agent's pose, and what it predicts at other poses.

Poses are those of the path integrator in the last block: heading, ahead, right. The unit is radians to the right, and
tokens from where the episode began. In weights of the first releases, the poses of other blocks may differ by half a
token.

Shapes: B memories, n poses or rollouts, H steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from lssvwm.worldmodel import imagination
from lssvwm.worldmodel.imagination import RolloutState, StepOptions
from lssvwm.worldmodel.mixers.base import PoseCache
from lssvwm.worldmodel.mixers.path_integrator import rotate2d, split_pose
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from lssvwm.worldmodel.memory import Memory
    from lssvwm.worldmodel.model import WorldModel

QUARTER = torch.pi / 2
RIM = 3
"""Pixels at the rim of a token that a map does not show."""
CHUNK = 256
"""Poses that are rendered, or compared, at once."""


def has_map(model: WorldModel) -> bool:
    """Return whether the memory of a model has poses."""
    return bool(_blocks_with_poses(model))


def agent_pose(model: WorldModel, memory: Memory) -> Tensor:
    """Return the pose of each agent, [B, 3]. Raises ValueError for a model without poses."""
    layer = memory.layers[str(_last_block(model))]
    return layer["mixer"]["pose"].mean(1)


def pose_std(model: WorldModel, memory: Memory) -> Tensor | None:
    """Return the standard deviation of each agent's pose, [B, 3].

    None: the model has no motion model.
    Errors of steps count as independent, and headings as exact.
    """
    if model.motion is None:
        return None
    return memory.layers["pose", "variance"].sqrt()


@torch.no_grad()
def predicted_routes(model: WorldModel, memory: Memory, actions: Tensor) -> Tensor:
    """Return the poses [B, n, H, 3] that actions [B, n, H(, A)] lead to.

    Walls that the model predicts block the way.
    """
    n, horizon = actions.shape[1:3]
    state = imagination.start(model, memory, n, horizon)
    steps = actions.unbind(2)
    poses = [advance_pose(model, state, action) for action in steps]
    return torch.stack(poses, 2)


@torch.no_grad()
def advance_pose(model: WorldModel, state: RolloutState, action: Tensor) -> Tensor:
    """Imagine and remember one step of a rollout; return the poses [B, n, 3] after it.

    Raises ValueError for a model without poses.
    """
    last_block = _last_block(model)
    imagination.step(model, state, action)
    imagination.write(model, state)
    return _pose_cache(state, last_block).pose.mean(2)


@torch.no_grad()
def render_views(model: WorldModel, memory: Memory, poses: Tensor) -> Tensor:
    """Return the frames uint8 [B, n, C, H, W] that memory predicts at poses [B, n, 3].

    Local attention sees nothing, so that the last frames do not show what lay before the agent.
    """
    state = imagination.start(model, memory, poses.shape[1], 1)
    state.visible = torch.zeros_like(state.visible)
    action = _smallest_motion(model)
    actions = action.expand(*poses.shape[:2], *action.shape)
    decoded = StepOptions(decode=True)
    _, frames = imagination.step(model, state, actions, decoded, poses)
    assert frames is not None
    return frames


def draw_map(
    model: WorldModel,
    memory: Memory,
    trail: Tensor,
    low: tuple[int, int],
    high: tuple[int, int],
    up: float = 0.0,
) -> Tensor:
    """Draw the map of the first memory, uint8 [C, rows, columns].

    It shows one token for every place (ahead, right) from `low` to `high`, both included, in the axes of an agent with
    heading `up` (radians). Places that were never in view from the poses `trail` [T, 3] stay black, because memory can
    only guess there.
    """
    like = model.embedding.pos_embed
    ahead = torch.arange(low[0], high[0] + 1).to(like)
    right = torch.arange(low[1], high[1] + 1).to(like)
    grid = torch.meshgrid(ahead.flip(0), right, indexing="ij")
    places = torch.stack(grid, -1)
    heading = torch.tensor([up]).to(like)
    known = _in_view(model, rotate2d(places, heading), trail.to(like))
    row, column = _shown_token(model)
    rows, columns = model.patches.grid
    offset_ahead = float(rows - 1 - row)
    offset_right = column - (columns - 1) / 2
    offset = torch.tensor([offset_ahead, offset_right]).to(like)
    positions = rotate2d(places[known] - offset, heading)
    headings = heading.expand(len(positions), 1)
    poses = torch.cat((headings, positions), -1)
    views = [
        render_views(model, memory[:1], part[None])[0] for part in poses.split(CHUNK)
    ]
    tokens = _cut_token(model, torch.cat(views), row, column)
    shown = tokens.new_zeros(*known.shape, *tokens.shape[1:])
    shown[known] = tokens
    by_channel = shown.permute(2, 0, 3, 1, 4)
    return by_channel.flatten(3, 4).flatten(1, 2)


def lit_tokens(model: WorldModel, frames: Tensor) -> Tensor:
    """Return which tokens of frames uint8 [T, C, H, W] show something, bool [T, rows, columns].

    Most of a dark token is black: walls hide it.
    """
    shown = (frames.amax(1, keepdim=True) > 0).float()
    return _tokens(model, shown).mean((3, 4, 5)) > 0.5


def has_views(model: WorldModel, trail: Tensor, up: float = 0.0) -> bool:
    """Return whether views from poses [T, 3] fit a map with heading `up`.

    They differ from it by quarter turns, and a token lies straight ahead of the agent.
    """
    turns = (trail[:, 0] - up) / QUARTER
    gaps = (turns - turns.round()).abs()
    is_odd = model.patches.grid[1] % 2 == 1
    return is_odd and bool((gaps < 0.1).all())


def draw_views(
    model: WorldModel,
    memory: Memory,
    trail: Tensor,
    lit: Tensor,
    low: tuple[int, int],
    high: tuple[int, int],
    up: float = 0.0,
) -> Tensor:
    """Draw the map as `draw_map` does, from the views that memory predicts at visited poses.

    trail: poses [T, 3] for which `has_views` holds
    lit: tokens that showed something at these poses, bool [T, rows, columns]

    Tokens that were not lit stay black.
    Of several views of a place, the nearest to the middle of its frame counts, then the latest.
    """
    poses = _poses_on_map(trail, up)
    visits = {tuple(pose): number for number, pose in enumerate(poses.tolist())}
    latest = list(visits.values())
    views = []
    for part in trail[latest].split(CHUNK):
        part = part[None].to(model.device)
        rendered = render_views(model, memory[:1], part)
        views.append(rendered[0].cpu())
    tokens = _without_rim(_tokens(model, torch.cat(views)))
    rows, columns = (last - first + 1 for first, last in zip(low, high))
    token_shape = tokens.shape[3:]
    shown = tokens.new_zeros(rows, columns, *token_shape)
    quarters, position = split_pose(poses[latest])
    headings = quarters * QUARTER
    for row, column in _from_rim_to_middle(*model.patches.grid):
        offset = _offset(model, row, column, headings)
        places = (position + offset).round().long()
        for view, (ahead, right) in enumerate(places.tolist()):
            inside_rows = low[0] <= ahead <= high[0]
            inside_columns = low[1] <= right <= high[1]
            is_lit = lit[latest[view], row, column]
            if inside_rows and inside_columns and is_lit:
                shown_row = high[0] - ahead
                shown_column = right - low[1]
                shown[shown_row, shown_column] = tokens[view, row, column]
    by_channel = shown.permute(2, 0, 3, 1, 4)
    return by_channel.flatten(3, 4).flatten(1, 2)


def _poses_on_map(trail: Tensor, up: float) -> Tensor:
    """Return poses [T, 3] in the axes of a map, in quarter turns and whole tokens."""
    heading, position = split_pose(trail)
    up_heading = torch.tensor([up])
    quarters = (heading - up_heading) / QUARTER
    turned = quarters.round() % 4
    on_map = rotate2d(position, -up_heading)
    return torch.cat((turned, on_map.round()), 1)


def _from_rim_to_middle(rows: int, columns: int) -> list[tuple[int, int]]:
    """Return the tokens of a view without the agent's; the one before it comes last."""
    middle_row = max(0, rows - 2)
    middle_column = (columns - 1) // 2
    places = [(row, column) for row in range(rows) for column in range(columns)]
    places.remove((rows - 1, middle_column))

    def nearness(place: tuple[int, int]) -> int:
        row, column = place
        return -abs(row - middle_row) - abs(column - middle_column)

    return sorted(places, key=nearness)


def _offset(model: WorldModel, row: int, column: int, heading: Tensor) -> Tensor:
    """Return the places (ahead, right) [T, 2] of a token from agents with headings [T, 1]."""
    rows, columns = model.patches.grid
    ahead = float(rows - 1 - row)
    right = column - (columns - 1) / 2
    seen = torch.tensor([ahead, right])
    return rotate2d(seen.expand(len(heading), 2), heading)


def _tokens(model: WorldModel, frames: Tensor) -> Tensor:
    """Cut frames [T, C, H, W] into tokens [T, rows, columns, C, side, side]."""
    rows, columns = model.patches.grid
    size = model.patches.patch
    padded = F.pad(frames.float(), model.patches.pad, mode="replicate")
    cut = padded.unflatten(3, (columns, size)).unflatten(2, (rows, size))
    return cut.permute(0, 2, 4, 1, 3, 5).to(frames.dtype)


def _without_rim(tokens: Tensor) -> Tensor:
    """Enlarge the inner part of tokens [..., C, side, side]: a frame may have a border."""
    side = tokens.shape[-1]
    rim = min(RIM, side // 4)
    inner = torch.linspace(rim, side - 1 - rim, side).round().long()
    return tokens[..., inner, :][..., inner]


def _in_view(model: WorldModel, places: Tensor, trail: Tensor) -> Tensor:
    """Return which places [rows, columns, 2] were in view from any pose of `trail` [T, 3]."""
    rows, columns = model.patches.grid
    known = torch.zeros(places.shape[:2], dtype=torch.bool, device=places.device)
    for poses in trail.split(CHUNK):
        heading, position = split_pose(poses)
        offset = places[:, :, None] - position
        seen_from_agent = rotate2d(offset, -heading)
        ahead, right = seen_from_agent.unbind(-1)
        in_front = (ahead > -0.5) & (ahead < rows - 0.5)
        in_width = right.abs() < columns / 2
        known |= (in_front & in_width).any(-1)
    return known


def _shown_token(model: WorldModel) -> tuple[int, int]:
    """Return row and column of the token one step before the agent, which nothing hides."""
    rows, columns = model.patches.grid
    return max(0, rows - 2), (columns - 1) // 2


def _cut_token(model: WorldModel, frames: Tensor, row: int, column: int) -> Tensor:
    """Cut one token out of frames [N, C, H, W]."""
    size = model.patches.patch
    pad_left, _, pad_top, _ = model.patches.pad
    top = row * size - pad_top
    left = column * size - pad_left
    rows = slice(max(0, top), top + size)
    columns = slice(max(0, left), left + size)
    return frames[..., rows, columns]


def _blocks_with_poses(model: WorldModel) -> list[int]:
    return [i for i, block in enumerate(model.layers) if block.mixer.has_poses]


def _pose_cache(state: RolloutState, block: int) -> PoseCache:
    return cast("PoseCache", state.caches[block].mixer)


def _last_block(model: WorldModel) -> int:
    """Return the last block with poses."""
    found = _blocks_with_poses(model)
    if not found:
        kind = model.config.mixer.kind
        raise ValueError(f"a model with mixer {kind} has no poses: it has no map")
    return found[-1]


def _smallest_motion(model: WorldModel) -> Tensor:
    """Return the action that moves the agent least."""
    if not model.discrete:
        return torch.zeros(model.actions, device=model.device)
    actions = torch.eye(model.actions + 1, device=model.device)
    actions = actions[: model.actions]
    if model.motion is not None:
        motion = model.motion.expected_step(actions, model.motion.initial(1, actions))
    else:
        integrator = model.layers[_last_block(model)].mixer.integrator()
        assert integrator is not None
        motion = integrator.motion(actions)
    turn, step = split_pose(motion.abs())
    size = step.sum(-1)
    size = size + 0.01 * turn.squeeze(-1)  # walls block steps, but no turns
    return size.argmin()
