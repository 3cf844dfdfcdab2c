"""Intervals of success rates, paired differences between arms, and success in groups of tasks.

Shapes: N tasks.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

Z95 = 1.96
"""Quantile of the normal distribution that bounds a 95 % interval."""
RANGES, CELL_RANGES = 4, 3
"""Ranges of one quantity, and of each of two quantities in a cross table."""


def wilson(successes: float, n: int, z: float = Z95) -> dict[str, float]:
    """Return the success rate with its 95 % interval (Wilson 1927)."""
    if n == 0:
        return {"mean": math.nan, "low": 0.0, "high": 1.0}
    p = successes / n
    center = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (center - spread) / scale
    high = (center + spread) / scale
    return {
        "mean": p,
        "low": min(p, max(0.0, low)),
        "high": max(p, min(1.0, high)),
    }


def difference(a: np.ndarray, b: np.ndarray, z: float = Z95) -> dict[str, float]:
    """Return the mean of the paired differences a - b of successes, bool [N] each.

    The 95 % interval adds half a pair to each of the four outcomes (Agresti and Min 2005).
    `p` is the p-value of McNemar's exact test.
    """
    n = len(a)
    won = int((a & ~b).sum())
    lost = int((b & ~a).sum())
    gap = (won - lost) / (n + 2)
    variance = won + lost + 1 - (won - lost) ** 2 / (n + 2)
    spread = math.sqrt(variance) / (n + 2)
    return {
        "mean": (won - lost) / n if n else math.nan,
        "low": max(-1.0, gap - z * spread),
        "high": min(1.0, gap + z * spread),
        "p": _sign_test(won, lost),
    }


def _sign_test(won: int, lost: int) -> float:
    """Return the two-sided p-value of `won` against `lost` under equal odds."""
    pairs = won + lost
    ways = sum(math.comb(pairs, k) for k in range(min(won, lost) + 1))
    tail = ways / 2**pairs
    return min(1.0, 2 * tail)


def gain(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return the mean of the paired differences a - b of rewards, float [N] each.

    The 95 % interval assumes a normal distribution. `more` is the share of tasks in which a exceeds b.
    """
    gap = a - b
    n = len(a)
    mean = float(gap.mean())
    deviation = float(gap.std(ddof=int(n > 1)))
    half = Z95 * deviation / math.sqrt(max(1, n))
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "more": float((gap > 0).mean()),
    }


def ranges(values: np.ndarray, groups: int = RANGES) -> list[np.ndarray]:
    """Split tasks into up to `groups` ranges of `values` with about equal counts.

    Returns masks, bool [N] each. Unknown values (-1) are in no range.
    """
    known = values >= 0
    if not known.any():
        return []
    quantiles = np.quantile(values[known], np.linspace(0, 1, groups + 1))
    edges = np.unique(quantiles)
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    last = len(edges) - 2
    found = []
    for i, (low, high) in enumerate(pairwise(edges)):
        below = values <= high if i == last else values < high
        inside = known & (values >= low) & below
        if inside.any():
            found.append(inside)
    return found


def grouped(
    success: np.ndarray, values: np.ndarray, groups: int = RANGES
) -> list[dict[str, Any]]:
    """Return the success rate in ranges of `values`."""
    rows = []
    for inside in ranges(values, groups):
        bounds = {
            "from": int(values[inside].min()),
            "to": int(values[inside].max()),
        }
        rows.append(bounds | _rate(success[inside]))
    return rows


def crossed(
    success: np.ndarray,
    goal_distance: np.ndarray,
    evidence_age: np.ndarray,
    groups: int = CELL_RANGES,
) -> list[dict[str, Any]]:
    """Return the success rate by goal distance and evidence age.

    Cells without tasks are left out.
    """
    cells = []
    for far in ranges(goal_distance, groups):
        for old in ranges(evidence_age, groups):
            both = far & old
            if not both.any():
                continue
            bounds = {
                "distance": int(goal_distance[far].min()),
                "to_distance": int(goal_distance[far].max()),
                "age": int(evidence_age[old].min()),
                "to_age": int(evidence_age[old].max()),
            }
            cells.append(bounds | _rate(success[both]))
    return cells


def _rate(success: np.ndarray) -> dict[str, Any]:
    """Return count and success rate of tasks."""
    n = len(success)
    return {"n": n, "success": wilson(success.sum(), n)}
