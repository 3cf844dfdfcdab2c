"""The console script `lssvwm`: read the command line, compose the configuration, call, say what to do next.

What needs torch is imported when a command runs, so that help is quick and a typo is answered at once.
"""

from __future__ import annotations

import difflib
import errno
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssvwm.agent.cli import manual

if TYPE_CHECKING:
    from lssvwm.agent.config.settings import Config

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes."""
FULL = 1 << 20
"""A disk with fewer free bytes than this is taken for the cause of a failed write."""
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
SHORT = {"mode": "record.mode"}


class Stop(Exception):
    """Ends the program with one line and an exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lssvwm`; returns the exit code: 0, 1 (failed), 2 (a mistake in the command line), 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if text := _help(arguments):
        print(text, end="")
        return 0
    try:
        _run(arguments[0], [_long(text) for text in arguments[1:]])
    except Stop as stop:
        print(f"lssvwm: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("lssvwm: stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def _help(arguments: list[str]) -> str | None:
    """What is asked for in place of a command: help or the version; None for a command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return manual.overview()
    if arguments[0] == "--version":
        from importlib.metadata import version

        return f"lssvwm {version('lssvwm')}\n"
    if arguments[0] in COMMANDS and {"-h", "--help"} & set(arguments[1:]):
        return manual.page(arguments[0])
    return None


def _long(text: str) -> str:
    key, equals, value = text.partition("=")
    return f"{SHORT.get(key, key)}{equals}{value}"


def _run(command: str, settings: list[str]) -> None:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        meant = (
            f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        )
        raise Stop(f"unknown command {command}; {meant}", USER_ERROR)
    from lssvwm.agent.errors import UserError

    try:
        COMMANDS[command](settings)
    except UserError as error:
        raise Stop(" ".join(str(error).split()), USER_ERROR) from None


# ---- the commands


def train(settings: list[str]) -> None:
    """`lssvwm train`: a new run."""
    from lssvwm.agent.config.composition import compose
    from lssvwm.agent.errors import UserError

    show, settings = _without_show(settings)
    config = compose(settings)
    output = _output(config, "runs", config.name)
    if show:
        return _show(config)
    if (output / "config.yaml").exists():
        raise UserError(
            f"{output} holds a run already: use `lssvwm resume {output}`, or another output="
        )
    plan = config.train
    print(f"train {config.name} on {_text(config.env)}")
    frames = (
        f"on the frames in {config.data}"
        if config.data
        else f"collects {plan.collect.frames:,} frames unless {output}/data has some"
    )
    print(f"{frames},")
    print(
        f"then {plan.steps:,} steps of {plan.batch} x {plan.length} frames; all goes to {output}"
    )
    with _saved(output, resumable=True):
        from lssvwm.agent.training.loop import train as run

        _trained(run(config, output))


def resume(settings: list[str]) -> None:
    """`lssvwm resume FOLDER`: go on with a run."""
    from lssvwm.agent.config.composition import from_checkpoint, read
    from lssvwm.agent.errors import UserError

    show, settings = _without_show(settings)
    if not settings or "=" in settings[0]:
        raise UserError("which run? e.g. lssvwm resume runs/tmaze train.steps=800")
    folder = Path(settings[0]).expanduser()
    if show:
        return _show(from_checkpoint(read(folder / "config.yaml"), settings[1:]))
    print(
        f"resume the run in {folder}"
        + (f" with {' '.join(settings[1:])}" if settings[1:] else "")
    )
    with _saved(folder, resumable=True):
        from lssvwm.agent.training.loop import resume as run

        _trained(run(folder, settings[1:]))


def evaluate(settings: list[str]) -> None:
    """`lssvwm evaluate`: planning success of a checkpoint."""
    show, settings = _without_show(settings)
    config, name = _from_checkpoint("evaluate", settings)
    if show:
        return _show(config)
    output = _output(config, "runs", name, "evaluation")
    tasks = config.tasks
    print(
        f"evaluate {config.checkpoint} on {tasks.count:,} tasks (seed {tasks.seed}) of {_text(config.env)}"
    )
    print(f"with planner {_text(config.planner)}; results go to {output}")
    with _saved(output):
        from lssvwm.agent.evaluation.evaluate import evaluate as run

        run(config, output)
        _wrote(sorted(path for path in output.iterdir() if path.is_file()))
        print(f"next: lssvwm record checkpoint={config.checkpoint} mode=plan")


def record(settings: list[str]) -> None:
    """`lssvwm record`: videos of a checkpoint."""
    show, settings = _without_show(settings)
    config, name = _from_checkpoint("record", settings)
    if show:
        return _show(config)
    output = _output(config, "runs", name, "video")
    count, mode = config.record.episodes, config.record.mode
    print(f"record {config.checkpoint} on {count} tasks of {_text(config.env)}")
    print(f"mode {mode}; videos go to {output}")
    with _saved(output):
        from lssvwm.agent.video.record import record as run

        _wrote(run(config, output))
        other = "plan" if mode == "open_loop" else "open_loop"
        print(
            f"next: watch them, or lssvwm record checkpoint={config.checkpoint} mode={other}"
        )


def collect(settings: list[str]) -> None:
    """`lssvwm collect`: frames only."""
    from lssvwm.agent.config.composition import compose, given
    from lssvwm.agent.config.settings import CheckpointConfig

    show, settings = _without_show(settings)
    if given(settings, "checkpoint"):
        config, name = _from_checkpoint("collect", settings)
    else:
        config = compose(settings, CheckpointConfig)
        name = config.name
    if show:
        return _show(config)
    output = _output(config, "data", name)
    print(
        f"collect {config.train.collect.frames:,} frames of {_text(config.env)} into {output}"
    )
    with _saved(output):
        from lssvwm.agent.training.collection import collect as run

        run(config, output)
        _wrote([output])
        if output.name == "data":
            print(
                f"next: lssvwm train with the same settings and output={output.parent}"
            )
        else:
            print(f"next: lssvwm train data={output}, with the same settings")


def benchmark(settings: list[str]) -> None:
    """`lssvwm benchmark WHAT`: measurements."""
    from lssvwm.agent.config.composition import compose
    from lssvwm.agent.config.settings import BenchmarkRunConfig
    from lssvwm.agent.config.validation import suggestion
    from lssvwm.agent.errors import UserError

    show, settings = _without_show(settings)
    if not settings or settings[0] not in BENCHMARKS:
        question = suggestion(settings[0], BENCHMARKS) if settings else ""
        raise UserError(
            f"which benchmark? {question}there are: {', '.join(BENCHMARKS)}, e.g. lssvwm benchmark envs"
        )
    what, settings = settings[0], settings[1:]
    if what == "planning":
        return _sweep(settings, show)
    if what in TRAINED and not any(text.startswith("experiment=") for text in settings):
        settings = [f"experiment={TRAINED[what]}", *settings]
    config = compose(settings, BenchmarkRunConfig)
    if show:
        return _show(config)
    output = _output(config, "runs", "benchmark")
    print(f"benchmark {what}: {BENCHMARKS[what]}; results go to {output}")
    with _saved(
        output, anew="run it again to go on" if what in TRAINED else "run it again"
    ):
        if what == "memory":
            from lssvwm.agent.benchmarks.memory_recall import memory

            _wrote([memory(settings, output)])
        elif what == "planners":
            from lssvwm.agent.benchmarks.planner_baselines import planning

            _wrote([planning(config, output)])
        elif what == "decide":
            from lssvwm.agent.benchmarks.decision_latency import decide

            _wrote([decide(config, output)])
        elif what in TRAINED:
            from lssvwm.agent.benchmarks import training_strategies as contest

            _wrote([getattr(contest, what)(settings, output)])
        else:
            from lssvwm.agent.benchmarks import throughput as benchmarks

            _wrote([getattr(benchmarks, what)(config, output)])


def _sweep(settings: list[str], show: bool) -> None:
    """`lssvwm benchmark planning`: a checkpoint, or several, in several settings."""
    from lssvwm.agent.benchmarks.planning_sweep import cases, folder, planning
    from lssvwm.agent.config.composition import given

    output = Path(given(settings, "output") or folder(settings)).expanduser()
    if show:
        return _show(cases(settings, output)[0].config)
    print(f"benchmark planning: {BENCHMARKS['planning']}; results go to {output}")
    with _saved(output, anew="run it again to go on"):
        _wrote([planning(settings, output)])


BENCHMARKS = {
    "envs": "frames per second of the mazes",
    "speed": "seconds per frame against the frames remembered",
    "fork": "many futures of one memory against copies of it",
    "decide": "time and memory of a plan, made in several ways",
    "planners": "our planners beside those of other packages",
    "planning": "planning success of a checkpoint by settings of task and planner",
    "memory": "what models remember, trained alike",
    "recall": "planning success by dark frames since the evidence, of models trained alike",
    "strategies": "planning success by training strategy",
}
TRAINED = {
    "memory": "recollect",
    "recall": "recollect_recall",
    "strategies": "strategies",
}
"""Benchmarks that train first, and by which experiment."""


def doctor(settings: list[str]) -> None:
    """`lssvwm doctor`: versions, devices, backends."""
    from lssvwm.agent.cli.doctor import report
    from lssvwm.agent.config.composition import compose

    print(report(compose(settings)))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "record": record,
    "collect": collect,
    "benchmark": benchmark,
    "doctor": doctor,
}


# ---- what they share


def _without_show(settings: list[str]) -> tuple[bool, list[str]]:
    return "--show" in settings, [text for text in settings if text != "--show"]


def _show(config: Config) -> None:
    import yaml
    from lssvwm.agent.config.composition import to_dict

    print(yaml.safe_dump(to_dict(config), sort_keys=False), end="")


def _from_checkpoint(command: str, settings: list[str]) -> tuple[Any, str]:
    """The checkpoint's configuration under `settings`, and the checkpoint's short name."""
    from lssvwm.agent.config.composition import from_checkpoint, given
    from lssvwm.agent.config.settings import CheckpointConfig, RecordRunConfig
    from lssvwm.agent.errors import UserError

    name = given(settings, "checkpoint")
    if name is None:
        raise UserError(
            f"which checkpoint? e.g. lssvwm {command} checkpoint=runs/tmaze"
        )
    fixed = [text for text in settings if text.startswith(("model=", "model."))]
    if fixed:
        raise UserError(
            f"{fixed[0]} cannot change trained weights; train with it: lssvwm train {fixed[0]}"
        )
    from lssvwm.agent.checkpoint import read_config, resolve

    cls = RecordRunConfig if command == "record" else CheckpointConfig
    config = from_checkpoint(read_config(resolve(name)), settings, cls)
    return config, Path(name).expanduser().resolve().name


def _output(config: Config, *default: str) -> Path:
    return Path(config.output).expanduser() if config.output else Path(*default)


def _text(part: Any) -> str:
    """A configuration in a few words: its kind and what differs from its class's defaults."""
    import dataclasses

    plain = dataclasses.asdict(type(part)())
    changed = [
        f"{key}={value}"
        for key, value in dataclasses.asdict(part).items()
        if value != plain[key]
    ]
    return " ".join([part.kind, *changed])


def _trained(folder: Path) -> None:
    _wrote([folder])
    print(f"next: lssvwm evaluate checkpoint={folder}")
    print(f"      lssvwm record checkpoint={folder} mode=plan")


def _wrote(paths: Sequence[Path]) -> None:
    print("wrote " + (" ".join(str(path) for path in paths) or "nothing"))


@contextmanager
def _saved(
    folder: Path, resumable: bool = False, anew: str = "run it again to begin anew"
) -> Iterator[None]:
    """Turn Ctrl-C, a full disk and a folder that cannot be written into one line that says what is left."""

    def again(otherwise: str) -> str:
        return (
            f"continue with `lssvwm resume {folder}`"
            if resumable and _holds_run(folder)
            else otherwise
        )

    try:
        yield
    except KeyboardInterrupt as stop:
        where = f" {stop}" if stop.args else ""
        raise Stop(f"stopped{where}; {again(anew)}", INTERRUPTED) from None
    except Exception as error:
        if _disk_full(error, folder):
            advice = f"free some space, then {again('run it again')}"
            raise Stop(
                f"the disk of {folder} is full; what was saved before is whole: {advice}",
                FAILED,
            ) from None
        if isinstance(error, OSError) and error.errno in DENIED:
            raise Stop(
                f"cannot write {folder} ({error}); choose another output=", FAILED
            ) from None
        raise


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether a write failed for want of space; torch says only that it failed."""
    while error is not None:
        if getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
        ) or "No space left" in str(error):
            return True
        if isinstance(error, RuntimeError):
            existing = next(
                path for path in (folder, *folder.absolute().parents) if path.exists()
            )
            return shutil.disk_usage(existing).free < FULL
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
