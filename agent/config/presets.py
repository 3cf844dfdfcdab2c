"""List presets and packaged models.

Imports nothing heavy, so that `lssvwm --help` is quick.
"""

from __future__ import annotations

from pathlib import Path

GROUPS = ("env", "model", "planner", "train", "experiment")


def config_dir() -> Path:
    """Return the folder of presets.

    It lies next to the packages, in a checkout and in an installation.

    Raises FileNotFoundError if the installation is incomplete.
    """
    folder = Path(__file__).resolve().parents[2] / "configs"
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"no presets in {folder}: install the package again")
    return folder


def options(group: str) -> dict[str, str]:
    """Return the presets of one of `GROUPS`, each with the first line of its file."""
    return {
        path.stem: _headline(path)
        for path in sorted((config_dir() / group).glob("*.yaml"))
    }


def pretrained() -> list[str]:
    """Return the names of the packaged models."""
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
