"""Compute the terms of the training loss."""

from __future__ import annotations

TD_LAMBDA = 0.95
"""Lambda of the value targets."""
ADVANTAGE_TEMPERATURE = 0.1
"""Advantage that weighs an imitated action e times as much."""
FIXED_WEIGHTS = {"cont": 1.0, "action_limits": 1.0}
"""Weights of the losses that have none in `LossWeights`."""
