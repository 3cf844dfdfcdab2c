"""Collect in other processes, while this one trains.

A `CollectorPool` sends rounds to its workers, each of which holds a `RoundCollector`. They write shards into a folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import Config
from lssvwm.agent.evaluation.origin import weights_hash
from lssvwm.agent.processes import Workers
from lssvwm.agent.progress import Progress
from lssvwm.agent.shard_writer import ShardWriter, remove_abandoned
from lssvwm.agent.shards import describe_environment
from lssvwm.agent.training.sources import OWN, Source, SourceFactory, agent_factory
from lssvwm.agent.training.streams import SHARD_FRAMES, Stream
from lssvwm.worldmodel import WorldModel


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
