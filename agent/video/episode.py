"""Record one episode: its real frames, and the model's predictions of them.

Shapes: C x H x W a frame (uint8), n imagined frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lssvwm.agent.config.settings import RecordConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent
from lssvwm.agent.video.rendering import CONTEXT, IMAGINED, PlannedFrames, Scene
from lssvwm.envs.base import BatchedEnv, Discrete, HasMap
from lssvwm.worldmodel import Rollout, memory_map
from torch import Tensor

OUTCOMES = ("running", "success", "wrong", "timeout")
"""Outcomes by their number in `truth()["outcome"]`."""
FOLLOWED = ("oracle", "cells", "momentum", "random")
"""Explorers whose actions mode `open_loop` follows: the first that the environment offers."""
LONGEST = 1000
"""Frames recorded of an environment without context phase and without end."""


@dataclass(frozen=True)
class Moment:
    """Hold a frame [C, H, W] of an episode and the executed action that led to it.

    guided: the guide acts next
    bearing: direction in which the agent faces on the map
    """

    step: int
    pixels: np.ndarray
    action: np.ndarray
    reward: float
    guided: bool
    ended: bool
    map: np.ndarray | None
    bearing: float | None = None


class Episode:
    """Play episode `seed` of an environment with a batch of one.

    `walk_seed` is the seed of its scripted explorers.
    """

    def __init__(self, env: BatchedEnv, seed: int, walk_seed: int):
        self.env = env
        self.seed = seed
        self.walk_seed = walk_seed
        self.actions: list[np.ndarray] = []
        """Actions [1, ...] of the steps so far."""
        self.digests: list[int] = []
        """Checksums of what these steps brought."""
        self.step = 0
        self.reward = 0.0
        self.ended = False
        env.reset(np.zeros(1, np.int64), np.array([seed]))
        names = (*FOLLOWED, *env.explorers)
        followed = next(name for name in names if name in env.explorers)
        self.guide = env.guide(walk_seed)
        self.followed = env.explorer(followed, walk_seed)

    def now(self) -> Moment:
        """Return the present moment."""
        env = self.env
        has_map = isinstance(env, HasMap)
        return Moment(
            step=self.step,
            pixels=self.env.frames()[0].copy(),
            action=self.env.last_action()[0],
            reward=self.reward,
            guided=bool(self.env.in_context()[0]),
            ended=self.ended,
            map=env.top_view(0) if has_map else None,
            bearing=env.bearing(0) if has_map else None,
        )

    def scripted_action(self) -> np.ndarray:
        """Return the action [1, ...] of the guide in the context, else of the followed explorer."""
        guided = self.env.in_context()[0]
        explorer = self.guide if guided else self.followed
        return explorer.act()

    def act(self, action: np.ndarray) -> Moment:
        """Execute `action` [1, ...] and return the moment that it leads to."""
        reward, terminated, truncated = self.env.step(action)
        self.step += 1
        self.reward = float(reward[0])
        self.ended = bool(terminated[0] | truncated[0])
        self.actions.append(action)
        self.digests.append(self._digest())
        return self.now()

    def _digest(self) -> int:
        """Return a checksum of the present frame, the last reward and the end."""
        numbers = np.array([self.reward, self.ended])
        return zlib.crc32(numbers.tobytes(), zlib.crc32(self.env.frames().tobytes()))

    @contextmanager
    def copied(self) -> Iterator[Episode]:
        """Yield an episode that goes on like this one, and leaves this one unchanged.

        If the environment cannot be copied, a new one repeats the actions.
        Raises UserError if it does not bring the same frames and rewards.
        """
        if self.env.copyable:
            yield deepcopy(self)
            return
        env = self.env.renewed()
        try:
            copy = Episode(env, self.seed, self.walk_seed)
            for action in self.actions:
                copy.act(action)
            if copy.digests != self.digests:
                raise UserError(
                    "the environment brings other frames or rewards when the same "
                    "actions are repeated from the same seed, so that plans cannot be "
                    "compared: make it depend on its seed only, or use mode=plan"
                )
            yield copy
        finally:
            env.close()

    def name(self, action: Any) -> str:
        """Return an action in words or numbers."""
        if isinstance(self.env.actions, Discrete):
            return self.env.actions.names[int(action)]
        return " ".join(f"{x:+.2f}" for x in np.ravel(action))

    def outcome(self) -> str:
        """Return one of OUTCOMES."""
        return OUTCOMES[int(self.env.truth()["outcome"][0])]


@dataclass(frozen=True)
class Prediction:
    """Hold one imagined rollout: frames uint8 [n, C, H, W], reward and cont [n].

    `known_to` is the last observed step.
    """

    known_to: int
    frames: np.ndarray
    reward: np.ndarray
    cont: np.ndarray
    plan: PlannedFrames | None = None

    @classmethod
    def of(cls, rollout: Rollout, known_to: int) -> Prediction:
        """Take the first rollout of the first memory."""
        assert rollout.frames is not None
        return cls(
            known_to=known_to,
            frames=rollout.frames[0, 0].cpu().numpy(),
            reward=rollout.reward[0, 0].cpu().numpy(),
            cont=rollout.cont[0, 0].cpu().numpy(),
        )


class EpisodeRecorder:
    """Show the frames of an episode to the agent, and keep scenes with its predictions.

    scenes: frames with their predictions
    decisions: plans as plain data
    poses: poses [3] that the memory estimates, if `tracks_pose`
    """

    def __init__(
        self,
        config: RecordConfig,
        agent: Agent,
        episode: Episode,
        seed: int,
        tracks_pose: bool = False,
    ):
        self.config = config
        self.agent = agent
        self.episode = episode
        self.tracks_pose = tracks_pose and memory_map.has_map(agent.model)
        self.state = agent.initial(1)
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.scenes: list[Scene] = []
        self.decisions: list[dict[str, Any]] = []
        self.poses: list[Tensor] = []

    def observe(self, moment: Moment) -> None:
        """Write a frame into the agent's memory."""
        goals = self.episode.env.goals()
        self.state = self.agent.observe(
            self.state,
            torch.from_numpy(moment.pixels[None]),
            torch.from_numpy(moment.action[None]),
            torch.tensor([moment.step == 0]),
            None if goals is None else torch.from_numpy(goals),
        )
        if self.tracks_pose:
            pose = memory_map.agent_pose(self.agent.model, self.state.memory)
            self.poses.append(pose[0])

    def watch(self, moment: Moment) -> None:
        """Observe a frame of the context; keep it with its prediction one step before."""
        prediction = None
        if moment.step:
            action = torch.from_numpy(moment.action[None])
            prediction = self.imagine(action, moment.step - 1)
        self.add(moment, CONTEXT, prediction)
        self.observe(moment)

    def watch_context(self) -> Moment:
        """Observe the context phase; return the moment from which the agent may act."""
        moment = self.episode.now()
        self.watch(moment)
        while not moment.ended and moment.guided:
            moment = self.episode.act(self.episode.guide.act())
            self.watch(moment)
        return moment

    def imagine(self, actions: Tensor, known_to: int) -> Prediction:
        """Imagine actions [n, ...] from the present memory."""
        with torch.no_grad():
            rollout = self.agent.model.imagine(
                self.state.memory,
                actions.to(self.agent.device)[None, None],
                decode=True,
                denoising_steps=self.config.denoising_steps,
                generator=self.generator,
            )
        return Prediction.of(rollout, known_to)

    def add(self, moment: Moment, kind: str, prediction: Prediction | None) -> None:
        """Keep a scene; `prediction` is the rollout that contains its frame."""
        first = moment.step == 0
        scene = Scene(
            step=moment.step,
            kind=kind,
            real=moment.pixels,
            action=None if first else self.episode.name(moment.action),
            taken=None if first else moment.action.tolist(),
            reward=moment.reward,
            map=moment.map,
            outcome=self.episode.outcome() if moment.ended else None,
        )
        if prediction is not None:
            ahead = moment.step - prediction.known_to - 1
            scene = replace(
                scene,
                imagined=prediction.frames[ahead],
                predicted=float(prediction.reward[ahead]),
                goes_on=float(prediction.cont[ahead]),
                known_to=prediction.known_to,
                plan=prediction.plan,
            )
        self.scenes.append(scene)


def record_open_loop(recorder: EpisodeRecorder) -> None:
    """Observe the context, then imagine the executed actions until horizon or end."""
    moments = _scripted_moments(recorder)
    known = _observed_frames(recorder.config, moments)
    following = moments[known : known + recorder.config.horizon]
    for moment in moments[:known]:
        recorder.watch(moment)
    actions = np.stack([moment.action for moment in following])
    prediction = recorder.imagine(torch.from_numpy(actions), known - 1)
    for moment in following:
        recorder.add(moment, IMAGINED, prediction)


def _scripted_moments(recorder: EpisodeRecorder) -> list[Moment]:
    """Play scripted actions, as many as are recorded."""
    episode = recorder.episode
    moments = [episode.now()]
    while not moments[-1].ended and len(moments) < _needed(recorder.config, moments):
        moments.append(episode.act(episode.scripted_action()))
    return moments


def _needed(config: RecordConfig, moments: list[Moment]) -> int:
    """Return how many moments are needed, as far as the played ones show."""
    if config.context:
        return config.context + config.horizon
    if not moments[0].guided:
        return LONGEST
    free = (moment.step for moment in moments if not moment.guided)
    first_free = next(free, moments[-1].step + 1)
    return first_free + 1 + config.horizon


def _observed_frames(config: RecordConfig, moments: list[Moment]) -> int:
    """Return how many moments are observed.

    It is `record.context`, or the context phase and the first frame after it, or half of the episode.
    Raises UserError if no frame is left to imagine.
    """
    guided = sum(moment.guided for moment in moments)
    half = (len(moments) + 1) // 2
    known = config.context or (guided + 1 if guided else half)
    if known >= len(moments):
        setting = (
            f"record.context={config.context}" if config.context else "the context"
        )
        raise UserError(
            f"{setting} leaves nothing to imagine: an episode ended after "
            f"{len(moments)} frames; set record.context below {len(moments)}"
        )
    return known


def record_plan(recorder: EpisodeRecorder) -> None:
    """Observe the context, then let the agent plan and act until the episode ends."""
    moment = recorder.watch_context()
    prediction = None
    limit = len(recorder.scenes) + LONGEST
    while not moment.ended and len(recorder.scenes) < limit:
        action, recorder.state = recorder.agent.act(recorder.state)
        if prediction is None or bool(recorder.state.replanned[0]):
            prediction = _note_plan(recorder, moment.step)
        moment = recorder.episode.act(action.cpu().numpy())
        recorder.add(moment, IMAGINED, prediction)
        recorder.observe(moment)
        recorder.decisions[-1]["executed"] += 1


def _note_plan(recorder: EpisodeRecorder, step: int) -> Prediction:
    """Imagine the new plan and add it to the decisions."""
    plan = recorder.state.plan
    assert plan is not None
    actions = recorder.agent.objective.repeat_actions(plan.actions[None])[0, 0]
    prediction = recorder.imagine(actions, step)
    names = tuple(recorder.episode.name(action) for action in actions.cpu().numpy())
    recorder.decisions.append(
        {
            "step": step,
            "score": float(plan.score[0]),
            "actions": actions.tolist(),
            "action_names": list(names),
            "predicted_reward": rounded(prediction.reward),
            "predicted_continue": rounded(prediction.cont),
            "executed": 0,
        }
    )
    rewards = tuple(prediction.reward.tolist())
    return replace(prediction, plan=PlannedFrames(prediction.frames, names, rewards))


def rounded(values: np.ndarray) -> list[float]:
    """Return values with 6 significant digits as plain data, at any scale."""
    return [float(f"{value:.6g}") for value in values.tolist()]
