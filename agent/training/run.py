"""Build, save and restore a training run.

A run's folder holds:

    config.yaml        the configuration
    metrics.jsonl, tensorboard/, curves.png
    data/              frames, unless `data` names another folder
    checkpoints/       last.safetensors: everything needed to resume
    best/              the averaged weights with the highest validation success
    export/            the latest averaged weights, if no evaluation selects some
    acting/            averaged weights of the agents in `train.collect.workers`
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import os
import random
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import action_count, build_agent, build_env
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import Validation, build_validation
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import KEPT_FRAMES, Replay
from lssvwm.agent.shards import describe_environment
from lssvwm.agent.training import trackers
from lssvwm.agent.training.augmentation import Lengths
from lssvwm.agent.training.collection import (
    Collection,
    build_collection,
    fill,
    gather,
)
from lssvwm.agent.training.collector_pool import CollectorPool
from lssvwm.agent.training.distributed import (
    agree,
    device_name,
    first,
    leads,
    only_first,
)
from lssvwm.agent.training.optimization import Learner
from lssvwm.agent.training.reward_scale import fit_scales
from lssvwm.agent.training.sources import OWN, MakeAgent, agent_factory
from lssvwm.agent.training.state_file import (
    STATE,
    has_state,
    read_state,
    write_state,
)
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.worldmodel import WorldModel
from lssvwm.worldmodel.motion_calibration import calibrate
from torch import Tensor

ACTING = "acting"
"""Folder of the weights that collecting processes read."""
OPTIONAL_HEADS = ("distance.", "heads.error.")
"""Weights of heads that a model may lack."""
CALIBRATION_SEQUENCES, CALIBRATION_FRAMES = 64, 96
"""Sequences, and frames of each at most, that show the look of frames and the effects of actions."""


@dataclass
class Run:
    """Hold everything that a training run consists of."""

    config: Config
    folder: Path
    learner: Learner
    replay: Replay
    lengths: Lengths
    rng: np.random.Generator
    """Draws sequences and masks."""
    collection: Collection | None = None
    """Environments that frames are collected in; None: all frames are given."""
    pool: CollectorPool | None = None
    """Processes that collect; None: this one collects, or all frames are given."""
    step: int = 0
    unlogged: dict[str, list[Tensor]] = field(default_factory=dict)
    """Metrics of the steps since the last row of the log."""
    saved_step: int = 0
    """Step of the last checkpoint."""
    best: float = -math.inf
    """Highest validation success; minus infinity before the first evaluation."""

    @property
    def model(self) -> WorldModel:
        """Return the model that is trained."""
        return self.learner.model

    @property
    def ema(self) -> WorldModel:
        """Return the model with averaged weights."""
        return self.learner.ema

    @property
    def make_agent(self) -> MakeAgent:
        """Return the function that builds agents with averaged weights."""
        return agent_factory(self.config, self.ema)

    @cached_property
    def validation(self) -> Validation:
        """Return the validation tasks with their environment, built on first use."""
        return build_validation(self.config.env, self.config.seed)

    @property
    def saved(self) -> bool:
        """Return whether a step has been saved."""
        return has_state(self.folder)

    @property
    def evaluated(self) -> bool:
        """Return whether a validation success has selected weights."""
        return self.best > -math.inf

    def check_frames(self) -> None:
        """Raise UserError if the model cannot be trained on the frames of the replay."""
        needs_pose = self.config.model.pose == "given"
        self.replay.check(needs_pose)

    def collect_first(self) -> None:
        """Collect the frames that `train.collect.frames` still lacks."""
        assert self.collection is not None
        if self.pool is None:
            fill(self.collection, self.replay, self.config.seed)
            return
        missing = self.config.train.collect.frames - len(self.replay)
        if missing > 0:
            self.pool.collect(missing)
            self.replay.refresh()

    def collect_more(self) -> dict[str, Tensor]:
        """Collect a further round of frames; agents have the averaged weights.

        With a pool, wait for its last round and start the next; return the seconds waited as a metric.
        """
        metrics = first(self._collect) or {}
        self.share_frames()
        self.fit_scales()
        return metrics

    def _collect(self) -> dict[str, Tensor]:
        assert self.collection is not None
        frames = self.config.train.collect.more
        if self.pool is None:
            seed = self.config.seed + 1000 + self.step
            gather(self.collection, self.replay, frames, seed, self.make_agent)
            return {}
        start = time.monotonic()
        self.pool.wait()
        self.replay.refresh()
        waited = time.monotonic() - start
        self.pool.request(frames, self._export_acting())
        return {"collect/waited": torch.tensor(waited)}

    def _export_acting(self) -> str | None:
        """Export the averaged weights for the agents of the pool, if the mix has any."""
        assert self.collection is not None
        if not self.collection.factory.own:
            return None
        folder = (self.folder / ACTING).absolute()
        checkpoint.export(self.ema, self.config, folder)
        return str(folder)

    def refresh(self) -> None:
        """Take in frames that other processes have collected."""
        if self.config.train.collect.workers or self.config.data:
            first(self._refresh)
            self.share_frames()

    def _refresh(self) -> None:
        if self.pool is not None:
            self.pool.poll()
        self.replay.refresh()

    def close(self) -> None:
        """End the processes that collect, and close the environments."""
        if self.pool is not None:
            self.pool.close()
        envs = [] if self.collection is None else self.collection.envs
        if "validation" in self.__dict__:
            envs = [*envs, self.validation.env]
        for env in envs:
            env.close()

    def share_frames(self) -> None:
        """Let all processes draw from the shards of rank 0."""
        names = agree(self.replay.names)
        if not leads():
            self.replay.follow(names)

    def fit_scales(self) -> None:
        """Fit the units of reward and value to the frames of the replay."""
        models = self.model, self.ema
        fit_scales(models, self.replay.shards, self.config.model.discount)

    def validate(self) -> float:
        """Return the success rate of the averaged weights on the validation tasks."""
        success = agree(first(self._validate))
        assert success is not None
        return success

    def _validate(self) -> float:
        agent = build_agent(self.config, self.ema, self.validation.env)
        return self.validation.success(agent)

    @only_first
    def export_latest(self) -> None:
        """Export the averaged weights of the latest step."""
        checkpoint.export(self.ema, self.config, self.folder / checkpoint.EXPORT)

    @only_first
    def export_if_best(self, success: float) -> None:
        """Export the averaged weights if their validation success is the highest yet."""
        if success >= self.best:
            self.best = success
            checkpoint.export(self.ema, self.config, self.folder / checkpoint.BEST)


def build(config: Config, folder: Path) -> Run:
    """Build a run at step 0; its replay may already hold frames.

    Raises UserError for a mistake in the settings.
    """
    trackers.check(config.train.logger)
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    device = checkpoint.pick_device(device_name(config))
    checkpoint.pick_backend(config.backend, device)
    all_given = bool(config.data) and not config.train.collect.every
    collection = None
    if not all_given and leads():
        collection = build_collection(config.env, config.train.collect)
    pool = None
    if collection is not None and config.train.collect.workers:
        pool = CollectorPool(config, folder / "data")
    env = build_env(config.env, 1)
    _check_memory(config, env)
    init = None if has_state(folder) else config.train.init
    model = build_model(config, env, init).to(device).train()
    model.use_backend(config.backend)
    generator = torch.Generator(device).manual_seed(config.seed)
    walker = None
    if config.train.actor_critic.walks:
        walker = build_agent(config, model, env, generator)
    if config.train.evaluate_every or OWN.keys() & config.train.collect.mix.keys():
        build_agent(config, model, env)  # mistakes end the run here, not after hours
    ema = copy.deepcopy(model).eval()
    learner = Learner(model, ema, config.train, generator, walker)
    replay = Replay(
        folder / "data",
        None if all_given else KEPT_FRAMES,
        describe_environment(config.env, env),
        given=Path(config.data).expanduser() if config.data else None,
    )
    return Run(
        config=config,
        folder=folder,
        learner=learner,
        replay=replay,
        lengths=Lengths(config.train),
        rng=np.random.default_rng([config.seed, 7]),
        collection=collection,
        pool=pool,
    )


def _check_memory(config: Config, env: BatchedEnv) -> None:
    """Raise UserError if the frames of one batch do not fit into the machine's memory."""
    train = config.train
    frames = train.batch * (train.length + train.burn_in)
    needed = frames * math.prod(env.frame_shape)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"train.batch={train.batch} sequences of train.length={train.length} "
            f"frames need {needed / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f}: "
            f"lower one of them"
        )


def build_model(config: Config, env: BatchedEnv, init: str | None = None) -> WorldModel:
    """Build a model for an environment.

    init: checkpoint with the first weights; None: random ones
    The same seed gives the same weights. Raises UserError if the settings or those weights do not fit.
    """
    torch.manual_seed(config.seed)
    actions = action_count(env)
    discrete = isinstance(env.actions, Discrete)
    try:
        model = WorldModel(
            config.model,
            env.frame_shape,
            actions,
            discrete,
            config.train.activation_checkpointing,
        )
    except (ValueError, RuntimeError) as error:
        hint = _patch_hint(config, env)
        raise UserError(f"model: {str(error).splitlines()[0]}{hint}") from None
    if init:
        model.load_state_dict(_initial_weights(init, model.state_dict()))
    return model


def _patch_hint(config: Config, env: BatchedEnv) -> str:
    """Return the remedy for tiles that do not fit the frames; empty if they fit."""
    tiles = getattr(config.model.mixer, "tiles", (1,))
    height, width = env.frame_shape[1:]

    def fits(patch: int) -> bool:
        sides = math.ceil(height / patch), math.ceil(width / patch)
        return all(side % tile == 0 for side in sides for tile in tiles)

    patch = config.model.patch
    if not isinstance(patch, int):
        return ""
    fitting = [other for other in range(1, max(height, width) + 1) if fits(other)]
    if not fitting or fits(patch):
        return ""
    best = min(fitting, key=lambda other: abs(other - patch))
    return f"; frames of {height} x {width} pixels need e.g. model.patch={best}"


def _initial_weights(init: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of checkpoint `init`, and own ones of optional heads that it lacks.

    Raises UserError if the weights do not fit.
    """
    saved = checkpoint.load(init, "cpu").state_dict()
    weights = {}
    for key, value in own.items():
        if key.startswith(OPTIONAL_HEADS) and key not in saved:
            weights[key] = value
    for key, value in saved.items():
        if key in own or not key.startswith(OPTIONAL_HEADS):
            weights[key] = value
    for key in sorted(weights.keys() | own.keys()):
        there, here = _shape(weights, key), _shape(own, key)
        if there != here:
            raise UserError(
                f"train.init={init} is of another model "
                f"({key} is {there}, here {here}): "
                f"set env and model as in its config.yaml"
            )
    return weights


def _shape(weights: dict[str, Tensor], key: str) -> list[int] | str:
    return list(weights[key].shape) if key in weights else "missing"


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed memory rather than return it to the system.

    Otherwise page faults take a tenth of the time of training on a CPU. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt in malloc.h
        libc.mallopt(mmap_threshold, 1 << 25)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def begin(run: Run) -> None:
    """Prepare the first step: collect frames, calibrate new weights, save."""
    if not run.config.data:
        run.collect_first()
    run.check_frames()
    if not run.config.train.init:
        _calibrate(run)
    run.fit_scales()
    save(run)


def _calibrate(run: Run) -> None:
    """Measure the statistics of frames and how actions move the view.

    Set the weights that hold them.
    """
    rng = np.random.default_rng(run.config.seed)
    frames = min(run.config.train.length, CALIBRATION_FRAMES)
    batch = run.replay.sample(CALIBRATION_SEQUENCES, frames, 0.5, rng)
    batch = batch.to(run.learner.device)
    run.model.patches.fit(batch.pixels)
    progress = Progress("calibrate", 1, "batch")
    motions = calibrate(run.model, batch, progress.refresh)
    run.ema.load_state_dict(run.model.state_dict())
    if run.config.model.pose != "integrated":
        return
    moves = [
        f"{action} turns by {motion[0]:g}, steps by ({motion[1]:g}, {motion[2]:g})"
        for action, motion in motions.items()
        if any(motion)
    ]
    print("how actions move the view: " + ("; ".join(moves) or "no rule found"))


def save(run: Run) -> None:
    """Write the checkpoint; a killed process or a full disk leaves the last one whole."""
    if leads():
        write_state(run.folder, _state(run))
        run.replay.delete_retired()
    run.saved_step = run.step


def _state(run: Run) -> dict[str, Any]:
    """Return all that a run needs to go on."""
    return {
        "model": run.model.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer": run.learner.optimizer.state_dict(),
        "step": run.step,
        "best": run.best,
        "shards": run.replay.names,
        "rng": run.rng.bit_generator.state,
        "generator": run.learner.generator.get_state(),
        "lengths": run.lengths.error,
        "unlogged": {k: [float(x) for x in v] for k, v in run.unlogged.items()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }


def restore(run: Run) -> None:
    """Return to the last checkpoint; frames that this process collected after it are not used.

    Raises UserError if the file is damaged or has weights of another model.
    """
    state = read_state(run.folder, run.model.state_dict())
    _load_weights(run, state)
    run.step = run.saved_step = state["step"]
    run.best = state["best"]
    _select_shards(run, state["shards"])
    run.rng.bit_generator.state = state["rng"]
    _restore_generator(run, state["generator"])
    errors = state.get("lengths", [])
    if len(errors) == len(run.lengths.error):  # else the lengths have changed
        run.lengths.error = errors
    for name, values in state.get("unlogged", {}).items():
        run.unlogged[name] = [torch.tensor(value) for value in values]
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    _rename_unselected(run)


def _restore_generator(run: Run, state: Tensor) -> None:
    """Return to a state of the generator; seed it if that is of another device."""
    generator = run.learner.generator
    try:
        generator.set_state(state)
    except RuntimeError:
        generator.manual_seed(run.config.seed + run.step)
        print(
            f"the run was saved on another kind of device than {generator.device}: "
            f"from here on its numbers are not those of the uninterrupted run"
        )


def _select_shards(run: Run, names: list[str]) -> None:
    """Use the frames that the checkpoint names, and say what differs from that."""
    if not leads():
        return  # rank 0 shares the names of its shards
    if run.pool is None and (later := run.replay.use_only(names)):
        print(f"not used, as they came after the checkpoint: {', '.join(later)}")
    if gone := sorted({*names} - {*run.replay.names}):
        print(f"frames are gone, the run goes on without them: {', '.join(gone)}")


def _load_weights(run: Run, state: dict[str, Any]) -> None:
    """Load weights and optimizer; raises UserError if they are of another model."""
    optimizer = run.learner.optimizer
    try:
        run.model.load_state_dict(state["model"])
        run.ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        moments = optimizer.state.items()
        fits = all(moment["exp_avg"].shape == p.shape for p, moment in moments)
    except (RuntimeError, ValueError):
        fits = False
    if not fits:
        raise UserError(
            f"{run.folder / STATE} is of another version: begin a run from its weights, "
            f"`lssvwm train train.init={run.folder}`"
        )


@only_first
def _rename_unselected(run: Run) -> None:
    """Rename best/ of format 1 to export/ if no evaluation selected it."""
    best = run.folder / checkpoint.BEST
    export = run.folder / checkpoint.EXPORT
    if best.is_dir() and not run.evaluated and not export.exists():
        os.replace(best, export)
