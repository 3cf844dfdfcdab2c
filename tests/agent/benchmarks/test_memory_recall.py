"""Test the walks, comparisons and resumption of `lssvwm benchmark memory`."""

import json

import numpy as np
import pytest
import torch
from lssvwm.agent.benchmarks import maze_walks as tours
from lssvwm.agent.benchmarks import memory_recall as benchmark
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config.composition import compose
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import task_seeds

TINY = [
    "train.steps=2",
    "train.batch=2",
    "train.length=16",
    "train.burn_in=8",
    "train.curriculum_start=0.5",
    "train.collect.frames=400",
    "train.collect.envs=4",
    "train.collect.vary={}",
    "env.n=7",
    "env.tour=24",
    "model.width=16",
    "model.mixer.state=16",
    "model.mixer.head_dim=16",
    "benchmark.models=[small]",
    "benchmark.contexts=[16]",
    "benchmark.horizon=6",
    "benchmark.walks=4",
    "benchmark.probed=8",
    "benchmark.idle=[2,5]",
    "threads=1",
]


@pytest.fixture(scope="module")
def walks():
    config = compose(["experiment=memory_benchmark", "env.n=7"])
    return {
        test: tours.walk(config, test, 40, 20, task_seeds(3, 6)) for test in tours.TESTS
    }


def test_walk_retrieval_returns_along_the_same_places(walks):
    back = walks["retrieval"]
    assert back.frames.shape == (6, 60, 3, 64, 64) and back.age.shape == (6, 20, 9)
    assert (back.action[:, 40:42] == tours.LEFT).all()
    seen = back.age[back.age != tours.HIDDEN]
    assert (seen == tours.NEVER).mean() < 0.1 and seen.max() > 40
    assert (walks["reasoning"].age == tours.NEVER).sum() > (
        back.age == tours.NEVER
    ).sum()
    assert torch.equal(walks["reasoning"].frames[:, :40], back.frames[:, :40])


def test_way_back_leaves_out_blocked_actions():
    poses = np.array([[0, 5, 5], [0, 4, 5], [0, 4, 5], [3, 4, 5]])
    way = tours._way_back(np.array([tours.AHEAD, tours.AHEAD, tours.LEFT]), poses)
    assert way == [tours.LEFT, tours.LEFT, tours.RIGHT, tours.AHEAD]


def test_age_counts_frames_since_last_view(walks):
    back = walks["retrieval"]
    first = back.age[:, 0]
    own = 7  # the agent's own tile was in view one frame earlier
    assert (first[:, own] == 1).all()


def test_compare_separates_true_from_black_frames(walks):
    back = walks["retrieval"]
    real = back.frames[:, back.context :]
    for row in benchmark.compare(back, real, "retrieval"):
        assert (
            row["psnr"] > 100
            and row.get("ssim", 1.0) > 0.99
            and row.get("tiles_right", 1.0) == 1.0
        )
    black = benchmark.compare(back, torch.zeros_like(real), "retrieval")
    assert all(row["psnr"] < 20 and row.get("tiles_right", 0.0) < 0.5 for row in black)


def test_memory_resumes_and_keeps_finished_runs(tmp_path, capsys):
    command = ["benchmark", "memory", f"output={tmp_path}", *TINY]
    assert cli.main([*command, "benchmark.seeds=[0]"]) == 0
    first = (tmp_path / "small-0" / "memory.json").stat().st_mtime_ns
    assert cli.main([*command, "benchmark.seeds=[0,1]"]) == 0
    assert (tmp_path / "small-0" / "memory.json").stat().st_mtime_ns == first
    found = json.loads((tmp_path / "memory.json").read_text())
    row = next(r for r in found["rows"] if r["by"] == "age" and r["arm"] == "retained")
    assert (
        len(row["psnr"]["seeds"]) == 2
        and row["psnr"]["low"] <= row["psnr"]["mean"] <= row["psnr"]["high"]
    )
    assert {r["arm"] for r in found["rows"]} == {"retained", "erased", "last_frame"}
    assert (
        tmp_path / "memory.png"
    ).exists() and "memory.json" in capsys.readouterr().out
    assert cli.main([*command, "benchmark.seeds=[0]", "benchmark.walks=5"]) == 2
    error = capsys.readouterr().err
    assert "memory.json holds results of other settings: delete it" in error
    assert cli.main([*command, "benchmark.seeds=[0]", "train.steps=3"]) == 2
    assert (
        "was trained with other settings (train): choose another output="
        in capsys.readouterr().err
    )


def test_memory_reports_empty_lists_in_one_line(tmp_path, capsys):
    assert (
        cli.main(["benchmark", "memory", f"output={tmp_path}", "benchmark.seeds=[]"])
        == 2
    )
    assert (
        "benchmark.seeds=[] is wrong: it must be a list with an entry or more"
        in capsys.readouterr().err
    )


def test_walk_refuses_other_environments():
    with pytest.raises(UserError, match="env=return or env=recall"):
        tours.walk(compose(["env=tmaze"]), "retrieval", 8, 4, task_seeds(0, 1))
