"""Send metrics, tables and videos of a run to TensorBoard, CSV files, W&B, MLflow or Trackio, by TorchRL's loggers.

A tracker never decides about a run: if it fails while a run trains, one line says so and training goes on without it.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from lssvwm.agent.config.composition import to_dict
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.tables import Grid
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
    step: the step that the run continues from
    """

    package: str | None = None
    """Package that the tracker needs, which is also the name of the extra; None: every installation has it."""
    logger: TorchRLLogger

    def __init__(self, config: Config, folder: Path, step: int):
        self.folder = folder
        self.logger = self.open(config, step)

    def open(self, config: Config, step: int) -> TorchRLLogger:
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

    def identity(self) -> tuple[str, bool]:
        """Return the identity of the run at this tracker, and whether it is new."""
        file = self.folder / IDENTITY
        known = read_json(file, "delete it") if file.is_file() else {}
        name = str(self.package)
        is_new = name not in known
        if is_new:
            known[name] = secrets.token_hex(4)
            write_json(file, known)
        return known[name], is_new


class _TensorBoard(TensorboardLogger):
    """Continue TensorBoard's files; rows after the step that a run continues from are hidden."""

    def __init__(self, folder: Path, step: int):
        self.purge_step = step + 1
        super().__init__("tensorboard", str(folder))

    def _create_experiment(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = os.path.join(self.log_dir, self.exp_name)
        return SummaryWriter(folder, purge_step=self.purge_step)


class TensorBoardTracker(Tracker):
    """Write events into `tensorboard/`; tables become texts, and videos GIFs."""

    def open(self, config: Config, step: int) -> TorchRLLogger:
        """Return the logger that continues the run."""
        return _TensorBoard(self.folder, step)

    def table(self, name: str, grid: Grid, step: int) -> None:
        """Write a table as Markdown."""
        self.logger.experiment.add_text(name, grid.markdown(), step)

    def video(self, name: str, file: Path, step: int) -> None:
        """Write a video as GIF. TensorboardLogger.log_video writes nothing with moviepy 2."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        picture = Summary.Image(encoded_image_string=_gif(file), colorspace=3)
        summary = Summary(value=[Summary.Value(tag=name, image=picture)])
        self.logger.experiment.file_writer.add_summary(summary, step)


class CSVTracker(Tracker):
    """Write one file for each metric into `csv/`; tables become texts, and videos are dropped."""

    def open(self, config: Config, step: int) -> TorchRLLogger:
        """Return the logger that continues the run, after removing rows of later steps."""
        for file in self.folder.glob("csv/scalars/**/*.csv"):
            rows = file.read_text().splitlines(keepends=True)
            kept = [row for row in rows if int(row.partition(",")[0]) <= step]
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


class WandbTracker(Tracker):
    """Send everything to W&B. WANDB_MODE=offline keeps it in `wandb/`."""

    package = "wandb"

    def open(self, config: Config, step: int) -> TorchRLLogger:
        """Return the logger that continues the run."""
        from torchrl.record.loggers.wandb import WandbLogger

        identity, _ = self.identity()
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
        import wandb

        header, *rows = grid.rows
        self.logger.experiment.log({name: wandb.Table(header, rows)})

    def video(self, name: str, file: Path, step: int) -> None:
        """Send a video."""
        import wandb

        self.logger.experiment.log({name: wandb.Video(str(file), format="mp4")})


class MLflowTracker(Tracker):
    """Send everything to MLFLOW_TRACKING_URI, or into `mlflow.db` and `mlflow/`."""

    package = "mlflow"

    def open(self, config: Config, step: int) -> TorchRLLogger:
        """Return the logger that continues the run."""
        import mlflow
        from torchrl.record.loggers.mlflow import MLFlowLogger

        server = os.environ.get("MLFLOW_TRACKING_URI")
        here = self.folder.absolute()
        logger = MLFlowLogger(
            PROJECT,
            server or f"sqlite:///{here}/mlflow.db",
            artifact_location=None if server else (here / "mlflow").as_uri(),
        )
        return logger
