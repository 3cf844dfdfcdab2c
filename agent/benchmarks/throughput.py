"""`lssvwm benchmark`: speed of the environments and of the models, measured; prints a table and writes it as JSON."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import ENV_CONFIGS, Config
from lssvwm.agent.evaluation import results
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import Batch, Memory, WorldModel, imagination
from lssvwm.worldmodel.mixers.tiled_ssd import StateCache
from torch import Tensor

from lssvwm import envs as environments

MODELS = ("small", "window", "attention", "gru")
CONTEXTS = (64, 256, 1024, 4096, 8192)
LENGTHS = (128, 256, 512, 2048)
LONGEST = {"attention": 256}  # frames of a training sequence that still fit into memory
FRAME, ACTIONS = (3, 64, 64), 3
MAZES = ("tmaze", "return", "recall", "scavenge")
FORKED, CANDIDATES, HORIZONS = ("small", "untiled", "tile1", "base"), 1024, (4, 16)
ROUNDS = 3
SECONDS = 1.0


def envs(config: Config, output: Path) -> Path:
    """Frames per second of the maze engine alone and through TorchRL, random actions, on one thread."""
    torch.set_num_threads(1)
    rows = []
    for kind in MAZES:
        for batch in (16, 64):
            env = environments.make(ENV_CONFIGS[kind](), batch)
            engine = _rate(_engine(env), batch)
            torchrl = _rate(_torchrl(env), batch)
            rows.append(
                {"env": kind, "batch": batch, "engine": engine, "torchrl": torchrl}
            )
            print(
                f"{kind:<10} {batch:>3} environments  engine {engine:>8,.0f} frames/s  TorchRL {torchrl:>8,.0f}"
            )
    return _write(
        output / "envs.json", {"command": "lssvwm benchmark envs", "threads": 1}, rows
    )


def speed(config: Config, output: Path) -> Path:
    """Seconds and bytes per frame of each model, against the frames in memory (observe, imagine) or in a sequence
    (train). Attention caches as many frames as the context has; ours and the GRU really observe them."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    cases = [case for name in MODELS for case in _cases(name)]
    times: list[list[float]] = [[] for _ in cases]
    progress = Progress("benchmark", ROUNDS * len(cases), "measurements")
    for i in range(ROUNDS):  # all in turn, so that a busy moment hits every row
        for j, case in enumerate(cases):
            times[j].append(_seconds(case.run) / case.frames)
            progress.update(i * len(cases) + j + 1)
    progress.close()
    rows = []
    for case, taken in zip(cases, times):
        row = {
            "model": case.model,
            "operation": case.operation,
            "context": case.context,
        }
        rows.append(
            row
            | {"seconds_per_frame": median(taken), "memory_bytes": case.memory_bytes}
        )
    for row in rows:
        first = next(
            r
            for r in rows
            if (r["model"], r["operation"]) == (row["model"], row["operation"])
        )
        row["ratio"] = row["seconds_per_frame"] / first["seconds_per_frame"]
        name = f"{row['model']:<10} {row['operation']:<8} {row['context']:>5} frames"
        took = (
            f"{1e3 * row['seconds_per_frame']:>9.3f} ms a frame  x {row['ratio']:>6.2f}"
        )
        print(f"{name} {took}  {row['memory_bytes']:>12,} bytes")
    return _write(
        output / "speed.json",
        {"command": "lssvwm benchmark speed", "threads": torch.get_num_threads()},
        rows,
    )


def fork(config: Config, output: Path) -> Path:
    """Time and memory of imagining many futures of one memory, against as many copies of it stepped on their own."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rows = []
    for name in FORKED:
        for horizon in HORIZONS:
            model = _model(name, 0).eval()
            memory, _ = _without_grad(model.observe, model.initial(1), *_frames(1, 64))
            actions = torch.randint(0, ACTIONS, (CANDIDATES, 1, horizon))
            ways = {
                "fork": partial(
                    _rollout, model, memory, actions.transpose(0, 1), False
                ),
                "copies": partial(_rollout, model, memory, actions, True),
            }
            taken: dict[str, list[float]] = {way: [] for way in ways}
            kept = {}
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    begun = time.perf_counter()
                    kept[way], forms = run()
                    taken[way].append(time.perf_counter() - begun)
                    if way == "fork":
                        chosen = forms
            row = {
                "model": name,
                "horizon": horizon,
                "candidates": CANDIDATES,
                "forms": chosen,
            }
            for way in ways:
                row |= {f"{way}_seconds": median(taken[way]), f"{way}_bytes": kept[way]}
            rows.append(row)
            print(
                f"{name:<10} horizon {horizon:>3}  {', '.join(chosen):<16} "
                f"time x {row['fork_seconds'] / row['copies_seconds']:.2f} of copies, "
                f"memory x {row['fork_bytes'] / row['copies_bytes']:.2f} ({row['fork_bytes'] / 1e6:,.0f} MB)"
            )
    return _write(
        output / "fork.json",
        {"command": "lssvwm benchmark fork", "threads": torch.get_num_threads()},
        rows,
    )


@torch.no_grad()
def _rollout(
    model: WorldModel, memory: Memory, actions: Tensor, copied: bool
) -> tuple[int, list[str]]:
    """Imagine actions [B, n, H] from one memory, or from as many copies of it; the bytes that the candidates kept of
    their own, and in which form."""
    if copied:
        memory = Memory.cat([memory] * len(actions))
    state = imagination.start(model, memory, actions.shape[1], actions.shape[2])
    if copied:
        for layer, cache in zip(memory.layers.values(), state.caches):
            cache.mixer = StateCache.overwriting(layer["mixer"])
    for h in range(actions.shape[2]):
        imagination.step(model, state, actions[:, :, h])
    forms = [type(cache.mixer).__name__.lower() for cache in state.caches]
    return sum(cache.nbytes() for cache in state.caches), forms


@dataclass
class _Case:
    model: str
    operation: str
    context: int
    memory_bytes: int
    frames: int  # that one run works on
    run: Callable[[], Any]


def _cases(name: str) -> list[_Case]:
    """All measurements of one model."""
    found = []
    for context in CONTEXTS:
        model = _model(name, context + 1).eval()
        memory = _filled(model, context)
        one, actions = _frames(1, 1), torch.randint(0, ACTIONS, (1, 32, 8))
        size = memory.nbytes()
        found.append(
            _Case(
                name,
                "observe",
                context,
                size,
                1,
                partial(_without_grad, model.observe, memory, *one),
            )
        )
        found.append(
            _Case(
                name,
                "imagine",
                context,
                size,
                32 * 8,
                partial(_without_grad, model.imagine, memory, actions),
            )
        )
    for length in (n for n in LENGTHS if n <= LONGEST.get(name, n)):
        model = _model(name, length).train()
        found.append(
            _Case(name, "train", length, 0, length, partial(_train, model, length))
        )
    return found


def _model(name: str, reach: int) -> WorldModel:
    """A new model of this preset; full attention reaches over so many frames."""
    overrides = [
        f"model={name}",
        *([f"model.mixer.window={reach}"] if name == "attention" else []),
    ]
    return WorldModel(compose(overrides).model, FRAME, ACTIONS)


def _frames(batch: int, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random frames, actions, and no episode's beginning."""
    pixels = torch.randint(0, 256, (batch, t, *FRAME), dtype=torch.uint8)
    return (
        pixels,
        torch.randint(0, ACTIONS, (batch, t)),
        torch.zeros(batch, t, dtype=torch.bool),
    )


@torch.no_grad()
def _filled(model: WorldModel, context: int) -> Memory:
    """A memory that holds `context` frames."""
    memory = model.initial(1)
    if (
        model.config.mixer.kind == "attention"
    ):  # to observe them one after the other would take long, and cost the same after
        for layer in memory.layers.values():
            layer["mixer"]["valid"].fill_(True)
            layer["mixer"]["key"].normal_()
            layer["mixer"]["value"].normal_()
        return memory
    for at in range(0, context, 256):
        memory, _ = model.observe(memory, *_frames(1, min(256, context - at)))
    return memory


@torch.no_grad()
def _without_grad(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _train(model: WorldModel, length: int) -> None:
    """Forward and backward pass of one sequence."""
    pixels, action, none = _frames(1, length)
    loss, _, _ = model.loss(
        Batch(pixels, action, torch.zeros(1, length), none, none, none)
    )
    model.zero_grad()
    loss.backward()


def _seconds(run: Callable[[], Any]) -> float:
    """Of one run, the shortest of as many as fit into a little time."""
    best, begun = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - begun < SECONDS / 5:
        at = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - at)
    return best


def _write(file: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    results.write_json(file, about | {"machine": platform.machine(), "rows": rows})
    return file


def _engine(env: BatchedEnv) -> Callable[[], Any]:
    """One step of all environments, frame drawn; those that end begin anew."""
    rng = np.random.default_rng(0)
    assert isinstance(env.actions, Discrete)
    n, slots = env.actions.n, np.arange(env.batch)
    env.reset(slots, slots)

    def step() -> None:
        result = env.step(rng.integers(0, n, env.batch))
        done = slots[result.terminated | result.truncated]
        if len(done):
            env.reset(done, rng.integers(0, 1 << 40, len(done)))
        env.frames()

    return step


def _torchrl(env: BatchedEnv) -> Callable[[], Any]:
    """The same through TorchRL's own stepping."""
    wrapped = TorchRLEnv(env)
    state = [wrapped.reset()]

    def step() -> None:
        state[0] = wrapped.step_and_maybe_reset(wrapped.rand_action(state[0]))[1]

    return step


def _rate(step: Callable[[], Any], batch: int) -> float:
    """Median over rounds of frames per second."""
    step()
    rates = []
    for _ in range(ROUNDS):
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < SECONDS:
            step()
            steps += 1
        rates.append(batch * steps / (time.perf_counter() - begun))
    return median(rates)
