"""Provide small models and sequences, of which every path matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel, corruption
from lssvwm.worldmodel.mixers import attention
from lssvwm.worldmodel.mixers.attention import AttentionConfig
from lssvwm.worldmodel.mixers.gru import GRUConfig
from lssvwm.worldmodel.mixers.tiled_delta import TiledDeltaConfig
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from torch import Tensor


def ssd(tiles: tuple[int, ...] = (1, 3, 1), **changes) -> TiledSSDConfig:
    """Return the settings of a small scan."""
    return TiledSSDConfig(**{"tiles": tiles, "state": 16, "head_dim": 16} | changes)


def delta(tiles: tuple[int, ...] = (1, 3, 1), **changes) -> TiledDeltaConfig:
    """Return the settings of a small scan by the delta rule."""
    return TiledDeltaConfig(**{"tiles": tiles, "state": 16, "content": 8} | changes)


KINDS = {
    "tiled_ssd": {},
    "gated_ssd": {"mixer": ssd((3, 1), write_gate=True)},
    "tiled_delta": {"mixer": delta()},
    "delta_content": {"mixer": delta((3, 1), content=0), "pose": "none"},
    "mamba2": {"mixer": ssd((3, 3)), "attention_window": 0, "pose": "none"},
    "pose_condition": {"mixer": ssd((3, 1)), "pose_use": "condition"},
    "learned_pose": {"mixer": delta((3, 1)), "pose": "learned"},
    "learned_condition": {
        "mixer": ssd((3, 1)),
        "pose": "learned",
        "pose_use": "condition",
    },
    "window": {"mixer": AttentionConfig(window=5, heads=2), "attention_window": 0},
    "attention": {"mixer": AttentionConfig(window=30, heads=2), "attention_window": 0},
    "path_integration": {
        "mixer": AttentionConfig(window=6, heads=2, path_integration=True),
        "attention_window": 0,
    },
    "gru": {"mixer": GRUConfig(layers=3, state=30)},
}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request, monkeypatch) -> dict:
    """Settings of one model per mixer: what holds for one holds for all."""
    monkeypatch.setattr(attention, "SEGMENT", 4)
    return request.param


@pytest.fixture(
    params=[{"mixer": ssd((3, 3))}, {"mixer": ssd((1, 1))}, *KINDS.values()]
)
def any_tiling(request) -> dict:
    """Settings of one model per mixer, and of two other tilings."""
    return request.param


def build_tiny(dtype: torch.dtype = torch.float64, **changes) -> WorldModel:
    """Return a small model for frames of 24 x 24 pixels and 4 actions.

    Its weights are larger than the initial ones, so that every path matters.
    """
    torch.manual_seed(0)
    fields = {"width": 32, "patch": 8, "mixer": ssd(), "attention_heads": 2} | changes
    model = WorldModel(ModelConfig(**fields), (3, 24, 24), 4).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = 0.02 if name.startswith("motion.") else 0.1  # poses feed back
            p.add_(size * torch.randn_like(p) if p.dim() > 1 else 0)
    return model


def draw_sequences(
    batch: int = 2, length: int = 13, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random frames, actions and first flags; the second sequence holds two episodes."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, length, 3, 24, 24)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)
    action = torch.randint(0, 4, (batch, length), generator=g)
    first = torch.zeros(batch, length, dtype=torch.bool)
    first[:, 0] = True
    first[1, 5] = True
    return frames, action, first


def make_batch(frames: Tensor, action: Tensor, first: Tensor) -> Batch:
    """Return a batch with random rewards, in which no episode ends."""
    never = torch.zeros_like(first)
    return Batch(frames, action, torch.rand(first.shape).double(), never, never, first)


@pytest.fixture
def tiny() -> Callable[..., WorldModel]:
    """Build a small model."""
    return build_tiny


@pytest.fixture
def sequences() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Draw frames, actions and first flags."""
    return draw_sequences


@pytest.fixture
def batch_of() -> Callable[[Tensor, Tensor, Tensor], Batch]:
    """Complete frames, actions and first flags to a batch."""
    return make_batch


@pytest.fixture
def ssd_config() -> Callable[..., TiledSSDConfig]:
    """Return the settings of a small scan."""
    return ssd


@pytest.fixture
def delta_config() -> Callable[..., TiledDeltaConfig]:
    """Return the settings of a small scan by the delta rule."""
    return delta


@pytest.fixture
def blank_only(monkeypatch) -> None:
    """Predict every training frame from memory alone."""
    monkeypatch.setattr(corruption, "DENOISING_FRACTION", 0.0)
