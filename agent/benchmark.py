"""`lssvwm benchmark`: speed of the environments, measured; prints a table and writes it as JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import envs as environments
from agent.config import ENV_CONFIGS, Config
from envs.base import BatchedEnv, Discrete
from envs.torchrl_env import TorchRLEnv

MAZES = ("tmaze", "return", "recall", "scavenge")
ROUNDS = 5
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
            rows.append({"env": kind, "batch": batch, "engine": engine, "torchrl": torchrl})
            print(f"{kind:<10} {batch:>3} environments  engine {engine:>8,.0f} frames/s  TorchRL {torchrl:>8,.0f}")
    result = {"command": "lssvwm benchmark envs", "machine": platform.machine(), "rows": rows}
    output.mkdir(parents=True, exist_ok=True)
    (output / "envs.json").write_text(json.dumps(result, indent=1) + "\n")
    return output / "envs.json"


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
