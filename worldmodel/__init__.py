"""The world model: LSSVWM, its memory and its heads. Imports nothing of the other packages.

    model = worldmodel.load("configs/pretrained/tmaze")
    memory, heads = model.observe(model.initial(1), frames, action, is_first)
    future = model.imagine(memory, actions, decode=True)

Reading order: model (the four verbs), blocks (the layers), ssm (the scan), backends, memory, heads, tokens, store,
odometry and reach (what actions do to the view), baselines (what others use in place of the scan).
"""

from lssvwm.worldmodel.config import LossWeights, ModelConfig
from lssvwm.worldmodel.heads import HeadOutputs
from lssvwm.worldmodel.memory import Memory, RolloutState
from lssvwm.worldmodel.model import Batch, Rollout, WorldModel
from lssvwm.worldmodel.serialization import load, save

__all__ = [
    "Batch",
    "HeadOutputs",
    "LossWeights",
    "Memory",
    "ModelConfig",
    "Rollout",
    "RolloutState",
    "WorldModel",
    "load",
    "save",
]
