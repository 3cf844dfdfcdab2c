"""`lssvwm benchmark decide`: time and memory of a decision, planned in the same world model in several ways."""

from __future__ import annotations

import ctypes
import dataclasses
import time
from collections.abc import Callable
from functools import partial
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
from lssvwm.agent.imagined_env import ImaginedEnv
from lssvwm.agent.mpc import Agent, MPCConfig
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import BatchedEnv, Explorer
from lssvwm.envs.maze.tasks import ScavengeConfig
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor
from torchrl.modules import CEMPlanner

from lssvwm import planners

CONTINUOUS = {
    "candidates": 128,
    "horizon": 12,
    "iterations": 3,
    "elites": 16,
}
DISCRETE = {
    "candidates": 256,
    "horizon": 16,
    "iterations": 3,
    "elites": 16,
}
BEAM = {"width": 32, "horizon": 16, "elites": 16}
ROUNDS = 5
PRETRAINED = "return9"
AGES = (100, 5000)
"""Frames of an episode before a decision."""


def decide(config: Config, output: Path) -> Path:
    """One agent's decisions: continuous actions, new weights, by our CEM and by TorchRL's through its model-based
    environment; discrete actions, the weights of Return after a tour of its maze, with the beginnings of candidates
    shared and not, by beam search, and after many more frames."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    continuous = WorldModel(compose([]).model, (3, 64, 64), 2, discrete=False).eval()
    trained = checkpoint.load(PRETRAINED, "cpu")
    random, toured = _seen(continuous), _toured(trained)
    ages = _walked(trained, AGES)
    ways = {
        ("continuous", "cem"): (CONTINUOUS, _cem(continuous, CONTINUOUS, random)),
        ("continuous", "torchrl CEMPlanner"): (
            CONTINUOUS,
            _torchrl(continuous, CONTINUOUS, random),
        ),
        ("discrete", "cem"): (DISCRETE, _cem(trained, DISCRETE, toured)),
        ("discrete", "cem, nothing shared"): (
            DISCRETE,
            _cem(Apart(trained), DISCRETE, toured),
        ),
        ("discrete", f"beam, {BEAM['width']} wide"): (
            BEAM
            | {
                "candidates": BEAM["width"] * trained.actions,
                "iterations": 1,
            },  # at every step
            _ours(trained, planners.BeamConfig(**BEAM), toured),  # type: ignore[arg-type]
        ),
    } | {
        ("discrete", f"cem, at frame {age}"): (
            DISCRETE,
            _cem(trained, DISCRETE, memory),
        )
        for age, memory in ages
    }
    taken: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    progress = Progress("benchmark", ROUNDS * len(ways), "decisions")
    for _, run in ways.values():
        run()
    for _ in range(ROUNDS):  # all in turn, so that a busy moment hits every row
        for way, (_, run) in ways.items():
            began = time.perf_counter()
            run()
            taken[way].append(time.perf_counter() - began)
            progress.update(progress.done + 1, way[1])
    progress.close()
    rows = []
    for (actions, name), (size, run) in ways.items():
        row = {
            "actions": actions,
            "planner": name,
            "seconds": median(taken[actions, name]),
            "bytes": peak(run),
        }
        rows.append(
            row | {key: size[key] for key in ("candidates", "horizon", "iterations")}
        )
    found = {
        "command": "lssvwm benchmark decide",
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    results.write_json(output / "decide.json", found)
    tables.publish([tables.decision_grid(found)], output / "decide.md")
    return output / "decide.json"


class Apart:
    """A model that imagines every candidate from its beginning on."""

    def __init__(self, model: WorldModel):
        self.model = model
        self.imagine = partial(model.imagine, share=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def eval(self) -> Apart:
        return self


def _seen(model: WorldModel) -> Memory:
    """The memory of some random frames."""
    pixels = torch.randint(0, 256, (1, 64, *model.frame_shape), dtype=torch.uint8)
    action = torch.rand(1, 64, model.actions)
    with torch.no_grad():
        return model.observe(
            model.initial(1), pixels, action, torch.zeros(1, 64, dtype=torch.bool)
        )[0]


def _toured(model: WorldModel) -> Memory:
    """The memory of a tour, up to the question, in the first held-out maze of the weights' own kind."""
    config = from_checkpoint(checkpoint.read_config(checkpoint.resolve(PRETRAINED)), [])
    env = build_env(config, 1)
    env.reset(np.zeros(1, np.int64), task_seeds(0, 1))
    return remember(
        model, *_followed(env, env.guide(0), lambda: bool(env.in_context()[0]))
    )


def _walked(model: WorldModel, ages: tuple[int, ...]) -> list[tuple[int, Memory]]:
    """The memory after so many frames of one long episode of Scavenge."""
    env = ScavengeConfig(n=9, steps=max(ages)).build(1)
    env.reset(np.zeros(1, np.int64), task_seeds(0, 1))
    frames, actions = _followed(
        env, env.explorer("seek", 0), lambda: env.clock[0] < max(ages) - 1
    )
    return [(age, remember(model, frames[:, :age], actions[:, :age])) for age in ages]


def _followed(
    env: BatchedEnv, explorer: Explorer, on: Callable[[], bool]
) -> tuple[Tensor, Tensor]:
    """Frames uint8 [B, T, C, H, W] and the actions [B, T] that led to them, while it goes `on`, and the frame then."""
    seen = [(env.frames().copy(), env.last_action())]
    while on():
        env.step(explorer.act())
        seen.append((env.frames().copy(), env.last_action()))
    frames, actions = (torch.from_numpy(np.stack(x, 1)) for x in zip(*seen))
    return frames, actions


def _bounds(model: WorldModel) -> planners.Box:
    return planners.Box(-torch.ones(model.actions), torch.ones(model.actions))


def _cem(model: Any, size: dict[str, int], memory: Memory) -> Callable[[], Any]:
    return _ours(model, planners.CEMConfig(**size), memory)  # type: ignore[arg-type]


def _ours(
    model: Any, config: planners.SearchConfig, memory: Memory
) -> Callable[[], Any]:
    mpc = MPCConfig(replan=1, proposals=0)
    agent = Agent(model, config, mpc=mpc, bounds=_bounds(model))
    state = dataclasses.replace(agent.initial(1), memory=memory)
    return lambda: agent.act(state)


def _torchrl(
    model: WorldModel, size: dict[str, int], memory: Memory
) -> Callable[[], Any]:
    env = ImaginedEnv(model, _bounds(model))
    planner = CEMPlanner(
        env, size["horizon"], size["iterations"], size["candidates"], size["elites"]
    )
    start = env.start(memory)
    return lambda: planner(start.clone())


def peak(run: Callable[[], Any]) -> int | None:
    """Bytes of memory that a call takes at its peak, beyond what was in use before it; None where the system does not
    tell (it is Linux that does)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # or memory freed before would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmHWM")
        run()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return 1024 * int(lines[name].split()[0])
