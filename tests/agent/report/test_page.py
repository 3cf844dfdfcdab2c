"""A report holds everything of a run, loads nothing, and runs no text of a file."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lssvwm.agent.errors import UserError
from lssvwm.agent.report import page
from lssvwm.agent.report.page import update, write_report

from tests.agent.report.conftest import MakeRun, write_evaluation

HOSTILE = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}$$x$$"
RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Parse a page; note its tags and attributes, and elements that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.text = ""
        self.feed(text)
        self.mistakes += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def attributes(self, *names: str) -> list[str]:
        """Return the values of attributes with these names."""
        return [str(a[name]) for _, a in self.tags for name in names if name in a]


def parsed(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def charts(file: Path) -> dict[str, dict]:
    """Return the charts of a page by key."""
    found = re.search(r'id="charts">(.*?)</script>', file.read_text(), re.S)
    assert found
    return {chart["key"]: chart for chart in json.loads(found[1])}


def test_report_shows_everything_of_a_run(make_run: MakeRun) -> None:
    run = make_run("maze")
    file = write_report([run])
    assert file == run / "report.html"
    text = parsed(file).text
    for shown in (
        "env.length",
        "0.90 (0.77 - 0.96)",
        "+0.60",
        "solved",
        "13.25 dB",
        "0123456789abcdef",
        "torchrl",
        f"lssvwm train experiment=smoke output={run}",
        f"lssvwm evaluate checkpoint={run}",
        "3 min 15 s",
    ):
        assert shown in text, shown


def test_page_is_well_formed(make_run: MakeRun) -> None:
    found = parsed(write_report([make_run("a"), make_run("b", "env.length=8")]))
    assert found.mistakes == []
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    targets = {link[1:] for link in found.attributes("href") if link[0] == "#"}
    assert targets <= set(ids)


def test_page_names_no_other_place(make_run: MakeRun) -> None:
    found = parsed(write_report([make_run("maze")]))
    addresses = found.attributes("src", "href", "poster", "action", "srcset")
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    policy = found.attributes("content")[0]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_text_of_files_stays_text(make_run: MakeRun) -> None:
    run = make_run(HOSTILE.replace("/", "|"), "name=x")
    clean = parsed(write_report([make_run("clean")]))
    config = run / "config.yaml"
    lines = config.read_text().splitlines()[1:]
    lines = [re.sub("^name: .*", f"name: {json.dumps(HOSTILE)}", x) for x in lines]
    config.write_text("\n".join(lines))
    evaluation = run / "evaluation" / "evaluation.json"
    found = json.loads(evaluation.read_text())
    found.pop("crc32")
    found["arms"][HOSTILE] = found["arms"]["erased"]
    found["origin"] |= {"weights": HOSTILE, "checkpoint": HOSTILE}
    evaluation.write_text(json.dumps(found))
    (run / "video" / "plan-0.json").write_text(json.dumps({"mode": HOSTILE}))
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 410, HOSTILE: 1.0, "psnr": HOSTILE}) + "\n")
    hostile = parsed(write_report([run]))
    count = [tag for tag, _ in hostile.tags].count
    assert count("script") == [tag for tag, _ in clean.tags].count("script")
    assert count("img") == 0
    assert not [name for _, a in hostile.tags for name in a if name.startswith("on")]
    assert hostile.mistakes == []
    assert HOSTILE in hostile.text
    assert HOSTILE in charts(run / "report.html")["arms"]["rows"]


def test_videos_that_do_not_fit_are_named(make_run: MakeRun) -> None:
    run = make_run("maze")
    for name in ("plan-1", "plan-2"):
        (run / "video" / f"{name}.mp4").write_bytes(bytes(4_000_000))
    file = write_report([run])
    assert file.stat().st_size <= page.MAX_BYTES
    found = parsed(file)
    assert len([a for tag, a in found.tags if tag == "video"]) == 2
    assert "plan-2.mp4 does not fit" in found.text


def test_links_out_of_a_run_are_not_followed(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("maze")
    (tmp_path / "secret").write_bytes(b"secret")
    (run / "video" / "plan-1.mp4").symlink_to(tmp_path / "secret")
    (run / "report.html").symlink_to(tmp_path / "secret")
    assert "plan-1" not in parsed(write_report([run])).text
    assert (tmp_path / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("content", ["{", "[]", '{"arms": {"retained": {}}}'])
def test_damaged_result_is_named(make_run: MakeRun, content: str) -> None:
    run = make_run("maze")
    (run / "evaluation" / "evaluation.json").write_text(content)
    found = parsed(write_report([run]))
    assert "evaluation.json cannot be shown" in found.text
    assert "env.length" in found.text


def test_other_weights_are_pointed_out(make_run: MakeRun) -> None:
    run = make_run("maze")
    (run / "weights.safetensors").write_bytes(b"other")
    assert "Other weights" in parsed(write_report([run])).text


def test_runs_are_compared(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", "env.length=8")]
    write_evaluation(runs[1] / "evaluation-2", runs[1], "env.length=32")
    file = write_report(runs)
    assert file == runs[0].parent / "report.html"
    found = parsed(file)
    differing = [a for tag, a in found.tags if tag == "tr" and "class" in a]
    assert len(differing) == 1
    assert "env.length=32" in found.text
    drawn = charts(file)
    assert {line["name"] for line in drawn["curve-psnr"]["series"]} == {"a", "b"}
    names = [line["name"] for line in drawn["arms"]["series"]]
    assert names == ["a", "b, evaluation", "b, evaluation-2"]
    assert drawn["by_evidence_age"]["series"][0]["low"]


def test_charts_are_images_without_bokeh(make_run: MakeRun, monkeypatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    found = parsed(write_report([make_run("maze")]))
    images = [a for tag, a in found.tags if tag == "img"]
    assert len(images) >= 4
    assert not [tag for tag, _ in found.tags if tag == "script"]
    assert "pip install 'lssvwm[report]'" in found.text


def test_failed_update_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("maze")
    assert update(run) == f"report: {run}/report.html"
    (run / "draft-report.html").mkdir()
    line = update(run)
    assert line.startswith("no report: ") and "\n" not in line
    assert update(tmp_path / "missing").startswith("no report: no results in")


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results in"):
        write_report([tmp_path])


def test_benchmarks_have_their_tables(make_run: MakeRun) -> None:
    run = make_run("maze")
    for name in ("memory.json", "planners.json"):
        shutil.copy(RESULTS / name, run / name)
    text = parsed(write_report([run])).text
    assert "Tiles last in view more than 48 frames ago" in text
    assert "Return in closed loop" in text
