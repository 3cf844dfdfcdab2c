"""Lengths are drawn as said, hidden frames grow in number as said, and a bandit that was saved goes on."""

import numpy as np
import pytest
import torch
from lssvwm.agent.config.settings import FrameMaskConfig, TrainConfig
from lssvwm.agent.training.augmentation import Lengths, draw_hidden


def test_no_augmentation_draws_one_length():
    assert {
        Lengths(TrainConfig(length_augmentation="none")).draw(np.random.default_rng(i))
        for i in range(9)
    } == {(96, 8)}


def test_random_lengths_keep_the_number_of_frames():
    lengths, rng = (
        Lengths(TrainConfig(length=96, min_length=32, batch=8)),
        np.random.default_rng(0),
    )
    drawn = {lengths.draw(rng) for _ in range(200)}
    assert {length for length, _ in drawn} == {32, 48, 64, 80, 96}
    assert all(abs(length * batch - 768) <= length / 2 for length, batch in drawn)


def test_the_adversary_draws_the_worst_length_most_often():
    lengths, rng = (
        Lengths(TrainConfig(length_augmentation="adversarial")),
        np.random.default_rng(0),
    )
    assert np.allclose(lengths.odds(), 0.2)  # nothing known yet
    for length, error in ((32, 0.1), (48, 0.1), (64, 0.1), (80, 0.2), (96, 0.1)):
        lengths.learn(length, torch.tensor(error))
    odds = dict(zip(lengths.choices, lengths.odds()))
    assert (
        odds[80] > 0.7
        and min(odds.values()) >= 0.05
        and sum(odds.values()) == pytest.approx(1)
    )
    drawn = [lengths.draw(rng)[0] for _ in range(500)]
    assert drawn.count(80) > 300 and drawn.count(32) > 5
    for _ in range(20):  # and turns to another when that becomes the worst
        lengths.learn(80, torch.tensor(0.05))
        lengths.learn(32, torch.tensor(0.3))
    assert lengths.odds().argmax() == 0


def test_frame_mask_has_its_fraction_and_spares_first_frames():
    config = TrainConfig(frame_mask=FrameMaskConfig(prob=0.3, span=1))
    first = torch.zeros(64, 96, dtype=torch.bool)
    first[:, ::10] = True
    rng = np.random.default_rng(0)
    hidden = draw_hidden(config, first, rng)
    assert hidden is not None and not (hidden & first).any()
    assert float(hidden[~first].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert draw_hidden(TrainConfig(), first, rng) is None
