"""Collect training frames: policies act in a TorchRL collector, whole episodes go to the replay."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.settings import (
    CheckpointConfig,
    CollectConfig,
    Config,
    EnvConfig,
)
from lssvwm.agent.config.validation import replaced
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import read_json, write_json
from lssvwm.agent.mpc import Agent
from lssvwm.agent.policies import GuidedPolicy, ScriptedPolicy
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import KEPT_FRAMES, Replay
from lssvwm.agent.shards import describe_environment
from lssvwm.agent.training.episodes import Episodes
from lssvwm.envs.base import BatchedEnv, Mixture
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import WorldModel
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector

TRAINING, HELD_OUT = 0, 1
"""Disjoint streams of episode seeds."""
SHARD_FRAMES = 20_000
"""Frames written to disk at once."""
UNENDED_FRAMES = 4_000
"""Frames in memory of an episode without an end, on average over the environments and beyond those wanted."""
UNFINISHED = "unfinished.json"
"""File in a data folder that lists the shards from before a first collection that has not ended."""
COLLECTOR_STEPS = 64
"""Steps of every environment between two looks at the finished episodes."""
OWN = {"plan": True, "policy": False}
"""The agent's own policies in `train.collect.mix`, and whether each plans."""
EXPLORERS = "scripted"
"""All explorers of the mix together: they take turns within one environment."""

MakeAgent = Callable[[BatchedEnv, int], Agent]
"""Builds the agent that collects in an environment, with a seed."""


@dataclass(frozen=True)
class Source:
    """Hold one environment and the policy that collects in it.

    frames: to collect at least, 1 or more
    seed: of the environment's episodes and of the policy
    """

    env: BatchedEnv
    policy: TensorDictModuleBase
    frames: int
    seed: int


def agent_factory(config: Config, model: WorldModel) -> MakeAgent:
    """Return a function that builds the agent of a configuration with another seed."""

    def make(env: BatchedEnv, seed: int) -> Agent:
        return build_agent(dataclasses.replace(config, seed=seed), model, env)

    return make


@dataclass(frozen=True)
class Collection:
    """Hold how frames are collected, and the environments, one for each variant.

    Each round builds its own explorers and agents, from its seed.
    """

    config: CollectConfig
    envs: list[BatchedEnv]
    environment: dict[str, Any]
    """Description of the environments, which data folders store."""


def build_collection(env: EnvConfig, config: CollectConfig) -> Collection:
    """Build the environments of all variants and check the mix, before anything is written.

    Raises UserError for a mistake in `train.collect`.
    """
    if not any(fraction > 0 for fraction in config.mix.values()):
        raise UserError(
            "train.collect.mix has no policy to collect with, "
            "e.g. train.collect.mix={random: 1}"
        )
    envs = [build_env(variant, config.envs) for variant in variants(env, config.vary)]
    for built in envs:
        known = [*built.explorers, *OWN]
        unknown = [name for name in config.mix if name not in known]
        if unknown:
            raise UserError(
                f"train.collect.mix: no explorer {unknown[0]!r} here; "
                f"there are {', '.join(known)}"
            )
    described = [describe_environment(env, built) for built in envs]
    if any(other != described[0] for other in described):
        raise UserError(
            "train.collect.vary: frames or actions differ between the environments; "
            "vary settings that keep them"
        )
    return Collection(config, envs, described[0])


def variants(env: EnvConfig, vary: Mapping[str, tuple[Any, ...]]) -> list[EnvConfig]:
    """Return one environment's settings for each combination of the values in `vary`.

    Raises UserError for an unknown setting of the environment or a wrong value.
    """
    names = [field.name for field in dataclasses.fields(env)]
    names.remove("kind")
    for name in vary:
        if name not in names:
            raise UserError(
                f"train.collect.vary: env={env.kind} has no setting {name!r}; "
                f"it has {names}"
            )
    found = []
    for values in itertools.product(*vary.values()):
        changes = dict(zip(vary, values))
        found.append(replaced(env, "train.collect.vary", changes))
    return found


def gather(
    collection: Collection,
    replay: Replay,
    frames: int,
    seed: int,
    make_agent: MakeAgent | None = None,
) -> None:
    """Add at least `frames` frames of whole episodes to the replay; nothing for 0.

    The policies of `train.collect.mix` get their fractions, the variants of the environment equal ones.
    make_agent: builds the agent for `plan` and `policy`; None: the explorers get their fraction
    """
    if frames == 0:
        return
    progress = Progress("collect", frames, "frames")
    for source in _sources(collection, frames, seed, make_agent):
        _collect(source, replay, progress)
    progress.close()


def _sources(
    collection: Collection, frames: int, seed: int, make_agent: MakeAgent | None
) -> Iterator[Source]:
    """Yield every environment with every policy, each built when its turn comes."""
    mix = collection.config.mix
    fractions = _fractions(mix, own=make_agent is not None)
    explorers = _explorers(mix)
    frames_of_variant = frames / len(collection.envs)
    total = sum(fractions.values())
    for env in collection.envs:
        for name, fraction in fractions.items():
            if name in OWN and make_agent is not None:
                agent = make_agent(env, seed)
                policy = GuidedPolicy(agent, env, OWN[name], seed)
            else:
                policy = ScriptedPolicy(Mixture(env, explorers, seed))
            share = int(frames_of_variant * fraction / total)
            yield Source(env, policy, max(1, share), seed)
            seed += 1


def _explorers(mix: dict[str, float]) -> dict[str, float]:
    """Return the scripted explorers of a mix and their fractions."""
    return {
        name: fraction
        for name, fraction in mix.items()
        if fraction > 0 and name not in OWN
    }


def _fractions(mix: dict[str, float], own: bool) -> dict[str, float]:
    """Return the fractions of the agent's policies and of all explorers.

    own: whether there is an agent; without one, the explorers get its fraction
    Raises UserError if that leaves no policy.
    """
    agents = {name: mix[name] for name in OWN if mix.get(name, 0) > 0}
    explorers = _explorers(mix)
    scripted = {EXPLORERS: sum(explorers.values())} if explorers else {}
    if not own and not scripted:
        raise UserError(
            f"train.collect.mix: {', '.join(agents)} need a trained agent; "
            f"add an explorer, or checkpoint="
        )
    return agents | scripted if own else scripted


def _collect(source: Source, replay: Replay, progress: Progress) -> None:
    """Collect the frames of a source and write them in shards."""
    world = TorchRLEnv(source.env)
    world.set_seed(source.seed * 2 + TRAINING)
    collector = Collector(
        world,
        source.policy,
        frames_per_batch=source.env.batch * COLLECTOR_STEPS,
        total_frames=-1,
        trust_policy=True,
        auto_register_policy_transforms=True,
    )
    episodes = Episodes(source.env.batch)
    written = 0
    before = progress.done
    try:
        for steps in collector:
            episodes.add(steps)
            _check_ends(source, episodes)
            progress.update(before + written + episodes.frames)
            if episodes.frames >= min(SHARD_FRAMES, source.frames - written):
                written += episodes.frames
                replay.extend(episodes.take())  # some, as source.frames is positive
            if written >= source.frames:
                return
    finally:
        collector.shutdown()


def _check_ends(source: Source, episodes: Episodes) -> None:
    """Raise UserError if far more frames than wanted are in episodes that do not end."""
    unfinished = sum(len(rows) for rows in episodes.open)
    if unfinished > source.frames + UNENDED_FRAMES * source.env.batch:
        raise UserError(
            f"{unfinished:,} frames were played in {source.env.batch} environments "
            f"without an end of their episodes: set env.max_steps, which ends them "
            f"(or lower train.collect.envs, if they are that long)"
        )


def fill(collection: Collection, replay: Replay, seed: int) -> None:
    """Collect the frames that `train.collect.frames` still lacks.

    A file marks a collection that has not ended. If it was killed, its frames are collected again, from the same seed.
    seed: of the run; every shard in the replay moves it on
    """
    mark = replay.folder / UNFINISHED
    remedy = f"delete {replay.folder}"
    before = read_json(mark, remedy)["shards"] if mark.is_file() else replay.names
    replay.delete_all_but(before)
    missing = collection.config.frames - len(replay)
    if missing > 0:
        write_json(mark, {"shards": before})
        gather(collection, replay, missing, seed + len(replay.shards))
    mark.unlink(missing_ok=True)


def collect(config: CheckpointConfig, output: Path) -> None:
    """Run `lssvwm collect`: add `train.collect.frames` frames to the data folder `output`."""
    collection = build_collection(config.env, config.train.collect)
    replay = Replay(output, KEPT_FRAMES, collection.environment)
    if config.threads:
        torch.set_num_threads(config.threads)
    make_agent = None
    if config.checkpoint:
        model = checkpoint.load(config.checkpoint, config.device, config.backend)
        make_agent = agent_factory(config, model)
    seed = config.seed + len(replay.shards)
    gather(collection, replay, config.train.collect.frames, seed, make_agent)
    replay.delete_retired()
    print(f"{len(replay):,} frames in {replay.episodes:,} episodes in {output}")
