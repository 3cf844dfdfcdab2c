"""Where the presets lie, and which there are. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("env", "model", "planner", "train", "experiment")


def config_dir() -> Path:
    """The folder of presets: inside the package where it is installed, beside it in a checkout.

    Raises FileNotFoundError if the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs beside {package}: install the package again")


def options(group: str) -> dict[str, str]:
    """The presets of a group of `GROUPS`, each with what the first line of its file says about it."""
    return {path.stem: _headline(path) for path in sorted((config_dir() / group).glob("*.yaml"))}


def pretrained() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in config_dir().glob("pretrained/*/weights.safetensors"))


def _headline(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""
