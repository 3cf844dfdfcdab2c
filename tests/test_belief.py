"""What memory holds, drawn: routes follow the odometer, places are looked at where they lie."""

import math

import pytest
import torch

from worldmodel import ModelConfig, WorldModel, belief

LEFT, RIGHT, AHEAD, STAY = range(4)


def known(**changes) -> WorldModel:
    """A small model whose odometers know four actions, and that nothing stops."""
    model = WorldModel(ModelConfig(width=16, state=32, patch=8, **changes), (3, 24, 24), 4).eval()
    for block in model.layers:
        odometer = block.scan.odometer
        with torch.no_grad():
            odometer.action.weight.zero_()
            odometer.action.weight[0, :2] = torch.tensor([-math.pi / 2, math.pi / 2])
            odometer.action.weight[1, AHEAD] = 1.0
            odometer.frame.bias.fill_(100.0)
    return model


def observed(model: WorldModel, actions: list[int]):
    frames = torch.randint(0, 256, (1, len(actions), 3, 24, 24), dtype=torch.uint8, generator=torch.manual_seed(0))
    first = torch.tensor([[True] + [False] * (len(actions) - 1)])
    with torch.no_grad():
        return model.observe(model.initial(1), frames, torch.tensor([actions]), first)[0]


def test_poses_and_routes_follow_the_odometer():
    model = known()
    memory = observed(model, [STAY, AHEAD, RIGHT, AHEAD])
    assert torch.allclose(belief.pose(model, memory), torch.tensor([[math.pi / 2, 1, 1]]), atol=1e-5)
    route = belief.routes(model, memory, torch.tensor([[[AHEAD, LEFT, AHEAD], [STAY, STAY, AHEAD]]]))
    assert torch.allclose(route[0, 0, :, 1:], torch.tensor([[1.0, 2], [1, 2], [2, 2]]), atol=1e-5)
    assert torch.allclose(route[0, 1, -1], torch.tensor([math.pi / 2, 1, 2]), atol=1e-5)


def test_a_place_looks_as_it_does_to_who_goes_there():
    """From the same memory, without the last frames: walking there, or being asked."""
    model = known(window=0)
    memory = observed(model, [STAY, AHEAD])
    actions = torch.tensor([[[STAY]]])
    here = model.imagine(memory, actions, decode=True).frames[:, 0]
    asked = belief.look(model, memory, belief.pose(model, memory)[:, None])
    assert torch.equal(asked, here) and not torch.equal(asked, belief.look(model, memory, torch.zeros(1, 1, 3)))


def test_the_map_shows_what_was_in_view_and_turns_with_up():
    model = known()
    memory, trail = observed(model, [STAY]), torch.zeros(1, 3)
    drawn = belief.survey(model, memory, trail, (-2, -3), (3, 3))
    tiles = drawn.view(3, 6, 8, 7, 8).amax((0, 2, 4)) > 0
    assert drawn.shape == (3, 48, 56) and drawn.dtype == torch.uint8
    assert tiles.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4)]  # 3 ahead is up
    east = belief.survey(model, memory, trail, (-2, -3), (3, 3), up=math.pi / 2)  # what was ahead is on the left now
    tiles = east.view(3, 6, 8, 7, 8).amax((0, 2, 4)) > 0
    assert tiles.nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["gru", "attention"])
def test_a_model_without_odometer_has_no_map(kind):
    model = WorldModel(ModelConfig(kind=kind, width=16, state=64, patch=8), (3, 24, 24), 4).eval()
    assert not belief.has_map(model)
    with pytest.raises(ValueError, match="carries no odometer"):
        belief.pose(model, model.initial(1))
