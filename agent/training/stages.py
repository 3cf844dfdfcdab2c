"""Train in stages, each with its own settings, from the weights of the stage before.

Every stage is a run of its own, in the folder `stages/1-NAME` of the run. A stage that ended has a file `done`; its
frames are deleted. The weights of the last stage are copied to the run's folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lssvwm.agent import checkpoint
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import Config, SavedRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import locked, remove
from lssvwm.agent.run_folder import refuse_existing_run, refuse_exported_weights
from lssvwm.agent.training import loop
from lssvwm.agent.training.distributed import agree, first

DONE = "done"
"""File that marks a stage that ended."""


@dataclass(frozen=True)
class Stage:
    """Hold one stage, and the success rate at which it ends early."""

    config: Config
    folder: Path
    until: float | None

    @property
    def done(self) -> bool:
        """Return whether the stage ended."""
        return (self.folder / DONE).is_file()


def train(config: Config, output: Path) -> Path:
    """Run `lssvwm train`: train a new run in the folder `output`, which is returned."""
    stages = plan(config, output)

    def start() -> None:
        refuse_existing_run(output, config)
        composition.save(config, output / checkpoint.CONFIG)

    with _locked(output):
        if not config.stages:
            return loop.train(config, output)
        first(start)
        return follow(config, stages, output)


def resume(folder: Path, overrides: list[str]) -> Path:
    """Run `lssvwm resume`: continue a run, in whichever stage it stopped.

    Changed settings hold for the stages that have not ended. Raises UserError if the folder holds no run.
    """
    if not (folder / checkpoint.CONFIG).is_file():
        raise UserError(
            f"no run in {folder}: there is no config.yaml; "
            f"start one with `lssvwm train output={folder}`"
        )
    refuse_exported_weights(folder)
    saved = composition.read(folder / checkpoint.CONFIG)
    config = composition.from_checkpoint(saved, overrides, SavedRunConfig)
    stages = plan(config, folder)
    with _locked(folder):
        if not config.stages:
            return loop.restart(config, folder)
        if agree(all(stage.done for stage in stages) and bool(overrides)):
            raise UserError(
                f"all stages of {folder} have ended; train on from their weights with "
                f"`lssvwm train experiment=... stages=null train.init={folder}`"
            )
        first(lambda: composition.save(config, folder / checkpoint.CONFIG))
        return follow(config, stages, folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder, in the process that writes."""
    with ExitStack() as stack:
        first(lambda: stack.enter_context(locked(folder)))
        yield


def plan(config: Config, output: Path) -> list[Stage]:
    """Return the stages of a run in order; raises UserError for a wrong setting."""
    stages = []
    init = config.train.init
    for number, (name, own) in enumerate(composition.stage_configs(config).items(), 1):
        if Path(name).name != name:  # its folder must lie below `stages`
            raise UserError(f"stages: {name!r} cannot be the name of a folder")
        train_config = dataclasses.replace(own.train, init=init)
        own = dataclasses.replace(own, train=train_config, name=name)
        folder = output / checkpoint.STAGES / f"{number}-{name}"
        until = _until(config, name, own.train.evaluate_every)
        stages.append(Stage(own, folder, until))
        init = str(folder)
    return stages


def _until(config: Config, name: str, every: int) -> float | None:
    """Return the success rate at which a stage ends early; raises UserError for anything else.

    every: steps from one validation to the next, 0 for none
    """
    until = (config.stages or {})[name].get(composition.UNTIL)
    if until is not None and not every:
        raise UserError(
            f"stages.{name}.until needs validations: set train.evaluate_every"
        )
    if until is None or (isinstance(until, (int, float)) and 0 < until <= 1):
        return until
    raise UserError(
        f"stages.{name}.until={until} is wrong: it must be a number from 0 to 1"
    )


def follow(config: Config, stages: list[Stage], output: Path) -> Path:
    """Train the stages that have not ended, and copy the last weights; returns `output`."""
    for number, stage in enumerate(stages, 1):
        if stage.done:
            first(lambda stage=stage: finish(stage))
            continue
        name = stage.config.name
        steps = f"{stage.config.train.steps:,} steps"
        print(f"stage {number} of {len(stages)}: {name}, {steps}")
        if agree((stage.folder / checkpoint.CONFIG).is_file()):
            loop.restart(stage.config, stage.folder, stage.until)
        else:
            loop.train(stage.config, stage.folder, stage.until)
        first(lambda stage=stage: finish(stage))
    first(lambda: _export(config, stages[-1], output))
    return output


def finish(stage: Stage) -> None:
    """Mark a stage as ended, then delete its frames."""
    (stage.folder / DONE).touch()
    if not stage.config.data:
        remove(stage.folder / "data")


def _export(config: Config, last: Stage, output: Path) -> None:
    """Copy the weights of the last stage to the run's folder."""
    trained = checkpoint.resolve(last.folder)
    model = checkpoint.load(trained, config.device, config.backend)
    checkpoint.export(model, config, output / trained.name)
