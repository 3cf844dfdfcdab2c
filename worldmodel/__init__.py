"""The world model: LSSVWM, its memory and its heads. Imports nothing of the other packages."""

from worldmodel.heads import Readout
from worldmodel.memory import Fork, Memory
from worldmodel.model import Batch, Imagined, LossWeights, ModelConfig, WorldModel

__all__ = ["Batch", "Fork", "Imagined", "LossWeights", "Memory", "ModelConfig", "Readout", "WorldModel"]
