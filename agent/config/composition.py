"""Compose configurations: presets by Hydra, then an experiment, then settings `key=value`; save and read them."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from lssvwm.agent.config import migration
from lssvwm.agent.config.consent import check_consent, named_code
from lssvwm.agent.config.presets import GROUPS, config_dir, options, pretrained
from lssvwm.agent.config.reference import describe, plain_data, text
from lssvwm.agent.config.settings import Config, SavedRunConfig
from lssvwm.agent.config.validation import build, suggestion
from lssvwm.agent.errors import UserError
from lssvwm.agent.files import replacing
from lssvwm.planners import PLANNER_CONFIGS
from omegaconf import OmegaConf

CHECKSUM = "# crc32: "
"""Start of the first line of a saved configuration, before the checksum of the rest."""
PATHS = ("output", "data", "checkpoint", "train.init")
"""Settings that hold paths, in which `~` is the home directory."""
PLAIN_TEXT = (*PATHS, "name", "env.factory")
"""Settings taken as typed: paths may hold characters that mean something in Hydra's grammar."""

UNTIL = "until"
"""Entry of a stage that is no setting: the success rate at which it ends early."""

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclasses.dataclass(frozen=True)
class Override:
    """Hold one `key=value` of a command line."""

    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.key}={text(self.value)}"


def compose(settings: Sequence[str], cls: type[AnyConfig] = Config) -> AnyConfig:
    """Return the configuration of a new run or measurement.

    `env=recall` (also model, planner, train) replaces that section by a preset. `experiment=NAME` sets several
    sections. Every other setting changes one value. Raises UserError with one line about a mistake.
    """
    overrides = [parse(setting) for setting in settings]
    choices = _choices(overrides)
    composed = presets(choices)
    if "benchmark" not in {field.name for field in dataclasses.fields(cls)}:
        composed.pop("benchmark", None)  # experiments also set how they are tested
    config = build(cls, overridden(composed, overrides))
    name = config.name or choices.get("experiment") or config.env.kind
    return dataclasses.replace(config, name=name)


def from_checkpoint(
    saved: Mapping[str, Any], settings: Sequence[str], cls: type[AnyConfig] = Config
) -> AnyConfig:
    """Return the configuration `saved` with a run, changed by `settings`; `output` starts empty.

    A planner preset or `planner.kind` keeps the settings that both planners have. Planners are then compared on equal
    terms. Any other preset replaces its section. Raises UserError with one line about a mistake.
    Raises UserError for code that only `saved` names, unless `settings` hold trust=true.
    """
    overrides = [parse(setting) for setting in settings]
    choices = _choices(overrides)
    if "experiment" in choices:
        raise UserError(
            f"experiment={choices['experiment']} starts a new run; a checkpoint has its own settings"
        )
    try:
        plain: dict[str, Any] = to_dict(build(Config, saved)) | {"output": None}
    except UserError as error:
        raise UserError(
            f"the checkpoint's configuration does not fit this version: {error}"
        ) from None
    for group, option in choices.items():
        chosen = presets({group: option})[group]
        plain[group] = (
            _keep_shared(plain[group], chosen) if group == "planner" else chosen
        )
    kind = given(settings, "planner.kind")
    if isinstance(kind, str) and kind in PLANNER_CONFIGS:
        plain["planner"] = _keep_shared(plain["planner"], {"kind": kind})
    config = build(cls, overridden(plain, overrides))
    if not (isinstance(config, SavedRunConfig) and config.trust):
        check_consent(to_dict(config), {o.key: o.value for o in overrides})
    return config


def given(settings: Sequence[str], key: str) -> Any:
    """Return the value that `settings` give to `key`, or None. The last one counts."""
    values = {override.key: override.value for override in map(parse, settings)}
    return values.get(key)


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data: dicts, lists, numbers, texts."""
    return plain_data(config)


def save(config: Config, path: str | Path) -> None:
    """Write every setting of the run as YAML. The file is replaced at once or not at all.

    Settings that belong to other commands than `train` are left out.
    """
    names = [field.name for field in dataclasses.fields(Config)]
    run = {name: plain_data(getattr(config, name)) for name in names}
    plain = {"format_version": migration.FORMAT_VERSION} | run
    body = yaml.safe_dump(plain, sort_keys=False)
    with replacing(path) as draft:
        draft.write_text(f"{CHECKSUM}{_crc32(body)}\n{body}", encoding="utf-8")


def _crc32(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def read(path: str | Path) -> dict[str, Any]:
    """Return what `save` wrote, as plain data in the present format.

    Raises UserError if the file is missing or damaged.
    """
    try:
        written = Path(path).read_text(encoding="utf-8")
        first, _, body = written.partition("\n")
        changed = first.startswith(CHECKSUM) and first != f"{CHECKSUM}{_crc32(body)}"
        saved = yaml.safe_load(written)
    except FileNotFoundError:
        raise UserError(
            f"no configuration at {path}: is this the folder of a run?"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        changed, saved = False, None
    if changed:
        raise UserError(
            f"{path} has changed since it was written (its checksum is wrong): "
            f"restore it, or delete its first line if you changed it"
        )
    if not isinstance(saved, dict):
        raise UserError(f"{path} is damaged: it is not a saved configuration")
    try:
        return migration.migrate(saved)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or of another version: {error}") from None


def trust_setting(folder: Path) -> str:
    """Return " trust=true" if commands on a run need it, otherwise an empty text."""
    file = folder / "config.yaml"
    return " trust=true" if file.is_file() and named_code(read(file)) else ""


def rewrite(path: str | Path) -> None:
    """Upgrade a saved configuration in place.

    The file may have any format; it is written with every setting.
    """
    save(build(Config, read(path)), path)


def presets(choices: Mapping[str, str]) -> dict[str, Any]:
    """Return what Hydra composes from one preset per group of `GROUPS`, as plain data.

    Groups that are not chosen have the preset that `configs/config.yaml` or the experiment names.
    """
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = hydra_compose(
            "config", [f"{group}={option}" for group, option in choices.items()]
        )
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def parse(setting: str) -> Override:
    """Read one `key=value` by Hydra's grammar; raises UserError if it cannot be read."""
    key, equals, value = setting.partition("=")
    if equals and key in PLAIN_TEXT:
        empty = value in ("", "null") and key != "name"
        typed = os.path.expanduser(value) if key in PATHS else value
        return Override(key, None if empty else typed)
    try:
        override = OverridesParser.create().parse_override(setting)
    except HydraException:
        more = (
            f"; did you mean experiment={setting}, or checkpoint={setting}?"
            if setting in pretrained()
            else ", e.g. train.steps=100"
        )
        raise UserError(
            f"cannot read {setting!r}: settings are given as key=value{more}"
        ) from None
    if override.is_sweep_override():
        raise UserError(
            f"{setting} gives several values: give one, or a list as {key}=[{value}]"
        )
    if override.type is OverrideType.DEL or override.package is not None:
        raise UserError(
            f"cannot read {setting!r}: a setting can be changed, not deleted or moved"
        )
    return Override(override.key_or_group, _whole(override.value()))


def _whole(value: Any) -> Any:
    """Turn a float without fraction, such as 1e3, into an int.

    Settings of both types take an int.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choices(overrides: Sequence[Override]) -> dict[str, str]:
    """Return the chosen presets by group.

    Raises UserError for one that does not exist.
    """
    choices = {}
    for override in overrides:
        if override.key not in GROUPS:
            continue
        name = str(override.value)
        known = options(override.key)
        if name not in known:
            migration.check_preset(override.key, name)
            question = suggestion(name, known, f"{override.key}=")
            raise UserError(
                f"unknown {override}; {question}there are: {', '.join(known)}"
            )
        choices[override.key] = name
    return choices


def overridden(plain: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Return a copy of `plain` with the overrides, without those that choose presets."""
    plain = deepcopy(plain)
    stages = plain.get("stages") or {}
    for override in overrides:
        if override.key in GROUPS:
            continue
        migration.check_value(override.key, override.value)
        path = override.key.split(".")
        _put(plain, path, override.value)
        for stage in stages.values():
            if path[0] in stage:
                _put(stage, path, override.value)
    return plain


def changed(config: AnyConfig, changes: Mapping[str, Any]) -> AnyConfig:
    """Return a configuration with other values of some settings, by dotted name.

    Raises UserError with one line about a mistake.
    """
    overrides = [Override(key, value) for key, value in changes.items()]
    return build(type(config), overridden(to_dict(config), overrides))


def _put(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at a path of names."""
    *sections, last = path
    for section in sections:
        if not isinstance(plain.get(section), dict):
            plain[section] = {}
        plain = plain[section]
    plain[last] = value


def stage_configs(config: AnyConfig) -> dict[str, AnyConfig]:
    """Return the configuration of every stage of a run by name.

    Raises UserError for a wrong setting.
    """
    common = to_dict(config) | {"stages": None}
    settings = {setting.name for setting in describe(type(config), common)}
    found = {}
    for name, changes in (config.stages or {}).items():
        own = {key: value for key, value in changes.items() if key != UNTIL}
        try:
            found[name] = build(type(config), _merged(common, own, settings))
        except UserError as error:
            raise UserError(f"stages.{name}: {error}") from None
    return found


def collecting(config: AnyConfig, begins: bool) -> AnyConfig:
    """Return the settings with which a run collects.

    These are those of its first stage when it begins, otherwise those of its last one.
    """
    stages = list(stage_configs(config).values())
    return stages[0 if begins else -1] if stages else config


def _merged(
    plain: Any, changes: Mapping[str, Any], settings: Container[str], above: str = ""
) -> dict[str, Any]:
    """Return `plain` with changes in its sections.

    The value of a setting is replaced, also if it is a mapping.
    """
    merged = dict(plain)
    for key, value in changes.items():
        name = f"{above}{key}"
        is_section = isinstance(value, Mapping) and name not in settings
        merged[key] = (
            _merged(merged.get(key) or {}, value, settings, f"{name}.")
            if is_section
            else value
        )
    return merged


def _keep_shared(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the planner preset `new`, with those settings of `old` that its kind has too."""
    names = {field.name for field in dataclasses.fields(PLANNER_CONFIGS[new["kind"]])}
    shared = {key: value for key, value in old.items() if key in names}
    return shared | new
