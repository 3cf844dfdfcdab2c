"""Several processes train as one does, stop together, and resume in any number."""

import dataclasses
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from lssvwm.agent.config.settings import ActorCriticConfig, Config, FrameMaskConfig
from lssvwm.agent.training import distributed, loop
from lssvwm.agent.training.run import begin, build
from lssvwm.envs import PointMazeConfig, TMazeConfig
from lssvwm.worldmodel.config import LossWeights
from torch import multiprocessing

from tests.agent.conftest import TINY
from tests.agent.training.conftest import short_run, training

RANKS = 2
STEPS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launched(rank: int, port: int, function: Any, *arguments: Any) -> None:
    """Call a function in one of the processes, as `torchrun` would."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with distributed.processes():
        function(rank, *arguments)


def launch(function: Any, *arguments: Any) -> None:
    """Call function(rank, *arguments) in all processes."""
    multiprocessing.spawn(launched, (free_port(), function, *arguments), RANKS)


def steps(config: Config, folder: Path) -> dict[str, Any]:
    """Take steps from the saved start; returns the weights and the last metrics."""
    run = loop.join(config, folder)
    for run.step in range(STEPS):
        metrics = loop.step(run)
    weights = {f"{k}": v for k, v in run.model.state_dict().items()}
    return {"weights": weights, "ema": run.ema.state_dict(), "metrics": metrics}


def rank_steps(rank: int, configs: dict[str, Config], folder: Path) -> None:
    for name, config in configs.items():
        torch.save(steps(config, folder / name), folder / f"{name}-{rank}.pt")


def cases() -> dict[str, Config]:
    weights = LossWeights(distance=0.3, coarse=1.0, surprise=0.1)
    model = dataclasses.replace(TINY, loss=weights, self_forcing_prob=0.2)
    base = short_run(TMazeConfig(length=5), model=model)
    base = training(
        base, steps=STEPS, batch=3, precision="float32", state_reset_prob=0.1,
        frame_mask=FrameMaskConfig(prob=0.2, span=3, dark=0.5),
    )
    prefix = dataclasses.replace(model, forcing="diffusion_prefix")
    walks = ActorCriticConfig(walks=2)
    return {
        "teacher": base,
        "segments": training(
            dataclasses.replace(base, model=prefix), tbptt_length=6, burn_in=4
        ),
        "walks": training(
            base, actor_critic=walks, length_augmentation="adversarial"
        ),
        "limits": dataclasses.replace(
            base, env=PointMazeConfig(), model=dataclasses.replace(model)
        ),
    }


def test_ranks_reach_the_weights_of_one_process(tmp_path):
    configs = cases()
    for name, config in configs.items():
        begin(build(config, tmp_path / name))
    launch(rank_steps, configs, tmp_path)
    for name, config in configs.items():
        one = steps(config, tmp_path / name)
        a, b = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(RANKS))
        for group in ("weights", "ema", "metrics"):
            assert all(torch.equal(a[group][key], b[group][key]) for key in a[group])
            gaps = {k: (a[group][k].double() - v.double()).abs().max().item() for k, v in one[group].items()}
            print(name, group, sorted(gaps.items(), key=lambda x: -x[1])[:4])
