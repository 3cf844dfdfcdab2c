"""Lengths, masks and resets are drawn as often as the settings say."""

import numpy as np
import pytest
import torch
from lssvwm.agent.config.settings import FrameMaskConfig, TrainConfig
from lssvwm.agent.training.augmentation import Lengths, draw_hidden, draw_resets


def first_frames() -> torch.Tensor:
    """Return flags of 64 sequences of 96 frames, with an episode every 10 frames."""
    first = torch.zeros(64, 96, dtype=torch.bool)
    first[:, ::10] = True
    return first


def test_lengths_without_augmentation_are_constant():
    lengths = Lengths(TrainConfig(length_augmentation="none"))
    drawn = {lengths.draw(np.random.default_rng(i)) for i in range(9)}
    assert drawn == {(96, 8)}


def test_random_lengths_keep_the_number_of_frames():
    lengths = Lengths(TrainConfig(length=96, min_length=32, batch=8))
    rng = np.random.default_rng(0)
    drawn = {lengths.draw(rng) for _ in range(200)}
    assert {length for length, _ in drawn} == {32, 48, 64, 80, 96}
    assert all(abs(length * batch - 768) <= length / 2 for length, batch in drawn)


def test_adversarial_lengths_prefer_the_largest_error():
    lengths = Lengths(TrainConfig(length_augmentation="adversarial"))
    rng = np.random.default_rng(0)
    assert np.allclose(lengths.odds(), 0.2)  # no error is known yet
    for length, error in ((32, 0.1), (48, 0.1), (64, 0.1), (80, 0.2), (96, 0.1)):
        lengths.learn(length, torch.tensor(error))
    odds = dict(zip(lengths.choices, lengths.odds()))
    assert odds[80] > 0.7 and min(odds.values()) >= 0.05
    assert sum(odds.values()) == pytest.approx(1)
    drawn = [lengths.draw(rng)[0] for _ in range(500)]
    assert drawn.count(80) > 300 and drawn.count(32) > 5
    for _ in range(20):  # then another length becomes the worst
        lengths.learn(80, torch.tensor(0.05))
        lengths.learn(32, torch.tensor(0.3))
    assert lengths.odds().argmax() == 0


@pytest.mark.parametrize("span", [1, 4])
def test_draw_hidden_spares_first_frames(span):
    first = first_frames()
    rng = np.random.default_rng(0)
    hidden, dark = draw_hidden(FrameMaskConfig(prob=0.3, span=span), first, rng)
    assert dark is None
    assert hidden is not None and not (hidden & first).any()
    if span == 1:
        fraction = float(hidden[~first].float().mean())
        assert fraction == pytest.approx(0.3, abs=0.02)
    assert draw_hidden(FrameMaskConfig(), first, rng) == (None, None)


def test_draw_hidden_darkens_a_fraction():
    first = first_frames()
    config = FrameMaskConfig(prob=0.5, span=2, dark=0.75)
    hidden, dark = draw_hidden(config, first, np.random.default_rng(0))
    assert hidden is not None and dark is not None
    assert not (hidden & dark).any() and not (dark & first).any()
    assert float(dark.sum() / (hidden | dark).sum()) == pytest.approx(0.75, abs=0.1)


def test_draw_resets_has_its_fraction():
    rng = np.random.default_rng(0)
    resets = draw_resets(0.2, first_frames(), rng)
    assert resets is not None
    assert float(resets.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert draw_resets(0.0, first_frames(), rng) is None
