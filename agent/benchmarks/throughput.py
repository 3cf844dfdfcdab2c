"""Measure the speed of environments, models and rollouts.

- `envs`: frames per second of the mazes
- `speed`: seconds per frame of observing, imagining and training, by frames in memory
- `fork`: many futures of one memory, compared with copies of the memory
"""

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
from lssvwm.agent.evaluation.origin import machine_settings
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv, Discrete
from lssvwm.envs.torchrl_env import TorchRLEnv
from lssvwm.worldmodel import Batch, Memory, WorldModel, imagination
from lssvwm.worldmodel.mixers.base import MixerMemory
from lssvwm.worldmodel.mixers.tiled_ssd import StateCache
from torch import Tensor

from lssvwm import envs as environments

MODELS = ("small", "untiled", "delta", "window", "attention", "gru")
"""`untiled` and `delta` differ only in the update rule."""
CONTEXTS = (64, 256, 1024, 4096, 8192)
"""Frames in memory."""
LENGTHS = (128, 256, 512, 2048)
"""Frames in a training sequence."""
LONGEST = {"attention": 256}
"""Longest training sequences that fit into memory, for models with a limit."""
FRAME, ACTIONS = (3, 64, 64), 3
MAZES = ("tmaze", "return", "recall", "scavenge")
BATCHES = (16, 64)
FORKED, CANDIDATES, HORIZONS = ("small", "untiled", "tile1", "base"), 1024, (4, 16)
ROUNDS = 3
SECONDS = 1.0

Row = dict[str, Any]


def envs(config: Config, output: Path) -> Path:
    """Measure frames per second of the mazes, alone and through TorchRL, on one thread.

    Actions are random. Returns the JSON file.
    """
    torch.set_num_threads(1)
    rows: list[Row] = []
    for kind in MAZES:
        for batch in BATCHES:
            env = environments.make(ENV_CONFIGS[kind](), batch)
            row: Row = {"env": kind, "batch": batch}
            row["engine"] = _rate(_engine(env), batch)
            row["torchrl"] = _rate(_torchrl(env), batch)
            rows.append(row)
            print(
                f"{kind:<10} {batch:>3} environments  "
                f"engine {row['engine']:>8,.0f} frames/s  "
                f"TorchRL {row['torchrl']:>8,.0f}"
            )
    return _write(output / "envs.json", config, rows)


def speed(config: Config, output: Path) -> Path:
    """Measure seconds and bytes per frame of each model, by frames in memory.

    Attention caches as many frames as the context has; the caches are filled with
    noise. The other models observe the context. Returns the JSON file.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    cases = [case for name in MODELS for case in _cases(name)]
    times = _timed(cases)
    rows: list[Row] = []
    first: dict[tuple[str, str], float] = {}  # seconds with the shortest context
    for case, taken in zip(cases, times):
        seconds = median(taken)
        base = first.setdefault((case.model, case.operation), seconds)
        row: Row = {"model": case.model, "operation": case.operation}
        row["context"] = case.context
        row["seconds_per_frame"] = seconds
        row["memory_bytes"] = case.memory_bytes
        row["ratio"] = seconds / base
        rows.append(row)
        print(
            f"{case.model:<10} {case.operation:<8} {case.context:>5} frames "
            f"{1e3 * seconds:>9.3f} ms a frame  x {row['ratio']:>6.2f}  "
            f"{case.memory_bytes:>12,} bytes"
        )
    return _write(output / "speed.json", config, rows)


def fork(config: Config, output: Path) -> Path:
    """Compare many futures of one memory with as many copies of it.

    Returns the JSON file.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rows = []
    for name in FORKED:
        for horizon in HORIZONS:
            row = _fork_row(name, horizon)
            rows.append(row)
            time_ratio = row["fork_seconds"] / row["copies_seconds"]
            size_ratio = row["fork_bytes"] / row["copies_bytes"]
            print(
                f"{name:<10} horizon {horizon:>3}  {', '.join(row['forms']):<16} "
                f"time x {time_ratio:.2f} of copies, "
                f"memory x {size_ratio:.2f} ({row['fork_bytes'] / 1e6:,.0f} MB)"
            )
    return _write(output / "fork.json", config, rows)


def _fork_row(name: str, horizon: int) -> Row:
    """Measure one model and horizon; both ways take turns."""
    model = _model(name).eval()
    memory, _ = _without_grad(model.observe, model.initial(1), *random_frames(1, 64))
    actions = torch.randint(0, ACTIONS, (CANDIDATES, 1, horizon))
    ways = {
        "fork": partial(_rollout, model, memory, actions.transpose(0, 1), False),
        "copies": partial(_rollout, model, memory, actions, True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    row: Row = {"model": name, "horizon": horizon, "candidates": CANDIDATES}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            begun = time.perf_counter()
            size, forms = run()
            seconds[way].append(time.perf_counter() - begun)
            row[f"{way}_bytes"] = size
            if way == "fork":
                row["forms"] = forms
    return row | {f"{way}_seconds": median(taken) for way, taken in seconds.items()}


@torch.no_grad()
def _rollout(
    model: WorldModel, memory: Memory, actions: Tensor, copied: bool
) -> tuple[int, list[str]]:
    """Imagine actions [B, n, H] from one memory, or from as many copies of it.

    Returns the bytes that the candidates keep of their own, and the class of the cache
    of each layer.
    """
    if copied:
        memory = Memory.cat([memory] * len(actions))
    state = imagination.start(model, memory, actions.shape[1], actions.shape[2])
    if copied:
        for layer, cache in zip(memory.layers.values(), state.caches):
            cache.mixer = _overwriting_cache(layer["mixer"])
    for h in range(actions.shape[2]):
        imagination.step(model, state, actions[:, :, h])
    forms = [type(cache.mixer).__name__.lower() for cache in state.caches]
    return sum(cache.nbytes() for cache in state.caches), forms


def _overwriting_cache(memory: MixerMemory) -> StateCache:
    """Return the cache of one candidate per memory, which writes over the memory's own state."""
    cache = StateCache(memory, 1)
    cache.state = memory["state"].flatten(2, 3)[:, None]
    return cache


@dataclass
class _Case:
    """Describe one measurement; `frames` is the number of frames that `run` processes."""

    model: str
    operation: str
    context: int
    memory_bytes: int
    frames: int
    run: Callable[[], Any]


def _cases(name: str) -> list[_Case]:
    """Return all measurements of one model."""
    found = []
    for context in CONTEXTS:
        model = _model(name, context + 1).eval()
        memory = _filled(model, context)
        size = memory.nbytes()
        frame = random_frames(1, 1)
        actions = torch.randint(0, ACTIONS, (1, 32, 8))
        observe = partial(_without_grad, model.observe, memory, *frame)
        imagine = partial(_without_grad, model.imagine, memory, actions)
        found.append(_Case(name, "observe", context, size, 1, observe))
        found.append(_Case(name, "imagine", context, size, 32 * 8, imagine))
    for length in LENGTHS:
        if length > LONGEST.get(name, length):
            continue
        model = _model(name, length).train()
        train = partial(_train, model, length)
        found.append(_Case(name, "train", length, 0, length, train))
    return found


def _timed(cases: list[_Case]) -> list[list[float]]:
    """Return seconds per frame of ROUNDS measurements of each case.

    Cases take turns, so that a busy moment of the machine affects all of them.
    """
    times: list[list[float]] = [[] for _ in cases]
    progress = Progress("benchmark", ROUNDS * len(cases), "measurements")
    for _ in range(ROUNDS):
        for case, taken in zip(cases, times):
            taken.append(_seconds(case.run) / case.frames)
            progress.update(progress.done + 1)
    progress.close()
    return times


def _model(name: str, window: int = 0) -> WorldModel:
    """Build a model of a preset; full attention gets a window of `window` frames."""
    overrides = [f"model={name}"]
    if name == "attention":
        overrides.append(f"model.mixer.window={window}")
    return WorldModel(compose(overrides).model, FRAME, ACTIONS)


def random_frames(
    batch: int, t: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random frames and actions, and first flags that are all false."""
    shape = (batch, t, *FRAME)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    actions = torch.randint(0, ACTIONS, (batch, t), device=device)
    return pixels, actions, torch.zeros_like(actions, dtype=torch.bool)


@torch.no_grad()
def _filled(model: WorldModel, context: int) -> Memory:
    """Return a memory that holds `context` frames."""
    memory = model.initial(1)
    mixers = [layer["mixer"] for layer in memory.layers.values()]
    if all("valid" in mixer.keys() for mixer in mixers):  # noqa: SIM118
        # frames are cached: observing them all would take minutes
        for mixer in mixers:
            mixer["valid"].fill_(True)
            mixer["key"].normal_()
            mixer["value"].normal_()
        return memory
    for at in range(0, context, 256):
        memory, _ = model.observe(memory, *random_frames(1, min(256, context - at)))
    return memory


@torch.no_grad()
def _without_grad(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _train(model: WorldModel, length: int) -> None:
    """Run the forward and backward pass of one sequence."""
    pixels, action, none = random_frames(1, length)
    batch = Batch(pixels, action, torch.zeros(1, length), none, none, none)
    loss, _, _ = model.loss(batch)
    model.zero_grad()
    loss.backward()


def _seconds(run: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of several runs."""
    best = math.inf
    begun = time.perf_counter()
    while best == math.inf or time.perf_counter() - begun < SECONDS / 5:
        at = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - at)
    return best


def _write(file: Path, config: Config, rows: list[Row]) -> Path:
    """Write rows with the command, settings, threads and machine."""
    about = {
        "command": f"lssvwm benchmark {file.stem}",
        "settings": machine_settings(config),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    results.write_json(file, about | {"rows": rows})
    return file


def _engine(env: BatchedEnv) -> Callable[[], Any]:
    """Return a function that steps all environments and draws their frames."""
    assert isinstance(env.actions, Discrete)
    rng = np.random.default_rng(0)
    count = env.actions.n
    slots = np.arange(env.batch)
    env.reset(slots, slots)

    def step() -> None:
        result = env.step(rng.integers(0, count, env.batch))
        done = slots[result.terminated | result.truncated]
        if len(done):
            env.reset(done, rng.integers(0, 1 << 40, len(done)))
        env.frames()

    return step


def _torchrl(env: BatchedEnv) -> Callable[[], Any]:
    """Return a function that steps all environments through TorchRL."""
    wrapped = TorchRLEnv(env)
    state = [wrapped.reset()]

    def step() -> None:
        state[0] = wrapped.step_and_maybe_reset(wrapped.rand_action(state[0]))[1]

    return step


def _rate(step: Callable[[], Any], batch: int) -> float:
    """Return frames per second, the median over rounds."""
    step()
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        steps = 0
        while time.perf_counter() - begun < SECONDS:
            step()
            steps += 1
        rates.append(batch * steps / (time.perf_counter() - begun))
    return median(rates)
