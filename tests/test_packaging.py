"""Test the content of the wheel, and that no other folder hides it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "envs", "planners", "worldmodel")
PAGE = (".html", ".js", ".css", ".svg")
"""Files of the page of `lssvwm play`."""
INCLUDED = ("docs", "play", "report")
"""Extras that the extra `dev` includes."""
CHECKERS = ("ruff", "pyright")
"""Tools of `dev` that no test needs."""
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def home() -> Path:
    """Return the folder that the package is installed from: site-packages, or an editable checkout."""
    distribution = importlib.metadata.distribution("lssvwm")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlparse(origin["url"]).path))
    return Path(str(distribution.locate_file("")))


@pytest.fixture(scope="module")
def wheel() -> dict[str, Path]:
    """Return the files of the wheel: place in an installation, path in the checkout."""
    included = WheelBuilder(str(ROOT)).recurse_included_files()
    return {file.distribution_path: Path(file.path) for file in included}


@pytest.fixture(scope="module")
def site(wheel: dict[str, Path], tmp_path_factory) -> Path:
    """Return a folder with the files of the wheel, as an installation has them."""
    folder = tmp_path_factory.mktemp("site")
    for target, source in wheel.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / target)
    return folder


@pytest.fixture
def project_of_a_user(tmp_path: Path) -> Path:
    """Return a folder with modules of our names that cannot be imported."""
    for name in PACKAGES[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "agent.py").write_text("raise SystemExit('shadowed')")
    job = "import lssvwm\nprint(lssvwm.make_env('env=tmaze').batch_size[0])\n"
    (tmp_path / "job.py").write_text(job)
    return tmp_path


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_imported_inside_lssvwm(name: str, home: Path) -> None:
    module = importlib.import_module(f"lssvwm.{name}")
    found = Path(str(module.__file__)).resolve().parent
    assert found in (home.resolve() / name, home.resolve() / "lssvwm" / name)


def test_console_script_is_installed() -> None:
    scripts = importlib.metadata.distribution("lssvwm").entry_points.select(
        group="console_scripts"
    )
    assert [(script.name, script.value) for script in scripts] == [
        ("lssvwm", "lssvwm:main")
    ]


def test_wheel_holds_packages_presets_and_models(wheel: dict[str, Path]) -> None:
    top = {path.split("/")[0] for path in wheel}
    assert top == {"lssvwm.py", "lssvwm"}
    inside = {path.split("/")[1] for path in wheel if "/" in path}
    assert inside == {*PACKAGES, "configs"}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(PACKAGES)
    for pattern in (
        "configs/*/*.yaml",
        "configs/pretrained/*/*",
        "agent/play/page/*",
    ):
        files = {f"lssvwm/{path.relative_to(ROOT)}" for path in ROOT.glob(pattern)}
        assert files <= set(wheel)


def test_wheel_holds_no_benchmark_data(wheel: dict[str, Path]) -> None:
    endings = {Path(path).suffix for path in wheel}
    assert endings <= {".py", ".yaml", ".safetensors", ".md", *PAGE}
    assert not [path for path in wheel if "docs/" in path or "results/" in path]
    size = sum(path.stat().st_size for path in wheel.values())
    assert size < 25 * MEBIBYTE


WAYS = {
    "script": ["job.py"],
    "code": ["-c", "import job"],
    "safe path": ["-P", "job.py"],
}


@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_folders_of_a_project_hide_nothing(
    arguments: list[str], site: Path, project_of_a_user: Path
) -> None:
    assert run(site, project_of_a_user, *arguments) == "1"


def test_module_runs_as_the_command(site: Path, project_of_a_user: Path) -> None:
    assert "Usage: lssvwm " in run(site, project_of_a_user, "-m", "lssvwm", "--help")
    shown = run(site, project_of_a_user, "-m", "lssvwm", "train", "--show")
    assert "  kind: tmaze" in shown


def test_module_runs_in_a_checkout(tmp_path: Path) -> None:
    assert "Usage: lssvwm " in run(ROOT, ROOT, "-m", "lssvwm", "--help")
    assert "Usage: lssvwm " in run(ROOT, tmp_path, str(ROOT / "lssvwm.py"))


def test_load_finds_models_from_any_folder(site: Path, project_of_a_user: Path) -> None:
    code = "import lssvwm; print(lssvwm.load('tmaze').initial(2).memory)"
    assert "Memory" in run(site, project_of_a_user, "-c", code)


def run(path: Path, folder: Path, *arguments: str) -> str:
    """Return the output of Python in a folder, with `path` before everything that is installed."""
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_dependency_is_pinned(project: dict) -> None:
    pins = [
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    ]
    extras = project["project"]["optional-dependencies"]
    own, *dev = extras["dev"]
    assert own == f"lssvwm[{','.join(INCLUDED)}]"
    included = [*(r for name in INCLUDED for r in extras[name]), *dev]
    wanted = [*project["project"]["dependencies"], *included]
    names = {text.split(">")[0].split("=")[0].strip().lower() for text in wanted}
    assert names <= set(pins), f"not in constraints.txt: {names - set(pins)}"
    assert (
        "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    )  # any build: no +cpu, no +cu


def test_lowest_constraints_are_the_lower_bounds() -> None:
    found = (ROOT / "tests" / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in found if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [*extras["dev"][1:], *(r for name in INCLUDED for r in extras[name])]
    for requirement in (*project["dependencies"], *installed):
        name, _, bounds = requirement.partition(">=")
        if name not in CHECKERS:
            assert pins.get(name) == bounds.split(",")[0], requirement
