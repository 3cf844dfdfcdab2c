"""Test the cases, resumption and summary of `lssvwm benchmark planning`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lssvwm.agent.benchmarks import planning_sweep as sweep
from lssvwm.agent.cli import main as cli
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.evaluate import Outcome

TINY = [
    "checkpoint=tmaze",
    "env.length=8",
    "tasks.count=6",
    "tasks.arms=[retained,erased,random,oracle]",
    "threads=1",
]
SWEEP = "benchmark.sweep={env.length:[6,8],planner.candidates:[8,16]}"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("played")
    assert cli.main(["benchmark", "planning", *TINY, SWEEP, f"output={folder}"]) == 0
    return folder


def test_planning_plays_all_arms_of_every_combination(played):
    found = json.loads((played / "planning.json").read_text())
    values = [case["values"] for case in found["cases"]]
    assert values == [
        {"env.length": a, "planner.candidates": b} for a in (6, 8) for b in (8, 16)
    ]
    assert all(
        list(case["arms"]) == ["retained", "erased", "random", "oracle"]
        for case in found["cases"]
    )
    pools = found["together"]  # one for each planner, over both lengths
    assert [pool["values"] for pool in pools] == [
        {"planner.candidates": 8},
        {"planner.candidates": 16},
    ]
    assert all(pool["n"] == 12 for pool in pools)
    assert sum(cell["n"] for cell in pools[0]["arms"]["retained"]["by_both"]) == 12
    assert (played / "planning.png").stat().st_size > 1000
    assert "| 6 | 8 |" in (played / "planning.md").read_text()


def test_planning_resumes_with_missing_arms(played, tmp_path, monkeypatch):
    played = shutil.copytree(played, tmp_path / "copy")
    before = {file.name: file.read_text() for file in (played / "cases").iterdir()}
    played_arms = []
    real = sweep.measure
    monkeypatch.setattr(
        sweep, "measure", lambda *a: (played_arms.append(a[2]), real(*a))[1]
    )
    more = [text.replace("random,oracle", "random,oracle,swapped") for text in TINY]
    assert cli.main(["benchmark", "planning", *more, SWEEP, f"output={played}"]) == 0
    assert (
        played_arms == [("retained", "swapped")] * 4
    )  # swapped takes the memories of retained
    after = {
        file.name: json.loads(file.read_text()) for file in (played / "cases").iterdir()
    }
    assert set(after) == set(before)
    for name, text in before.items():
        for arm in ("erased", "random", "oracle"):
            assert after[name]["arms"][arm] == json.loads(text)["arms"][arm]
    played_arms.clear()
    assert cli.main(["benchmark", "planning", *more, SWEEP, f"output={played}"]) == 0
    assert played_arms == []


def test_planning_keeps_the_summary_of_other_cases(played, capsys):
    ours = sweep.same_sweep([*TINY, SWEEP])
    found = json.loads((played / "planning.json").read_text())
    assert ours(found)
    assert ours(found | {"cases": found["cases"][:2]})  # more cases than before
    other = [*TINY, SWEEP.replace("[6,8]", "[6]")]
    assert not sweep.same_sweep(other)(found)
    assert not ours({"cases": [{"values": {}}]})  # of an earlier version
    assert cli.main(["benchmark", "planning", *other, f"output={played}"]) == 2
    assert "planning.json holds results of other" in capsys.readouterr().err
    rows = found["cases"]
    assert all(row["checkpoint"] == "tmaze" and row["weights"] for row in rows)


def test_planning_in_processes_finds_the_same(played, tmp_path_factory):
    other = tmp_path_factory.mktemp("two")
    given = [*TINY, SWEEP, "benchmark.processes=2", f"output={other}"]
    assert cli.main(["benchmark", "planning", *given]) == 0
    one, two = (
        json.loads((folder / "planning.json").read_text())["cases"]
        for folder in (played, other)
    )
    for a, b in zip(one, two):
        assert [arm["success"] for arm in a["arms"].values()] == [
            arm["success"] for arm in b["arms"].values()
        ]


def test_pooled_differences_are_paired_by_task(played):
    found = json.loads((played / "planning.json").read_text())
    arms = [case.results() for case in sweep.cases([*TINY, SWEEP], played)]
    gap = found["together"][0]["arms"]["erased"]["retained_minus_this"]["mean"]
    both = [
        (
            a["retained"].counted().success.astype(float)
            - a["erased"].counted().success
        ).mean()
        for a in arms[::2]
    ]
    assert gap == pytest.approx(np.mean(both))


def test_case_results_restore_outcomes(played):
    case = sweep.cases([*TINY, SWEEP], played)[0]
    result = case.results()["oracle"]
    assert (
        isinstance(result, Outcome)
        and result.success.dtype == bool
        and result.success.all()
    )
    assert result.counted().goal_distance.min() > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["checkpoint=tmaze", "benchmark.sweep={env.lenght:[8]}"],
            "did you mean env.length",
        ),
        (
            ["checkpoint=tmaze", "benchmark.sweep={env.length:8}"],
            "benchmark.sweep must be",
        ),
        (
            ["checkpoint=tmaze", "benchmark.sweep={model.width:[8]}"],
            "model.width cannot be swept",
        ),
        (
            ["checkpoint=tmaze", "benchmark.sweep={planner:[cme]}"],
            "did you mean planner=cem",
        ),
        (["benchmark.sweep={env.length:[8]}"], "which checkpoint?"),
        (["checkpoint=tmaze", "tasks.arms=[mystery]"], "there is no arm 'mystery'"),
        (
            ["checkpoint=spots", "planner=beam"],
            "needs discrete actions; choose another, e.g. planner=cem",
        ),
    ],
)
def test_planning_reports_mistakes_in_one_line(given, says, tmp_path, capsys):
    assert cli.main(["benchmark", "planning", *given, f"output={tmp_path}"]) == 2
    assert says in capsys.readouterr().err


def test_folder_differs_between_sweeps():
    one = ["checkpoint=runs/mine", "benchmark.sweep={env.delay:[8],planner:[cem]}"]
    assert sweep.folder(one) == Path("runs/benchmark/mine-delay-planner")
    assert sweep.folder(["benchmark.sweep={checkpoint:[tmaze]}"]) == Path(
        "runs/benchmark/checkpoint"
    )
    assert sweep.folder(["checkpoint=tmaze"]) == Path("runs/benchmark/tmaze")


def test_cases_keep_shared_planner_settings(tmp_path):
    given = ["checkpoint=spots", "benchmark.sweep={planner:[cem,shooting,mppi]}"]
    configs = [case.config for case in sweep.cases(given, tmp_path)]
    shared = ("candidates", "horizon", "iterations", "elites")
    kept = {tuple(getattr(c.planner, key) for key in shared) for c in configs}
    assert len(kept) == 1
    assert len({(c.mpc.proposals, c.mpc.replan) for c in configs}) == 1


def test_case_settings_depend_on_weights(tmp_path):
    case = sweep.cases(["checkpoint=tmaze"], tmp_path)[0]
    other = sweep.cases(["checkpoint=return9"], tmp_path)[0]
    assert (
        case.file != other.file
        and case.settings()["weights"] != other.settings()["weights"]
    )
    with pytest.raises(UserError, match="no checkpoint at nowhere"):
        sweep.cases(["checkpoint=nowhere"], tmp_path)
