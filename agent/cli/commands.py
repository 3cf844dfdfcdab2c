"""Run the commands: compose the configuration, do the work, say what to do next."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from lssvwm.agent.checkpoint import BEST, EXPORT, read_config, resolve
from lssvwm.agent.cli import show_settings
from lssvwm.agent.cli.failures import saved
from lssvwm.agent.config.composition import (
    collecting,
    compose,
    from_checkpoint,
    given,
    read,
    stage_configs,
    trust_setting,
)
from lssvwm.agent.config.presets import pretrained
from lssvwm.agent.config.settings import (
    BenchmarkRunConfig,
    CheckpointConfig,
    Config,
    PlayRunConfig,
    RecordRunConfig,
    SavedRunConfig,
)
from lssvwm.agent.errors import UserError
from lssvwm.agent.evaluation.origin import free_folder, same_checkpoint, same_machine
from lssvwm.agent.run_folder import refuse_existing_run

TRAINED = {
    "memory": "memory_benchmark",
    "recall": "recall_benchmark",
    "strategies": "strategies",
}
"""Benchmarks that train models, and the experiment of each."""
ON_CHECKPOINTS = {"memorymaze": "runs/memorymaze9", "pose": "recall9"}
"""Benchmarks of one checkpoint, and an example of each."""
NEEDED_TO_PLAY = ("starlette", "uvicorn", "websockets")
PLAYED = "return9"
"""Packaged model that `play` starts with."""
AnyConfig = TypeVar("AnyConfig", bound=CheckpointConfig)


def train(settings: list[str], show: bool) -> None:
    """Start a new run."""
    config = compose(settings)
    if show:
        return show_settings.of_new_run(config, settings)
    output = output_folder(config, "runs", config.name)
    with saved(output, resumable=True):
        from lssvwm.agent.training import distributed, stages

        with distributed.processes():
            distributed.first(lambda: refuse_existing_run(output, config))
            print(f"train {config.name} on {_summary(config.env)}")
            _print_course(config, output)
            _print_varied([config, *stage_configs(config).values()], settings)
            _print_trained(stages.train(config, output))


def _print_course(config: Config, output: Path) -> None:
    """Say what a training run will do."""
    if config.stages:
        print(f"in stages: {', '.join(config.stages)}; all goes to {output}")
        return
    frames = f"{config.train.collect.frames:,} frames unless {output}/data has some"
    print(f"on the frames in {config.data}," if config.data else f"collects {frames},")
    batch = f"{config.train.batch} x {config.train.length} frames"
    print(f"then {config.train.steps:,} steps of {batch}; all goes to {output}")


def _print_varied(configs: Sequence[Config], settings: Sequence[str]) -> None:
    """Say which settings of the environment do not hold for the frames that are collected."""
    for name in dict.fromkeys(key for c in configs for key in c.train.collect.vary):
        if (value := given(settings, f"env.{name}")) is not None:
            varied = f"train.collect.vary sets {name}"
            print(f"collected frames ignore env.{name}={value}: {varied}")


def resume(folder_name: str | None, settings: list[str], show: bool) -> None:
    """Continue a run."""
    if folder_name is None or _is_setting(folder_name):
        raise UserError("which run? e.g. lssvwm resume runs/tmaze")
    refuse_model_settings(settings)
    folder = Path(folder_name).expanduser()
    if show:
        config = from_checkpoint(read(folder / "config.yaml"), settings, SavedRunConfig)
        return show_settings.of_checkpoint(config, settings, str(folder))
    changes = f" with {' '.join(settings)}" if settings else ""
    with saved(folder, resumable=True):
        from lssvwm.agent.training import distributed, stages

        with distributed.processes():
            print(f"resume the run in {folder}{changes}")
            _print_trained(stages.resume(folder, settings))


def _is_setting(argument: str) -> bool:
    """Return whether an argument is `key=value`, and not a folder with such a name."""
    return "=" in argument and not Path(argument).expanduser().is_dir()


def evaluate(settings: list[str], show: bool) -> None:
    """Measure planning success of a checkpoint."""
    config = of_checkpoint("evaluate", settings, CheckpointConfig)
    if show:
        return show_settings.of_checkpoint(config, settings)
    output = evaluation_folder(config)
    tasks = f"{config.tasks.count:,} tasks (seed {config.tasks.seed})"
    print(f"evaluate {config.checkpoint} on {tasks} of {_summary(config.env)}")
    print(f"with planner {_summary(config.planner)}; results go to {output}")
    with saved(output):
        from lssvwm.agent.evaluation import evaluate as evaluation

        found = evaluation.evaluate(config, output)
        _print_written(sorted(path for path in output.iterdir() if path.is_file()))
        _publish(config, output, found)
        print(f"next: lssvwm record {_same_checkpoint(config)} mode=plan")


def record(settings: list[str], show: bool) -> None:
    """Record videos of a checkpoint."""
    settings = [long_form(setting) for setting in settings]
    config = of_checkpoint("record", settings, RecordRunConfig)
    if show:
        return show_settings.of_checkpoint(config, settings)
    output = video_folder(config)
    tasks = f"{config.record.episodes} tasks of {_summary(config.env)}"
    print(f"record {config.checkpoint} on {tasks}")
    print(f"mode {config.record.mode}; videos go to {output}")
    with saved(output):
        from lssvwm.agent.video import record as video

        files = video.record(config, output)
        _print_written(files)
        _publish(config, output, videos=[f for f in files if f.suffix == ".mp4"])
        other = "plan" if config.record.mode == "open_loop" else "open_loop"
        command = f"lssvwm record {_same_checkpoint(config)} mode={other}"
        print(f"next: watch them, or {command}")


def report(arguments: list[str]) -> None:
    """Write the report of the folders of runs."""
    settings = [text for text in arguments if _is_setting(text)]
    folders = [Path(text).expanduser() for text in arguments if text not in settings]
    if not folders:
        raise UserError("which runs? e.g. lssvwm report runs/tmaze")
    for text in settings:
        if not text.startswith("output="):
            raise UserError(f"{text}: the only setting of a report is output=FILE.html")
    output = given(settings, "output")
    from lssvwm.agent.report.page import write_report

    with saved(Path(output or folders[0]).parent, again="run it again"):
        print(f"report: {write_report(folders, Path(output) if output else None)}")


def play(settings: list[str], show: bool) -> None:
    """Serve the page for walking in imagination."""
    if given(settings, "checkpoint") is None:
        settings = [f"checkpoint={PLAYED}", *settings]
    config = of_checkpoint("play", settings, PlayRunConfig)
    if show:
        return show_settings.of_checkpoint(config, settings)
    missing = [name for name in NEEDED_TO_PLAY if find_spec(name) is None]
    if missing:
        raise UserError(
            f"play needs {', '.join(missing)}: pip install 'lssvwm[play]' "
            f"(in a checkout: pip install '.[play]')"
        )
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    from lssvwm.agent.play.server import serve

    print(f"play {config.checkpoint} on {_summary(config.env)}")
    serve(config)


def collect(settings: list[str], show: bool) -> None:
    """Collect frames only."""
    composed = of_presets_or_checkpoint("collect", settings)
    name = short_name(composed) if composed.checkpoint else composed.name
    config = collecting(composed, begins=not composed.checkpoint)
    if show and config.checkpoint:
        return show_settings.of_checkpoint(config, settings)
    if show:
        return show_settings.of_new_run(config, settings)
    output = output_folder(config, "data", name)
    frames = f"{config.train.collect.frames:,} frames of {_summary(config.env)}"
    print(f"collect {frames} into {output}")
    if composed.stages:
        number = len(composed.stages) if composed.checkpoint else 1
        print(f"as stage {number} of {len(composed.stages)} does")
    _print_varied([config], settings)
    with saved(output):
        from lssvwm.agent.training import collection

        collection.collect(config, output)
    _print_written([output])
    if output.name == "data" and not composed.stages:
        print(f"next: lssvwm train with the same settings and output={output.parent}")
    else:
        print(f"next: lssvwm train data={output}, with the same settings")


def benchmark(name: str, about: str, settings: list[str], show: bool) -> None:
    """Run a benchmark; `about` says what it measures."""
    if name == "planning":
        return _benchmark_planning(about, settings, show)
    if name in ON_CHECKPOINTS:
        return _benchmark_checkpoint(name, about, settings, show)
    has_experiment = any(text.startswith("experiment=") for text in settings)
    if name in TRAINED and not has_experiment:
        settings = [f"experiment={TRAINED[name]}", *settings]
    config = compose(settings, BenchmarkRunConfig)
    if show:
        return show_settings.of_new_run(config, settings)
    output = output_folder(config, "runs", "benchmark")
    continues = name in TRAINED or name in ("agents", "seeds")
    if not continues:
        file = f"{name}.json"
        output = free_folder(output, file, same_machine(config), bool(config.output))
    print(f"benchmark {name}: {about} Results go to {output}")
    again = "run it again to continue" if continues else "run it again"
    with saved(output, again=again):
        _print_written([_measure(name, config, settings, output)])


def _measure(
    name: str, config: BenchmarkRunConfig, settings: list[str], output: Path
) -> Path:
    """Call the function of a benchmark; returns the file that it wrote."""
    match name:
        case "memory":
            from lssvwm.agent.benchmarks.memory_recall import memory

            return memory(settings, output)
        case "recall":
            from lssvwm.agent.benchmarks.training_strategies import recall

            return recall(settings, output)
        case "agents":
            from lssvwm.agent.benchmarks.agents import agents

            return agents(settings, output)
        case "seeds":
            from lssvwm.agent.benchmarks.seeds import seeds

            return seeds(settings, output)
        case "strategies":
            from lssvwm.agent.benchmarks.training_strategies import strategies

            return strategies(settings, output)
        case "planners":
            from lssvwm.agent.benchmarks.planner_baselines import compare_planners

            return compare_planners(config, output)
        case "decide":
            from lssvwm.agent.benchmarks.decision_latency import decide

            return decide(config, output)
        case "device":
            from lssvwm.agent.benchmarks.device import device

            return device(config, output)
    from lssvwm.agent.benchmarks import throughput

    measurements = {
        "envs": throughput.envs,
        "speed": throughput.speed,
        "fork": throughput.fork,
    }
    return measurements[name](config, output)


def _benchmark_planning(about: str, settings: list[str], show: bool) -> None:
    """Evaluate checkpoints with every combination of settings in `benchmark.sweep`."""
    from lssvwm.agent.benchmarks.planning_sweep import (
        cases,
        folder,
        planning,
        same_sweep,
    )

    chosen = given(settings, "output")
    output = Path(chosen or folder(settings)).expanduser()
    if show:
        return show_settings.of_checkpoint(cases(settings, output)[0].config, settings)
    output = free_folder(output, "planning.json", same_sweep(settings), bool(chosen))
    print(f"benchmark planning: {about} Results go to {output}")
    with saved(output, again="run it again to continue"):
        _print_written([planning(settings, output)])


def _benchmark_checkpoint(
    name: str, about: str, settings: list[str], show: bool
) -> None:
    """Run a benchmark of one checkpoint."""
    if given(settings, "checkpoint") is None:
        example = f"e.g. lssvwm benchmark {name} checkpoint={ON_CHECKPOINTS[name]}"
        raise UserError(f"which checkpoint? {example}")
    config = of_checkpoint(f"benchmark {name}", settings, BenchmarkRunConfig)
    if show:
        return show_settings.of_checkpoint(config, settings)
    print(f"benchmark {name}: {about}")
    measure = _measure_pose if name == "pose" else _measure_memory_maze
    _print_written([measure(config)])


def _measure_memory_maze(config: BenchmarkRunConfig) -> Path:
    from lssvwm.agent.benchmarks.memory_maze import FILE, USED, memory_maze

    folder = output_folder(config, "runs", "benchmark", "memorymaze")
    output = folder / short_name(config)
    output = free_folder(output, FILE, same_checkpoint(config, USED), chosen=False)
    print(f"results go to {output}")
    with saved(folder, again="run it again to continue"):
        return memory_maze(config, folder, output)


def _measure_pose(config: BenchmarkRunConfig) -> Path:
    from lssvwm.agent.benchmarks.pose_error import RESULT, USED, pose

    output = output_folder(config, default_folder(config) / "pose")
    is_ours = same_checkpoint(config, USED)
    output = free_folder(output, RESULT, is_ours, bool(config.output))
    print(f"results go to {output}")
    with saved(output, again="run it again"):
        return pose(config, output)


def doctor(settings: list[str], show: bool) -> None:
    """Print versions, devices and backends."""
    config = compose(settings)
    if show:
        return show_settings.of_new_run(config, settings)
    from lssvwm.agent.cli.doctor import report

    print(report(config))


def long_form(setting: str) -> str:
    """Write out the short form `mode=` of a setting."""
    return f"record.{setting}" if setting.startswith("mode=") else setting


def of_checkpoint(
    command: str, settings: Sequence[str], cls: type[AnyConfig]
) -> AnyConfig:
    """Return the configuration of the checkpoint in `settings`, changed by them.

    Raises UserError if there is no checkpoint, or if a setting would need other weights.
    """
    name = given(settings, "checkpoint")
    if name is None:
        raise UserError(
            f"which checkpoint? e.g. lssvwm {command} checkpoint=runs/tmaze"
        )
    refuse_model_settings(settings)
    return from_checkpoint(read_config(resolve(name)), settings, cls)


def refuse_model_settings(settings: Sequence[str]) -> None:
    """Raise UserError if a setting would need other weights than the trained ones."""
    fixed = [text for text in settings if text.startswith(("model=", "model."))]
    if fixed:
        raise UserError(
            f"{fixed[0]} cannot change trained weights; train with it: lssvwm train {fixed[0]}"
        )


def of_presets_or_checkpoint(command: str, settings: Sequence[str]) -> CheckpointConfig:
    """Return the configuration of the checkpoint in `settings`, or of presets if they name none."""
    if given(settings, "checkpoint"):
        return of_checkpoint(command, settings, CheckpointConfig)
    return compose(settings, CheckpointConfig)


def default_folder(config: CheckpointConfig) -> Path:
    """Return the folder below which results of a checkpoint go.

    That is the folder of its run, or one below runs/pretrained for weights without a run and read-only runs.
    """
    name = str(config.checkpoint)
    run = _run_folder(name)
    is_run = name not in pretrained() and resolve(name) != run
    if is_run and os.access(run, os.W_OK):
        return run
    return Path("runs", "pretrained", short_name(config))


def _run_folder(checkpoint: str) -> Path:
    """Return the folder of a checkpoint, or of its run for exported weights."""
    folder = Path(checkpoint).expanduser()
    return folder.parent if folder.name in (BEST, EXPORT) else folder


def short_name(config: CheckpointConfig) -> str:
    """Return the last part of the checkpoint's name, or of the folder of its run."""
    return _run_folder(str(config.checkpoint)).resolve().name


def output_folder(config: Config, *default: str | Path) -> Path:
    """Return the folder for results: `output`, or the parts of the default."""
    return Path(config.output).expanduser() if config.output else Path(*default)


def evaluation_folder(config: CheckpointConfig) -> Path:
    """Return the folder for an evaluation, in which it replaces no other one."""
    folder = output_folder(config, default_folder(config) / "evaluation")
    is_ours = same_checkpoint(config)
    return free_folder(folder, "evaluation.json", is_ours, bool(config.output))


def video_folder(config: RecordRunConfig) -> Path:
    """Return the folder for videos, in which they replace no others."""
    folder = output_folder(config, default_folder(config) / "video")
    file = f"{config.record.mode}-0.json"
    is_ours = same_checkpoint(config)
    return free_folder(folder, file, is_ours, bool(config.output))


def report_folder(config: CheckpointConfig, output: Path) -> Path:
    """Return the folder of the run that results lie in; otherwise their own folder."""
    run = _run_folder(str(config.checkpoint))
    in_run = output.resolve().parent == run.resolve()
    return output.parent if in_run or not config.output else output


def _summary(section: Any) -> str:
    """Return the kind of a section and the settings that differ from its defaults."""
    defaults = dataclasses.asdict(type(section)())
    values = dataclasses.asdict(section)
    changed = [f"{k}={v}" for k, v in values.items() if v != defaults[k]]
    return " ".join([section.kind, *changed])


def _same_checkpoint(config: CheckpointConfig) -> str:
    """Return the settings that choose the same checkpoint again."""
    name = str(config.checkpoint)
    return f"{shlex.quote(f'checkpoint={name}')}{trust_setting(resolve(name))}"


def _print_trained(folder: Path) -> None:
    from lssvwm.agent.training import distributed

    _print_written([folder])
    distributed.only_first(_print_report)(folder)
    name = f"./{folder}" if str(folder) in pretrained() else str(folder)
    chosen = shlex.quote(f"checkpoint={name}")
    trust = trust_setting(folder)
    print(f"next: lssvwm evaluate {chosen}{trust}")
    print(f"      lssvwm record {chosen} mode=plan{trust}")


def _publish(
    config: CheckpointConfig,
    output: Path,
    found: dict[str, Any] | None = None,
    videos: Sequence[Path] = (),
) -> None:
    """Send results in `output` to the tracker of their run, and write its report."""
    from lssvwm.agent.training.trackers import share

    folder = report_folder(config, output)
    if failure := share(config, folder, found, videos):
        print(failure)
    _print_report(folder)


def _print_report(folder: Path) -> None:
    from lssvwm.agent.report.page import update

    print(update(folder))


def _print_written(paths: Sequence[Path]) -> None:
    print("wrote " + (" ".join(str(path) for path in paths) or "nothing"))
