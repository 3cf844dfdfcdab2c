"""What is installed: the top-level names are ours, the console script is there, presets travel along."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import tomllib
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "envs", "planners", "worldmodel")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def home() -> Path:
    """The folder that our distribution is imported from: site-packages, or an editable checkout."""
    distribution = importlib.metadata.distribution("lssvwm")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(url2pathname(urlparse(origin["url"]).path))
    return Path(str(distribution.locate_file("")))


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


def test_wheel_holds_every_package_inside_lssvwm(project: dict) -> None:
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {
        name: f"lssvwm/{name}" for name in (*PACKAGES, "configs")
    }
    assert sorted(wheel["only-include"]) == sorted([*PACKAGES, "configs", "lssvwm.py"])
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)


def test_every_dependency_is_pinned(project: dict) -> None:
    pins = [
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    ]
    wanted = (
        project["project"]["dependencies"]
        + project["project"]["optional-dependencies"]["dev"]
    )
    names = {text.split(">")[0].split("=")[0].strip().lower() for text in wanted}
    assert names <= set(pins), f"not in constraints.txt: {names - set(pins)}"
    assert (
        "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
    )  # any build: no +cpu, no +cu
