"""One place for configuration: frozen dataclasses, composed by Hydra from `configs/`, checked against this schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from planners import CEMConfig
from worldmodel import ModelConfig


class UserError(Exception):
    """A mistake that the person at the terminal can mend: one line saying what is wrong and what to do."""


@dataclass(frozen=True)
class CollectConfig:
    """Which policies gather data, and how much.

    `mix` gives the share of frames by policy: names of the environment's scripted explorers (see `explorers`), and
    `plan` for the planning agent itself. `frames` are gathered before training, `more` frames every `every`
    training steps (0: never).
    """

    envs: int = 32
    frames: int = 60_000
    every: int = 0
    more: int = 10_000
    mix: dict[str, float] = field(default_factory=lambda: {"random": 1.0})
    keep: int = 1_000_000  # frames kept on disk; the oldest go first


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, data augmentation, checkpoints.

    Sequences have `length` frames, varied by length augmentation (`augment`: none or random) between
    `min_length` and `length` at a constant number of frames per batch. `align` is the share of sequences that start with
    an episode. `hide` is the share of context frames hidden by temporal masking, in spans of up to `hide_span`.
    """

    steps: int = 400
    batch: int = 8
    length: int = 96
    min_length: int = 32
    augment: str = "random"
    align: float = 0.5
    hide: float = 0.0
    hide_span: int = 4
    learning_rate: float = 2e-3
    warmup: int = 30
    final_learning_rate: float = 0.1  # as a share of `learning_rate`, reached along a cosine
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    log_every: int = 10
    save_every: int = 100
    evaluate_every: int = 0  # steps between evaluations on held-out tasks; 0: none while training
    evaluate_tasks: int = 64
    compile: bool = False
    collect: CollectConfig = field(default_factory=CollectConfig)


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
        "prior",
        "random",
        "still",
        "seek",
        "wall",
        "oracle",
    )


@dataclass(frozen=True)
class RecordConfig:
    """What `record` films."""

    mode: str = "open_loop"  # or "plan"
    episodes: int = 2
    context: int = 0  # frames observed before imagining in open loop; 0: the environment's own context phase, or half
    horizon: int = 32  # frames imagined in open loop
    denoise: int = 1
    fps: int = 6
    scale: int = 4
    gif: bool = False


@dataclass(frozen=True)
class Config:
    """Everything a command needs. `env` is one of `envs.ENV_CONFIGS`, `planner` one of `planners.PLANNER_CONFIGS`."""

    env: Any
    model: ModelConfig = field(default_factory=ModelConfig)
    planner: Any = field(default_factory=CEMConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    name: str = ""  # of the run; default: the experiment's or the environment's
    output: str | None = None  # folder for results; default runs/NAME/...
    checkpoint: str | None = None  # a name in configs/pretrained or a folder
    seed: int = 0
    threads: int = 0  # CPU threads; 0: all cores
    device: str = "auto"
