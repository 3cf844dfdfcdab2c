"""Define the settings of every command: documented classes, checked by pydantic.

Each field states its quantity, unit and range, and the meaning of 0 or null. Help pages, error messages and the
reference of the documentation are generated from these fields. Environments, planners and models define their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from lssvwm.agent.config.options import SETTINGS
from lssvwm.agent.mpc import MPCConfig
from lssvwm.agent.objective import ObjectiveConfig
from lssvwm.envs import ENV_CONFIGS
from lssvwm.planners import PLANNER_CONFIGS, CEMConfig
from lssvwm.worldmodel import ModelConfig
from pydantic import Field
from pydantic.dataclasses import dataclass as documented

MAX_SEED = 2**31 - 1
"""Largest seed."""


@documented(frozen=True, config=SETTINGS)
class CollectConfig:
    """Set which policies collect training frames, and how many."""

    envs: int = Field(default=32, ge=1, le=65_536)
    """Environments stepped together, at least 1."""
    frames: int = Field(default=60_000, ge=0, le=10**9)
    """Frames collected before training."""
    every: int = Field(default=0, ge=0, le=10**9)
    """Training steps between further rounds of collection; 0: none."""
    more: int = Field(default=10_000, ge=0, le=10**9)
    """Frames collected in each further round."""
    mix: dict[str, Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]] = Field(
        default_factory=lambda: {"random": 1.0}
    )
    """Fraction of the frames by policy: explorers of the environment, `plan` (the agent), `policy` (its policy head).

    In a context phase the environment's guide acts and the agent only observes. Fractions are relative to their sum.
    """
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values for settings of the environment, e.g. {length: [8, 16]}; every combination gets equally many frames."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Processes that collect, each on one thread unless `threads` is set; 0: this process collects, and training waits.

    With workers, training goes on while a round is collected. The numbers of a run then depend on their timing.
    """
    engine: Literal["local", "ray"] = "local"
    """Place of the workers: local (processes of this machine), or ray (actors, whose machines must see the folder)."""


@documented(frozen=True, config=SETTINGS)
class FrameMaskConfig:
    """Set how many frames are hidden from the memory in training."""

    prob: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of frames that are not written into memory, 0 to 1; they are still predicted."""
    span: int = Field(default=4, ge=1, le=10**6)
    """Longest run of hidden frames, at least 1; lengths are drawn evenly up to it."""
    dark: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of hidden frames that memory sees as black frames, 0 to 1; they are still predicted."""


@documented(frozen=True, config=SETTINGS)
class ActorCriticConfig:
    """Set how the policy and value heads learn from imagined walks."""

    walks: int = Field(default=0, ge=0, le=10**6)
    """Imagined walks from one frame of every sequence; 0: none.

    With model.loss.policy=0 only these walks train the policy.
    """
    weight: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False)
    """Weight of their loss, which is added to the world model's."""


@documented(frozen=True, config=SETTINGS)
class TrainConfig:
    """Set optimisation, data augmentation and checkpoints."""

    init: str | None = None
    """Checkpoint (a name or folder) whose weights the run starts from; null: new weights."""
    steps: int = Field(default=400, ge=0, le=10**9)
    """Optimisation steps."""
    batch: int = Field(default=8, ge=1, le=65_536)
    """Sequences in a batch of `length` frames; shorter sequences are more, so that a batch has as many frames."""
    length: int = Field(default=96, ge=2, le=10**6)
    """Frames of the longest sequences; the model learns to remember only what lies within a sequence."""
    min_length: int = Field(default=32, ge=2, le=10**6)
    """Frames of the shortest sequences, at least 2; unused with length_augmentation=none."""
    length_augmentation: Literal["none", "random", "adversarial"] = "random"
    """Lengths of sequences: none (always `length`), random, or adversarial (more often those predicted worst)."""
    burn_in: int = Field(default=0, ge=0, le=10**6)
    """Frames before each sequence that are observed without a gradient; 0: none."""
    tbptt_length: int = Field(default=0, ge=0, le=10**6)
    """Frames between which the gradient is cut while memory carries on (truncated backpropagation); 0: never."""
    episode_start_prob: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    """Fraction of sequences that start with an episode, 0 to 1."""
    frame_mask: FrameMaskConfig = Field(default_factory=FrameMaskConfig)
    """Frames hidden from the memory."""
    state_reset_prob: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of frames before which the memory is erased, 0 to 1."""
    curriculum_start: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Fraction of the steps after which `burn_in` and `model.self_forcing_prob` take effect; 0: from the start."""
    learning_rate: float = Field(default=2e-3, ge=0, le=1, allow_inf_nan=False)
    """Highest learning rate of AdamW."""
    final_learning_rate: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    """Last learning rate as a fraction of `learning_rate`, reached along a cosine."""
    ema: float = Field(default=0.99, ge=0, le=1, allow_inf_nan=False)
    """Decay per step of the averaged weights, 0 to 1; these weights are exported, evaluated and used to collect."""
    save_every: int = Field(default=100, ge=1, le=10**9)
    """Steps between checkpoints, at least 1."""
    evaluate_every: int = Field(default=0, ge=0, le=10**9)
    """Steps between evaluations on validation tasks; the best weights are kept in best/. 0: none."""
    logger: Literal["tensorboard", "csv", "wandb", "mlflow", "trackio"] = "tensorboard"
    """Tracker that receives metrics, tables and videos, besides metrics.jsonl; the last three are extras to install."""
    actor_critic: ActorCriticConfig = Field(default_factory=ActorCriticConfig)
    """Learning from imagined walks."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Matrix products in float32 or bf16; auto: bf16 where the hardware has it. States and losses stay in float32."""
    activation_checkpointing: bool = False
    """Run the blocks again in the backward pass: less memory, more time."""
    collect: CollectConfig = Field(default_factory=CollectConfig)
    """Collection of training frames."""


@documented(frozen=True, config=SETTINGS)
class TasksConfig:
    """Set the held-out tasks, which are the same for every agent and arm. Training never draws their episode seeds."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the task list."""
    count: int = Field(default=300, ge=1, le=10**6)
    """Tasks in the list."""
    window: int = Field(default=8, ge=1, le=10**6)
    """Frames that the arms with a limited memory observe."""
    workers: int = Field(default=1, ge=1, le=1024)
    """Processes that play the tasks, each on one thread unless `threads` is set; 1: no further process.

    The results do not depend on their number.
    """
    arms: tuple[str, ...] = Field(
        default=(
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
        ),
        min_length=1,
    )
    """Arms that are compared: memory interventions, the policy head, scripted explorers."""


@documented(frozen=True, config=SETTINGS)
class RecordConfig:
    """Set the content and the format of videos."""

    mode: Literal["open_loop", "plan", "counterfactuals"] = "open_loop"
    """Content: imagination along real actions, imagined plans, or several plans and their outcomes.

    `mode=` is short for `record.mode=`.
    """
    episodes: int = Field(default=2, ge=1, le=10000)
    """Episodes, one video each."""
    context: int = Field(default=0, ge=0, le=100000)
    """Frames observed before imagining; 0: the context phase of the environment, or half of the episode."""
    horizon: int = Field(default=32, ge=1, le=10000)
    """Frames imagined in mode open_loop."""
    plans: int = Field(default=3, ge=2, le=8)
    """Plans compared in mode counterfactuals. Each is imagined and carried out from the same memory."""
    denoising_steps: int = Field(default=1, ge=1, le=1000)
    """Denoising steps of each imagined frame."""
    fps: int = Field(default=6, ge=1, le=120)
    """Frames per second of the video."""
    scale: int = Field(default=4, ge=1, le=16)
    """Screen pixels per pixel of a frame."""
    gif: bool = False
    """Write a GIF with every video."""


@documented(frozen=True, config=SETTINGS)
class PlayConfig:
    """Set where `lssvwm play` serves its page."""

    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1: only this machine can open the page. 0.0.0.0: other machines can, if they know
    the token in the address of the page."""
    port: int = Field(default=8765, ge=0, le=65535)
    """Port to listen on; 0: a free one."""


@documented(frozen=True, config=SETTINGS)
class BenchmarkConfig:
    """Set what benchmarks train and measure."""

    models: tuple[str, ...] = Field(
        default=(
            "small",
            "window",
            "attention",
            "attention_pose",
            "gru",
            "mamba2",
            "mamba2_local",
            "tile1",
            "untiled",
            "paper",
        ),
        min_length=1,
    )
    """Model presets compared by `benchmark memory` and `benchmark recall`."""
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(
        default=(0, 1, 2), min_length=1
    )
    """Seeds of the training runs of every model, strategy or agent."""
    hours: float | None = Field(default=None, gt=0, le=10**4)
    """Hours of training of every agent in `benchmark agents`, without its tests; null: the mean of benchmark.runs."""
    clock: Literal["wall", "cpu"] = "wall"
    """Time that benchmark.hours counts: wall time, or the processor time of this process. With threads=1, cpu is fair
    on a machine with other jobs; processes that environments start do not count."""
    runs: tuple[str, ...] = ()
    """Folders of runs that `benchmark agents` compares with; one of `benchmark seeds` stands for all its runs."""
    conditions: dict[str, dict[str, Any]] | None = None
    """Tests of `benchmark seeds` by name, each with the settings that differ, e.g. {far: {env.length: 256}}.
    null: one test with the settings of the experiment."""
    walks: int = Field(default=48, ge=2, le=10**6)
    """Held-out walks in each test of `benchmark memory`, `benchmark memorymaze` and `benchmark pose`."""
    contexts: tuple[Annotated[int, Field(ge=2, le=10**6)], ...] = Field(
        default=(128, 1024), min_length=1
    )
    """Frames observed before each test of `benchmark memory` and `benchmark pose`."""
    horizon: int = Field(default=64, ge=2, le=10**5)
    """Frames imagined in each test of `benchmark memory`, and on revisited places by `benchmark memorymaze`."""
    idle: tuple[Annotated[int, Field(ge=1, le=10**6)], ...] = (10, 10000)
    """Frames without news after the first context of `benchmark memory`, before memory is tested again."""
    probed: int = Field(default=600, ge=0, le=10**6)
    """Walks on which probes are fitted: after the first context by `benchmark memory`, after all frames by
    `benchmark memorymaze`. 0: no probes."""
    probe_steps: int = Field(default=3000, ge=1, le=10**6)
    """Training steps of each probe of `benchmark memorymaze`, of 512 frames each."""
    delays: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        default=(16, 64, 256), min_length=1
    )
    """Dark frames before the choice in `benchmark recall`."""
    strategies: tuple[str, ...] = Field(
        default=(
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
        ),
        min_length=1,
    )
    """Training strategies compared by `benchmark strategies`."""
    lengths: tuple[Annotated[int, Field(ge=1, le=10**6)], ...] = Field(
        default=(8, 16, 24, 32, 48, 64), min_length=1
    )
    """Corridor lengths at which `benchmark strategies` evaluates."""
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Values by setting for `benchmark planning`, e.g. {env.delay: [32, 128], planner: [cem, mppi]}.

    Every combination is evaluated.
    """
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes of `benchmark planning`, and those that record the walks of `benchmark memorymaze`.
    Each has one thread unless `threads` is set. 1: no further process."""


if TYPE_CHECKING:
    EnvConfig = PlannerConfig = Any
else:  # unions of computed tuples, so that a new kind is registered in one place only
    environments = tuple(ENV_CONFIGS.values())
    searches = tuple(PLANNER_CONFIGS.values())
    by_kind = Field(discriminator="kind")
    EnvConfig = Annotated[Union[environments], by_kind]  # noqa: UP007
    PlannerConfig = Annotated[Union[searches], by_kind]  # noqa: UP007


@documented(frozen=True, config=SETTINGS)
class Config:
    """Configure a training run."""

    env: EnvConfig = Field(default_factory=ENV_CONFIGS["tmaze"])
    """Environment, one of `ENV_CONFIGS`."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """World model."""
    planner: PlannerConfig = Field(default_factory=CEMConfig)
    """Search of the planner, one of `PLANNER_CONFIGS`."""
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    """Value of an imagined rollout."""
    mpc: MPCConfig = Field(default_factory=MPCConfig)
    """How the agent follows and renews its plans."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """Optimisation and collection."""
    tasks: TasksConfig = Field(default_factory=TasksConfig)
    """Held-out tasks."""
    stages: dict[str, dict[str, Any]] | None = None
    """Parts of the training by name, one after the other. Each holds the settings that differ in it, and starts from
    the weights of the one before. With `until`, it ends early at this success rate on the validation tasks, see
    train.evaluate_every. Settings of the command line hold for all. null: one part."""
    name: str = ""
    """Name of the run; empty: that of the experiment or of the environment."""
    output: str | None = None
    """Folder for results; null: a folder under runs/, or under data/ for `collect`."""
    data: str | None = None
    """Folder of frames that `collect` wrote, to train on; null: the run collects its own frames."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of weights, batches and planning."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: all cores."""
    device: str = "auto"
    """Device, e.g. cpu or cuda:0; auto: the GPU if there is one."""
    backend: str = "auto"
    """Backend of the scan: chunked, mamba_ssm, fla or reference; auto: the fastest that works, see `lssvwm doctor`."""

    def __post_init__(self) -> None:
        self.mpc.check(self.planner)


@documented(frozen=True, config=SETTINGS)
class SavedRunConfig(Config):
    """Configure a command that starts from saved settings."""

    trust: bool = False
    """Run code that saved settings name: a factory, or the module of an environment's id. false: refuse it.
    It holds for one command and is never saved; code that the command line names runs without it."""


@documented(frozen=True, config=SETTINGS)
class CheckpointConfig(SavedRunConfig):
    """Configure a command that uses a trained model."""

    checkpoint: str | None = None
    """Trained model: the folder of a run, or the name of a pretrained model."""


@documented(frozen=True, config=SETTINGS)
class RecordRunConfig(CheckpointConfig):
    """Configure `lssvwm record`."""

    record: RecordConfig = Field(default_factory=RecordConfig)
    """Videos."""


@documented(frozen=True, config=SETTINGS)
class PlayRunConfig(CheckpointConfig):
    """Configure `lssvwm play`."""

    play: PlayConfig = Field(default_factory=PlayConfig)
    """Page."""


@documented(frozen=True, config=SETTINGS)
class BenchmarkRunConfig(CheckpointConfig):
    """Configure `lssvwm benchmark`."""

    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    """Models, data and measurements."""
