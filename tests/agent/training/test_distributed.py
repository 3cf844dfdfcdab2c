"""Several processes train as one does, stop together, and resume in any number."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lssvwm.agent.config.settings import ActorCriticConfig, Config, FrameMaskConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.training import distributed, loop, stages
from lssvwm.agent.training.distributed import add_up, part_of, processes
from lssvwm.agent.training.run import Run, begin, build, save
from lssvwm.agent.training.state_file import read_state
from lssvwm.envs import PointMazeConfig, TMazeConfig
from lssvwm.worldmodel.batch_part import divided, gather, own, pick, spread
from lssvwm.worldmodel.config import LossWeights
from torch import multiprocessing

from tests.agent.conftest import TINY
from tests.agent.training.conftest import collecting, metrics, short_run, training

ROOT = Path(__file__).parents[3]
RANKS = 2
STAGE = {"train": {"steps": 6, "evaluate_every": 5}}
SMOKE = ("experiment=smoke", "train.steps=100000", "train.collect.frames=600")


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
    loop.LOG_EVERY = 2
    with processes():
        function(*arguments)


def launch(function: Any, *arguments: Any) -> None:
    """Call a function in all processes."""
    multiprocessing.spawn(launched, (free_port(), function, *arguments), RANKS)


# the same numbers


def cases() -> dict[str, Config]:
    """Return settings that together contain every loss and every augmentation."""
    weights = LossWeights(distance=0.3, coarse=1.0, surprise=0.1)
    model = dataclasses.replace(TINY, loss=weights, self_forcing_prob=0.2)
    base = training(
        short_run(TMazeConfig(length=5), model=model, device="cpu"),
        steps=20,
        batch=3,
        precision="float32",
        state_reset_prob=0.1,
        frame_mask=FrameMaskConfig(prob=0.2, span=3, dark=0.5),
    )
    prefix = dataclasses.replace(model, forcing="diffusion_prefix")
    segments = training(base, tbptt_length=6, burn_in=4)
    walks = ActorCriticConfig(walks=2)
    return {
        "teacher": base,
        "segments": dataclasses.replace(segments, model=prefix),
        "walks": training(base, actor_critic=walks, length_augmentation="adversarial"),
        "limits": dataclasses.replace(base, env=PointMazeConfig()),
    }


def prepare(config: Config, folder: Path) -> None:
    """Save step 0 of a run, with returns of walks that differ, and the motion of continuous actions."""
    run = build(config, folder)
    begin(run)
    if config.train.actor_critic.walks:
        with torch.no_grad():
            run.model.heads.out.weight.mul_(30)
    if run.model.action_limits is not None:
        integrator = run.model.path_integrators[0]
        integrator.known[: run.model.actions] = 1
        with torch.no_grad():
            integrator.action.weight[1:, : run.model.actions] = torch.eye(2) / 5
    save(run)


def in_float64(run: Run) -> None:
    """Convert the weights, so that rounding hides no difference."""
    for model in (run.model, run.ema):
        model.double()
        model.colour_weights.float()


def take_steps(
    config: Config, folder: Path, steps: int
) -> dict[str, dict[str, torch.Tensor]]:
    """Take steps from the saved start; returns weights and the metrics of the last step."""
    run = loop.join(config, folder)
    if run.model.discrete:  # actions are float32
        in_float64(run)
    for run.step in range(steps):
        last = loop.step(run)
    return {
        "weights": run.model.state_dict(),
        "ema": run.ema.state_dict(),
        "last": last,
    }


def save_steps(configs: dict[str, Config], folder: Path, steps: int) -> None:
    for name, config in configs.items():
        file = folder / f"{name}-{torch.distributed.get_rank()}.pt"
        torch.save(take_steps(config, folder / name, steps), file)


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_ranks_reach_the_weights_of_one_process(tmp_path, steps):
    configs = cases()
    for name, config in configs.items():
        prepare(config, tmp_path / name)
    launch(save_steps, configs, tmp_path, steps)
    for name, config in configs.items():
        one = take_steps(config, tmp_path / name, steps)
        ranks = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(RANKS)]
        assert name != "limits" or one["last"]["loss/action_limits"] > 0
        for group, values in one.items():
            first, second = ranks[0][group], ranks[1][group]
            assert first.keys() == second.keys() == values.keys()
            for key, value in values.items():
                assert torch.equal(first[key], second[key]), (name, group, key)
                gap = (first[key].double() - value.double()).abs().max()
                largest = 1e-5 if name == "limits" else 1e-6
                assert gap < largest, (name, group, key, gap)


# stopping and resuming


def interrupt(stop: int) -> None:
    step = loop.step

    def interrupted(run: Run) -> dict[str, torch.Tensor]:
        if run.step == stop - 1 and torch.distributed.get_rank() == RANKS - 1:
            signal.raise_signal(signal.SIGTERM)
        return step(run)

    loop.step = interrupted


@pytest.mark.slow
def test_run_goes_on_with_other_ranks(tmp_path, monkeypatch):
    config = short_run(TMazeConfig(length=5), seed=3, device="cpu")
    config = collecting(config, every=3, more=50)
    config = training(config, steps=9, precision="float32")
    config = dataclasses.replace(config, stages={"a": {}, "b": STAGE})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    stages.train(config, whole)
    launch(stages_until, config, cut, 4)
    step = loop.step

    def interrupted(run):
        if run.step == 6:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="at step 6, saved"):
            stages.resume(cut, [])
    launch(stages.resume, cut, [])
    for stage in ("1-a", "2-b"):
        rows = zip(metrics(whole / "stages" / stage), metrics(cut / "stages" / stage))
        assert all(a == pytest.approx(b, rel=1e-3, abs=1e-4) for a, b in rows)
        a, b = (read_state(top / "stages" / stage, {})["ema"] for top in (whole, cut))
        assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)
    assert not (cut / "stages" / "1-a" / "data").exists()


def stages_until(config: Config, folder: Path, stop: int) -> None:
    interrupt(stop)
    with pytest.raises(KeyboardInterrupt, match=f"at step {stop}, saved"):
        stages.train(config, folder)


def torchrun(log: Path, *arguments: str, ranks: int = RANKS) -> subprocess.Popen:
    """Start `lssvwm` in `ranks` processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={ranks}",
    ]
    command += ["--master-port", str(free_port()), "-m", "lssvwm", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=env)


def ranks_of(started: subprocess.Popen) -> list[int]:
    """Return the process ids of the ranks in order."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for_row(started: subprocess.Popen, folder: Path, rows: int) -> None:
    """Wait until the log of a run has so many rows."""
    file = folder / "metrics.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) < rows:
        assert started.poll() is None
        time.sleep(0.05)


def messages(log: Path) -> list[str]:
    """Return the messages of `lssvwm` that end it."""
    return [
        line for line in log.read_text().splitlines() if line.startswith("lssvwm: ")
    ]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc"
)


@needs_proc
def test_signal_to_one_rank_stops_all(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    started = torchrun(log, "train", *SMOKE, "device=cpu", f"output={folder}")
    wait_for_row(started, folder, 1)
    os.kill(ranks_of(started)[1], signal.SIGTERM)
    started.wait(60)
    (message,) = messages(log)
    found = re.fullmatch(
        rf"lssvwm: stopped at step (\d+), saved; continue with `lssvwm resume {folder}`",
        message,
    )
    assert found
    assert read_state(folder, {})["step"] == int(found[1])


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("killed", range(RANKS))
def test_killed_rank_ends_the_others_and_the_run_goes_on(tmp_path, killed):
    folder, log = tmp_path / "run", tmp_path / "log"
    started = torchrun(log, "train", *SMOKE, "device=cpu", f"output={folder}")
    wait_for_row(started, folder, 1)
    os.kill(ranks_of(started)[killed], signal.SIGKILL)
    started.wait(60)
    (message,) = messages(log)
    assert "another process of this run has ended" in message
    for rows, ranks in ((2, 1), (3, RANKS)):
        started = torchrun(log, "resume", str(folder), ranks=ranks)
        wait_for_row(started, folder, rows)
        started.send_signal(signal.SIGINT)
        started.wait(60)
        (message,) = messages(log)
        assert "saved; continue with" in message


# one process


def test_functions_do_nothing_in_one_process():
    x = torch.arange(6).view(3, 2)
    with divided(part_of(3)):
        assert all(function(x) is x for function in (own, spread, gather))
        assert pick(x, torch.tensor([2]), torch.tensor([1])).tolist() == [5]
    add_up([x])
    assert x.sum() == 15 and distributed.first(lambda: 3) == distributed.agree(3) == 3


def test_device_name_refuses_what_ranks_cannot_share(monkeypatch):
    config = short_run(TMazeConfig(length=5), device="cpu")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.device_name(config) == "cpu"
    with pytest.raises(UserError, match=r"train\.batch=1 is less than the 2 processes"):
        distributed.device_name(training(config, batch=1))
    with pytest.raises(UserError, match="use device=auto"):
        distributed.device_name(dataclasses.replace(config, device="cuda:0"))
