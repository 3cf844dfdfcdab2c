"""Intervals, paired differences and groups, against known values."""

import numpy as np
import pytest
from lssvwm.agent.evaluation.statistics import difference, gain, grouped, wilson


def test_wilson_interval_of_95_in_100():
    row = wilson(95, 100)
    assert row["mean"] == 0.95
    assert abs(row["low"] - 0.8882) < 1e-3
    assert abs(row["high"] - 0.9785) < 1e-3


def test_grouped_ranges_leave_out_unknown_values():
    success = np.array([True, False, True, True])
    groups = grouped(success, np.array([1, 2, 3, -1]), 2)
    assert sum(group["n"] for group in groups) == 3
    assert (groups[0]["from"], groups[-1]["to"]) == (1, 3)


def test_difference_of_paired_successes():
    a = np.array([True] * 10 + [False] * 2 + [True] * 8)
    b = np.array([False] * 10 + [True] * 2 + [True] * 8)
    gap = difference(a, b)
    assert gap["mean"] == 0.4
    assert gap["p"] == pytest.approx(158 / 4096)
    assert 0 < gap["low"] < 8 / 22 < gap["high"] < 1


def test_difference_of_equal_arms_is_zero():
    success = np.array([False] * 10 + [True] * 10)
    gap = difference(success, success)
    assert (gap["mean"], gap["p"]) == (0, 1)
    assert gap["low"] < 0 < gap["high"]


def test_gain_of_paired_rewards():
    gap = gain(np.array([3.0, 5.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0, 8.0]))
    half = 1.96 * np.std([2, 4, 2, 0], ddof=1) / 2
    expected = {"mean": 2, "low": 2 - half, "high": 2 + half, "more": 0.75}
    assert gap == pytest.approx(expected)
