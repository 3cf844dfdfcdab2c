"""Measure time and memory of a decision: `lssvwm benchmark decide`."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks.maze_walks import remember
from lssvwm.agent.build import build_env
from lssvwm.agent.config.composition import compose, from_checkpoint
from lssvwm.agent.config.settings import Config
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.evaluation.origin import machine_settings
from lssvwm.agent.imagined_env import ImaginedEnv
from lssvwm.agent.mpc import Agent, MPCConfig
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv, Explorer
from lssvwm.envs.maze.scavenge import ScavengeConfig
from lssvwm.worldmodel import Memory, Rollout, RolloutPolicy, WorldModel
from torch import Tensor
from torchrl.modules import CEMPlanner

from lssvwm import planners

CONTINUOUS = {"candidates": 128, "horizon": 12, "iterations": 3, "elites": 16}
DISCRETE = {"candidates": 256, "horizon": 16, "iterations": 3, "elites": 16}
BEAM = {"width": 32, "horizon": 16, "elites": 16}
ROUNDS = 5
PRETRAINED = "return9"
AGES = (100, 5000)
"""Frames of an episode before a decision."""


@dataclass(frozen=True)
class Variant:
    """Describe one way to decide: kind of actions, label, search size, and the call."""

    actions: str
    label: str
    size: dict[str, int]
    run: Callable[[], Any]


def decide(config: Config, output: Path) -> Path:
    """Measure time and peak memory of one agent's decision, in several ways.

    Continuous actions, random weights: our CEM and TorchRL's.
    Discrete actions, packaged weights: with shared prefixes and without, beam search,
    and CEM late in an episode.
    Returns the JSON file.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    variants = [*_continuous(), *_discrete()]
    seconds = _timed(variants)
    rows = []
    for variant, taken in zip(variants, seconds):
        row: dict[str, Any] = {"actions": variant.actions, "planner": variant.label}
        row["seconds"] = median(taken)
        row["bytes"] = peak(variant.run)
        row |= {k: variant.size[k] for k in ("candidates", "horizon", "iterations")}
        rows.append(row)
    found = {
        "command": "lssvwm benchmark decide",
        "settings": machine_settings(config),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    results.write_json(output / "decide.json", found)
    tables.publish([tables.decision_grid(found)], output / "decide.md")
    return output / "decide.json"


def _continuous() -> list[Variant]:
    model = continuous_model()
    memory = memory_of_noise(model)
    ours = cem(model, CONTINUOUS, memory)
    theirs = torchrl(model, CONTINUOUS, memory)
    return [
        Variant("continuous", "cem", CONTINUOUS, ours),
        Variant("continuous", "torchrl CEMPlanner", CONTINUOUS, theirs),
    ]


def continuous_model() -> WorldModel:
    """Return a model of two action dimensions with random weights."""
    return WorldModel(compose([]).model, (3, 64, 64), 2, discrete=False).eval()


def _discrete() -> list[Variant]:
    model = checkpoint.load(PRETRAINED, "cpu")
    toured = _memory_of_tour(model)
    beam = planners.BeamConfig(**BEAM)  # type: ignore[arg-type]
    each_step = {"candidates": BEAM["width"] * model.actions, "iterations": 1}
    label = f"beam, {BEAM['width']} wide"
    unshared = cem(UnsharedModel(model), DISCRETE, toured)
    return [
        Variant("discrete", "cem", DISCRETE, cem(model, DISCRETE, toured)),
        Variant("discrete", "cem, nothing shared", DISCRETE, unshared),
        Variant("discrete", label, BEAM | each_step, _ours(model, beam, toured)),
        *(
            Variant(
                "discrete",
                f"cem, at frame {age}",
                DISCRETE,
                cem(model, DISCRETE, memory),
            )
            for age, memory in _memories_of_scavenging(model, AGES)
        ),
    ]


def _timed(variants: list[Variant]) -> list[list[float]]:
    """Return the seconds of ROUNDS runs of each variant.

    Variants take turns, so that a busy moment of the machine affects all of them.
    """
    seconds: list[list[float]] = [[] for _ in variants]
    progress = Progress("benchmark", ROUNDS * len(variants), "decisions")
    for variant in variants:
        variant.run()
    for _ in range(ROUNDS):
        for variant, taken in zip(variants, seconds):
            began = time.perf_counter()
            variant.run()
            taken.append(time.perf_counter() - began)
            progress.update(progress.done + 1, variant.label)
    progress.close()
    return seconds


class UnsharedModel:
    """Wrap a model so that candidates do not share the imagination of prefixes."""

    def __init__(self, model: WorldModel):
        self.model = model

    def imagine(self, memory: Memory, actions: Tensor, **options: Any) -> Rollout:
        """Imagine actions [B, n, H] without merging shared prefixes."""
        n, horizon = actions.shape[1:3]
        policy = RolloutPolicy(lambda at, _: actions[:, :, at], n, horizon)
        return self.model.imagine(memory, policy, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def eval(self) -> UnsharedModel:
        return self


def memory_of_noise(model: WorldModel) -> Memory:
    """Return the memory of random frames."""
    shape, on = (1, 64, *model.frame_shape), model.device
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=on)
    action = torch.rand(1, 64, model.actions, device=on)
    with torch.no_grad():
        first = torch.zeros(1, 64, dtype=torch.bool, device=on)
        return model.observe(model.initial(1), pixels, action, first)[0]


def _memory_of_tour(model: WorldModel) -> Memory:
    """Return the memory at the end of the tour of the first held-out Return maze."""
    config = from_checkpoint(checkpoint.read_config(checkpoint.resolve(PRETRAINED)), [])
    env = build_env(config.env, 1)
    env.reset(np.zeros(1, np.int64), task_seeds(0, 1))
    frames, actions = _follow(env, env.guide(0), lambda: bool(env.in_context()[0]))
    return remember(model, frames, actions)


def _memories_of_scavenging(
    model: WorldModel, ages: tuple[int, ...]
) -> list[tuple[int, Memory]]:
    """Return the memories after the given numbers of frames of one episode."""
    env = ScavengeConfig(n=9, steps=max(ages)).build(1)
    env.reset(np.zeros(1, np.int64), task_seeds(0, 1))
    last = max(ages) - 1
    explorer = env.explorer("seek", 0)
    frames, actions = _follow(env, explorer, lambda: env.clock[0] < last)
    return [(age, remember(model, frames[:, :age], actions[:, :age])) for age in ages]


def _follow(
    env: BatchedEnv, explorer: Explorer, going: Callable[[], bool]
) -> tuple[Tensor, Tensor]:
    """Step an explorer while `going()` holds.

    Returns frames uint8 [B, T, C, H, W] and the actions [B, T] that led to them.
    """
    seen = [(env.frames().copy(), env.last_action())]
    while going():
        env.step(explorer.act())
        seen.append((env.frames().copy(), env.last_action()))
    frames, actions = (torch.from_numpy(np.stack(x, 1)) for x in zip(*seen))
    return frames, actions


def _bounds(model: WorldModel) -> planners.Box:
    ones = torch.ones(model.actions, device=model.device)
    return planners.Box(-ones, ones)


def cem(model: Any, size: dict[str, int], memory: Memory) -> Callable[[], Any]:
    """Return a function that makes one decision by our CEM from a memory [1]."""
    return _ours(model, planners.CEMConfig(**size), memory)  # type: ignore[arg-type]


def _ours(
    model: Any, config: planners.SearchConfig, memory: Memory
) -> Callable[[], Any]:
    mpc = MPCConfig(replan=1, proposals=0)
    agent = Agent(model, config, mpc=mpc, bounds=_bounds(model))
    state = dataclasses.replace(agent.initial(1), memory=memory)
    return lambda: agent.act(state)


def torchrl(
    model: WorldModel, size: dict[str, int], memory: Memory
) -> Callable[[], Any]:
    """Return a function that makes one decision by TorchRL's CEM from a memory [1]."""
    env = ImaginedEnv(model, _bounds(model))
    planner = CEMPlanner(
        env, size["horizon"], size["iterations"], size["candidates"], size["elites"]
    )
    start = env.start(memory)
    return lambda: planner(start.clone())


def peak(run: Callable[[], Any]) -> int | None:
    """Return the peak memory of a call in bytes, beyond the memory in use before.

    Returns None on systems other than Linux.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
        trim(0)  # else the call reuses freed memory and no growth is visible
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmHWM")
        run()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError, AttributeError):
        return None


def _status(name: str) -> int:
    """Return a value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise KeyError(name)
