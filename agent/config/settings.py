"""One place for configuration: frozen dataclasses, and how Hydra composes them from `configs/`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from lssvwm.agent.config.migration import FORMAT_VERSION, migrate
from lssvwm.agent.config.presets import GROUPS, config_dir, options, pretrained
from lssvwm.agent.config.validation import build, meant
from lssvwm.agent.errors import UserError
from lssvwm.envs import ENV_CONFIGS
from lssvwm.planners import PLANNER_CONFIGS, CEMConfig
from lssvwm.worldmodel import ModelConfig
from omegaconf import OmegaConf
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as documented

__all__ = [
    "ActorCriticConfig",
    "BenchmarkConfig",
    "CollectConfig",
    "Config",
    "FrameMaskConfig",
    "RecordConfig",
    "TasksConfig",
    "TrainConfig",
    "compose",
    "config_dir",
    "from_checkpoint",
    "given",
    "read",
    "save",
    "to_dict",
]

SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
KINDS = {"env": ENV_CONFIGS, "planner": PLANNER_CONFIGS}
"""Settings whose class depends on their `kind`."""
PLAIN_TEXT = ("name", "output", "checkpoint")
"""Settings taken as typed: paths may hold characters that mean something in Hydra's grammar."""


@documented(frozen=True, config=SETTINGS)
class CollectConfig:
    """Set which policies collect training frames, and how many."""

    envs: int = Field(32, ge=1)
    """Environments stepped together, at least 1."""
    frames: int = Field(60_000, ge=0)
    """Frames collected before training."""
    every: int = Field(0, ge=0)
    """Training steps between further rounds of collection; 0: none."""
    more: int = Field(10_000, ge=0)
    """Frames collected in each further round."""
    mix: dict[str, float] = Field(default_factory=lambda: {"random": 1.0})
    """Fraction of the frames by policy: explorers of the environment, `plan` (the agent), `policy` (its policy head).

    In a context phase the environment's guide acts and the agent only observes. Fractions are relative to their sum.
    """
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values for settings of the environment, e.g. {length: [8, 16]}; every combination gets equally many frames."""
    keep: int = Field(1_000_000, ge=1)
    """Frames kept on disk, at least 1; the oldest are deleted first."""


@documented(frozen=True, config=SETTINGS)
class FrameMaskConfig:
    """Set how many frames are hidden from the memory in training."""

    prob: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of frames that are not written into memory, 0 to 1; they are still predicted."""
    span: int = Field(4, ge=1)
    """Longest run of hidden frames, at least 1; lengths are drawn evenly up to it."""


@documented(frozen=True, config=SETTINGS)
class ActorCriticConfig:
    """Set how the policy and value heads learn from imagined walks."""

    walks: int = Field(0, ge=0)
    """Imagined walks from one frame of every sequence; 0: none.

    With model.loss.policy=0 only these walks train the policy.
    """
    weight: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Weight of their loss, which is added to the world model's."""


@documented(frozen=True, config=SETTINGS)
class TrainConfig:
    """Set optimisation, data augmentation and checkpoints."""

    init: str | None = None
    """Checkpoint (a name or folder) whose weights the run starts from; null: new weights."""
    steps: int = Field(400, ge=0)
    """Optimisation steps."""
    batch: int = Field(8, ge=1)
    """Sequences in a batch of `length` frames; shorter sequences are more, so that a batch has as many frames."""
    length: int = Field(96, ge=2)
    """Frames of the longest sequences; the model learns to remember only what lies within a sequence."""
    min_length: int = Field(32, ge=2)
    """Frames of the shortest sequences, at least 2; unused with length_augmentation=none."""
    length_augmentation: Literal["none", "random", "adversarial"] = "random"
    """Lengths of sequences: none (always `length`), random, or adversarial (more often those predicted worst)."""
    burn_in: int = Field(0, ge=0)
    """Frames before each sequence that are observed without a gradient; 0: none."""
    tbptt_length: int = Field(0, ge=0)
    """Frames between which the gradient is cut while memory carries on (truncated backpropagation); 0: never."""
    episode_start_prob: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    """Fraction of sequences that start with an episode, 0 to 1."""
    frame_mask: FrameMaskConfig = Field(default_factory=FrameMaskConfig)
    """Frames hidden from the memory."""
    state_reset_prob: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of frames before which the memory is erased, 0 to 1."""
    curriculum_start: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of the steps after which `burn_in` and `model.self_forcing_prob` take effect; 0: from the start."""
    learning_rate: float = Field(2e-3, ge=0, allow_inf_nan=False)
    """Highest learning rate of AdamW."""
    warmup: int = Field(30, ge=0)
    """Steps over which the learning rate rises linearly; 0: none."""
    final_learning_rate: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Last learning rate as a fraction of `learning_rate`, reached along a cosine."""
    ema: float = Field(0.99, ge=0, le=1, allow_inf_nan=False)
    """Decay per step of the averaged weights, 0 to 1; these weights are exported, evaluated and used to collect."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints, at least 1."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations on validation tasks; the best weights are kept in best/. 0: none."""
    actor_critic: ActorCriticConfig = Field(default_factory=ActorCriticConfig)
    """Learning from imagined walks."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Matrix products in float32 or bf16; auto: bf16 where the hardware has it. States and losses stay in float32."""
    compile: bool = False
    """Compile the blocks: a slow start, faster steps on some machines."""
    activation_checkpointing: bool = False
    """Run the blocks again in the backward pass: less memory, more time."""
    collect: CollectConfig = Field(default_factory=CollectConfig)
    """Collection of training frames."""


@dataclass(frozen=True)
class TasksConfig:
    """Held-out tasks: the same list for every agent and arm. Episode seeds never overlap with training's."""

    seed: int = 0
    count: int = 300
    batch: int = 100
    window: int = 8  # frames the `window` arm observes
    arms: tuple[str, ...] = (
        "retained",
        "erased",
        "swapped",
        "window",
        "policy",
        "random",
        "noop",
        "seek",
        "wall",
        "oracle",
    )

    def __post_init__(self) -> None:
        _require("tasks", self, {"seed": 0, "count": 1, "batch": 1, "window": 1})


@dataclass(frozen=True)
class RecordConfig:
    """What `record` films."""

    mode: Literal["open_loop", "plan", "branches"] = "open_loop"
    episodes: int = 2
    context: int = 0  # frames observed before imagining; 0: the environment's context phase, or half
    horizon: int = 32  # frames imagined in open loop
    plans: int = (
        3  # in mode branches, 2 to 8: of one memory, each imagined and carried out
    )
    denoise: int = 1
    fps: int = 6
    scale: int = 4
    gif: bool = False


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is trained from every seed and measured. `benchmark memory`: every model (a preset); `walks` are observed
    for each of `contexts` frames, then `horizon` frames are imagined; linear probes are fitted on `probed` walks of the
    first context (0: none). `benchmark recall`: the same models, by `delays`; `benchmark strategies`: every strategy,
    by `lengths` of the corridor. `benchmark planning`: a checkpoint's success with every combination of the values in
    `sweep`, e.g. {env.delay: [32, 128], planner: [cem, mppi]}; in `processes` at once, each on one thread.
    """

    models: tuple[str, ...] = (
        "small",
        "window",
        "attention",
        "attention_odometer",
        "gru",
        "mamba2",
        "mamba2_local",
        "tile1",
        "untiled",
        "paper",
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    walks: int = 48
    contexts: tuple[int, ...] = (128, 1024)
    horizon: int = 64
    probed: int = 600
    delays: tuple[int, ...] = (16, 64, 256)
    strategies: tuple[str, ...] = (
        "default",
        "lengths_none",
        "lengths_adversarial",
        "diffusion",
        "diffusion_prefix",
        "mask_frames",
        "mask_spans",
        "no_context_noise",
        "segments",
        "burn_in",
        "self_forcing",
        "state_resets",
    )
    lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64)
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    processes: int = 1

    def __post_init__(self) -> None:
        several = (
            self.models,
            self.seeds,
            self.contexts,
            self.delays,
            self.strategies,
            self.lengths,
        )
        if (
            not all(several)
            or min(*self.contexts, self.walks, self.horizon) < 2
            or self.processes < 1
        ):
            raise ValueError(
                "benchmark: every list needs an entry; walks, contexts, horizon from 2, processes from 1"
            )


@dataclass(frozen=True)
class Config:
    """Everything a command needs; `env` is one of `ENV_CONFIGS`, `planner` one of `PLANNER_CONFIGS`."""

    env: Any
    model: ModelConfig = field(default_factory=ModelConfig)
    planner: Any = field(default_factory=CEMConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    name: str = ""  # of the run; default: the experiment's or the environment's
    output: str | None = None  # folder for results; default runs/NAME/...
    data: str | None = (
        None  # folder of frames that `collect` wrote, to train on; default: the run gathers its own
    )
    checkpoint: str | None = None  # a name in configs/pretrained or a folder
    seed: int = 0
    threads: int = 0  # CPU threads; 0: all cores
    device: str = "auto"
    backend: str = "auto"  # of the scan, see `lssvwm doctor`; auto: the fastest that works on the device

    def __post_init__(self) -> None:
        _require("", self, {"seed": 0, "threads": 0})


def _require(group: str, config: Any, least: dict[str, int]) -> None:
    """Raises ValueError for a setting below what it must be at least."""
    for name, low in least.items():
        if getattr(config, name) < low:
            key = f"{group}.{name}".strip(".")
            raise ValueError(f"{key}={getattr(config, name)} must be at least {low}")


class Setting(NamedTuple):
    """One `key=value` of a command line."""

    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def compose(overrides: Sequence[str]) -> Config:
    """The configuration of a new run: presets, then an experiment, then the settings `key=value`.

    `env=recall` (env, model, planner, train) replaces that group by a preset; `experiment=NAME` sets several
    at once. Raises UserError naming the key, its value and the nearest valid one.
    """
    settings = [_parse(text) for text in overrides]
    choices = _choices(settings)
    plain = _with(_presets(choices), settings)
    config = _checked(plain)
    return dataclasses.replace(
        config, name=config.name or choices.get("experiment") or config.env.kind
    )


def from_checkpoint(saved: dict[str, Any], overrides: Sequence[str]) -> Config:
    """The configuration `saved` with a run, and the settings in `overrides` on top; `output` starts empty.

    A planner preset keeps the settings that both planners have (horizon, candidates ...), so that planners
    are compared on equal terms; any other preset replaces its group. Raises UserError as `compose` does.
    """
    settings = [_parse(text) for text in overrides]
    choices = _choices(settings)
    if "experiment" in choices:
        raise UserError(
            f"experiment={choices['experiment']} starts a new run; a checkpoint has its own settings"
        )
    try:
        plain: dict[str, Any] = to_dict(_checked(saved)) | {
            "output": None,
            "checkpoint": None,
        }
    except UserError as error:
        raise UserError(
            f"the checkpoint's configuration does not fit this version: {error}"
        ) from None
    for group, option in choices.items():
        chosen = _presets({group: option})[group]
        plain[group] = _shared(plain[group], chosen) if group == "planner" else chosen
    return _checked(_with(plain, settings))


def given(overrides: Sequence[str], key: str) -> Any:
    """The value that `overrides` give to `key`, or None; the last one counts."""
    return {setting.key: setting.value for setting in map(_parse, overrides)}.get(key)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain data: dicts, lists, numbers, texts."""
    return _plain(dataclasses.asdict(config))


def save(config: Config, path: str | Path) -> None:
    """Write the configuration as YAML, all at once."""
    path = Path(path)
    draft = path.with_suffix(".tmp")
    try:
        draft.write_text(
            yaml.safe_dump(
                {"format_version": FORMAT_VERSION} | to_dict(config), sort_keys=False
            ),
            encoding="utf-8",
        )
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote, as plain data; raises UserError if it is missing or damaged."""
    try:
        saved = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no configuration at {path}: is this the folder of a run?"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is damaged: it is not a saved configuration")
    return migrate(saved)


def _parse(text: str) -> Setting:
    key, equals, value = text.partition("=")
    if equals and key in PLAIN_TEXT:
        return Setting(key, None if value in ("", "null") and key != "name" else value)
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        more = (
            f"; did you mean checkpoint={text}?"
            if text in pretrained()
            else ", e.g. train.steps=100"
        )
        raise UserError(
            f"cannot read {text!r}: settings are given as key=value{more}"
        ) from None
    if override.is_sweep_override():
        raise UserError(
            f"{text} gives several values: give one, or a list as {key}=[{value}]"
        )
    if override.type is OverrideType.DEL or override.package is not None:
        raise UserError(
            f"cannot read {text!r}: a setting can be changed, not deleted or moved"
        )
    return Setting(override.key_or_group, override.value())


def _choices(settings: list[Setting]) -> dict[str, str]:
    """The presets chosen, by group; raises UserError for one that does not exist."""
    choices = {}
    for setting in settings:
        if setting.key not in GROUPS:
            continue
        known = options(setting.key)
        if str(setting.value) not in known:
            question = meant(str(setting.value), known, f"{setting.key}=")
            raise UserError(
                f"unknown {setting}; {question}there are: {', '.join(known)}"
            )
        choices[setting.key] = str(setting.value)
    return choices


def _presets(choices: dict[str, str]) -> dict[str, Any]:
    """What Hydra composes from the presets, as plain data."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra_compose(
            "config", [f"{group}={option}" for group, option in choices.items()]
        )
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _with(plain: dict[str, Any], settings: list[Setting]) -> dict[str, Any]:
    """A copy of `plain` with the settings; those that choose presets are left out."""
    plain = deepcopy(plain)
    for setting in settings:
        if setting.key in GROUPS:
            continue
        *groups, last = setting.key.split(".")
        inside = plain
        for group in groups:
            if not isinstance(inside.get(group), dict):
                inside[group] = {}
            inside = inside[group]
        inside[last] = setting.value
    return plain


def _shared(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The settings of the preset `new`, and those of `old` that its kind of planner has too."""
    names = {f.name for f in dataclasses.fields(PLANNER_CONFIGS[new["kind"]])}
    return {key: value for key, value in old.items() if key in names} | new


def _checked(plain: dict[str, Any]) -> Config:
    return build(Config, plain, KINDS)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return (
        [_plain(inner) for inner in value]
        if isinstance(value, (list, tuple))
        else value
    )
