"""Send metrics, tables and videos of a run to a tracker, by TorchRL's loggers.

A tracker never decides about a run: if it fails while a run trains, one line says so and training goes on without it.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from lssvwm.agent.config.composition import to_dict
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.tables import Grid, Row, evaluation_grids
from lssvwm.agent.files import read_json, read_json_lines, replacing, write_json
from PIL import Image
from torchrl.record.loggers.common import Logger as TorchRLLogger
from torchrl.record.loggers.csv import CSVLogger
from torchrl.record.loggers.tensorboard import TensorboardLogger

PROJECT = "lssvwm"
"""Project of W&B and Trackio, and experiment of MLflow."""
IDENTITY = "tracker.json"
"""File that holds the identity of a run at a tracker, so that a resumed run continues it."""
PREVIEW = 512
"""Pixels in a row of a video in TensorBoard, at most."""


class Tracker:
    """Send what a run logs to one place; this class drops tables and videos.

    config, folder: settings and folder of the run
    step: the step that the run continues from; None: it may go on elsewhere, so nothing is removed
    """

    package: str | None = None
    """Package that the tracker needs, which is also the name of the extra; None: every installation has it."""
    logger: TorchRLLogger

    def __init__(self, config: Config, folder: Path, step: int | None):
        self.folder = folder
        self.module: Any = import_module(self.package) if self.package else None
        self.logger = self.open(config, step)

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run."""
        raise NotImplementedError

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Send metrics of a step."""
        self.logger.log_metrics(dict(values), step)

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Send a table, if the tracker has tables."""

    def video(self, name: str, file: Path, step: int) -> None:
        """Send an MP4 file, if the tracker has videos."""

    def close(self) -> None:
        """Send what is left and end the connection."""
        self.logger.shutdown()

    def known(self) -> str | None:
        """Return the identity of the run at this tracker; None for a new run."""
        return _identities(self.folder).get(str(self.package))

    def keep(self, identity: str) -> None:
        """Save the identity of the run, so that a resumed run continues it."""
        found = _identities(self.folder) | {str(self.package): identity}
        write_json(self.folder / IDENTITY, found)


def _identities(folder: Path) -> dict[str, str]:
    file = folder / IDENTITY
    return read_json(file, "delete it") if file.is_file() else {}


class _TensorBoard(TensorboardLogger):
    """Continue TensorBoard's files; rows after the step that a run continues from are hidden."""

    def __init__(self, folder: Path, step: int | None):
        self.purge_step = None if step is None else step + 1
        super().__init__("tensorboard", str(folder))

    def _create_experiment(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = os.path.join(self.log_dir, self.exp_name)
        return SummaryWriter(folder, purge_step=self.purge_step)


class TensorBoardTracker(Tracker):
    """Write events into `tensorboard/`; tables become texts, and videos GIFs."""

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run."""
        return _TensorBoard(self.folder, step)

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Write a table as Markdown."""
        self.logger.experiment.add_text(name, grid.markdown(), step)

    def video(self, name: str, file: Path, step: int) -> None:
        """Write a video as GIF. TensorboardLogger.log_video writes nothing with moviepy 2."""
        from tensorboard.compat.proto.summary_pb2 import (
            Summary,  # pyright: ignore[reportAttributeAccessIssue]
        )

        picture = Summary.Image(encoded_image_string=_gif(file), colorspace=3)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self.logger.experiment.file_writer.add_summary(summary, step)


class CSVTracker(Tracker):
    """Write one file for each metric into `csv/`; tables become texts, and videos are dropped."""

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run, after removing rows of later steps."""
        if step is not None:
            for file in self.folder.glob("csv/scalars/**/*.csv"):
                rows = file.read_text().splitlines(keepends=True)
                kept = [row for row in rows if _has_step(row, step)]
                with replacing(file) as draft:
                    draft.write_text("".join(kept))
        return CSVLogger("csv", str(self.folder))

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Write a table as Markdown."""
        self.logger.experiment.add_text(f"{name}-", grid.markdown(), step)

    def close(self) -> None:
        """Close the files."""
        for file in self.logger.experiment.files.values():
            file.close()


def _has_step(row: str, last: int) -> bool:
    """Return whether a row begins with a step up to `last`."""
    step = row.partition(",")[0]
    return step.isdecimal() and int(step) <= last


class WandbTracker(Tracker):
    """Send everything to W&B. WANDB_MODE=offline keeps it in `wandb/`."""

    package = "wandb"

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run."""
        from torchrl.record.loggers.wandb import WandbLogger

        identity = self.known() or secrets.token_hex(4)
        self.keep(identity)
        logger = WandbLogger(
            config.name,
            save_dir=str(self.folder),
            id=identity,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            log_env_packages=False,  # it uploads the paths of this machine
        )
        logger.log_hparams(to_dict(config))
        return logger

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Send a table."""
        header, *rows = grid.rows
        self.logger.experiment.log({name: self.module.Table(header, rows)})

    def video(self, name: str, file: Path, step: int) -> None:
        """Send a video."""
        self.logger.experiment.log({name: self.module.Video(str(file), format="mp4")})


class MLflowTracker(Tracker):
    """Send everything to MLFLOW_TRACKING_URI, or into `mlflow.db` and `mlflow/` of the run."""

    package = "mlflow"

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run."""
        from torchrl.record.loggers.mlflow import MLFlowLogger

        server = os.environ.get("MLFLOW_TRACKING_URI")
        here = self.folder.absolute()
        known = self.known()
        if known:
            os.environ["MLFLOW_RUN_ID"] = known  # the logger starts this run again
        logger = MLFlowLogger(
            PROJECT,
            server or f"sqlite:///{here}/mlflow.db",
            artifact_location=None if server else (here / "mlflow").as_uri(),
        )
        os.environ.pop("MLFLOW_RUN_ID", None)
        if not known:
            self.keep(logger.experiment.info.run_id)
            self.module.set_tag("mlflow.runName", config.name)
            self.module.log_params(_flat(to_dict(config)))
        return logger

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Send a table."""
        header, *rows = grid.rows
        columns = {key: list(cells) for key, cells in zip(header, zip(*rows))}
        self.module.log_table(columns, f"{name}-{step}.json")

    def video(self, name: str, file: Path, step: int) -> None:
        """Send a video. MLFlowLogger.log_video needs torchcodec."""
        self.module.log_artifact(str(file), "videos")

    def close(self) -> None:
        """End the run at the tracker."""
        self.module.end_run()


class TrackioTracker(Tracker):
    """Write everything into TRACKIO_DIR, which `trackio show` reads."""

    package = "trackio"

    def open(self, config: Config, step: int | None) -> TorchRLLogger:
        """Return the logger that continues the run."""
        from torchrl.record.loggers.trackio import TrackioLogger

        identity = self.known() or f"{config.name}-{secrets.token_hex(4)}"
        self.keep(identity)
        return TrackioLogger(identity, PROJECT, config=_flat(to_dict(config)))

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Send a table."""
        pandas: Any = import_module("pandas")  # which trackio demands
        header, *rows = grid.rows
        table = self.module.Table(dataframe=pandas.DataFrame(rows, columns=header))
        self.logger.experiment.log({name: table}, step=step)

    def video(self, name: str, file: Path, step: int) -> None:
        """Send a video."""
        self.logger.experiment.log({name: self.module.Video(str(file))}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self.logger.experiment.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "csv": CSVTracker,
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
    "trackio": TrackioTracker,
}
"""Trackers by the value of `train.logger`."""


def check(name: str) -> None:
    """Raise UserError if the package of a tracker is missing."""
    package = TRACKERS[name].package
    if package is not None and find_spec(package) is None:
        raise UserError(
            f"train.logger={name} needs a package: pip install 'lssvwm[{package}]'"
        )


def open_tracker(config: Config, folder: Path, step: int | None) -> Tracker:
    """Return the tracker of a run; raises UserError if it does not accept the run."""
    name = config.train.logger
    check(name)
    try:
        return TRACKERS[name](config, folder, step)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"train.logger={name}: {reason[0]}; or choose train.logger=csv"
        ) from error


def share(
    config: Config,
    folder: Path,
    found: Row | None = None,
    videos: Sequence[Path] = (),
) -> str | None:
    """Send results to the tracker of their run; returns one line if that fails.

    folder: that of the run, whose last step the results belong to
    found: content of evaluation.json; None without an evaluation
    """
    log = folder / "metrics.jsonl"
    if not log.is_file():
        return None
    step = max((row.get("step", 0) for row in read_json_lines(log)), default=0)

    def send() -> None:
        tracker = open_tracker(config, folder, None)
        for number, grid in enumerate(evaluation_grids(found) if found else []):
            tracker.table(f"evaluation{number or ''}", grid, step)
        for file in videos:
            tracker.video(f"{file.parent.name}/{file.stem}", file, step)
        tracker.close()

    return guarded(config.train.logger, send)


def guarded(name: str, action: Callable[[], None]) -> str | None:
    """Do something at a tracker; returns one line if it fails in any way."""
    try:
        action()
    except Exception as error:  # a server that is gone, a full disk, another version
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"not sent to {name}: {reason[0]}"
    return None


def _flat(plain: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{above}{key}"
        inner = _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
        found |= inner
    return found


def _gif(file: Path) -> bytes:
    """Return a video as GIF, at most PREVIEW pixels wide."""
    reader = imageio_ffmpeg.read_frames(str(file))
    about: dict[str, Any] = next(reader)  # type: ignore[assignment]
    width, height = about["size"]
    images = []
    for frame in reader:
        pixels = np.frombuffer(frame, np.uint8).reshape(height, width, 3)  # type: ignore[arg-type]
        image = Image.fromarray(pixels)
        image.thumbnail((PREVIEW, PREVIEW))
        images.append(image.quantize(64))
    written = io.BytesIO()
    images[0].save(
        written,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / about["fps"]),
        loop=0,
    )
    return written.getvalue()
