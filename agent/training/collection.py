"""Collect training frames: policies act in environments, whole episodes go to the replay.

`gather` collects in this process while training waits; `collector_pool` collects in others.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import CheckpointConfig, CollectConfig, EnvConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import read_json, write_json
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import Replay
from lssvwm.agent.shard_writer import ShardWriter
from lssvwm.agent.shards import describe_environment
from lssvwm.agent.training.collector_pool import CollectorPool, Round, RoundCollector
from lssvwm.agent.training.sources import OWN, MakeAgent, SourceFactory
from lssvwm.agent.training.streams import Stream
from lssvwm.envs.base import BatchedEnv

UNFINISHED = "unfinished.json"
"""File in a data folder that names a first collection that has not ended."""


@dataclass(frozen=True)
class Collection:
    """Hold how frames are collected, and the environments, one for each variant.

    Each round of `gather` builds its own explorers and agents, from its seed.
    """

    factory: SourceFactory
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
    factory = SourceFactory(env, config)
    envs = [factory.make_env(i) for i in range(len(factory.variants))]
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
    return Collection(factory, envs, described[0])


def gather(
    collection: Collection,
    replay: Replay,
    frames: int,
    seed: int,
    make_agent: MakeAgent | None = None,
    name: str | None = None,
) -> None:
    """Add at least `frames` frames of whole episodes to the replay; nothing for 0.

    The policies of `train.collect.mix` get their fractions, the variants of the environment equal ones.
    make_agent: builds the agent for `plan` and `policy`; None: the explorers get their fraction
    name: of the collection, which its shards record
    """
    if frames == 0:
        return
    factory = collection.factory
    progress = Progress("collect", frames, "frames")
    sources = factory.sources(frames, own=make_agent is not None)
    for number, source in enumerate(sources, seed):
        env = collection.envs[source.variant]
        policy = factory.make_policy(env, source.policy, number, make_agent)
        provenance = factory.provenance(source, number, weights=None)
        if name is not None:
            provenance |= {"collection": name}
        stream = Stream(env, policy, number)
        try:
            write = partial(replay.extend, provenance=provenance)
            stream.collect(source.frames, write, progress)
        finally:
            stream.close()
    progress.close()


def fill(collection: Collection, replay: Replay, seed: int) -> None:
    """Collect the frames that `train.collect.frames` still lacks.

    A file marks a collection that has not ended. If it was killed, its frames are collected again, from the same seed.
    Frames of other processes stay.
    seed: of the run; every shard in the replay moves it on
    """
    mark = replay.folder / UNFINISHED
    remedy = f"delete {replay.folder}"
    if mark.is_file() and (killed := read_json(mark, remedy).get("collection")):
        replay.delete_collection(killed)
    missing = collection.factory.collect.frames - len(replay)
    if missing > 0:
        name = uuid4().hex
        write_json(mark, {"collection": name})
        gather(collection, replay, missing, seed + len(replay.shards), name=name)
    mark.unlink(missing_ok=True)


def collect(config: CheckpointConfig, output: Path) -> None:
    """Run `lssvwm collect`: add `train.collect.frames` frames to the data folder `output`.

    Other processes may collect into the same folder at the same time.
    """
    collection = build_collection(config.env, config.train.collect)
    ShardWriter(output, collection.environment)  # refuses frames of other environments
    if config.threads:
        torch.set_num_threads(config.threads)
    frames = config.train.collect.frames
    weights = None
    if config.checkpoint:
        weights = str(checkpoint.resolve(config.checkpoint).absolute())
    if config.train.collect.workers:
        with CollectorPool(config, output) as pool:
            written = pool.collect(frames, weights)
    else:
        with closing(RoundCollector(config, output, shows=True)) as collector:
            written = collector(Round(frames, weights))
    print(f"{written:,} frames collected into {output}")
