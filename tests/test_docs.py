"""Run the examples of README and site, and compare published tables with their data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from lssvwm.agent.cli.main import main
from lssvwm.agent.config import migration
from lssvwm.agent.config.presets import options
from lssvwm.agent.config.settings import BenchmarkRunConfig, Config, RecordRunConfig
from lssvwm.envs import ENV_CONFIGS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.rglob("*.md")),
]
sys.path.insert(0, str(DOCS / "extensions"))
import docstrings  # noqa: E402
import result_tables  # noqa: E402
import settings_reference  # noqa: E402

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# ((?:planners/|worldmodel/|check_)[\w/]+\.py)\n")
"""First line of a block that is a file of the package, or a script for a changed one."""
RESULT_TABLE = re.compile(r"^```\{result-table\} (\S+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        first = self.text.splitlines()[0][:40]
        return f"{self.page.relative_to(ROOT)}: {first}"


def blocks(page: Path, language: str) -> list[Block]:
    """Return the code blocks of one language, in order."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(page, name, text) for name, text in found if name == language]


def python_blocks(page: Path) -> list[Block]:
    """Return the Python blocks that run on their own; files of the package are marked."""
    return [b for b in blocks(page, "python") if not FILE.match(b.text)]


GUIDES = {"new-planner": "planners", "new-memory": "worldmodel/mixers"}
"""Guides that change the package, and the folder that they change."""


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `lssvwm` command of a page, also those in prose."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(block.text for block in blocks(page, "sh"))
    lines = shell.replace("\\\n", "").splitlines()
    lines += re.findall(r"`(lssvwm [^`]+)`", text)
    return [shlex.split(line, comments=True) for line in lines if line[:7] == "lssvwm "]


def is_complete(command: list[str]) -> bool:
    """Return false for the name of a command, and for one with placeholders."""
    group = command[1:] in (["benchmark"], ["evaluate"], ["train"], ["record"])
    return not group and "NAME" not in " ".join(command)


EXAMPLES = [page for page in PAGES if python_blocks(page)]
COMMANDS = [
    command
    for page in PAGES
    if page.stem not in GUIDES
    for command in commands(page)
    if is_complete(command)
]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # packaged models must be found from any folder
    if "data/tmaze" in page.read_text():
        frames = "train.collect.frames=500"
        main(["collect", "experiment=tmaze", frames, "output=data/tmaze"])
    scope: dict = {"__name__": "example"}
    for block in python_blocks(page):
        exec(compile(block.text, str(block), "exec"), scope)
    if page.name == "README.md":
        assert scope["action"].shape == (1,)
        assert scope["rollout"].frames.shape == (1, 256, 16, 3, 64, 64)


def _run_folders(folder: Path) -> None:
    """Put trained models where the examples expect runs, and the guide's environment."""
    for command in COMMANDS:
        for run in re.findall(r"runs/[\w-]+", " ".join(command)):
            target = folder / run
            target.parent.mkdir(exist_ok=True)
            if not target.exists():
                target.symlink_to(ROOT / "configs" / "pretrained" / "tmaze")
    guide = blocks(DOCS / "guides" / "custom-environment.md", "python")
    (folder / "corridor.py").write_text(guide[0].text)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    _run_folders(folder)
    return folder


@pytest.mark.parametrize("command", sorted(set(map(tuple, COMMANDS))), ids=" ".join)
def test_commands_parse(command, workplace: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(workplace)
    arguments = list(command[1:])
    if arguments[0] in ("doctor", "report"):
        arguments.append("--help")
    elif not {"--help", "--show"} & set(arguments):
        arguments.append("--show")
    assert main(arguments) == 0, capsys.readouterr().err


def _apply(diff: str, root: Path) -> Path:
    """Apply a diff of a guide: lines with + follow the line above, or replace it."""
    header, *lines = diff.splitlines()
    file = root / header.removeprefix("--- ")
    text = file.read_text()
    before = ""
    for line in lines:
        mark, content = line[0], line[1:] + "\n"
        if mark == "+":
            text = text.replace(before, before + content, 1)
        else:
            assert text.count(content) == 1, f"{file}: {content}"
        if mark == "-":
            text = text.replace(content, "\0\n")
            content = "\0\n"
        before = content
    file.write_text(text.replace("\0\n", ""))
    return file


def _copy_of_the_package(target: Path) -> None:
    for name in ("agent", "envs", "planners", "worldmodel", "configs"):
        shutil.copytree(
            ROOT / name,
            target / name,
            ignore=shutil.ignore_patterns("__pycache__", "pretrained"),
        )
    shutil.copy(ROOT / "lssvwm.py", target)
    weights = Path("configs", "pretrained", "tmaze")
    shutil.copytree(ROOT / weights, target / weights)


SHORT = {
    "train": [
        "train.steps=2",
        "train.batch=2",
        "train.length=32",
        "train.min_length=32",
        "train.collect.frames=2000",
    ],
    "evaluate": ["tasks.count=2", "tasks.arms=[retained]"],
}
"""Settings that make the guides' commands quick."""


@pytest.mark.parametrize("name", GUIDES)
def test_guide_extends_the_package_by_two_files(name: str, tmp_path: Path) -> None:
    page = DOCS / "guides" / f"{name}.md"
    package = tmp_path / "package"
    _copy_of_the_package(package)
    changed = [_apply(b.text, package) for b in blocks(page, "diff")]
    scripts = []
    for block in blocks(page, "python"):
        if found := FILE.match(block.text):
            file = package / found[1]
            file.write_text(block.text.partition("\n")[2])
            (scripts if found[1].startswith("check_") else changed).append(file)
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    runs = [[str(script)] for script in scripts]
    for _, command, *settings in commands(page):
        runs.append(["-m", "lssvwm", command, *settings, *SHORT[command]])
    for arguments in runs:
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
    assert len(changed) == 2
    assert {file.parent for file in changed} == {package / GUIDES[name]}


def test_guide_environment_needs_no_change(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "guides" / "custom-environment.md"
    (tmp_path / "corridor.py").write_text(blocks(page, "python")[0].text)
    train, evaluate, record = blocks(page, "sh")[0].text.splitlines()
    short = ["train.collect.envs=2", "planner.candidates=8", "planner.elites=4"]
    short += ["mpc.proposals=4", *SHORT["train"]]
    assert main([*shlex.split(train)[1:], *short, "train.collect.every=0"]) == 0
    assert main([*shlex.split(evaluate)[1:], *SHORT["evaluate"]]) == 0
    assert main([*shlex.split(record)[1:], "record.episodes=1"]) == 0


def test_every_result_file_is_published() -> None:
    folder = DOCS / "results"
    pages = folder.glob("*.md")
    shown = {n for page in pages for n in RESULT_TABLE.findall(page.read_text())}
    committed = {file.name for file in folder.glob("*.json")}
    deeper = [*folder.glob("*/*/evaluation.json"), *folder.glob("devices/*/*")]
    deeper += folder.glob("*/seeds.json")
    committed |= {str(file.relative_to(folder)) for file in deeper}
    assert committed - shown == set()
    assert shown - committed == {"summary"}


@pytest.mark.parametrize(
    "page", sorted((DOCS / "results").glob("*.md")), ids=lambda p: p.stem
)
def test_result_tables_have_rows(page: Path) -> None:
    for name in RESULT_TABLE.findall(page.read_text()):
        if name == "summary":
            continue
        for grid in result_tables.grids(name):
            assert len(grid.rows) > 1
            assert {len(row) for row in grid.rows} == {len(grid.rows[0])}


def test_readme_table_equals_the_committed_results() -> None:
    table = result_tables.summary().markdown().partition("\n\n")[2]
    assert len(result_tables.SUMMARY) == 7
    assert table in (ROOT / "README.md").read_text()


def test_site_links_lead_to_files() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
        for target in re.findall(r"\{doc\}`([^`]+)`", text):
            assert (page.parent / f"{target}.md").exists(), f"{page}: {target}"


def test_files_named_on_the_architecture_page_exist() -> None:
    text = (DOCS / "concepts" / "architecture.md").read_text()
    named = re.findall(r"`((?:agent|envs|planners|worldmodel|configs)/[\w/.]*)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert len(named) > 30
    assert missing == []


def _settings() -> set[str]:
    """Return the names of all settings and sections."""
    classes = (Config, RecordRunConfig, BenchmarkRunConfig)
    found = [
        s for cls in classes for _, g in settings_reference.sections(cls) for s in g
    ]
    names = {setting.name for setting in found}
    names |= {setting.group for setting in found}
    return names | {f"{name}.kind" for name in names}


def test_settings_named_on_the_pages_exist() -> None:
    known = _settings()
    named = re.compile(
        r"\b(?:train|model|planner|objective|mpc|tasks|env|record|benchmark)(?:\.[a-z_]+)+"
    )
    unknown = set()
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for span in re.findall(r"`([^`(]+)`", text):
            found = set(named.findall(re.sub(r"\S+\.(py|csv)\b", "", span))) - known
            unknown |= {f"{page.name}: {name}" for name in found}
    assert unknown == set()


def test_presets_named_on_the_model_page_exist() -> None:
    text = (DOCS / "concepts" / "world-model.md").read_text()
    table = text.partition("| Preset |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in row.split("|")[1:2]}
    presets = set(re.findall(r"`(\w+)`", " ".join(named)))
    assert len(presets) > 8
    assert presets <= set(options("model"))


def test_docstrings_become_restructured_text() -> None:
    text = [
        "Score `a*b`.",
        "",
        "actions: int64 [B]",
        "other: a",
        "    long text",
        "End",
    ]
    expected = ["Score ``a*b``.", "", "- ``actions``: int64 [B]", "- ``other``: a"]
    assert docstrings.prepare(text) == [*expected, "  long text", "", "End"]
    assert docstrings.prepare(["Shapes", "    u [B]"]) == [
        "Shapes",
        "",
        "::",
        "",
        "    u [B]",
    ]


def test_settings_reference_lists_every_kind() -> None:
    titles = [title for title, _ in settings_reference.sections(Config)]
    assert {"train", "planner, all kinds", "planner.kind=cem"} <= set(titles)
    assert {f"env.kind={name}" for name in ENV_CONFIGS} <= set(titles)


def test_changelog_lists_renamed_and_removed_settings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    for old, new in migration.renamed_settings().items():
        assert f"| `{old}` | `{new}` |" in text
    for old in migration.removed_settings():
        assert f"| `{old}` | " in text
