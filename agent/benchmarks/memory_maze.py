"""Measure what a checkpoint remembers of Memory Maze by published tests: `lssvwm benchmark memorymaze`.

    probes      walls and objects, read off the memory on held-out walks (see `memory_probes`)
    revisited   PSNR of imagined frames whose pose was visited more than LONG_AGO frames before
    retrieval   the walker walks 400 frames, turns round and follows its way back for 400 frames
    reasoning   the walker walks 576 frames and walks on for 224 frames

In the last three, the model observes the first frames, and imagines the others from the actions. Retrieval and
reasoning have the lengths of LSSVWM (arXiv 2505.20171). Its model gets positions instead of actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks.frame_comparison import (
    Row,
    compare_all,
    frame_errors,
    imagine,
    psnr,
)
from lssvwm.agent.benchmarks.maze_walks import NEVER, remember
from lssvwm.agent.benchmarks.memory_probes import (
    EVERY,
    SIZE,
    Answers,
    constant,
    fit,
    memory_features,
    predict,
    score,
)
from lssvwm.agent.benchmarks.memory_recall import contexts
from lssvwm.agent.benchmarks.pose_walks import (
    Job,
    PoseWalk,
    Segment,
    check_environment,
    jobs,
    read_walk,
    record_missing,
    visit_age,
)
from lssvwm.agent.build import action_count, build_env
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation import results, tables
from lssvwm.agent.evaluation.evaluate import task_seeds
from lssvwm.agent.evaluation.origin import Origin, used_settings, weights_hash
from lssvwm.agent.files import locked, read_json, replacing
from lssvwm.agent.progress import Progress
from lssvwm.envs.base import Discrete
from lssvwm.worldmodel import Memory, WorldModel
from torch import Tensor

FRAMES = 1000
"""Frames of a walk, as published, unless episodes are shorter."""
PROTOCOLS = {"retrieval": (400, 400), "reasoning": (576, 224)}
"""Observed and imagined frames of LSSVWM's tests."""
LONG_AGO = 100
"""Frames since the last visit beyond which a place counts as revisited."""
GROUPS = {
    "new": (NEVER, NEVER),
    "recent": (1, LONG_AGO),
    "revisited": (LONG_AGO + 1, 1 << 30),
}
"""Ranges of the age of the last visit."""
OBSERVED, IMAGINED = 8, 2
"""Walks that are observed, or imagined, at once."""
ARMS = ("retained", "erased")
FILE = "memorymaze.json"
T = TypeVar("T")
USED = ("walks", "probed", "probe_steps", "horizon")
"""Settings of section `benchmark` that results depend on."""


def memory_maze(config: BenchmarkRunConfig, folder: Path, output: Path) -> Path:
    """Run the tests of one checkpoint that its results lack. Returns the JSON file.

    folder: keeps walks for all checkpoints, and projected memories
    output: folder of the results
    Raises UserError for an environment without layout and objects.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(str(config.checkpoint), config.device, config.backend)
    frames = _check(config, model)
    held_out = config.benchmark.walks
    seeds = task_seeds(config.tasks.seed, held_out + config.benchmark.probed)
    kept = Results(config, frames, output / FILE)
    with locked(folder):
        todo = jobs(config, folder / "walks", seeds, frames)
        back = _jobs_back(config, folder, seeds[:held_out], frames)
        record_missing([*todo, *back], config.benchmark.processes)
        if not any(kept.has(group, "retained") for group in GROUPS):
            kept.add(_revisits(config, model, todo[:held_out]))
        for test, walks in (("retrieval", back), ("reasoning", todo[:held_out])):
            if not kept.has(test, "retained"):
                kept.add(_protocol(model, test, walks))
        if config.benchmark.probed:
            _probes(config, model, todo, folder, kept)
    grids = tables.memory_maze_grids(kept.found)
    tables.publish(grids, output / "memorymaze.md")
    return output / FILE


class Results:
    """Keep the rows of one checkpoint in a file, which grows with every part.

    The file must be missing or belong to the same settings and weights.
    """

    def __init__(self, config: BenchmarkRunConfig, frames: int, file: Path):
        self.file = file
        self.found: dict[str, Any] = {
            "command": "lssvwm benchmark memorymaze",
            "origin": dataclasses.asdict(Origin.of(str(config.checkpoint))),
            "settings": used_settings(config, USED),
            "frames": frames,
            "rows": [],
        }
        if file.exists():
            self.found["rows"] = read_json(file, "delete it to measure again")["rows"]

    def has(self, test: str, arm: str) -> bool:
        """Return whether a test of an arm is done."""
        return any((r["test"], r["arm"]) == (test, arm) for r in self.found["rows"])

    def add(self, rows: list[Row]) -> None:
        """Add rows and write the file."""
        self.found["rows"] += rows
        results.write_json(self.file, self.found)


def _check(config: BenchmarkRunConfig, model: WorldModel) -> int:
    """Return the frames of a walk; raises UserError if a setting makes no sense."""
    env = build_env(config.env, 1)
    try:
        check_environment(env, config.env.kind)
        discrete = isinstance(env.actions, Discrete)
        checkpoint.check_fits(model, env.frame_shape, action_count(env), discrete)
    finally:
        env.close()
    frames = min(FRAMES, config.env.steps or FRAMES)
    if config.benchmark.horizon > frames // 2:
        raise UserError(
            f"benchmark.horizon={config.benchmark.horizon} exceeds "
            f"half a walk of {frames} frames"
        )
    if config.benchmark.probed == 1:
        raise UserError("benchmark.probed=1: one walk more is needed to validate")
    return frames


def _jobs_back(
    config: BenchmarkRunConfig, folder: Path, seeds: np.ndarray, frames: int
) -> list[Job]:
    """List the walks that turn round; none if walks are too short."""
    context, horizon = PROTOCOLS["retrieval"]
    if context + horizon > frames:
        return []
    return jobs(config, folder / "walks", seeds, context + horizon, context)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut items into batches."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


# ---- imagined frames


def _revisits(
    config: BenchmarkRunConfig, model: WorldModel, todo: list[Job]
) -> list[Row]:
    """Compare imagined with real frames by the age of the last visit to their pose."""
    horizon = config.benchmark.horizon
    errors: dict[str, list[np.ndarray]] = {}
    ages = []
    progress = Progress("imagine", len(todo), "walks")
    for some in _batches(todo, IMAGINED):
        walks = [read_walk(job) for job in some]
        for segment, memory in _segments(model, walks, horizon):
            progress.refresh()
            for arm, imagined in _arms(model, segment, memory).items():
                errors.setdefault(arm, []).append(frame_errors(segment, imagined))
            poses = segment.pose.numpy()
            ages.append(np.stack([visit_age(p, segment.context) for p in poses]))
        progress.update(progress.done + len(some))
    progress.close()
    age = np.concatenate(ages)
    by_arm = {arm: np.concatenate(error) for arm, error in errors.items()}
    return [row for arm in by_arm for row in _by_visit(arm, by_arm[arm], age)]


def _segments(
    model: WorldModel, walks: list[PoseWalk], horizon: int
) -> Iterator[tuple[Segment, Memory]]:
    """Yield parts of walks with the memory of their contexts; the latter grow by `horizon`."""
    length = len(walks[0].frames)
    memory: Memory | None = None
    begin = 0
    for context in range(length // 2, length - horizon + 1, horizon):
        segment = Segment.of(walks, context, 0, context + horizon)
        inputs = (segment.frames, segment.action, segment.pose)
        some = (v[:, begin:context].to(model.device) for v in inputs)
        memory = remember(model, *some, memory=memory)
        yield segment, memory
        begin = context


def _arms(model: WorldModel, segment: Segment, memory: Memory) -> dict[str, Tensor]:
    """Imagine with the memory and without it; the last frame observed is a floor."""
    erased = contexts(model, segment, erased=True)
    last = segment.frames[:, segment.context - 1 : segment.context]
    horizon = segment.frames.shape[1] - segment.context
    return {
        "retained": imagine(model, segment, [memory]),
        "erased": imagine(model, segment, erased),
        "last_frame": last.expand(-1, horizon, -1, -1, -1),
    }


def _by_visit(arm: str, error: np.ndarray, age: np.ndarray) -> list[Row]:
    """Return PSNR of frames in each of GROUPS that occurs."""
    rows = []
    for group, (low, high) in GROUPS.items():
        inside = (age >= low) & (age <= high)
        if inside.any():
            row: Row = {"test": group, "arm": arm, "n": int(inside.sum())}
            rows.append(row | {"psnr": psnr(error[inside])})
    return rows


def _protocol(model: WorldModel, test: str, todo: list[Job]) -> list[Row]:
    """Run one of PROTOCOLS; nothing if there are no walks that are long enough."""
    context, horizon = PROTOCOLS[test]
    if not todo or context + horizon > todo[0].frames:
        return []
    found: dict[str, list[Row]] = {}
    progress = Progress(test, len(todo), "walks")
    for some in _batches(todo, IMAGINED):
        walks = [read_walk(job) for job in some]
        segment = Segment.of(walks, context, 0, context + horizon)
        (memory,) = contexts(model, segment)
        for arm, imagined in _arms(model, segment, memory).items():
            found.setdefault(arm, []).append(compare_all(segment, imagined))
        progress.update(progress.done + len(some))
    progress.close()
    return [{"test": test, "arm": arm} | _mean(some) for arm, some in found.items()]


def _mean(rows: list[Row]) -> Row:
    """Average rows over their walks."""
    counts = [row["n"] for row in rows]
    means = {
        key: float(np.average([row[key] for row in rows], weights=counts))
        for key in ("psnr", "ssim")
    }
    return {"n": sum(counts)} | means


# ---- probes


@dataclasses.dataclass(frozen=True)
class Data:
    """Hold what probes of one target are trained and scored on; held-out walks come first.

    y [W, F, k]: targets
    """

    test: str
    y: Tensor
    held_out: int
    steps: int

    def score(self, predicted: Tensor, arm: str) -> Row:
        """Score the predictions of held-out walks."""
        found = score(self.test, predicted, self.y[: self.held_out])
        return {"test": self.test, "arm": arm, "n": self.held_out, "score": found}

    def constant(self) -> Row:
        """Score the best constant prediction: a floor."""
        guess = constant(self.test, self.y[self.held_out :], self.held_out)
        return self.score(guess, "constant")

    def probe(self, x: Tensor, arm: str) -> Row:
        """Train a probe on numbers x [W, F, m] and score it."""
        x = x.to(self.y.device)
        progress = Progress(f"probe of {self.test}, {arm}", self.steps, "steps")

        def tick() -> None:
            progress.update(progress.done + 1)

        fitted = slice(self.held_out, None)
        trained = fit(self.test, x[fitted], self.y[fitted], self.steps, tick)
        progress.close()
        return self.score(predict(trained, x[: self.held_out]), arm)


def _probes(
    config: BenchmarkRunConfig,
    model: WorldModel,
    todo: list[Job],
    folder: Path,
    kept: Results,
) -> None:
    """Train the probes that `kept` lacks; the first walks are held out."""
    name = f"{weights_hash(str(config.checkpoint))}-{SIZE}-{EVERY}"
    files = _keep_features(model, todo, folder / "memories" / name)
    answers = _all_answers(todo)
    where = torch.from_numpy(answers.coordinates)
    settings = config.benchmark
    for test in ("walls", "objects"):
        y = torch.from_numpy(getattr(answers, test)).to(model.device)
        if test == "walls":
            y = y[:, None].expand(-1, where.shape[1], -1)
        data = Data(test, y, settings.walks, settings.probe_steps)
        if not kept.has(test, "constant"):
            kept.add([data.constant()])
        for arm in ARMS:
            if kept.has(test, arm):
                continue
            x = torch.from_numpy(np.stack([_read_features(f, arm) for f in files]))
            if test == "walls":
                x = torch.cat((x, where.to(x.dtype)), -1)
            kept.add([data.probe(x, arm)])


def _keep_features(model: WorldModel, todo: list[Job], folder: Path) -> list[Path]:
    """Write the projected memories of walks that have none. Returns the file of each walk."""
    files = [folder / job.file.parent.name / job.file.name for job in todo]
    missing = [pair for pair in zip(todo, files) if not pair[1].exists()]
    progress = Progress("observe", len(todo), "walks", len(todo) - len(missing))
    for some in _batches(missing, OBSERVED):
        walks = [read_walk(job) for job, _ in some]
        arms = {
            arm: memory_features(model, walks, arm == "erased", progress.refresh)
            for arm in ARMS
        }
        for i, (_, file) in enumerate(some):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as draft:
                np.savez(draft, **{arm: values[i] for arm, values in arms.items()})
        progress.update(progress.done + len(some))
    progress.close()
    return files


def _read_features(file: Path, arm: str) -> np.ndarray:
    """Read the projected memories of one walk, float16 [F, m]; raises UserError."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            return saved[arm]
    except Exception as error:
        raise UserError(f"{file} is damaged ({error}): delete it") from None


def _all_answers(todo: list[Job]) -> Answers:
    """Return the targets of all walks."""
    parts = []
    progress = Progress("read", len(todo), "walks")
    for job in todo:
        parts.append(Answers.of([read_walk(job)]))
        progress.update(progress.done + 1)
    progress.close()
    names = ("coordinates", "walls", "objects")
    return Answers(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in names)
    )
