"""Episodes: real frames and predictions belong together, step by step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lssvwm.agent.build import build_agent
from lssvwm.agent.config.settings import RecordConfig, RecordRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import AgentState, MPCConfig
from lssvwm.agent.video.episode import Episode
from lssvwm.agent.video.record import record_episode
from lssvwm.agent.video.rendering import BEST_PSNR, CONTEXT, IMAGINED
from lssvwm.envs import CountingConfig, TMazeConfig
from lssvwm.envs.counting import decode, encode
from lssvwm.planners import CEMConfig, Plan
from lssvwm.worldmodel import ModelConfig, Rollout, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig

from lssvwm import envs

FRAMES = 13
"""Frames of a counting episode."""


class PerfectAgent:
    """Stands for agent and model in the counting environment: it imagines the real future.

    Its memory is the last frame observed. It follows each plan for two of its four actions.
    """

    device = torch.device("cpu")

    def __init__(self):
        self.model = self
        self.objective = self
        self.plans = []

    def repeat_actions(self, actions):
        return actions

    def initial(self, batch):
        no = torch.zeros(batch, dtype=torch.int64)
        return AgentState(None, no, None, no, no.bool(), no)  # type: ignore[arg-type]

    def observe(self, state, pixels, last_action, is_first, goal=None):
        episode, step, action = decode(pixels)
        assert bool(is_first[0]) == (step[0] == 0)
        assert last_action[0] == action[0]
        return replace(state, memory=(int(episode[0]), int(step[0])))

    def act(self, state):
        due = state.plan is None or int(state.used[0]) == 2
        if due:
            actions = (torch.arange(4) + len(self.plans)).remainder(5)[None]
            score = torch.tensor([0.5])
            empty = torch.zeros(1, 0)
            self.plans.append(actions[0].tolist())
            plan = Plan(actions, score, empty, empty, empty, torch.tensor([4]))
            state = replace(state, plan=plan, used=torch.zeros(1, dtype=torch.int64))
        action = state.plan.actions[:, int(state.used[0])]
        used = state.used + 1
        return action, replace(state, used=used, replanned=torch.tensor([due]))

    def imagine(self, memory, actions, *, decode=False, **_):
        episode, step = memory
        assert decode and actions.shape[:2] == (1, 1)
        taken = actions[0, 0].numpy()
        steps = step + 1 + np.arange(len(taken))
        frames = encode(np.full_like(steps, episode), steps, taken, 16)
        reward = torch.from_numpy(0.01 * steps)[None, None]
        cont = torch.ones_like(reward)
        pixels = torch.from_numpy(frames)[None, None]
        return Rollout(actions, reward, cont, reward, reward, pixels)


def record_counting(mode, **settings):
    """Record a counting episode; return the recording and the agent."""
    config = RecordRunConfig(
        env=CountingConfig(size=16, episode_length=FRAMES - 1),
        record=RecordConfig(mode=mode, **settings),
    )
    agent = PerfectAgent()
    episode = Episode(envs.make(config.env, 1), seed=5, walk_seed=1)
    return record_episode(config, agent, episode), agent  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["open_loop", "plan"])
def test_scenes_align_real_and_imagined_frames(mode):
    recording, _ = record_counting(mode)
    assert [scene.step for scene in recording.scenes] == list(range(FRAMES))
    for scene in recording.scenes:
        _, step, action = decode(scene.real)
        assert (int(step), int(action)) == (scene.step, scene.taken or 0)
        assert scene.reward == pytest.approx(0.01 * scene.step)
        if scene.step:
            assert scene.psnr == BEST_PSNR
            assert scene.predicted == pytest.approx(0.01 * scene.step)
    assert recording.scenes[0].imagined is None
    outcomes = [scene.outcome for scene in recording.scenes[-2:]]
    assert outcomes == [None, "success"]


def test_open_loop_imagines_from_the_context_alone():
    scenes = record_counting("open_loop")[0].scenes
    half = [CONTEXT] * 7 + [IMAGINED] * 6  # without a context phase
    assert [scene.kind for scene in scenes] == half
    assert [scene.known_to for scene in scenes] == [None, *range(6), *[6] * 6]
    scenes = record_counting("open_loop", context=3, horizon=4)[0].scenes
    assert [scene.kind for scene in scenes] == [CONTEXT] * 3 + [IMAGINED] * 4
    assert scenes[-1].ahead == 4
    assert scenes[-1].outcome is None


def test_open_loop_observes_half_despite_short_horizon():
    scenes = record_counting("open_loop", horizon=2)[0].scenes
    assert [scene.kind for scene in scenes] == [CONTEXT] * 7 + [IMAGINED] * 2


def test_open_loop_refuses_too_long_contexts():
    with pytest.raises(
        UserError, match=r"record\.context=13 leaves nothing.* 13 frames"
    ):
        record_counting("open_loop", context=FRAMES)
    recording, _ = record_counting("open_loop", context=FRAMES - 1)
    assert recording.scenes[-1].kind == IMAGINED


def test_plan_keeps_decisions_and_their_frames():
    recording, agent = record_counting("plan")
    scenes = recording.scenes
    decisions = recording.decisions
    assert [decision["actions"] for decision in decisions] == agent.plans
    assert [decision["step"] for decision in decisions] == list(range(0, FRAMES - 1, 2))
    executed = []
    for decision in decisions:
        executed += decision["actions"][: decision["executed"]]
    assert executed == [scene.taken for scene in scenes[1:]]
    assert [scene.ahead for scene in scenes[1:]] == [1, 2] * 6
    assert scenes[4].plan is not None
    planned_steps = decode(scenes[4].plan.frames)[1]
    assert planned_steps.tolist() == [3, 4, 5, 6]  # the whole plan made at step 2


def test_open_loop_context_ends_where_planning_starts():
    model_config = ModelConfig(
        width=16,
        mixer=TiledSSDConfig(tiles=(1,), state=8, head_dim=16),
        attention_heads=2,
    )
    config = RecordRunConfig(
        env=TMazeConfig(length=6),
        planner=CEMConfig(
            horizon=4, candidates=8, iterations=1, elites=2, keep_elites=1
        ),
        mpc=MPCConfig(replan=2, proposals=0),
        record=RecordConfig(mode="open_loop", horizon=3),
    )
    env = envs.make(config.env, 1)
    agent = build_agent(config, WorldModel(model_config, (3, 64, 64), 4), env)
    episode = Episode(envs.make(config.env, 1), seed=9, walk_seed=0)
    scenes = record_episode(config, agent, episode).scenes
    known = sum(scene.kind == CONTEXT for scene in scenes)
    assert not episode.env.in_context()[0]
    assert len(scenes) == known + 3
    assert known == int(episode.env.left_at[0]) + 1  # type: ignore[attr-defined]
