"""Offer the world model LSSVWM, its memory and its outputs.

    model = worldmodel.load("configs/pretrained/tmaze")
    memory, heads = model.observe(model.initial(1), frames, action, is_first)
    rollout = model.imagine(memory, actions, decode=True)

Reading order:

- model: initial, observe, imagine, loss
- backbone, blocks, mixers: how frames pass through the layers
- imagination; corruption and losses for training; heads and goal_distance
- memory, serialization
- path_integrator, motion_calibration, motion, action_limits: what actions do to the view
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lssvwm.worldmodel.config import LossWeights, ModelConfig
    from lssvwm.worldmodel.data import Batch, Masks, Rollout
    from lssvwm.worldmodel.heads import HeadOutputs
    from lssvwm.worldmodel.imagination import RolloutPolicy, RolloutState
    from lssvwm.worldmodel.memory import Memory
    from lssvwm.worldmodel.model import WorldModel
    from lssvwm.worldmodel.serialization import load, save

__all__ = [
    "Batch",
    "HeadOutputs",
    "LossWeights",
    "Masks",
    "Memory",
    "ModelConfig",
    "Rollout",
    "RolloutPolicy",
    "RolloutState",
    "WorldModel",
    "load",
    "save",
]

_MODULES = {
    "Batch": "data",
    "HeadOutputs": "heads",
    "LossWeights": "config",
    "Masks": "data",
    "Memory": "memory",
    "ModelConfig": "config",
    "Rollout": "data",
    "RolloutPolicy": "imagination",
    "RolloutState": "imagination",
    "WorldModel": "model",
    "load": "serialization",
    "save": "serialization",
}


def __getattr__(name: str) -> Any:
    """Import a public name at first use: settings can be read without the model."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
