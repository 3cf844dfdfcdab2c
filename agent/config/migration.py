"""Upgrade saved configurations, and recognise setting names of earlier versions.

Format 1 has no `format_version`. Format 2 has today's names and sections.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import migration as model_migration

FORMAT_VERSION = 2

RENAMED: dict[str, str] = {
    # env
    # model: in worldmodel/migration.py
    # planner, objective, mpc
    "planner.budget": "planner.time_budget",
    "planner.reward": "objective.reward",
    "planner.goal": "objective.goal",
    "planner.novelty": "objective.novelty",
    "planner.discount": "objective.discount",
    "planner.bootstrap": "objective.bootstrap",
    "planner.samples": "objective.samples",
    "planner.caution": "objective.std_penalty",
    "planner.replan": "mpc.replan",
    "planner.repeat": "mpc.action_repeat",
    "planner.proposals": "mpc.proposals",
    # train
    "train.augment": "train.length_augmentation",
    "train.segment": "train.tbptt_length",
    "train.align": "train.episode_start_prob",
    "train.hide": "train.frame_mask.prob",
    "train.hide_span": "train.frame_mask.span",
    "train.forget": "train.state_reset_prob",
    "train.harder_after": "train.curriculum_start",
    "train.dreams": "train.actor_critic.walks",
    "train.dream_weight": "train.actor_critic.weight",
    "train.recompute": "train.activation_checkpointing",
    # tasks, record, benchmark
    "record.denoise": "record.denoising_steps",
}
"""Dotted names of format 1 and their names in format 2."""

REMOVED: dict[str, str] = {
    # env
    "env.arm": "the arms of the T-maze have 2 tiles",
    "env.cue_always": "the T-maze shows its cue at the foot of the corridor only",
    "env.min_distance": "the balls of Return lie at least 6 steps from the start",
    "env.window": "the view around the agent of the point maze shows 30 pixels",
    # model: in worldmodel/migration.py
    # planner, objective, mpc
    "planner.smoothing": "it is 0.1",
    "planner.fresh": "it is 0.3",
    "planner.min_prob": "it is 0.02",
    "planner.min_std": "it is 0.02",
    "planner.init_std": "it is 0.7 half ranges of the actions",
    "planner.denoise": "set objective.samples; frames are sampled in 2 steps",
    "planner.sticky": "draws are held with probability 0.3, or 0.8 for continuous actions",
    "planner.noise_hold_prob": "draws are held with probability 0.3, or 0.8 for continuous actions",
    "planner.edits": "a quarter of the candidates are mutated elites",
    "planner.mutation_rate": "a quarter of the candidates are mutated elites",
    "planner.settled": "every iteration is made; planner.time_budget limits their time",
    # train
    "train.hide_ramp": "frames are masked with the full probability from the first step",
    "train.warmup": "the learning rate rises over 30 steps, or a tenth of all",
    "train.weight_decay": "it is 0.01",
    "train.clip": "gradients are clipped at a norm of 1",
    "train.log_every": "metrics are written every 10 steps",
    "train.evaluate_tasks": "there are 64 validation tasks",
    "train.dream_steps": "imagined walks have 16 steps",
    "train.dream_entropy": "the entropy bonus is 0.01",
    "train.compile": "compiled blocks were not faster",
    "train.collect.keep": "a data folder keeps a million frames",
    # tasks, record, benchmark
    "tasks.batch": "100 tasks are played at once",
}
"""Dotted names of earlier versions that no longer exist, and the reason or the constant that replaces them."""

RENAMED_VALUES: dict[str, dict[str, str]] = {
    # format 2 name of a value, of a list or of a mapping: {old value, entry or key: new one}
    # tasks, record
    "tasks.arms": {"prior": "policy", "still": "noop", "short": "always_window"},
    "train.collect.mix": {"prior": "policy", "still": "noop"},
    "record.mode": {"branches": "counterfactuals"},
}
"""Values, entries of lists and keys of mappings that have another name in format 2."""

RENAMED_PRESETS: dict[str, dict[str, str]] = {
    # group: {old preset: new one}
    "model": {"attention_odometer": "attention_pose"},
    "experiment": {
        "recollect": "memory_benchmark",
        "recollect_recall": "recall_benchmark",
    },
}
"""Presets that have another name than in earlier versions."""

COMMAND_SETTINGS = ("record", "benchmark", "checkpoint")
"""Settings that format 1 saved with every run, and that belong to other commands."""


def migrate(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved configuration in the present format, without its `format_version`.

    Raises UserError for a format that is newer than this version of the package.
    """
    plain = deepcopy(saved)
    version = plain.pop("format_version", 1)
    if version > FORMAT_VERSION:
        raise UserError(
            f"the configuration has format {version}, this version reads up to {FORMAT_VERSION}: update"
        )
    if version == 1:
        return _from_format1(plain)
    for name in REMOVED:
        _take(plain, name)
    return plain


def replacement(name: str) -> str:
    """Return the line that names what replaces a setting of format 1; empty for others."""
    if new := renamed_settings().get(name):
        return f"{name} is now {new}"
    if reason := removed_settings().get(name):
        return f"{name} is no longer a setting: {reason}"
    return ""


def check_preset(group: str, name: str) -> None:
    """Raise UserError with the new name if a preset has been renamed."""
    if new := RENAMED_PRESETS.get(group, {}).get(name):
        raise UserError(f"{group}={name} is now {group}={new}")


def check_value(name: str, value: Any) -> None:
    """Raise UserError if a value, or an entry of it, has another name.

    The message names the new one.
    """
    section, _, last = name.rpartition(".")
    if new := RENAMED_VALUES.get(section, {}).get(last):
        raise UserError(f"{name} is now {section}.{new}")
    entries = value if isinstance(value, (list, tuple, dict)) else [value]
    renamed = RENAMED_VALUES.get(name, {})
    for entry in entries:
        if new := renamed.get(str(entry)):
            raise UserError(f"{name}: {entry} is now {new}")


def renamed_settings() -> dict[str, str]:
    """Return RENAMED with the settings of the model, as in `model.imagined` -> `model.self_forcing_prob`."""
    return RENAMED | {
        f"model.{old}": f"model.{new}"
        for old, new in model_migration.RENAMED_SETTINGS.items()
    }


def removed_settings() -> dict[str, str]:
    """Return REMOVED with the settings of the model."""
    return REMOVED | {
        f"model.{old}": reason
        for old, reason in model_migration.REMOVED_SETTINGS.items()
    }


def _from_format1(plain: dict[str, Any]) -> dict[str, Any]:
    if "model" in plain:
        plain["model"] = model_migration.migrate_config(plain["model"])
    for name in (*REMOVED, *COMMAND_SETTINGS):
        _take(plain, name)
    moved = {new: _take(plain, old) for old, new in RENAMED.items() if _has(plain, old)}
    for name, value in moved.items():
        _put(plain, name, value)
    for name, entries in RENAMED_VALUES.items():
        if _has(plain, name):
            _put(plain, name, _renamed(_take(plain, name), entries))
    return plain


def _renamed(value: Any, entries: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {entries.get(key, key): inner for key, inner in value.items()}
    if isinstance(value, str):
        return entries.get(value, value)
    return [entries.get(entry, entry) for entry in value]


def _has(plain: dict[str, Any], name: str) -> bool:
    group, _, last = name.rpartition(".")
    for part in group.split(".") if group else ():
        plain = plain.get(part) or {}
    return last in plain


def _take(plain: dict[str, Any], name: str) -> Any:
    """Remove the value under a dotted name and return it; None if there is none."""
    group, _, last = name.rpartition(".")
    for part in group.split(".") if group else ():
        plain = plain.get(part) or {}
    return plain.pop(last, None)


def _put(plain: dict[str, Any], name: str, value: Any) -> None:
    group, _, last = name.rpartition(".")
    for part in group.split(".") if group else ():
        plain = plain.setdefault(part, {})
    plain[last] = value
