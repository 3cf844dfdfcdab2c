"""Test the heads: rewards and values of any scale."""

from __future__ import annotations

import pytest
import torch
from lssvwm.worldmodel.heads import BINS, Heads, two_hot


def outputs(heads: Heads, reward: float, value: float):
    """Return outputs whose distributions are those that a perfect head has learned."""
    out = heads(torch.zeros(1, 2, 8))
    reward_unit, value_unit = heads.scales
    out.reward_logits = two_hot(torch.tensor([reward]) / reward_unit, out.bins).log()
    out.value_logits = two_hot(torch.tensor([value]) / value_unit, out.bins).log()
    return out


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 50.0, 1e3, 1e6])
def test_heads_distinguish_rewards_of_any_scale(scale):
    heads = Heads(2, 8, 3)
    heads.fit_scales(scale, 10 * scale)
    for share in (-1.0, 0.25, 0.5, 1.0):
        out = outputs(heads, share * scale, 10 * share * scale)
        assert float(out.reward) == pytest.approx(share * scale, rel=1e-3)
        assert float(out.value) == pytest.approx(10 * share * scale, rel=1e-3)
        # Enough of the distribution moves for cross entropy to learn it.
        zero = outputs(heads, 0.0, 0.0)
        moved = (out.reward_logits.exp() - zero.reward_logits.exp()).abs().sum()
        assert moved > 0.1


def test_heads_keep_units_that_fit():
    heads = Heads(2, 8, 3)
    for reward, value in ((0.0, 0.0), (1.0, 5.0), (0.1, 100.0)):
        heads.fit_scales(reward, value)
        assert heads.scales.tolist() == [1.0, 1.0]
    heads.fit_scales(1e4, 1e-3)
    assert heads.scales.tolist() == [1e4, pytest.approx(1e-3)]
    heads.fit_scales(0.0, 0.0)
    assert heads.scales.tolist() == [1e4, pytest.approx(1e-3)]


def test_two_hot_spreads_a_number_over_two_bins():
    bins = Heads(2, 8, 3).bins
    spread = two_hot(torch.tensor([0.0, 1e9, -1e9]), bins)
    assert spread.sum(-1).tolist() == [1, 1, 1]
    assert spread.argmax(-1).tolist() == [BINS // 2, BINS - 1, 0]
