"""The world model: LSSVWM, its memory and its heads. Imports nothing of the other packages.

    model = worldmodel.load("configs/pretrained/tmaze")
    memory, heads = model.observe(model.initial(1), frames, action, is_first)
    future = model.imagine(memory, actions, decode=True)

Reading order: model (the four verbs), blocks (the layers), ssm (the scan), backends, memory, heads, tokens, store,
odometry and reach (what actions do to the view), baselines (what others use in place of the scan).
"""

from worldmodel.heads import Readout
from worldmodel.memory import Fork, Memory
from worldmodel.model import Batch, Imagined, LossWeights, ModelConfig, WorldModel
from worldmodel.store import load, save

__all__ = [
    "Batch",
    "Fork",
    "Imagined",
    "LossWeights",
    "Memory",
    "ModelConfig",
    "Readout",
    "WorldModel",
    "load",
    "save",
]
