"""Policies walk the environment through a TorchRL collector; whole episodes go to the replay."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.settings import CheckpointConfig, Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.policies import GuidedPolicy, ScriptedPolicy
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import KEYS, Replay
from lssvwm.envs.base import BatchedEnv, Mixture
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import WorldModel
from tensordict import TensorDictBase
from torchrl.collectors import Collector

TRAINING, HELD_OUT = 0, 1  # disjoint streams of episode seeds
SHARD = 20_000  # frames written to disk at once


AGENT = {"plan": True, "policy": False}
"""The agent's own policies in a mix, and whether they plan."""
Row = dict[str, np.ndarray | np.generic]


class Episodes:
    """Turns a collector's steps into episodes of T + 1 rows, the frame that ends an episode included."""

    def __init__(self, slots: int):
        self.open: list[list[Row]] = [[] for _ in range(slots)]
        self.arrived = {"reward": np.zeros(slots, np.float32)}
        self.done: list[list[Row]] = []
        self.frames = 0

    def add(self, steps: TensorDictBase) -> None:
        """`steps` [B, T] as a TorchRL collector returns them."""
        here = _rows(steps)
        after = _rows(steps, "next")
        flags = {
            k: _array(steps, ("next", k))[..., 0] for k in ("terminated", "truncated")
        }
        reward = _array(steps, ("next", "reward"))[..., 0].astype(np.float32)
        slots, length = reward.shape
        for b in range(slots):
            for t in range(length):
                self._append(b, here, t, self.arrived["reward"][b], False, False)
                ends = flags["terminated"][b, t] or flags["truncated"][b, t]
                self.arrived["reward"][b] = reward[b, t]
                if ends:
                    self._append(
                        b,
                        after,
                        t,
                        reward[b, t],
                        flags["terminated"][b, t],
                        flags["truncated"][b, t],
                    )
                    self.frames += len(self.open[b])
                    self.done.append(self.open[b])
                    self.open[b], self.arrived["reward"][b] = [], 0.0

    def _append(
        self, b: int, rows: dict[str, np.ndarray], t: int, reward, terminated, truncated
    ) -> None:
        first = not self.open[b]
        self.open[b].append(
            {
                "pixels": rows["pixels"][b, t],
                "action": rows["last_action"][b, t],
                "reward": np.float32(0.0 if first else reward),
                "terminated": np.bool_(terminated),
                "truncated": np.bool_(truncated),
                "is_first": np.bool_(first),
            }
        )

    def take(self) -> dict[str, np.ndarray]:
        """The finished episodes back to back, and forget them."""
        rows = [row for episode in self.done for row in episode]
        self.done, self.frames = [], 0
        return (
            {key: np.stack([row[key] for row in rows]) for key in KEYS} if rows else {}
        )


def _array(steps: TensorDictBase, key: tuple[str, ...]) -> np.ndarray:
    value = steps[key]
    assert isinstance(value, torch.Tensor)
    return np.asarray(value)


def _rows(steps: TensorDictBase, *prefix: str) -> dict[str, np.ndarray]:
    return {key: _array(steps, (*prefix, key)) for key in ("pixels", "last_action")}


def variants(config: Config) -> list[Config]:
    """One configuration for every combination of the values in `train.collect.vary`; raises UserError for a bad one."""
    vary = config.train.collect.vary
    names = [field.name for field in dataclasses.fields(config.env)]
    for name in vary:
        if name not in names or name == "kind":
            raise UserError(
                f"train.collect.vary: env={config.env.kind} has no setting {name!r}; it has {names[1:]}"
            )
    try:
        return [
            dataclasses.replace(
                config, env=dataclasses.replace(config.env, **dict(zip(vary, values)))
            )
            for values in itertools.product(*vary.values())
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"train.collect.vary: {error}") from None


def check(config: Config) -> None:
    """Raises UserError for a mistake in `train.collect`, before anything is written."""
    mix = config.train.collect.mix
    if not any(share > 0 for share in mix.values()):
        raise UserError(
            "train.collect.mix has no policy to collect with, e.g. train.collect.mix={random: 1}"
        )
    for variant in variants(config):
        known = (*build_env(variant, 1).explorers, *AGENT)
        if unknown := [name for name in mix if name not in known]:
            raise UserError(
                f"train.collect.mix: no explorer {unknown[0]!r} here; there are {', '.join(known)}"
            )


def gather(
    config: Config,
    replay: Replay,
    frames: int,
    seed: int,
    model: WorldModel | None = None,
) -> None:
    """Add at least `frames` frames of whole episodes: the policies of `train.collect.mix` take their shares, the
    variants of the environment (`train.collect.vary`) equal ones.

    `model` is what the agent's own policies (`plan`, `policy`) act by; without it their share goes to the others.
    """
    check(config)
    mix = {name: share for name, share in config.train.collect.mix.items() if share > 0}
    own = {name: mix.pop(name) for name in AGENT if name in mix}
    shares = (own if model else {}) | ({"scripted": sum(mix.values())} if mix else {})
    if not shares:
        raise UserError(
            f"train.collect.mix: {', '.join(own)} need a trained agent; add an explorer, or checkpoint="
        )
    progress = Progress("collect", frames, "frames")
    kinds = variants(config)
    for i, variant in enumerate(kinds):
        for k, (name, share) in enumerate(shares.items()):
            env, begin = (
                build_env(variant, config.train.collect.envs),
                seed + i * len(shares) + k,
            )
            if name in AGENT and model:
                agent = build_agent(dataclasses.replace(config, seed=begin), model, env)
                policy = GuidedPolicy(agent, env, AGENT[name], begin)
            else:
                policy = ScriptedPolicy(Mixture(env, mix, begin))
            count = int(frames / len(kinds) * share / sum(shares.values()))
            _walk(env, policy, replay, count, begin, progress)
    progress.close()


def fill(config: Config, replay: Replay) -> None:
    """Gather what `train.collect.frames` still lacks."""
    missing = config.train.collect.frames - len(replay)
    if missing > 0:
        gather(config, replay, missing, config.seed + len(replay.paths))


def _walk(
    env: BatchedEnv, policy, replay: Replay, frames: int, seed: int, progress: Progress
) -> None:
    world = TorchRLEnv(env)
    world.set_seed(seed * 2 + TRAINING)
    collector = Collector(
        world,
        policy,
        frames_per_batch=env.batch * 64,
        total_frames=-1,
        trust_policy=True,
        auto_register_policy_transforms=True,
    )
    episodes, found, begun = Episodes(env.batch), 0, progress.done
    try:
        for steps in collector:
            episodes.add(steps)
            progress.update(begun + found + episodes.frames)
            if episodes.frames >= min(SHARD, frames - found):
                found += episodes.frames
                replay.extend(episodes.take())
            if found >= frames:
                return
    finally:
        collector.shutdown()


def collect(config: CheckpointConfig, output: Path) -> None:
    """`lssvwm collect`: add `train.collect.frames` frames to the data folder `output`."""
    replay = Replay(output, config.train.collect.keep)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = (
        checkpoint.load(config.checkpoint, config.device, config.backend)
        if config.checkpoint
        else None
    )
    gather(
        config,
        replay,
        config.train.collect.frames,
        config.seed + len(replay.paths),
        model,
    )
    print(f"{len(replay):,} frames in {replay.episodes:,} episodes in {output}")
