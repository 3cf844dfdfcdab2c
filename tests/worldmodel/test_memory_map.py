"""Test that routes follow the path integrator, and that maps show the right places."""

import math

import numpy as np
import pytest
import torch
from lssvwm.agent.video.counterfactuals import draw_memory_map
from lssvwm.envs import MiniGridConfig, ReturnConfig, make
from lssvwm.worldmodel import ModelConfig, WorldModel, memory_map
from lssvwm.worldmodel.mixers.attention import AttentionConfig
from lssvwm.worldmodel.mixers.gru import GRUConfig
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

LEFT, RIGHT, AHEAD, STAY = range(4)


def known(tiles=(1, 3), **changes) -> WorldModel:
    """Return a small model with four known motions and no walls."""
    mixer = TiledSSDConfig(tiles=tiles, state=32)
    model = WorldModel(
        ModelConfig(**{"width": 16, "patch": 8, "mixer": mixer} | changes),
        (3, 24, 24),
        4,
    ).eval()
    for block in model.layers:
        integrator = block.mixer.path_integrator
        with torch.no_grad():
            integrator.action.weight.zero_()
            integrator.action.weight[0, :2] = torch.tensor([-math.pi / 2, math.pi / 2])
            integrator.action.weight[1, AHEAD] = 1.0
            integrator.frame.bias.fill_(100.0)
    return model


def observed(model: WorldModel, actions: list[int]):
    frames = torch.randint(
        0,
        256,
        (1, len(actions), 3, 24, 24),
        dtype=torch.uint8,
        generator=torch.manual_seed(0),
    )
    first = torch.tensor([[True] + [False] * (len(actions) - 1)])
    with torch.no_grad():
        return model.observe(model.initial(1), frames, torch.tensor([actions]), first)[
            0
        ]


def test_poses_and_routes_follow_path_integrator():
    model = known()
    memory = observed(model, [STAY, AHEAD, RIGHT, AHEAD])
    assert torch.allclose(
        memory_map.agent_pose(model, memory),
        torch.tensor([[math.pi / 2, 1, 1]]),
        atol=1e-5,
    )
    route = memory_map.predicted_routes(
        model, memory, torch.tensor([[[AHEAD, LEFT, AHEAD], [STAY, STAY, AHEAD]]])
    )
    assert torch.allclose(
        route[0, 0, :, 1:], torch.tensor([[1.0, 2], [1, 2], [2, 2]]), atol=1e-5
    )
    assert torch.allclose(route[0, 1, -1], torch.tensor([math.pi / 2, 1, 2]), atol=1e-5)


def test_view_equals_imagined_frame_at_same_pose():
    """Compare views from the same memory, without the last frames."""
    model = known(attention_window=0)
    memory = observed(model, [STAY, AHEAD])
    actions = torch.tensor([[[STAY]]])
    here = model.imagine(memory, actions, decode=True).frames[:, 0]
    view = memory_map.render_views(
        model, memory, memory_map.agent_pose(model, memory)[:, None]
    )
    assert torch.equal(view, here) and not torch.equal(
        view, memory_map.render_views(model, memory, torch.zeros(1, 1, 3))
    )


def test_views_undo_motion_of_every_action():
    """Undo the motion of the action that moves least, if none stands still."""
    model = known(attention_window=0)
    for block in model.layers:
        with torch.no_grad():
            block.mixer.path_integrator.action.weight[1, STAY] = 1.0
    memory = observed(model, [AHEAD, AHEAD])
    there = memory_map.predicted_routes(model, memory, torch.tensor([[[LEFT]]]))[
        :, :, 0
    ]
    turned = model.imagine(memory, torch.tensor([[[LEFT]]]), decode=True).frames[:, 0]
    assert torch.equal(memory_map.render_views(model, memory, there), turned)


@pytest.mark.parametrize(("up", "at"), [(0.0, (2.0, 1.0)), (math.pi / 2, (-1.0, 2.0))])
def test_map_shows_places_in_view(up, at):
    """Check the nine places in view.

    The place 2 ahead and 1 to the right, for heading `up`, shows what the middle of the frame shows one step before it.
    """
    model = known()
    memory, trail = observed(model, [STAY]), torch.tensor([[up, 0.0, 0.0]])
    drawn = memory_map.draw_map(model, memory, trail, (-2, -3), (3, 3), up)
    tiles = drawn.view(3, 6, 8, 7, 8)
    assert drawn.shape == (3, 48, 56) and drawn.dtype == torch.uint8
    seen = (tiles.amax((0, 2, 4)) > 0).nonzero().tolist()
    assert seen == [
        [row, column] for row in (1, 2, 3) for column in (2, 3, 4)
    ]  # 3 ahead is up
    before = (at[0] - math.cos(up), at[1] - math.sin(up))
    frame = memory_map.render_views(model, memory, torch.tensor([[[up, *before]]]))[
        0, 0
    ]
    assert (tiles[:, 1, :, 4].int() - frame[:, 8:16, 8:16].int()).abs().max() <= 1
    other = memory_map.draw_map(
        model, memory, trail, (-2, -3), (3, 3), up + math.pi / 2
    )  # ahead is on the left of it now
    seen = (other.view(3, 6, 8, 7, 8).amax((0, 2, 4)) > 0).nonzero().tolist()
    assert seen == [[row, column] for row in (2, 3, 4) for column in (1, 2, 3)]


@pytest.mark.parametrize("up", [0.0, math.pi / 2])
def test_views_from_visited_poses_make_a_map(up):
    """Compare each place with the token of the view that shows it."""
    model = known()
    memory = observed(model, [STAY])
    turned = up + math.pi / 2
    trail = torch.tensor([[up, 0.0, 0.0], [turned, 0.0, 0.0]])
    lit = torch.ones(2, 3, 3, dtype=torch.bool)
    lit[0, 0, 2] = False  # 2 ahead, 1 to the right
    assert memory_map.has_views(model, trail, up)
    assert not memory_map.has_views(model, trail, up + 0.3)
    drawn = memory_map.draw_views(model, memory, trail, lit, (-2, -2), (2, 2), up)
    tiles = drawn.view(3, 5, 8, 5, 8)
    seen = (tiles.amax((0, 2, 4)) > 0).nonzero().tolist()
    ahead = [[0, 1], [0, 2], [1, 1], [1, 2], [1, 3], [2, 1], [2, 3]]
    right = [[1, 4], [2, 4], [3, 2], [3, 3], [3, 4]]
    assert seen == sorted(ahead + right)
    views = memory_map.render_views(model, memory, trail[None])[0]
    inner = torch.tensor([2, 2, 3, 3, 4, 4, 5, 5])  # without the rim, enlarged
    for view, (row, column), at in [
        (0, (0, 1), (0, 2)),
        (0, (1, 0), (1, 1)),
        (1, (0, 1), (2, 4)),
        (1, (0, 2), (3, 4)),
    ]:
        frame = views[view].view(3, 3, 8, 3, 8)[:, row, :, column]
        shown = tiles[:, at[0], :, at[1]]
        assert torch.equal(shown, frame[:, inner][..., inner])


def test_lit_tokens_are_those_that_show_something():
    frames = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    frames[0, 1, :8, 8:16] = 9
    frames[0, :, 16:18, 16:] = 200  # a stripe, as of a border
    lit = memory_map.lit_tokens(known(), frames)
    assert lit.nonzero().tolist() == [[0, 0, 1]]


def test_long_walk_is_drawn_around_agent():
    model = known()
    memory = observed(model, [STAY])
    poses = torch.tensor([[0.0, float(t), 0.0] for t in range(100)])
    routes = [torch.tensor([[0.0, 100, 0], [0, 101, 0]])]
    drawn = draw_memory_map(model, memory, poses, routes, 0.0)
    row, column = drawn.past[-1]
    high, wide = drawn.picture.shape[1:]
    assert 0 < row < high <= 8 * 64 and 0 < column < wide and drawn.past[0][0] > high
    assert drawn.routes[0].tolist() == [[row - 8, column], [row - 16, column]]
    turned = draw_memory_map(model, memory, poses, routes, math.pi / 2)  # to the right
    row, column = turned.past[-1]
    assert turned.routes[0] == pytest.approx(
        np.array([[row, column + 8], [row, column + 16]]), abs=1e-3
    )


@pytest.mark.parametrize(
    "config", [ReturnConfig(n=9, tour=100), MiniGridConfig(id="MiniGrid-Empty-8x8-v0")]
)
def test_whoever_steps_ahead_moves_along_its_bearing(config):
    env, steps = make(config, 1, 0), 0

    def place() -> np.ndarray:
        if isinstance(config, ReturnConfig):
            return np.array([env.col[0], env.row[0]])
        return np.array(env.envs[0].unwrapped.agent_pos)

    for _ in range(8):
        before, bearing = place(), env.bearing(0)
        env.step(np.array([AHEAD]))
        step = place() - before
        assert not step.any() or step == pytest.approx(
            [math.sin(bearing), -math.cos(bearing)]
        )
        steps += step.any()
        env.step(np.array([RIGHT]))
        assert (env.bearing(0) - bearing) % (2 * math.pi) == pytest.approx(math.pi / 2)
    assert steps


def test_attention_with_path_integration_has_map():
    mixer = AttentionConfig(window=3, layers=2, heads=1, path_integration=True)
    model = known(mixer=mixer, attention_window=0)
    memory = observed(model, [STAY, AHEAD])
    actions = torch.tensor([[[AHEAD, RIGHT]]])
    route = memory_map.predicted_routes(model, memory, actions)
    expected = torch.tensor([[0.0, 2.0, 0.0], [math.pi / 2, 2.0, 0.0]])
    assert torch.allclose(route[0, 0], expected, atol=1e-5)
    here = model.imagine(memory, torch.tensor([[[STAY]]]), decode=True).frames[:, 0]
    pose = memory_map.agent_pose(model, memory)[:, None]
    assert torch.equal(memory_map.render_views(model, memory, pose), here)


@pytest.mark.parametrize("mixer", [GRUConfig(state=64), AttentionConfig(window=3)])
def test_model_without_poses_has_no_map(mixer):
    model = WorldModel(
        ModelConfig(width=16, mixer=mixer, patch=8), (3, 24, 24), 4
    ).eval()
    assert not memory_map.has_map(model)
    with pytest.raises(ValueError, match="has no poses"):
        memory_map.agent_pose(model, model.initial(1))
