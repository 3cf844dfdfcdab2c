"""The loop: collect -> train -> (now and then) evaluate, from the first step or from where a run stopped."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import math
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import action_count, build_agent, build_env
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.settings import Config, TrainConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import quick_success
from lssvwm.agent.evaluation.plots import plot_curves
from lssvwm.agent.mpc import Agent
from lssvwm.agent.progress import Progress
from lssvwm.agent.replay import Replay
from lssvwm.agent.training.actor_critic import dream
from lssvwm.agent.training.augmentation import Lengths, draw_forget, draw_hidden
from lssvwm.agent.training.collection import check, fill, gather
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.worldmodel import Batch, WorldModel
from lssvwm.worldmodel.migration import FORMAT_VERSION, migrate_weights
from lssvwm.worldmodel.motion_calibration import calibrate
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

ODOMETER = 0.05
"""Learning rate of what the odometers make of an action, relative to all else."""
ADDED = ("distance.", "heads.error.")
"""Weights of heads that a model may have or not."""
LOG_EVERY = 10
"""Steps whose mean makes one row of the log."""
WEIGHT_DECAY, GRADIENT_CLIP = 0.01, 1.0
"""Of AdamW; largest norm of the gradient."""
HORIZON, ENTROPY = 16, 0.01
"""Steps of an imagined walk; weight of the entropy of its policy."""


@dataclass
class Run:
    """Everything that a run consists of, and that a checkpoint holds."""

    config: Config
    folder: Path
    model: WorldModel
    ema: WorldModel
    optimizer: torch.optim.Optimizer
    replay: Replay
    rng: np.random.Generator
    generator: torch.Generator
    lengths: Lengths
    dreamer: Agent | None = None  # walks in imagination, if `train.actor_critic.walks`
    step: int = 0
    best: float = -math.inf

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"


def build_model(config: Config, env: BatchedEnv) -> WorldModel:
    """A new model for an environment, from `train.init` if given; the same seed gives the same weights. Heads that
    those weights lack begin anew. Raises UserError if they are of another model."""
    torch.manual_seed(config.seed)
    try:
        model = WorldModel(
            config.model,
            env.frame_shape,
            action_count(env),
            isinstance(env.actions, Discrete),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: {str(error).splitlines()[0]}") from None
    if config.train.init:
        model.load_state_dict(_fitting(config.train.init, model.state_dict()))
    return model


def _fitting(init: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `init` for a model that has `own`; raises UserError where they do not fit."""
    given = checkpoint.load(init, "cpu").state_dict()
    given = {
        key: value
        for key, value in given.items()
        if key in own or not key.startswith(ADDED)
    }
    given |= {
        key: value
        for key, value in own.items()
        if key.startswith(ADDED) and key not in given
    }
    for key in sorted(given.keys() | own.keys()):
        there, here = (
            [*state[key].shape] if key in state else "missing" for state in (given, own)
        )
        if there != here:
            differs = f"{key} is {there}, here {here}"
            raise UserError(
                f"train.init={init} is of another model ({differs}): set env and model as in its config.yaml"
            )
    return given


def prepare(config: Config, folder: Path) -> Run:
    """A run at step 0: model, optimizer and (possibly already filled) replay."""
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    device = checkpoint.pick_device(config.device)
    checkpoint.pick_backend(config.backend, device)
    model = (
        build_model(config, build_env(config, 1)).to(device).train().use(config.backend)
    )
    optimizer = torch.optim.AdamW(parameter_groups(model), betas=(0.9, 0.98))
    replay = Replay(
        Path(config.data) if config.data else folder / "data", config.train.collect.keep
    )
    rng, generator = (
        np.random.default_rng([config.seed, 7]),
        torch.Generator(device).manual_seed(config.seed),
    )
    ema, lengths = copy.deepcopy(model).eval(), Lengths(config.train)
    run = Run(config, folder, model, ema, optimizer, replay, rng, generator, lengths)
    if config.train.actor_critic.walks:
        # The run's generator, because a checkpoint holds its state.
        run.dreamer = build_agent(config, model, build_env(config, 1), generator)
    model.recompute = config.train.activation_checkpointing
    if config.train.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    return run


def keep_freed_memory() -> None:
    """Ask the C library to reuse freed memory instead of handing it back to the system, which costs training on a CPU
    a tenth of its time in page faults. Where it is not glibc, nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap, 1 << 25)
        libc.mallopt(trim, (1 << 31) - 1)


def parameter_groups(model: WorldModel) -> list[dict[str, Any]]:
    """Weights decay, biases and scales do not; odometers move slowly, for all memories rest on them."""
    groups = {
        name: {"params": [], "scale": scale, "weight_decay": decay}
        for name, scale, decay in (
            ("weights", 1.0, WEIGHT_DECAY),
            ("rest", 1.0, 0.0),
            ("odometers", ODOMETER, 0.0),
        )
    }
    for name, p in model.named_parameters():
        kind = (
            "odometers"
            if "path_integrator" in name and "frame" not in name
            else "weights"
            if p.dim() > 1
            else "rest"
        )
        groups[kind]["params"].append(p)
    return list(groups.values())


def train(config: Config, output: Path) -> Path:
    """`lssvwm train`: a new run in the folder `output`; returns it."""
    if (output / "config.yaml").exists():
        raise UserError(
            f"{output} holds a run already: continue it with `lssvwm resume {output}`, or set output="
        )
    if not config.data:
        check(config)
    output.mkdir(parents=True, exist_ok=True)
    run = prepare(config, output)
    configuration.save(config, output / "config.yaml")
    begin(run)
    return learn(run)


def begin(run: Run) -> None:
    """What comes before the first step: collect what is missing, unless the data are another's; and unless the weights
    know it, see what frames look like and how the actions move the view."""
    if not run.config.data:
        fill(run.config, run.replay)
    run.replay.check(run.model.frame_shape)
    if not run.config.train.init:
        batch = run.replay.sample(
            16,
            min(run.config.train.length, 96),
            0.5,
            np.random.default_rng(run.config.seed),
        )
        batch = batch.to(run.model.place.device)
        run.model.patches.fit(batch.pixels)
        motions = calibrate(run.model, batch)
        moves = [
            f"{a} turns by {m[0]:g}, steps by ({m[1]:g}, {m[2]:g})"
            for a, m in motions.items()
            if any(m)
        ]
        print("how actions move the view: " + ("; ".join(moves) or "no rule found"))
        run.ema.load_state_dict(run.model.state_dict())
    save(run)


def resume(folder: Path, overrides: list[str]) -> Path:
    """`lssvwm resume`: go on with a run from its last checkpoint, exactly as if it had not stopped."""
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"no run in {folder}: there is no config.yaml; start one with `lssvwm train output={folder}`"
        )
    config = configuration.from_checkpoint(
        configuration.read(folder / "config.yaml"), overrides
    )
    run = prepare(config, folder)
    if not run.last.is_file():
        begin(run)
    restore(run)
    configuration.save(config, folder / "config.yaml")
    return learn(run)


def learn(run: Run) -> Path:
    """Train until `train.steps`; Ctrl-C saves first."""
    config = run.config.train
    run.replay.check(run.model.frame_shape)
    logger = Logger(run.folder, run.step)
    progress = Progress("train", config.steps, "steps", run.step)
    try:
        while run.step < config.steps:
            logger.add(step(run))
            run.step += 1
            if run.step % LOG_EVERY == 0:
                progress.update(run.step, logger.flush(run.step))
            housekeeping(run, logger)
    except KeyboardInterrupt:
        save(run)
        progress.close()
        raise KeyboardInterrupt(f"at step {run.step}, saved") from None
    progress.close()
    finish(run, logger)
    return run.folder


def housekeeping(run: Run, logger: Logger) -> None:
    """What happens between steps: collect more, evaluate, save."""
    config, at = run.config.train, run.step
    if config.collect.every and at % config.collect.every == 0 and at < config.steps:
        gather(
            run.config,
            run.replay,
            config.collect.more,
            run.config.seed + 1000 + at,
            run.ema,
        )
    if config.evaluate_every and at % config.evaluate_every == 0:
        success = quick_success(run.config, run.ema)
        logger.write(at, {"evaluate/success": success})
        if success >= run.best:
            run.best = success
            checkpoint.export(run.ema, run.config, run.folder / "best")
    if at % config.save_every == 0:
        save(run)
        if not config.evaluate_every:
            checkpoint.export(run.ema, run.config, run.folder / "best")


def finish(run: Run, logger: Logger) -> None:
    save(run)
    if not run.config.train.evaluate_every:
        checkpoint.export(run.ema, run.config, run.folder / "best")
    logger.close()
    plot_curves(run.folder)


def step(run: Run) -> dict[str, Tensor]:
    """One optimisation step on sequences of a drawn length; returns the metrics."""
    config = run.config.train
    length, batch = run.lengths.draw(run.rng)
    harder = run.step >= config.curriculum_start * config.steps
    burn_in = config.burn_in if harder else 0
    sequences = run.replay.sample(
        batch, burn_in + length, config.episode_start_prob, run.rng
    ).to(run.model.place.device)
    rate = learning_rate(config, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    run.optimizer.zero_grad(set_to_none=True)
    metrics = gradient(run, sequences, burn_in, foresee=harder)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_CLIP)
    if not torch.isfinite(norm):
        raise UserError(
            f"the loss is not finite at step {run.step}: lower train.learning_rate, then resume {run.folder}"
        )
    run.optimizer.step()
    update_ema(run.ema, run.model, min(config.ema, (1 + run.step) / (10 + run.step)))
    run.lengths.learn(length, metrics["late"])
    metrics |= {
        "gradient_norm": norm.detach(),
        "learning_rate": torch.tensor(rate),
        "length": torch.tensor(length),
    }
    return metrics | run.lengths.metrics()


def gradient(
    run: Run, sequences: Batch, burn_in: int = 0, foresee: bool = True
) -> dict[str, Tensor]:
    """Add up the gradient of sequences, after `burn_in` frames, segment by segment with the memory carried on; the
    metrics' means."""
    config, model = run.config.train, run.model
    hidden = draw_hidden(config, sequences.is_first, run.rng)
    forget = draw_forget(config, sequences.is_first, run.rng)
    device, frames, memory, found = (
        model.place.device,
        sequences.is_first.shape[1],
        None,
        [],
    )
    if burn_in:
        old = sequences[:burn_in]
        with torch.no_grad():
            memory, _ = model.observe(
                model.initial(len(old.pixels)), old.pixels, old.action, old.is_first
            )
    size = config.tbptt_length or frames
    parts = [slice(at, min(at + size, frames)) for at in range(burn_in, frames, size)]
    for part in parts:
        masks = [None if mask is None else mask[:, part] for mask in (hidden, forget)]
        with torch.autocast(
            device.type, torch.bfloat16, enabled=in_bf16(config.precision, device)
        ):
            loss, metrics, memory = model.loss(
                sequences[part], memory, masks[0], run.generator, masks[1], foresee
            )
        (loss / len(parts)).backward()
        found.append(metrics)
    metrics = {
        key: torch.stack([metrics[key] for metrics in found]).mean() for key in found[0]
    }
    return metrics | (dreams(run, run.dreamer, sequences) if run.dreamer else {})


def dreams(run: Run, dreamer: Agent, sequences: Batch) -> dict[str, Tensor]:
    """Add up the gradient of dreams that begin somewhere in the sequences; their metrics."""
    config, device = run.config.train, run.model.place.device
    part = sequences[: int(run.rng.integers(1, sequences.is_first.shape[1] + 1))]
    with torch.autocast(
        device.type, torch.bfloat16, enabled=in_bf16(config.precision, device)
    ):
        empty = run.model.initial(len(part.pixels))
        memory, told = run.model.observe(
            empty, part.pixels, part.action, part.is_first, learn=True
        )
        now, ended = told.last(), (part.terminated | part.truncated)[:, -1]
        loss, metrics = dream(
            dreamer, memory, now, ended, config.actor_critic.walks, HORIZON, ENTROPY
        )
    (config.actor_critic.weight * loss).backward()
    return metrics


def in_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products are made in bf16: as asked for, or where that is fast."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = (
        getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    )
    return able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def learning_rate(config: TrainConfig, at: int) -> float:
    """Linear warm-up, then a cosine down to the final share."""
    share = config.final_learning_rate
    cosine = share + (1 - share) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, at / max(1, config.steps)))
    )
    return config.learning_rate * min(1.0, (at + 1) / max(1, config.warmup)) * cosine


@torch.no_grad()
def update_ema(ema: WorldModel, model: WorldModel, keep: float) -> None:
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(ema.parameters()), list(model.parameters()), 1 - keep
    )
    for mine, theirs in zip(ema.buffers(), model.buffers()):
        mine.copy_(theirs)


def save(run: Run) -> None:
    """Write the checkpoint under another name, then rename: a kill or a full disk leaves the old one whole."""
    state = {
        "format_version": FORMAT_VERSION,
        "model": run.model.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,
        "best": run.best,
        "shards": [path.name for path in run.replay.paths],
        "rng": run.rng.bit_generator.state,
        "generator": run.generator.get_state().cpu(),
        "lengths": run.lengths.error,
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }
    run.last.parent.mkdir(parents=True, exist_ok=True)
    draft = run.last.with_suffix(".tmp")
    try:
        torch.save(state, draft)
        os.replace(draft, run.last)
    finally:
        draft.unlink(missing_ok=True)


def restore(run: Run) -> None:
    """Everything back as it was at the last checkpoint; data collected after it is dropped and collected again."""
    try:
        state = torch.load(
            run.last, weights_only=False, map_location=run.model.place.device
        )
    except Exception as error:
        raise UserError(
            f"{run.last} is damaged ({type(error).__name__}); start anew in another output= folder"
        ) from None
    try:
        version = state.get("format_version", 1)
        run.model.load_state_dict(migrate_weights(state["model"], version))
        run.ema.load_state_dict(migrate_weights(state["ema"], version))
        run.optimizer.load_state_dict(state["optimizer"])
        alike = all(
            moments["exp_avg"].shape == p.shape
            for p, moments in run.optimizer.state.items()
        )
    except (RuntimeError, ValueError):
        alike = False
    if not alike:
        raise UserError(
            f"{run.last} is of another version: begin a run from its weights, `lssvwm train train.init={run.folder}`"
        )
    run.step, run.best = state["step"], state["best"]
    if not run.config.data:
        for path in run.replay.paths:
            if path.name not in state["shards"]:
                shutil.rmtree(path)
        run.replay = Replay(run.replay.folder, run.replay.keep)
    run.rng.bit_generator.state = state["rng"]
    run.generator.set_state(state["generator"].cpu())
    run.lengths.error = state.get("lengths", run.lengths.error)
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(state["python"])


class Logger:
    """Means of the metrics since the last `flush`, to metrics.jsonl and TensorBoard; a resumed run goes on in both."""

    def __init__(self, folder: Path, at: int):
        self.file = folder / "metrics.jsonl"
        self.file.touch()  # a run shorter than LOG_EVERY has an empty log, not none
        kept = [
            line
            for line in self.file.read_text().splitlines()
            if line and json.loads(line)["step"] <= at
        ]
        self.file.write_text("".join(line + "\n" for line in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=at + 1)
        self.sums: dict[str, list[Tensor]] = {}
        self.begun = time.time()

    def add(self, metrics: dict[str, Tensor]) -> None:
        for key, value in metrics.items():
            self.sums.setdefault(key, []).append(value)

    def flush(self, at: int) -> str:
        """Write the means; returns a short line for the progress bar."""
        means = {
            key: float(torch.stack([v.float().cpu() for v in values]).mean())
            for key, values in self.sums.items()
        }
        self.sums = {}
        self.write(at, means)
        return f"loss {means['loss/total']:.3f}  frame {means['psnr']:.1f} dB"

    def write(self, at: int, values: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(
                json.dumps({"step": at, "time": round(time.time(), 1)} | values) + "\n"
            )
        for key, value in values.items():
            self.board.add_scalar(key, value, at)

    def close(self) -> None:
        self.board.close()
