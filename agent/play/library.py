"""Offer the models that the page can choose from, each loaded once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lssvwm.agent import checkpoint
from lssvwm.agent.config.composition import from_checkpoint
from lssvwm.agent.config.presets import config_dir, pretrained
from lssvwm.agent.config.settings import CheckpointConfig
from lssvwm.agent.errors import UserError
from lssvwm.worldmodel import WorldModel

CARDS = ("card.md", "README.md")
"""Files next to the weights that may describe a model."""
CARD_LENGTH = 6000
"""Characters of a model card that are shown."""


@dataclass(frozen=True)
class Entry:
    """Hold the settings and the loaded model of a checkpoint."""

    config: CheckpointConfig
    model: WorldModel


class Library:
    """Load packaged models, and the checkpoint of the command line, when they are chosen first.

    The page chooses by name, so it can name no other file.
    """

    def __init__(self, config: CheckpointConfig):
        self.own = str(config.checkpoint)
        self.configs = {self.own: config}
        self.names = [self.own, *(n for n in pretrained() if n != self.own)]
        self._entries: dict[str, Entry] = {}

    def entry(self, name: str) -> Entry:
        """Return a model of the list. Raises UserError for another name or a damaged file."""
        if name not in self.names:
            raise UserError(f"no model {name!r} in the list of this page")
        if name not in self._entries:
            config = self._config(name)
            model = checkpoint.load(name, config.device, config.backend)
            self._entries[name] = Entry(config, model.eval())
        return self._entries[name]

    def _config(self, name: str) -> CheckpointConfig:
        """Return the settings of a model, with the device of the command line."""
        if name not in self.configs:
            own = self.configs[self.own]
            saved = checkpoint.read_config(checkpoint.resolve(name))
            config = from_checkpoint(saved, [f"checkpoint={name}"], CheckpointConfig)
            self.configs[name] = dataclasses.replace(
                config, device=own.device, backend=own.backend
            )
        return self.configs[name]

    def card(self, name: str) -> dict[str, Any]:
        """Describe a model: facts of its settings, and its model card if it has one."""
        config, model = self._config(name), self.entry(name).model
        folder = checkpoint.resolve(name)
        files = [folder / card for card in CARDS if (folder / card).is_file()]
        text = files[0].read_text(encoding="utf-8") if files else ""
        weights = sum(p.numel() for p in model.parameters())
        memory = model.initial(1).nbytes()
        return {
            "name": name,
            "packaged": folder.parent == config_dir() / "pretrained",
            "facts": {
                "environment": _words(config.env),
                "memory": f"{config.model.mixer.kind}, {memory / 1e6:.2f} MB at any age",
                "parameters": f"{weights:,}",
                "planner": _words(config.planner),
                "trained on": f"{config.train.steps:,} batches of {config.train.batch} "
                f"x {config.train.length} frames",
            },
            "text": text[:CARD_LENGTH],
        }


def _words(section: Any) -> str:
    """Return the kind of a section and its settings."""
    values = dataclasses.asdict(section)
    kind = values.pop("kind")
    shown = [f"{k} {v}" for k, v in values.items() if v not in (None, False, {})]
    return f"{kind}: {', '.join(shown)}"
