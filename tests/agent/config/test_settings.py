"""Test composition: presets, types, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from lssvwm.agent.config import composition as configuration
from lssvwm.agent.config.composition import (
    compose,
    from_checkpoint,
    stage_configs,
    to_dict,
)
from lssvwm.agent.config.migration import FORMAT_VERSION
from lssvwm.agent.config.presets import GROUPS, config_dir, options
from lssvwm.agent.config.reference import describe
from lssvwm.agent.config.settings import (
    BenchmarkRunConfig,
    CheckpointConfig,
    Config,
    RecordRunConfig,
    SavedRunConfig,
    TrainConfig,
)
from lssvwm.agent.config.validation import nearest
from lssvwm.agent.errors import UserError
from lssvwm.envs import RecallConfig, TMazeConfig
from lssvwm.planners import PLANNER_CONFIGS, CEMConfig, MPPIConfig, ShootingConfig
from lssvwm.worldmodel import ModelConfig

from lssvwm import envs

PRESETS = [(group, option) for group in GROUPS for option in options(group)]


def mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        compose(overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.fixture
def saved() -> dict:
    return to_dict(compose(["experiment=smoke", "seed=3", "output=somewhere"]))


def test_presets_cover_every_kind() -> None:
    kinds = {option: compose([f"env={option}"]).env for option in options("env")}
    assert {env.kind for env in kinds.values()} == set(envs.ENV_CONFIGS)
    assert all(type(env) is envs.ENV_CONFIGS[env.kind] for env in kinds.values())


@pytest.mark.parametrize(("group", "option"), PRESETS)
def test_preset_composes_and_has_a_headline(group: str, option: str) -> None:
    config = compose([f"{group}={option}"])
    assert isinstance(config, Config)
    assert options(group)[option].endswith(".")
    if group == "experiment":
        header = (
            (config_dir() / group / f"{option}.yaml").read_text().split("defaults:")[0]
        )
        assert f"lssvwm train experiment={option}" in header
        assert config.name == option


@pytest.mark.parametrize("option", sorted(set(options("experiment")) - {"custom"}))
def test_experiment_names_existing_explorers(option: str) -> None:
    config = compose([f"experiment={option}"])
    if config.env.kind == "memorygym":
        pytest.importorskip("memory_gym")
    if config.env.kind == "memorymaze" and not find_spec("memory_maze"):
        pytest.skip("Memory Maze is not installed")
    assert set(config.train.collect.mix) <= set(envs.make(config.env, 1).explorers) | {
        "plan",
        "policy",
    }
    assert sum(config.train.collect.mix.values()) == pytest.approx(1)


def test_compose_defaults_to_the_classes() -> None:
    config = compose([])
    assert config.env == TMazeConfig()
    assert (config.model, config.planner, config.train) == (
        ModelConfig(),
        CEMConfig(),
        TrainConfig(),
    )
    assert config.name == "tmaze"


def test_compose_converts_to_declared_types() -> None:
    config = compose(
        [
            "model.mixer.tiles=[1,2]",
            "train.learning_rate=1",
            "train.steps=1e3",
            "env.steps=null",
            "name=7",
        ]
    )
    assert config.model.mixer.tiles == (1, 2)
    assert type(config.train.learning_rate) is float
    assert (config.train.steps, type(config.train.steps)) == (1000, int)
    assert config.env.steps is None
    assert config.name == "7"
    assert type(config.train.collect.mix) is dict
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_compose_preset_replaces_its_section() -> None:
    config = compose(["env=recall", "env.delay=512", "planner=shooting"])
    assert config.env == RecallConfig(delay=512)
    assert config.planner == ShootingConfig()


def test_compose_replaces_mappings_and_sets_entries() -> None:
    assert compose(
        ["experiment=tmaze", "train.collect.mix={random: 1}"]
    ).train.collect.mix == {"random": 1.0}
    config = compose(["experiment=recall9", "train.collect.mix.plan=0.4"])
    mix = {"guide": 0.45, "seek": 0.35, "stumble": 0.2, "plan": 0.4}
    assert config.train.collect.mix == mix
    stages = stage_configs(compose(["experiment=tmaze", "train.collect.mix.plan=0.4"]))
    mix = {"cells": 0.15, "seek": 0.5, "oracle": 0.35, "plan": 0.4}
    assert stages["walk"].train.collect.mix == mix


def test_compose_takes_paths_as_typed() -> None:
    typed = ["output=~/a,b=c", "checkpoint=runs/x{1}", "data=v(1)", "name="]
    config = compose([*typed, "train.init=~/größe = 2"], CheckpointConfig)
    assert config.output == str(Path("~/a,b=c").expanduser())
    assert config.checkpoint == "runs/x{1}"
    assert config.data == "v(1)"
    assert config.train.init == str(Path("~/größe = 2").expanduser())
    assert config.name == "tmaze"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=5", "unknown setting train.stepz=5; did you mean train.steps?"),
        ("trian.steps=5", "unknown setting trian.steps=5; did you mean train.steps?"),
        ("mode=plan", "unknown setting mode=plan; it belongs to `lssvwm record`"),
        ("train.collect.mux.a=1", "unknown setting train.collect.mux.a=1;"),
        (
            "env.objects=3",
            "unknown setting env.objects=3; there are: env.kind, env.length,",
        ),
        ("zzz=1", "unknown setting zzz=1; `--help` lists those of the command"),
        (
            "train.steps=abc",
            "train.steps=abc is wrong: it must be a whole number from 0 to 1,000,000,000 (default 400)",
        ),
        ("train.steps=1.5", "train.steps=1.5 is wrong: it must be a whole number"),
        ("train.steps=true", "train.steps=true is wrong: it must be a whole number"),
        ("train.ema=null", "train.ema=null is wrong: it must be a number"),
        (
            "model.normalize_frames=1",
            "model.normalize_frames=1 is wrong: it must be true or false (default false)",
        ),
        (
            "model.mixer.tiles=3",
            "model.mixer.tiles=3 is wrong: it must be a list with an entry or more, each entry a whole number",
        ),
        ("model.mixer.tiles=[1,a]", "model.mixer.tiles=[1,a] is wrong"),
        ("record.mode=plan", "record.mode=plan; it belongs to `lssvwm record`"),
        ("train.collect.mix={a: b}", "train.collect.mix={a: b} is wrong"),
        (
            "train.collect=5",
            "train.collect=5: this is a group of settings, set one, e.g. train.collect.envs=...",
        ),
        (
            "env=tmaz",
            "unknown env=tmaz; did you mean env=tmaze? there are: counting, gym,",
        ),
        ("env=[1]", "unknown env=[1]; there are: counting,"),
        ("env.kind=recal", "unknown env.kind=recal; did you mean env.kind=recall?"),
        (
            "planner.kind=null",
            "unknown planner.kind=null; there are: beam, cem, icem, mppi, shooting",
        ),
        (
            "experiment=tmaize",
            "unknown experiment=tmaize; did you mean experiment=tmaze?",
        ),
        (
            "train.steps=1,2",
            "train.steps=1,2 gives several values: give one, or a list as train.steps=[1,2]",
        ),
        ("--steps 5", "cannot read '--steps 5': settings are given as key=value"),
        ("steps=5", "unknown setting steps=5; did you mean train.steps?"),
        (
            "tmaze",
            "cannot read 'tmaze': settings are given as key=value; did you mean experiment=tmaze, or checkpoint=tmaze?",
        ),
        (
            "seed=-1",
            "seed=-1 is wrong: it must be a whole number from 0 to 2,147,483,647",
        ),
        (
            "threads=-1",
            "threads=-1 is wrong: it must be a whole number from 0 to 1,024",
        ),
        (
            "tasks.count=0",
            "tasks.count=0 is wrong: it must be a whole number from 1 to 1,000,000",
        ),
        (
            "tasks.window=0",
            "tasks.window=0 is wrong: it must be a whole number from 1 to 1,000,000",
        ),
        (
            "tasks.seed=-1",
            "tasks.seed=-1 is wrong: it must be a whole number from 0 to 2,147,483,647",
        ),
        (
            "train.state_reset_prob=2",
            "train.state_reset_prob=2 is wrong: it must be a number from 0 to 1 (default 0.0)",
        ),
        ("train.forget=0.1", "train.forget is now train.state_reset_prob"),
        ("train.clip=1", "train.clip is no longer a setting: gradients are clipped"),
        ("tasks.arms=[prior]", "tasks.arms: prior is now policy"),
        (
            "experiment=recollect",
            "experiment=recollect is now experiment=memory_benchmark",
        ),
        ("model=attention_odometer", "is now model=attention_pose"),
        ("train.steps", "cannot read 'train.steps': settings are given as key=value"),
        ("~env", "cannot read '~env': a setting can be changed, not deleted or moved"),
        (
            "planner.horizon=0",
            "planner.horizon=0 is wrong: it must be a whole number from 1 to 100,000",
        ),
    ],
)
def test_compose_mistake_gives_one_line(override: str, message: str) -> None:
    assert message in mistake(override)


def test_compose_checks_keys_by_kind() -> None:
    assert compose(["env=tmaze", "env.length=32"]).env.length == 32
    assert "unknown setting env.length=32" in mistake("env=recall", "env.length=32")


def test_nearest_prefers_the_named_section() -> None:
    names = ["train.steps", "env.steps", "env.delay"]
    assert nearest("train.step", names) == "train.steps"
    assert nearest("env.step", names) == "env.steps"
    assert nearest("env.qqq", names) is None


def test_save_and_read_keep_the_configuration(tmp_path, saved: dict) -> None:
    config = compose(["experiment=smoke", "seed=3", "train.learning_rate=1e-7"])
    configuration.save(config, tmp_path / "config.yaml")
    assert from_checkpoint(configuration.read(tmp_path / "config.yaml"), []) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_read_names_missing_and_damaged_files(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no configuration at .*config\.yaml"):
        configuration.read(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("seed: [3")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        configuration.read(tmp_path / "config.yaml")


def test_read_notices_changed_values(tmp_path, saved: dict) -> None:
    path = tmp_path / "config.yaml"
    configuration.save(configuration.from_checkpoint(saved, []), path)
    changed = path.read_text().replace("threads: 0", "threads: 1")
    path.write_text(changed)
    with pytest.raises(UserError, match="has changed since it was written"):
        configuration.read(path)
    path.write_text(changed.partition("\n")[2])
    assert configuration.read(path)["threads"] == 1


def test_from_checkpoint_keeps_saved_settings(saved: dict) -> None:
    config = from_checkpoint(
        saved, ["env.length=96", "tasks.seed=3", "checkpoint=smoke"], CheckpointConfig
    )
    assert (config.env.length, config.tasks.seed, config.checkpoint) == (96, 3, "smoke")
    assert (config.model.width, config.seed, config.name) == (16, 3, "smoke")
    assert config.output is None
    assert saved["env"]["length"] == 6


def test_from_checkpoint_planner_keeps_shared_settings(saved: dict) -> None:
    planner = from_checkpoint(saved, ["planner=mppi", "planner.candidates=24"]).planner
    assert isinstance(planner, MPPIConfig)
    assert (planner.horizon, planner.iterations, planner.candidates) == (6, 2, 24)
    changed = saved | {"planner": dataclasses.asdict(planner)}
    for choice in ("planner=cem", "planner.kind=cem"):
        back = from_checkpoint(changed, [choice]).planner
        assert isinstance(back, CEMConfig)
        assert (back.horizon, back.candidates) == (6, 24)


def test_from_checkpoint_planner_leaves_objective_and_mpc(saved: dict) -> None:
    config = from_checkpoint(saved, ["planner=mppi"])
    before = from_checkpoint(saved, [])
    assert (config.objective, config.mpc) == (before.objective, before.mpc)


def test_format1_planner_settings_move_to_their_sections() -> None:
    folder = config_dir().parent / "tests" / "golden" / "tmaze_format1"
    saved = configuration.read(folder / "config.yaml")
    config = from_checkpoint(saved, [])
    assert config.planner.keep_elites == 4
    assert (config.objective.discount, config.objective.bootstrap) == (0.9, 0.5)
    assert (config.mpc.replan, config.mpc.proposals) == (4, 8)


def test_from_checkpoint_replaces_the_environment(saved: dict) -> None:
    assert from_checkpoint(saved, ["env=recall"]).env == RecallConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.lenght=9", "did you mean env.length?"),
        ("experiment=tmaze", "experiment=tmaze starts a new run"),
        ("planner=mpi", "did you mean planner=mppi?"),
    ],
)
def test_from_checkpoint_names_mistakes(
    saved: dict, override: str, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        from_checkpoint(saved, [override])
    assert message in str(raised.value)


def test_from_checkpoint_names_valid_choices(saved: dict) -> None:
    with pytest.raises(UserError) as raised:
        from_checkpoint(saved, ["record.mode=plna"], RecordRunConfig)
    assert "record.mode=plna is wrong: it must be open_loop or plan" in str(
        raised.value
    )


def test_from_checkpoint_names_unknown_saved_settings(saved: dict) -> None:
    saved["model"]["flavour"] = "x"
    with pytest.raises(
        UserError,
        match=r"the checkpoint's configuration does not fit.*model\.flavour=x",
    ):
        from_checkpoint(saved, [])


COMMANDS = (
    Config,
    SavedRunConfig,
    CheckpointConfig,
    RecordRunConfig,
    BenchmarkRunConfig,
)


@pytest.mark.parametrize("cls", COMMANDS)
def test_describe_documents_every_setting(cls: type) -> None:
    for kinds in [{}, *({"planner": {"kind": kind}} for kind in PLANNER_CONFIGS)]:
        for setting in describe(cls, kinds):
            assert setting.about.endswith((".", "`")), setting.name
            assert setting.takes != "any value", setting.name
    for kind in envs.ENV_CONFIGS:
        named = [s for s in describe(cls, {"env": {"kind": kind}}) if s.group == "env"]
        assert all(setting.about for setting in named)
        assert named[0].default == kind


def test_describe_states_type_and_range() -> None:
    found = {setting.name: setting for setting in describe(RecordRunConfig)}
    assert found["train.steps"].takes == "a whole number from 0 to 1,000,000,000"
    assert found["train.episode_start_prob"].takes == "a number from 0 to 1"
    assert found["record.mode"].takes.startswith("open_loop or plan or")
    assert found["train.init"].takes == "a text or null"
    assert (
        found["train.collect.mix"].takes
        == "{name: value, ...}, each value a number from 0 to 1e+06"
    )
    assert found["train.collect.mix"].default == {"random": 1.0}
    assert found["planner.kind"].default == "cem"


def test_rewrite_upgrades_a_saved_configuration(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    shutil.copy(config_dir() / "pretrained" / "tmaze" / "config.yaml", file)
    before = from_checkpoint(configuration.read(file), [])
    configuration.rewrite(file)
    written = yaml.safe_load(file.read_text())
    assert written["format_version"] == FORMAT_VERSION
    assert {"record", "benchmark", "checkpoint"}.isdisjoint(written)
    assert from_checkpoint(configuration.read(file), []) == before
