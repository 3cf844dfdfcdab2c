"""Test `lssvwm benchmark strategies` and `recall`."""

import json

import pytest
from lssvwm.agent.benchmarks import training_strategies as contest
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config import composition as config
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkConfig

TINY = [
    "train.steps=1",
    "train.batch=2",
    "train.length=16",
    "train.min_length=8",
    "train.burn_in=0",
    "train.collect.frames=600",
    "train.collect.envs=4",
    "model.width=16",
    "model.mixer.state=16",
    "model.mixer.head_dim=16",
    "planner.candidates=8",
    "planner.elites=4",
    "mpc.proposals=2",
    "planner.iterations=1",
    "planner.horizon=2",
    "mpc.replan=2",
    "tasks.count=2",
    "threads=1",
]


@pytest.mark.parametrize("name", contest.STRATEGIES)
def test_strategies_change_existing_settings(name):
    plain = compose(["experiment=strategies"])
    changed = compose(["experiment=strategies", *contest.STRATEGIES[name]])
    assert (config.to_dict(plain) == config.to_dict(changed)) == (name == "default")


def test_benchmark_config_lists_all_strategies():
    assert BenchmarkConfig().strategies == tuple(contest.STRATEGIES)


def test_strategies_resumes_and_keeps_finished_runs(tmp_path, capsys):
    command = [
        "benchmark",
        "strategies",
        f"output={tmp_path}",
        *TINY,
        "benchmark.strategies=[default,segments]",
    ]
    command += ["benchmark.lengths=[4,6]", "train.collect.vary={}"]
    assert cli.main([*command, "benchmark.seeds=[0]"]) == 0
    first = (tmp_path / "segments-0" / "success.json").stat().st_mtime_ns
    assert cli.main([*command, "benchmark.seeds=[0,1]"]) == 0
    assert (tmp_path / "segments-0" / "success.json").stat().st_mtime_ns == first
    found = json.loads((tmp_path / "strategies.json").read_text())
    cases = [(row["name"], row["at"]) for row in found["rows"]]
    assert cases == [
        (name, at) for name in ("default", "segments") for at in (4, 6, contest.BEYOND)
    ]
    assert all(
        len(row["success"]["seeds"]) == 2 and row["n"] == 2 for row in found["rows"]
    )
    assert "strategies.json" in capsys.readouterr().out
    kept = (tmp_path / "segments-0" / "success.json").read_text()
    assert cli.main([*command, "benchmark.seeds=[0]", "tasks.seed=1"]) == 2
    error = capsys.readouterr().err
    assert "success.json holds results of other settings: delete it" in error
    assert (tmp_path / "segments-0" / "success.json").read_text() == kept
    (tmp_path / "segments-0" / "success.json").write_text(kept[:-20])
    assert cli.main([*command, "benchmark.seeds=[0]"]) == 2
    assert "segments-0/success.json is damaged: delete" in capsys.readouterr().err
    assert cli.main([*command, "benchmark.strategies=[defualt]"]) == 2
    assert (
        "benchmark.strategies: no 'defualt'; there are default, "
        in capsys.readouterr().err
    )


def test_recall_continues_models_of_benchmark_memory(tmp_path):
    tiny = [
        *(text for text in TINY if not text.startswith("model.mixer")),
        f"output={tmp_path}",
        "env.n=7",
        "env.tour=16",
        "train.collect.vary={}",
        "benchmark.models=[gru]",
    ]
    tiny += ["benchmark.seeds=[0]", "model.mixer.state=32"]
    assert (
        cli.main(
            ["benchmark", "recall", *tiny, "env.objects=2", "benchmark.delays=[2]"]
        )
        == 0
    )
    saved = config.read(tmp_path / "gru-0" / "recall" / "config.yaml")
    assert (
        saved["train"]["init"] == str(tmp_path / "gru-0")
        and saved["env"]["kind"] == "recall"
    )
    found = json.loads((tmp_path / "recall.json").read_text())
    assert [(row["name"], row["by"], row["at"]) for row in found["rows"]] == [
        ("gru", "delay", 2)
    ]
