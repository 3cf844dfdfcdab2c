"""Train: collect frames, take gradient steps, now and then collect more, evaluate and save."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from lssvwm.agent.config import composition
from lssvwm.agent.config.settings import Config
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.plots import plot_curves
from lssvwm.agent.interrupts import Postponed
from lssvwm.agent.progress import Progress
from lssvwm.agent.report import page
from lssvwm.agent.run_folder import refuse_existing_run
from lssvwm.agent.training import distributed
from lssvwm.agent.training.augmentation import draw_hidden, draw_resets
from lssvwm.agent.training.distributed import first, leads, only_first
from lssvwm.agent.training.logger import Logger
from lssvwm.agent.training.optimization import TrainingBatch
from lssvwm.agent.training.run import Run, begin, build, restore, save
from lssvwm.agent.training.trackers import open_tracker
from lssvwm.worldmodel import Masks
from lssvwm.worldmodel.batch_part import divided, own_rows
from torch import Tensor

LOG_EVERY = 10
"""Steps whose mean makes one row of the log."""
REPORT_EVERY = 300.0
"""Seconds between two reports of a run that trains, which take a second each."""


def train(config: Config, output: Path, until: float | None = None) -> Path:
    """Train a new run in the folder `output`, which is returned.

    until: success rate on the validation tasks at which training ends early
    """
    with ExitStack() as stack:

        def start() -> Run:
            refuse_existing_run(output, config)
            run = stack.enter_context(closing(build(config, output)))
            output.mkdir(parents=True, exist_ok=True)
            composition.save(config, output / "config.yaml")
            begin(run)
            return run

        learn(first(start) or join(config, output), until)
    return output


def restart(config: Config, folder: Path, until: float | None = None) -> Path:
    """Continue a run from its last checkpoint; returns its folder."""
    with ExitStack() as stack:

        def go_on() -> Run:
            run = stack.enter_context(closing(build(config, folder)))
            if not run.saved:
                begin(run)
            restore(run)
            composition.save(config, folder / "config.yaml")
            return run

        learn(first(go_on) or join(config, folder), until)
    return folder


def join(config: Config, folder: Path) -> Run:
    """Return the run that rank 0 has begun or restored, for another process."""
    run = build(config, folder)
    restore(run)
    return run


def learn(run: Run, until: float | None = None) -> None:
    """Train until `train.steps`, or a success rate; Ctrl-C ends the present step and saves."""
    config = run.config.train
    run.check_frames()
    run.share_frames()
    report = Report(run)
    with distributed.postponed() as interrupts:
        try:
            while run.step < config.steps:
                interrupts.check()
                report.add(step(run))
                run.step += 1
                if _due(run.step, LOG_EVERY) or run.step == config.steps:
                    report.flush()  # before saving: a resumed run must not log a step twice
                success = _collect_and_validate(run, report, interrupts)
                if until is not None and success is not None and success >= until:
                    break
                if _due(run.step, config.save_every):
                    save(run)
                    if not config.evaluate_every:
                        run.export_latest()
                    report.publish()
        except KeyboardInterrupt:
            if interrupts.complete:
                save(run)
            report.stop()
            distributed.agree(run.step)  # the others wait until it is saved
            raise KeyboardInterrupt(_progress_of(run)) from None
        report.flush()
        report.stop()
        save(run)
        if not config.evaluate_every or not run.evaluated:
            run.export_latest()
        report.close()


def _collect_and_validate(
    run: Run, report: Report, interrupts: Postponed
) -> float | None:
    """Do what is due after a step; returns the success if it was measured.

    An interrupt leaves the last saved step as it is, if frames or a validation are due: a resumed run repeats all since
    then.
    """
    config = run.config.train
    if _due(run.step, LOG_EVERY):
        run.refresh()
    collects = _due(run.step, config.collect.every) and run.step < config.steps
    validates = _due(run.step, config.evaluate_every)
    if not collects and not validates:
        return None
    with interrupts.at_once():
        if collects:
            report.add(run.collect_more())
        if not validates:
            return None
        success = run.validate()
        report.write({"evaluate/success": success})
        run.export_if_best(success)
    return success


def _progress_of(run: Run) -> str:
    """Return how far an interrupted run came, and which step is saved."""
    if run.saved_step == run.step:
        return f"at step {run.step}, saved"
    return f"at step {run.step}; saved is step {run.saved_step}"


class Report:
    """Log a run and show its progress; only rank 0 does."""

    def __init__(self, run: Run):
        self.run = run
        if leads():
            steps = run.config.train.steps
            tracker = open_tracker(run.config, run.folder, run.step)
            self.logger = Logger(run.folder, run.step, run.unlogged, tracker)
            self.progress = Progress("train", steps, "steps", run.step)
            self.published = time.monotonic()

    @only_first
    def add(self, metrics: dict[str, Tensor]) -> None:
        """Take metrics of a step."""
        self.logger.add(metrics)

    @only_first
    def write(self, values: dict[str, float]) -> None:
        """Log values of the present step."""
        self.logger.write(self.run.step, values)

    @only_first
    def flush(self) -> None:
        """Log the means of the latest steps and show them."""
        note = self.logger.flush(self.run.step) if self.logger.values else ""
        self.progress.update(self.run.step, note)

    @only_first
    def publish(self) -> None:
        """Write the report of the run, unless the last one is recent."""
        if time.monotonic() - self.published >= REPORT_EVERY:
            page.update(page.home(self.run.folder))
            self.published = time.monotonic()

    @only_first
    def stop(self) -> None:
        """End the line of progress."""
        self.progress.close()

    @only_first
    def close(self) -> None:
        """Close the log and plot it."""
        self.logger.close()
        plot_curves(self.run.folder)


def _due(at: int, every: int) -> bool:
    """Return whether something happens after step `at`; every 0 steps: never."""
    return every > 0 and at % every == 0


def step(run: Run) -> dict[str, Tensor]:
    """Take one gradient step on sequences of a drawn length; returns its metrics."""
    length, batch = draw_batch(run)
    try:
        metrics = run.learner.step(batch, run.step)
    except FloatingPointError:
        raise UserError(_advice(run)) from None
    run.lengths.learn(length, metrics["late"])
    metrics["length"] = torch.tensor(length)
    return metrics | run.lengths.metrics()


def _advice(run: Run) -> str:
    """Return the line about a loss that is not finite."""
    problem = f"the loss is not finite at step {run.step}: "
    lower = f"train.learning_rate={run.config.train.learning_rate / 4:g}"
    if run.saved_step == run.step > 0:
        return f"{problem}train again with {lower} and another output="
    return (
        f"{problem}continue from the weights of step {run.saved_step} "
        f"with `lssvwm resume {run.folder} {lower}`"
    )


def draw_batch(run: Run) -> tuple[int, TrainingBatch]:
    """Draw sequences and their masks; returns the frames that are trained on, and the batch."""
    config = run.config.train
    curriculum_started = run.step >= config.curriculum_start * config.steps
    burn_in = config.burn_in if curriculum_started else 0
    length, count = run.lengths.draw(run.rng)
    start_prob = config.episode_start_prob
    frames = burn_in + length
    part = distributed.part_of(count)
    with divided(part):
        sequences = run.replay.sample(count, frames, start_prob, run.rng, own_rows())
        is_first = sequences.is_first
        hidden, dark = draw_hidden(config.frame_mask, is_first, run.rng)
        resets = draw_resets(config.state_reset_prob, is_first, run.rng)
    walk_from = None
    if config.actor_critic.walks:
        walk_from = int(run.rng.integers(1, frames + 1))
    masks = Masks(hidden, dark, resets)
    batch = TrainingBatch(
        sequences, burn_in, masks, curriculum_started, walk_from, part
    )
    return length, batch.to(run.learner.device)
