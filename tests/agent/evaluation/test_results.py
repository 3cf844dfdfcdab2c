"""Result files: earlier formats are upgraded, newer ones refused."""

import json
from pathlib import Path

import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results

COMMITTED = Path(__file__).parents[3] / "docs" / "results"


def test_migrate_renames_arms_of_format1():
    old = {
        "settings": {"tasks": {"arms": ["prior", "still", "oracle"]}},
        "cases": [{"arms": {"short": {"n": 1}, "retained": {"n": 2}}}],
        "rows": [{"arm": "still"}],
    }
    found = results.migrate(old)
    assert found["format_version"] == results.FORMAT_VERSION
    assert found["settings"]["tasks"]["arms"] == ["policy", "noop", "oracle"]
    assert found["cases"][0]["arms"] == {
        "always_window": {"n": 1},
        "retained": {"n": 2},
    }
    assert found["rows"] == [{"arm": "still"}]  # a baseline of recall, not an arm
    assert results.migrate(found) == found


def test_migrate_refuses_newer_formats():
    with pytest.raises(UserError, match="has format 99"):
        results.migrate({"format_version": 99})


def test_read_upgrades_a_committed_evaluation():
    file = COMMITTED / "pretrained" / "tmaze" / "evaluation.json"
    saved = json.loads(file.read_text())
    found = results.read(file)
    assert {"policy", "noop"} <= set(found["arms"])
    assert len(found["arms"]) == len(saved["arms"])
