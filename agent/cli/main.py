"""Run the console script `lssvwm`.

This module defines the commands, their help pages, exit codes, and one line for each mistake. Everything that needs
torch, pydantic or Hydra is imported when a command runs, so that `lssvwm --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
from lssvwm.agent.cli.failures import FAILED, INTERRUPTED, USER_ERROR, Stop, unexpected
from lssvwm.agent.cli.output import unstoppable_output
from lssvwm.agent.config.presets import options, pretrained
from lssvwm.agent.errors import UserError, did_you_mean

WIDTH = 110
"""Characters in a line of a help page, at most."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lssvwm`; returns the exit code: 0, 1 (failed), 2 (a mistake in the command line), 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with unstoppable_output():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = ["--help"]
    if "_LSSVWM_COMPLETE" in os.environ:
        from lssvwm.agent.cli import completion

        completion.register()
    try:
        code = lssvwm.main(arguments, prog_name="lssvwm", standalone_mode=False)
        return code or 0
    except (Stop, UserError, click.ClickException, click.Abort) as error:
        message, code = _failure(error)
    except KeyboardInterrupt:
        message, code = "stopped", INTERRUPTED
    except Exception as error:
        message, code = unexpected(error, arguments), FAILED
    print(f"lssvwm: {' '.join(message.split())}", file=sys.stderr)
    return code


def _failure(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code of an error that has no traceback."""
    match error:
        case Stop():
            return str(error), error.code
        case click.Abort():
            return "stopped", INTERRUPTED
        case click.NoSuchOption():
            hint = "settings are given as key=value, e.g. train.steps=100"
            name = error.option_name
            question = f"{name.lstrip('-')}=VALUE without dashes, because "
            return f"unknown option {name}: write {question}{hint}", USER_ERROR
        case click.ClickException():
            return error.format_message(), USER_ERROR
    return str(error), USER_ERROR


class CommandGroup(click.Group):
    """Name the nearest command where one is misspelt."""

    def unknown(self, name: str) -> str:
        """Return the line about a command that does not exist."""
        hint = (
            did_you_mean(name, self.commands)
            or f"there are: {', '.join(self.commands)}"
        )
        return f"unknown command {name}; {hint}"

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; raises UserError with the nearest one."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise UserError(self.unknown(args[0]))
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of their definition."""
        return list(self.commands)


class Overview(CommandGroup):
    """Add presets and pretrained models to the list of commands."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what follows the list of commands."""
        with formatter.section("Experiments"):
            formatter.write_dl(list(options("experiment").items()))
        with formatter.section("Pretrained models"):
            formatter.write_text(", ".join(pretrained()) or "none")
        with formatter.section("Shell completion"):
            formatter.write_text('eval "$(_LSSVWM_COMPLETE=bash_source lssvwm)"')
            formatter.write_text("For other shells: zsh_source, fish_source.")


class Benchmarks(CommandGroup):
    """List all benchmarks where none or a misspelt one is given."""

    def unknown(self, name: str) -> str:
        """Return the line about a missing benchmark, or one that does not exist."""
        question = did_you_mean(name, self.commands)
        there_are = f"there are: {', '.join(self.commands)}"
        return " ".join(
            f"which benchmark? {question} {there_are}, e.g. lssvwm benchmark envs".split()
        )  # one blank where there is no question


class SettingsCommand(click.Command):
    """Add the settings of a command to its help page."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the settings, because presets among them choose what the help page shows."""
        ctx.meta["settings"] = [text for text in args if "=" in text]
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write presets and settings; environment, model and planner are those of the settings."""
        from lssvwm.agent.cli import reference_pages

        names = ctx.command_path.split()[1:]
        reference_pages.write(names[0], ctx.meta.get("settings", ()), formatter)


def complete(
    ctx: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Any]:
    """Complete a setting or its value."""
    from lssvwm.agent.cli import completion

    return completion.complete(ctx, incomplete)


def takes_settings(function: Callable) -> Callable:
    """Give a command any number of settings `key=value`, and the option --show."""
    settings = click.argument(
        "settings", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete
    )
    show = click.option(
        "--show",
        is_flag=True,
        help="Print the settings as YAML and stop; says where each comes from.",
    )
    return settings(show(function))


def _version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import version

        print(f"lssvwm {version('lssvwm')}")
        ctx.exit()


@click.group(cls=Overview, context_settings=CONTEXT, invoke_without_command=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and stop.",
)
@click.pass_context
def lssvwm(ctx: click.Context) -> None:
    """Train, evaluate and record agents that plan with a video world model.

    Settings are written KEY=VALUE, in any number.

    The setting experiment=NAME chooses a tested set of settings. Each of env=NAME, model=NAME, planner=NAME and
    train=NAME replaces one section by a preset. A dotted name such as env.length=32 changes one value.

    \b
    lssvwm train experiment=tmaze
    lssvwm evaluate checkpoint=runs/tmaze
    lssvwm record checkpoint=runs/tmaze mode=plan
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def train(settings: tuple[str, ...], show: bool) -> None:
    """Collect frames and train a world model on them.

    Scripted explorers collect the frames. The folder of the run receives config.yaml, metrics.jsonl, tensorboard/,
    report.html, data/, checkpoints/ (to resume) and the exported weights. Ctrl-C saves; `lssvwm resume FOLDER`
    continues. A folder that holds a run is never overwritten.

    \b
    lssvwm train experiment=tmaze
    lssvwm train experiment=tmaze model.width=96 output=runs/wide
    lssvwm train env=minigrid env.id=MiniGrid-FourRooms-v0 train=quick
    """
    from lssvwm.agent.cli import commands

    commands.train(list(settings), show)


@lssvwm.command(cls=SettingsCommand)
@click.argument("folder", required=False)
@takes_settings
def resume(folder: str | None, settings: tuple[str, ...], show: bool) -> None:
    """Continue the run in FOLDER.

    The run continues from its last checkpoint as if it had not stopped. A run without stages takes more steps if
    train.steps is raised. Collected data and trained weights are kept.

    \b
    lssvwm resume runs/tmaze
    lssvwm resume runs/recall7 train.steps=4000
    """
    from lssvwm.agent.cli import commands

    commands.resume(folder, list(settings), show)


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def evaluate(settings: tuple[str, ...], show: bool) -> None:
    """Measure planning success with memory and without.

    Every arm plays the same held-out tasks. The agent plans with its memory (retained), without it (erased), with the
    memory of another task (swapped), or with the last frames only (window). The arm `policy` acts by the policy head
    without planning. Scripted explorers give floors and ceilings.

    Prints tables; writes evaluation.json, Markdown, CSV and a plot. Settings that are not given are those of the
    checkpoint.

    \b
    lssvwm evaluate checkpoint=runs/tmaze
    lssvwm evaluate checkpoint=tmaze env.length=64 tasks.count=100
    lssvwm evaluate checkpoint=tmaze planner=mppi 'tasks.arms=[retained,erased]'
    """
    from lssvwm.agent.cli import commands

    commands.evaluate(list(settings), show)


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def record(settings: tuple[str, ...], show: bool) -> None:
    """Record videos of a checkpoint: real next to imagined frames.

    Writes mp4 videos of held-out tasks with actions, rewards and PSNR, and the same as JSON. `mode=` is short for
    record.mode=. Settings that are not given are those of the checkpoint.

    \b
    lssvwm record checkpoint=runs/tmaze
    lssvwm record checkpoint=runs/tmaze mode=plan record.episodes=4 output=videos
    """
    from lssvwm.agent.cli import commands

    commands.record(list(settings), show)


@lssvwm.command()
@click.argument("runs", nargs=-1, metavar="RUN... [output=FILE]")
def report(runs: tuple[str, ...]) -> None:
    """Write one HTML page about runs.

    It holds settings, training curves, evaluations, videos, versions and commands, and needs no network. Several runs
    are compared. `train`, `evaluate` and `record` write the report of their run, too. The default of output is
    report.html in the folder of the run, or in the folder above all runs.

    \b
    lssvwm report runs/tmaze
    lssvwm report runs/tmaze runs/smoke output=comparison.html
    """
    from lssvwm.agent.cli import commands

    commands.report(list(runs))


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def play(settings: tuple[str, ...], show: bool) -> None:
    """Walk in imagination, in a local web page.

    Prints an address with a token, to open in a browser. The page shows the real environment, the imagined frame and
    the map in memory. Walk, close the eyes, imagine, plan; fork, rewind, erase and swap the memory. It needs the extra
    `play`: pip install 'lssvwm[play]'. Settings that are not given are those of the checkpoint.

    \b
    lssvwm play
    lssvwm play checkpoint=tmaze play.port=9000
    """
    from lssvwm.agent.cli import commands

    commands.play(list(settings), show)


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def collect(settings: tuple[str, ...], show: bool) -> None:
    """Collect frames only.

    Explorers act, and whole episodes are kept on disk; an existing folder grows. Of an experiment with stages, the
    settings of the first one count. With checkpoint=, those of the last one count, and its agent collects the shares
    `plan` and `policy` of train.collect.mix. Several of these commands may collect into one folder at once.

    \b
    lssvwm collect experiment=recall7 output=data/recall7
    lssvwm collect env=recall 'train.collect.mix={tour: 0.5, cells: 0.5}'
    lssvwm collect checkpoint=return9 'train.collect.mix={plan: 1.0}'
    """
    from lssvwm.agent.cli import commands

    commands.collect(list(settings), show)


@lssvwm.group(cls=Benchmarks, context_settings=CONTEXT, invoke_without_command=True)
@click.pass_context
def benchmark(ctx: click.Context) -> None:
    """Measure speed, memory and planning success.

    Benchmarks print tables and write them as JSON. agents, memory, recall, seeds and strategies train models, which
    takes hours. These five, planning and memorymaze continue where they stopped when they run again.

    \b
    lssvwm benchmark envs
    lssvwm benchmark planning checkpoint=recall9 'benchmark.sweep={env.delay: [32, 512]}'
    lssvwm benchmark memory 'benchmark.models=[small,window]' 'benchmark.seeds=[0]'
    """
    if ctx.invoked_subcommand is None:
        assert isinstance(ctx.command, Benchmarks)
        raise UserError(ctx.command.unknown(""))


BENCHMARKS = {
    "envs": "Frames per second of the mazes, the engine alone and through TorchRL.",
    "speed": "Seconds per frame of observing, imagining and training, by frames in memory.",
    "device": "Peaks of this machine, and the speed of training, observing, imagining and planning; 5 minutes.",
    "fork": "Time and memory of 1024 imagined futures of one memory, or of 1024 copies of it.",
    "decide": "Time and memory of a decision by planner and implementation.",
    "planners": "Planners of this package and of others on problems with an exact model.",
    "seeds": "Planning success of an experiment over training seeds, each from nothing; packages the median.",
    "agents": "Success of recurrent PPO (extra `baselines`) in the hours of this package's training.",
    "planning": "Planning success of a checkpoint for every combination in benchmark.sweep.",
    "memory": "Retrieval and reasoning in imagination after long contexts, by model.",
    "memorymaze": "Published tests of memory in Memory Maze: probes of walls and objects, revisited places, retrieval.",
    "pose": "Drift of the position that a checkpoint estimates from actions and frames.",
    "recall": "Planning success by dark frames since the evidence, by model.",
    "strategies": "Planning success by training strategy.",
}
"""Benchmarks, and what each measures."""


def _add_benchmark(name: str, about: str) -> None:
    @benchmark.command(name, cls=SettingsCommand, help=about)
    @takes_settings
    def run(settings: tuple[str, ...], show: bool) -> None:
        from lssvwm.agent.cli import commands

        commands.benchmark(name, about, list(settings), show)


for _name, _about in BENCHMARKS.items():
    _add_benchmark(_name, _about)


@lssvwm.command(cls=SettingsCommand)
@takes_settings
def doctor(settings: tuple[str, ...], show: bool) -> None:
    """Print versions, devices and backends of the scan.

    Every backend is compared with the plain recurrence on this device. The last lines say what a run would use.

    \b
    lssvwm doctor
    lssvwm doctor device=cuda backend=mamba_ssm
    """
    from lssvwm.agent.cli import commands

    commands.doctor(list(settings), show)


if __name__ == "__main__":
    sys.exit(main())
