"""Plans, returns and action spaces that planners and callers share."""

import pytest
import torch
from lssvwm.planners import (
    BeamConfig,
    CEMConfig,
    MultiDiscrete,
    build,
    discounted_return,
)

from tests.planners.conftest import SEVERAL, numbered_plan


def test_plan_shift_drops_executed_actions():
    shifted = numbered_plan().shift(torch.tensor([2, 0])).shift(1)
    assert shifted.actions.tolist() == [[3, 4, 4, 4, 4], [11, 12, 13, 14, 14]]
    assert shifted.state[..., 0].tolist() == shifted.actions.tolist()
    assert shifted.elites[:, 1].tolist() == (shifted.actions + 100).tolist()
    assert shifted.planned.tolist() == [2, 4]
    assert numbered_plan().shift(99).planned.tolist() == [0, 0]
    with pytest.raises(ValueError, match="negative"):
        numbered_plan().shift(-1)


def test_plan_select_and_put():
    plan = numbered_plan()
    mask = torch.tensor([False, True])
    one = plan.select(mask)
    assert one.actions.tolist() == [[10, 11, 12, 13, 14]]
    both = plan.put(mask, one.shift(3))
    assert both.actions.tolist() == [[0, 1, 2, 3, 4], [13, 14, 14, 14, 14]]
    assert both.planned.tolist() == [5, 2]
    assert plan.planned.tolist() == [5, 5]


def test_discounted_return_by_hand():
    reward = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]])
    cont = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]])
    value = torch.tensor([[8.0, 8.0, 8.0]])
    expected = torch.tensor([[1 + 1 + 1 + 1, 1 + 1, 1 + 0.5 + 0.5]])
    torch.testing.assert_close(discounted_return(reward, cont, value, 0.5), expected)
    torch.testing.assert_close(
        discounted_return(reward, cont, None, 0.5), torch.tensor([[3.0, 2.0, 2.0]])
    )


def test_several_choices_refuse_wrong_actions():
    with pytest.raises(ValueError, match="needs a choice"):
        MultiDiscrete(())
    with pytest.raises(ValueError, match=r"actions 0 to \[2, 0, 4\], got 0 to 1"):
        build(CEMConfig(horizon=4), SEVERAL).distribution.validate(
            torch.tensor([[[[0, 1, 0], [0, 0, 0]]]])
        )
    with pytest.raises(ValueError, match="needs discrete actions"):
        build(BeamConfig(), SEVERAL)
