"""Hold what one agent remembers and expects. A mind never changes: a step returns the next one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from lssvwm.agent.mpc import Agent, AgentState
from lssvwm.agent.video.episode import Moment
from lssvwm.worldmodel import Memory, imagination, memory_map
from torch import Tensor

PLACES = 512
"""Poses kept of where frames were observed; the oldest leave."""


@dataclass(frozen=True)
class Mind:
    """Hold the memory of one agent, and its last prediction.

    state: memory, policy and plan
    frame: predicted frame, uint8 [C, H, W]; None before the first
    reward, cont: predicted with it
    ahead: steps imagined since the last observed frame
    places: poses [T, 3] at which frames were observed; None for a model without poses
    lit: tokens that these frames showed, bool [T, rows, columns]
    path: poses [T, 3] that were imagined since the last observed frame
    up: heading of memory minus heading on the real map, in radians; None: unknown
    """

    state: AgentState
    frame: np.ndarray | None = None
    reward: float = 0.0
    cont: float = 1.0
    ahead: int = 0
    places: Tensor | None = None
    lit: Tensor | None = None
    path: Tensor | None = None
    up: float | None = None

    @property
    def memory(self) -> Memory:
        """The memory [1]."""
        return self.state.memory


def empty(agent: Agent) -> Mind:
    """Return a mind that has seen nothing."""
    mind = Mind(agent.initial(1))
    if not memory_map.has_map(agent.model):
        return mind
    none = torch.zeros(0, 3)
    lit = torch.zeros(0, *agent.model.patches.grid, dtype=torch.bool)
    return replace(mind, places=none, lit=lit, path=none)


def observe(
    agent: Agent,
    mind: Mind,
    moment: Moment,
    goal: np.ndarray | None = None,
    predicts: bool = True,
) -> Mind:
    """Predict a frame, then write the real one into memory.

    goal: goal image, uint8 [C, H, W]
    predicts: false leaves out the prediction
    """
    action = torch.from_numpy(np.asarray(moment.action)[None])
    first = moment.step == 0
    if predicts and not first:
        mind = predict(agent, mind, action)
    state = agent.observe(
        mind.state,
        torch.from_numpy(moment.pixels[None]),
        action,
        torch.tensor([first]),
        None if goal is None else torch.from_numpy(goal[None]),
    )
    return _located(agent, replace(mind, state=state, ahead=0), moment)


@torch.no_grad()
def predict(agent: Agent, mind: Mind, action: Tensor) -> Mind:
    """Predict the frame that action [1] or [1, A] leads to; memory stays as it is."""
    actions = action[None, None].to(agent.device)
    rollout = agent.model.imagine(mind.memory, actions, decode=True)
    assert rollout.frames is not None
    return replace(
        mind,
        frame=rollout.frames[0, 0, 0].cpu().numpy(),
        reward=float(rollout.reward[0, 0, 0]),
        cont=float(rollout.cont[0, 0, 0]),
    )


@torch.no_grad()
def imagine(agent: Agent, mind: Mind, action: Tensor) -> Mind:
    """Imagine the frame that action [1] or [1, A] leads to, and remember it."""
    heads, memory, frames = imagination.imagine_one(
        agent.model, mind.memory, action.to(agent.device), decode=True
    )
    assert frames is not None
    path = mind.path
    if path is not None:
        pose = memory_map.agent_pose(agent.model, memory).cpu()
        path = torch.cat((path, pose))[-PLACES:]
    return replace(
        mind,
        path=path,
        state=replace(mind.state, memory=memory, policy=heads.policy),
        frame=frames[0].cpu().numpy(),
        reward=float(heads.reward[0]),
        cont=float(heads.cont[0]),
        ahead=mind.ahead + 1,
    )


def _located(agent: Agent, mind: Mind, moment: Moment) -> Mind:
    """Add the present pose to the places of a mind that observed a frame."""
    if mind.places is None or mind.lit is None:
        return mind
    pose = memory_map.agent_pose(agent.model, mind.memory).cpu()
    frame = torch.from_numpy(moment.pixels[None])
    lit = memory_map.lit_tokens(agent.model, frame)
    up = None if moment.bearing is None else float(pose[0, 0]) - moment.bearing
    return replace(
        mind,
        places=torch.cat((mind.places, pose))[-PLACES:],
        lit=torch.cat((mind.lit, lit))[-PLACES:],
        path=pose[:0],
        up=up,
    )


def with_memory(agent: Agent, mind: Mind, memory: Memory) -> Mind:
    """Return a mind with another memory, whose places are unknown."""
    state = replace(agent.initial(1), memory=memory, goal=mind.state.goal)
    new = replace(empty(agent), state=state, frame=mind.frame)
    if mind.up is None or mind.places is None:
        return new
    poses = memory_map.agent_pose(agent.model, Memory.cat([mind.memory, memory]))
    heading, new_heading = poses[:, 0].tolist()
    return replace(new, up=new_heading - (heading - mind.up))


def without_plan(agent: Agent, mind: Mind) -> Mind:
    """Return a mind that follows no plan."""
    used = torch.full_like(mind.state.used, agent.plan_steps)
    return replace(mind, state=replace(mind.state, plan=None, used=used))
