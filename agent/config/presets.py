"""Where the presets lie, and which there are. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path

GROUPS = ("env", "model", "planner", "train", "experiment")


def config_dir() -> Path:
    """Return the folder of presets, which lies beside the packages in a checkout and in an installation.

    Raises FileNotFoundError if the installation is incomplete.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"no presets in {folder}: install the package again")
    return folder


def options(group: str) -> dict[str, str]:
    """The presets of a group of `GROUPS`, each with what the first line of its file says about it."""
    return {
        path.stem: _headline(path)
        for path in sorted((config_dir() / group).glob("*.yaml"))
    }


def pretrained() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(
        path.parent.name
        for path in config_dir().glob("pretrained/*/weights.safetensors")
    )


def _headline(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [
        line.lstrip("# ")
        for line in lines
        if line.startswith("#") and "@package" not in line
    ]
    return comments[0] if comments else ""
