"""Test that `lssvwm benchmark seeds` trains, tests, summarises and packages."""

import json

import pytest
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks.seeds import median_seed
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config import composition

TINY = [
    "experiment=smoke",
    "train.steps=2",
    "train.collect.frames=300",
    "stages={one: {train: {length: 16}}, two: {train: {length: 12}}}",
    "benchmark.conditions={near: {}, far: {env.length: 8}}",
    "tasks.count=4",
    "tasks.arms=[retained,noop]",
    "threads=1",
]


def test_seeds_continue_and_package_the_median(tmp_path, capsys):
    command = ["benchmark", "seeds", f"output={tmp_path}", *TINY]
    assert cli.main([*command, "benchmark.seeds=[0]"]) == 0
    first = (tmp_path / "seed-0" / "seeds.json").stat().st_mtime_ns
    trained = (tmp_path / "seed-0" / "stages" / "2-two" / "done").stat().st_mtime_ns
    assert cli.main([*command, "benchmark.seeds=[0,1]"]) == 0
    again = (tmp_path / "seed-0" / "stages" / "2-two" / "done").stat().st_mtime_ns
    assert (
        trained == again
        and (tmp_path / "seed-0" / "seeds.json").stat().st_mtime_ns >= first
    )
    found = json.loads((tmp_path / "seeds.json").read_text())
    assert {(row["condition"], row["arm"]) for row in found["rows"]} == {
        (condition, arm)
        for condition in ("near", "far")
        for arm in ("retained", "noop")
    }
    assert all(len(row["success"]["seeds"]) == 2 for row in found["rows"])
    package = tmp_path / "package"
    card = (package / "card.md").read_text()
    assert "lssvwm benchmark seeds experiment=smoke" in card and "| near | 4 |" in card
    assert checkpoint.load(package, "cpu") is not None
    assert set(composition.read(package / "config.yaml")["stages"]) == {"one", "two"}
    assert "far" in capsys.readouterr().out
    assert cli.main([*command, "benchmark.seeds=[0]", "tasks.count=5"]) == 2
    assert "seeds.json has other settings of 'near'" in capsys.readouterr().err


def test_seeds_refuse_wrong_conditions(tmp_path, capsys):
    command = ["benchmark", "seeds", f"output={tmp_path}", *TINY]
    wrong = "benchmark.conditions={far: {env.lenth: 8}}"
    assert cli.main([*command, wrong]) == 2
    assert "did you mean env.length?" in capsys.readouterr().err
    assert not list(tmp_path.glob("seed-*"))


@pytest.mark.parametrize(
    ("rewards", "median"), [([0.5, 0.9, 0.7], 2), ([0.5, 0.9], 0), ([0.5], 0)]
)
def test_median_seed_is_in_the_middle(rewards, median):
    runs = [
        {"seed": i, "conditions": {"c": {"arms": {"retained": {"reward": reward}}}}}
        for i, reward in enumerate(rewards)
    ]
    assert median_seed(runs) == median
