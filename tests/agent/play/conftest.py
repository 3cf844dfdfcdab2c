"""Provide a small untrained checkpoint and sessions with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.cli.commands import of_checkpoint
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import PlayRunConfig
from lssvwm.agent.play import messages
from lssvwm.agent.play.library import Library
from lssvwm.agent.play.session import Session
from lssvwm.worldmodel import WorldModel

RETURN = ["env=return", "env.n=7", "env.objects=2", "env.tour=12"]
SMALL = [
    "model.width=16",
    "model.mixer.state=16",
    "model.mixer.head_dim=16",
    "model.attention_heads=2",
    "planner.candidates=8",
    "planner.horizon=4",
    "planner.iterations=1",
    "planner.elites=4",
    "planner.keep_elites=2",
    "mpc.proposals=2",
    "mpc.replan=2",
]
SEED = 2**31 + 5


def export_small(folder: Path, *settings: str) -> Path:
    """Write an untrained checkpoint with weights whose outputs depend on frames and actions."""
    config = compose([*SMALL, *settings])
    torch.manual_seed(0)
    env = config.env.build(1)
    actions = getattr(env.actions, "n", None) or len(env.actions.low)
    discrete = hasattr(env.actions, "n")
    model = WorldModel(config.model, env.frame_shape, actions, discrete)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint.export(model, config, folder)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    return export_small(tmp_path_factory.mktemp("small"), *RETURN)


class Visitor:
    """Send messages to a session as a page does."""

    def __init__(self, folder: Path, *settings: str):
        chosen = [f"checkpoint={folder}", *settings]
        config = of_checkpoint("play", chosen, PlayRunConfig)
        self.session = Session(Library(config))
        self.send(type="start", model=str(folder), seed=SEED)

    def send(self, **message: Any) -> dict[str, Any]:
        """Return the replies by type; an error fails."""
        found = {reply["type"]: reply for reply in self.replies(**message)}
        assert "error" not in found, found["error"]["text"]
        return found

    def replies(self, **message: Any) -> list[dict[str, Any]]:
        return self.session.handle(messages.read(json.dumps(message)))

    def fails(self, **message: Any) -> str:
        (reply,) = self.replies(**message)
        assert reply["type"] == "error"
        return reply["text"]

    def step(self, control: int) -> dict[str, Any]:
        return self.send(type="step", control=control)["state"]

    @property
    def memory(self):
        return self.session.walk.mind.memory


@pytest.fixture
def visitor(small: Path) -> Visitor:
    return Visitor(small)


@pytest.fixture
def visit(tmp_path: Path) -> Callable[..., Visitor]:
    """Return a function that visits an untrained checkpoint of an environment."""

    def begin(env: Sequence[str], *settings: str) -> Visitor:
        return Visitor(export_small(tmp_path, *env), *settings)

    return begin
