"""Small models and settings that the tests of the agent share."""

from __future__ import annotations

import torch
from lssvwm.agent.mpc import Agent, AgentState, MPCConfig
from lssvwm.planners import CEMConfig
from lssvwm.worldmodel import ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from torch import Tensor

TINY = ModelConfig(
    width=16,
    mixer=TiledSSDConfig(state=16, head_dim=16),
    attention_heads=2,
)
PLANNER = CEMConfig(horizon=5, candidates=12, iterations=2, elites=4, keep_elites=2)
MPC = MPCConfig(proposals=4, replan=2)


def random_model(frame_shape=(3, 64, 64)) -> WorldModel:
    """Build a model whose outputs depend on frames and actions."""
    torch.manual_seed(0)
    model = WorldModel(TINY, frame_shape, 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def frames_of(env) -> Tensor:
    """Return a copy of the present frames, uint8 [B, C, H, W]."""
    return torch.from_numpy(env.frames().copy())


def observe(agent: Agent, state: AgentState, frames: Tensor, first: bool) -> AgentState:
    """Let the agent observe frames that action 0 led to."""
    batch = len(frames)
    return agent.observe(
        state,
        frames,
        torch.zeros(batch, dtype=torch.int64),
        torch.full((batch,), first),
    )
