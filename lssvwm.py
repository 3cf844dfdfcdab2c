"""Agents that plan with a video world model which remembers.

    import lssvwm

    agent = lssvwm.load("tmaze")
    env = lssvwm.make_env("env=tmaze", batch=4)

Settings are texts, as on the command line: "env.length=32", "planner=mppi". A mistake in a setting raises
`lssvwm.UserError` with one line.

The packages `agent`, `envs`, `planners` and `worldmodel` next to this file are imported as `lssvwm.agent` and so on.
Folders of these names in your own project neither hide them nor are hidden by them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
"""Folder of this file. A checkout holds the packages here; an installation holds them in a folder `lssvwm` here."""
__path__ = [
    str(HERE / "lssvwm" if (HERE / "lssvwm" / "agent").is_dir() else HERE)
]  # makes this file a package

from lssvwm.agent.errors import UserError  # noqa: E402 - needs __path__

if TYPE_CHECKING:
    from lssvwm.agent.mpc import Agent
    from lssvwm.envs.torchrl_env import TorchRLEnv

    def __getattr__(name: str) -> Any:
        """Declare the packages to type checkers, which do not follow `__path__`."""


__all__ = ["UserError", "evaluate", "load", "make_env", "record", "train"]

# The functions below import what they need when they are called, so that `import lssvwm` takes no time.


def load(checkpoint: str | Path, *settings: str) -> Agent:
    """Load the agent of a pretrained model or of a run's folder.

    `settings` change those of the checkpoint, as in "planner.horizon=24" or "device=cuda". "trust=true" runs code that
    the checkpoint names, such as the factory of its environment.
    Raises UserError if there is no such checkpoint, for a mistake in a setting, or for code that is not trusted.
    """
    from lssvwm.agent import load as load_agent

    return load_agent(checkpoint, *settings)


def make_env(*settings: str, batch: int = 1, seed: int = 0) -> TorchRLEnv:
    """Build `batch` environments as one TorchRL environment.

    `settings` choose it: "env=tmaze", "env.length=32", "experiment=recall7", or "checkpoint=tmaze" for the environment
    that a model was trained on. `seed` chooses the episodes.

    Observations, with B = `batch`:
        pixels       uint8 [B, C, H, W]
        last_action  int64 [B] or float32 [B, A], the action that led to the frame
        is_first     bool [B, 1], true in the first frame of an episode

    Raises UserError for a mistake in a setting.
    """
    from lssvwm.agent.build import build_env
    from lssvwm.agent.cli import commands
    from lssvwm.envs.torchrl_env import TorchRLEnv

    config = commands.of_presets_or_checkpoint("make_env", settings)
    return TorchRLEnv(build_env(config.env, batch), seed)


def train(*settings: str) -> Path:
    """Train a world model as `lssvwm train` does; returns the folder of the run.

    `load`, `evaluate` and `record` take this folder. Raises UserError for a mistake in a setting, or if the folder
    holds a run already.
    """
    from lssvwm.agent.cli import commands
    from lssvwm.agent.config.composition import compose
    from lssvwm.agent.training import distributed, stages

    config = compose(settings)
    folder = commands.output_folder(config, "runs", config.name)
    with distributed.processes():
        return stages.train(config, folder)


def evaluate(checkpoint: str | Path, *settings: str) -> dict[str, Any]:
    """Measure planning success as `lssvwm evaluate` does.

    Returns the content of evaluation.json: under "arms", the success rate of each arm with its 95 % interval.
    Raises UserError if there is no such checkpoint, or for a mistake in a setting.
    """
    from lssvwm.agent.cli import commands
    from lssvwm.agent.config.settings import CheckpointConfig
    from lssvwm.agent.evaluation import evaluate as evaluation

    settings = (f"checkpoint={checkpoint}", *settings)
    config = commands.of_checkpoint("evaluate", settings, CheckpointConfig)
    return evaluation.evaluate(config, commands.evaluation_folder(config))


def record(checkpoint: str | Path, *settings: str) -> list[Path]:
    """Record videos as `lssvwm record` does; returns the files.

    Raises UserError if there is no such checkpoint, or for a mistake in a setting.
    """
    from lssvwm.agent.cli import commands
    from lssvwm.agent.config.settings import RecordRunConfig
    from lssvwm.agent.video import record as video

    settings = (f"checkpoint={checkpoint}", *map(commands.long_form, settings))
    config = commands.of_checkpoint("record", settings, RecordRunConfig)
    return video.record(config, commands.video_folder(config))


def main() -> int:
    """Run the console script."""
    from lssvwm.agent.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
