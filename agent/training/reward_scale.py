"""Fit the units of the reward and value heads to the collected rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lssvwm.agent.shards import Shard
from lssvwm.worldmodel import WorldModel


def fit_scales(
    models: Sequence[WorldModel], shards: Sequence[Shard], discount: float
) -> None:
    """Set the units of reward and value of all models.

    Rewards and returns from 0.1 to 100 units leave them as they are.
    """
    reward, value = largest(shards, discount)
    before = models[0].heads.scales.tolist()
    for model in models:
        model.heads.fit_scales(reward, value)
    after = models[0].heads.scales.tolist()
    if after != before:
        print(
            f"rewards up to {reward:.3g}, returns up to {value:.3g}: "
            f"learned in units of {after[0]:.3g} and {after[1]:.3g}"
        )


def largest(shards: Sequence[Shard], discount: float) -> tuple[float, float]:
    """Return the largest magnitudes of a reward and of a discounted return."""
    rewards, returns = [0.0], [0.0]
    for shard in shards:
        reward = np.asarray(shard.rows.get("reward"), np.float64)
        is_first = np.asarray(shard.rows.get("is_first"))
        rewards.append(float(np.abs(reward).max()))
        returns.append(_largest_return(reward, is_first, discount))
    return max(rewards), max(returns)


def _largest_return(reward: np.ndarray, is_first: np.ndarray, discount: float) -> float:
    """Return the largest magnitude of a discounted return to the end of an episode.

    reward, is_first: [N], rows of whole episodes
    """
    found = total = 0.0
    for gain, begins in zip(reward[::-1].tolist(), is_first[::-1].tolist()):
        total = gain + discount * total
        found = max(found, abs(total))
        if begins:
            total = 0.0
    return found
