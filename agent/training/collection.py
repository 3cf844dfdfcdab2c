"""Collect training frames: policies act in a TorchRL collector, whole episodes go to the replay.

`gather` collects in this process. A `RoundCollector` does so in any process, and `CollectorPool` in several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import (
    CheckpointConfig,
    CollectConfig,
    Config,
    EnvConfig,
)
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.processes import Workers
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import Replay
from lssvwm.agent.shard_writer import ShardWriter, remove_abandoned
from lssvwm.agent.shards import describe_environment
from lssvwm.agent.training.episodes import Episodes
from lssvwm.agent.training.sources import (
    OWN,
    MakeAgent,
    Source,
    SourceFactory,
    agent_factory,
)
from lssvwm.envs.base import BatchedEnv
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import WorldModel
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector

TRAINING, HELD_OUT = 0, 1
"""Disjoint streams of episode seeds."""
SHARD_FRAMES = 20_000
"""Frames written to disk at once."""
COLLECTOR_STEPS = 64
"""Steps of every environment between two looks at the finished episodes."""
Rows = Mapping[str, np.ndarray]
Write = Callable[[Rows], object]
"""Writes the rows of whole episodes as a shard."""


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


class Stream:
    """Let one policy act in its environment; unfinished episodes go on in the next call.

    seed: of the episodes
    waits: whether other streams have turns, too; a stream then holds no frames while it waits
    """

    def __init__(
        self,
        env: BatchedEnv,
        policy: TensorDictModuleBase,
        seed: int,
        waits: bool = False,
    ):
        world = TorchRLEnv(env)
        world.set_seed(seed * 2 + TRAINING)
        self.collector = Collector(
            world,
            policy,
            frames_per_batch=env.batch * COLLECTOR_STEPS,
            total_frames=-1,
            trust_policy=True,
            auto_register_policy_transforms=True,
            use_buffers=not waits,
        )
        self.seed = seed
        self.steps = iter(self.collector)
        self.episodes = Episodes(env.batch)
        self.ahead = 0
        """Frames written beyond those requested so far."""

    def collect(self, frames: int, write: Write, progress: Progress | None) -> int:
        """Write whole episodes of `frames` frames; return the number of frames.

        The last episodes may exceed `frames`. The next call collects fewer by that.
        """
        wanted = frames - self.ahead
        before = progress.done if progress else 0
        written = 0
        while written < wanted:
            self.episodes.add(next(self.steps))
            if progress:
                progress.update(before + written + self.episodes.frames)
            if self.episodes.frames >= min(SHARD_FRAMES, wanted - written):
                written += self.episodes.frames
                write(self.episodes.take())  # some, as `wanted` is positive
        self.ahead = written - wanted
        self.episodes.detach()
        return written

    def close(self) -> None:
        """End the collector; unfinished episodes are dropped."""
        self.collector.shutdown()


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
    factory = collection.factory
    progress = Progress("collect", frames, "frames")
    sources = factory.sources(frames, own=make_agent is not None)
    for number, source in enumerate(sources, seed):
        env = collection.envs[source.variant]
        policy = factory.make_policy(env, source.policy, number, make_agent)
        provenance = factory.provenance(source, number, weights=None)
        stream = Stream(env, policy, number)
        try:
            write = partial(replay.extend, provenance=provenance)
            stream.collect(source.frames, write, progress)
        finally:
            stream.close()
    progress.close()


def fill(collection: Collection, replay: Replay, seed: int) -> None:
    """Collect the frames that `train.collect.frames` still lacks.

    seed: of the run; every shard in the replay moves it on
    """
    missing = collection.factory.collect.frames - len(replay)
    if missing > 0:
        gather(collection, replay, missing, seed + len(replay.shards))


@dataclass(frozen=True)
class Round:
    """Order frames.

    weights: checkpoint of the agent; None: only explorers collect
    """

    frames: int
    weights: str | None = None


class RoundCollector:
    """Collect rounds of frames in any process, into a folder that others may write to.

    Environments, policies and unfinished episodes persist from round to round. The first round builds them, so that
    this object can be sent to another process before.
    shows: whether rounds show their progress
    """

    def __init__(self, config: Config, folder: Path, shows: bool = False):
        self.config = config
        self.folder = folder
        self.shows = shows
        self.factory = SourceFactory(config.env, config.train.collect)
        self.writer: ShardWriter | None = None
        self.model: WorldModel | None = None
        self.weights: str | None = None
        """Hash of the weights of the model."""
        self.streams: dict[tuple[int, str], Stream] = {}
        """By variant and policy."""

    def __call__(self, order: Round) -> int:
        """Collect a round; return the number of frames written."""
        self._load(order.weights)
        sources = self.factory.sources(order.frames, own=self.model is not None)
        progress = None
        if self.shows:
            progress = Progress("collect", order.frames, "frames")
        written = sum(self._collect(source, progress) for source in sources)
        if progress:
            progress.close()
        return written

    def close(self) -> None:
        """End all streams; unfinished episodes are dropped."""
        for stream in self.streams.values():
            stream.close()

    def _load(self, weights: str | None) -> None:
        """Give the agents new weights; their memory and plans stay."""
        if weights is None:
            return
        self.weights = weights_hash(weights)
        model = checkpoint.load(weights, self.config.device, self.config.backend)
        if self.model is None:
            self.model = model
        else:
            self.model.load_state_dict(model.state_dict())

    def _collect(self, source: Source, progress: Progress | None) -> int:
        stream = self._stream(source)
        weights = self.weights if source.policy in OWN else None
        provenance = self.factory.provenance(source, stream.seed, weights)
        assert self.writer is not None
        write = partial(self.writer.write, provenance=provenance)
        return stream.collect(source.frames, write, progress)

    def _stream(self, source: Source) -> Stream:
        """Return the stream of a source; the first call builds it."""
        key = source.variant, source.policy
        if key not in self.streams:
            env = self.factory.make_env(source.variant)
            if self.writer is None:
                described = describe_environment(self.config.env, env)
                self.writer = ShardWriter(self.folder, described)
            seed = self.config.seed + self.writer.claim()
            make_agent = None
            if self.model is not None:
                make_agent = agent_factory(self.config, self.model)
            policy = self.factory.make_policy(env, source.policy, seed, make_agent)
            self.streams[key] = Stream(env, policy, seed, waits=True)
        return self.streams[key]


class CollectorPool:
    """Let `train.collect.workers` processes collect into a folder, while this one does other work.

    They start with the first request, and end with the `with` block, by Ctrl-C too, and if this process is killed.
    """

    def __init__(self, config: Config, folder: Path):
        self.folder = folder.absolute()  # actors have another working folder
        self.count = config.train.collect.workers
        work = RoundCollector(config, self.folder)
        make = Workers
        if config.train.collect.engine == "ray":
            from lssvwm.agent.ray_workers import RayWorkers as make
        self.workers = make(work, self.count, config.threads or 1)

    def __enter__(self) -> CollectorPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; frames of unfinished episodes are dropped."""
        self.workers.close()
        remove_abandoned(self.folder)

    def request(self, frames: int, weights: str | None = None) -> None:
        """Start to collect frames; requests before this one must be finished.

        weights: checkpoint of the agent; None: only explorers collect
        """
        rounds = max(self.count, math.ceil(frames / SHARD_FRAMES))
        order = Round(math.ceil(frames / rounds), weights)
        self.workers.submit([order] * rounds)

    def poll(self) -> None:
        """Give idle processes their next round, and replace killed ones."""
        self.workers.poll(timeout=0)

    def wait(self, progress: Progress | None = None) -> int:
        """Wait until the requested frames are in the folder; return those that were missing."""
        written = 0
        while self.workers.unfinished:
            for _, frames in self.workers.poll():
                written += frames
                if progress:
                    progress.update(written)
        return written

    def collect(self, frames: int, weights: str | None = None) -> int:
        """Collect frames, wait for them and show the progress; return their number."""
        progress = Progress("collect", frames, "frames")
        self.request(frames, weights)
        written = self.wait(progress)
        progress.close()
        return written


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
