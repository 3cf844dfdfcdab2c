"""Results say where they come from and replace only those of the same settings."""

import json
import shutil
from pathlib import Path

import pytest
from lssvwm.agent.cli.main import main
from lssvwm.agent.config.presets import config_dir
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.origin import Origin, free_folder, weights_hash
from lssvwm.agent.files import read_json, write_json
from lssvwm.worldmodel import WorldModel, save

from tests.agent.conftest import TINY

EVALUATE = [
    "evaluate",
    "checkpoint=tmaze",
    "tasks.count=2",
    "tasks.arms=[random]",
    "threads=1",
]
RESULTS = Path("runs/pretrained/tmaze")
"""Default folder for results of a packaged model, which is not that of the run of the same name."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folders(below: Path = RESULTS) -> list[str]:
    """Return the folders of results."""
    return sorted(path.name for path in below.iterdir() if path.is_dir())


def test_evaluation_says_where_it_comes_from():
    assert main(EVALUATE) == 0
    found = read_json(RESULTS / "evaluation/evaluation.json", "")
    assert found["origin"].keys() == {"version", "date", "checkpoint", "weights"}
    assert found["origin"]["checkpoint"] == "tmaze"
    assert found["origin"]["weights"] == weights_hash("tmaze")
    assert found["settings"]["tasks"]["seed"] == found["tasks"]["seed"] == 0


def test_evaluation_replaces_only_the_same_settings(capsys):
    first, second = (RESULTS / name for name in ("evaluation", "evaluation-2"))
    assert main(EVALUATE) == main(EVALUATE) == 0
    assert folders() == ["evaluation"]
    before = (first / "tasks.csv").read_text()
    assert main([*EVALUATE, "tasks.seed=5"]) == 0
    assert f"results go to {second}" in capsys.readouterr().out
    assert folders() == ["evaluation", "evaluation-2"]
    assert (first / "tasks.csv").read_text() == before
    assert main([*EVALUATE, "tasks.seed=5"]) == main(EVALUATE) == 0
    assert folders() == ["evaluation", "evaluation-2"]


def test_evaluation_refuses_a_chosen_folder_with_other_results(capsys):
    assert main([*EVALUATE, "output=mine"]) == 0
    before = Path("mine/evaluation.json").read_text()
    assert main([*EVALUATE, "output=mine", "tasks.seed=5"]) == 2
    error = capsys.readouterr().err
    assert "mine/evaluation.json holds results of other settings" in error
    assert Path("mine/evaluation.json").read_text() == before


def test_evaluation_compares_weights_and_keeps_damaged_results():
    model = shutil.copytree(config_dir() / "pretrained" / "tmaze", "model")
    ours = [text.replace("checkpoint=tmaze", "checkpoint=model") for text in EVALUATE]
    assert main(ours) == 0
    Path(model).rename("same")
    Path("same").rename("model")
    save(WorldModel(TINY, (3, 64, 64), 4), Path(model))
    assert main(ours) == 0
    results = Path("runs/pretrained/model")
    (results / "evaluation-2" / "evaluation.json").write_text("{")
    assert main(ours) == 0
    assert folders(results) == ["evaluation", "evaluation-2", "evaluation-3"]


def test_free_folder_accepts_the_present_folder():
    assert free_folder(Path("."), "a.json", lambda found: False, True) == Path(".")
    write_json(Path("a.json"), {})
    with pytest.raises(UserError, match=r"a\.json holds results of other"):
        free_folder(Path("."), "a.json", lambda found: False, True)


def test_exported_weights_are_named_after_their_run():
    run = Path("runs", "mine")
    shutil.copytree(config_dir() / "pretrained" / "tmaze", run / "best")
    settings = [*EVALUATE[2:], "checkpoint=runs/mine/best"]
    assert main(["evaluate", *settings]) == 0
    assert (run / "evaluation" / "evaluation.json").is_file()


def test_videos_replace_only_the_same_settings():
    record = ["record", "checkpoint=tmaze", "mode=plan", "record.episodes=1"]
    record += ["record.horizon=2", "threads=1"]
    assert main(record) == 0
    data = json.loads((RESULTS / "video/plan-0.json").read_text())
    assert data["origin"]["weights"] == weights_hash("tmaze")
    assert data["settings"]["record"]["fps"] == 6
    assert main([*record, "record.fps=7"]) == 0
    assert folders() == ["video", "video-2"]


def test_origin_without_checkpoint_has_version_and_date():
    origin = Origin.of()
    assert origin.checkpoint is origin.weights is None
    assert origin.version and origin.date.startswith("20")
