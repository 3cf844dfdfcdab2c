"""Agents that plan with a video world model which remembers.

    import lssvwm

    agent = lssvwm.load("tmaze")

The packages `agent`, `envs`, `planners` and `worldmodel` beside this file are imported as `lssvwm.agent` and so on, so
that folders of these names in your own project neither hide them nor are hidden by them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
"""A checkout has the packages beside this file; an installation has them in a folder `lssvwm` beside it."""
__path__ = [
    str(HERE / "lssvwm" if (HERE / "lssvwm" / "agent").is_dir() else HERE)
]  # makes this file a package


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `import lssvwm` takes no time."""
    if name == "load":
        from lssvwm.agent import load

        return load
    raise AttributeError(f"module 'lssvwm' has no attribute {name!r}")


def main() -> int:
    """Run the console script."""
    from lssvwm.agent.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
