"""Patches coded by the principal components of their cells."""

from __future__ import annotations

import pytest
import torch
from lssvwm.worldmodel import ModelConfig, WorldModel, losses
from lssvwm.worldmodel.cell_code import CellCode
from lssvwm.worldmodel.config import LossWeights
from lssvwm.worldmodel.losses import Outputs
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from lssvwm.worldmodel.patches import Patches

SIDE = 24


def pictures(n: int = 32) -> torch.Tensor:
    """Return frames with one of two pictures of 4 x 4 pixels at a random place of a 6 x 6 grid."""
    g = torch.Generator().manual_seed(1)
    looks = torch.randint(0, 256, (2, 3, 4, 4), generator=g)
    frames = torch.full((n, 3, SIDE, SIDE), 30, dtype=torch.uint8)
    places = torch.randint(0, 6, (n, 2), generator=g).tolist()
    for i, (row, col) in enumerate(places):
        frames[i, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = looks[i % 2]
    return frames


def build(**changes) -> WorldModel:
    """Return a model with patches of 12 x 12 pixels."""
    torch.manual_seed(0)
    mixer = TiledSSDConfig(tiles=(2,), state=16, head_dim=16)
    fields = {"width": 32, "patch": 12, "attention_heads": 2} | changes
    model = WorldModel(ModelConfig(mixer=mixer, **fields), (3, SIDE, SIDE), 2)
    return model.eval()


def test_all_components_code_without_loss():
    code = CellCode(3, 12, 2)
    patches = torch.randn(5, 7, 3 * 12 * 12)
    code.fit(patches.flatten(0, 1))
    codes = code.encode(patches)
    assert codes.shape == (5, 7, code.size)
    torch.testing.assert_close(code.decode(codes), patches, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        codes.square().sum(), patches.square().sum(), atol=0, rtol=1e-4
    )


def test_cells_are_squares_of_the_picture():
    code = CellCode(1, 4, 2)
    cell = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    patch = torch.cat((cell, 2 * cell), 1).repeat(2, 1)
    code.fit(patch.reshape(1, 16))
    first = code.encode(patch.reshape(1, 16)).unflatten(-1, (4, 4))[0, :, 0].abs()
    torch.testing.assert_close(first / first[0], torch.tensor([1.0, 2.0, 1.0, 2.0]))


def test_sixteen_components_hold_two_pictures_and_a_background():
    patches = Patches((3, SIDE, SIDE), (12, 4))
    frames = pictures()
    patches.fit(frames)
    scaled = patches.patchify(frames)
    assert scaled.shape == (len(frames), 4, 9 * 16)
    assert float(scaled.square().mean()) == pytest.approx(1.0, rel=1e-3)
    assert (patches.unpatchify(scaled).int() - frames.int()).abs().max() <= 1


def test_frame_loss_with_all_components_is_that_of_pixels():
    frames = pictures(4)[None]
    x = torch.randn(1, 4, 4, 32)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    model = build(patch=(12, 2))
    model.patches.fit(frames)
    out = Outputs(
        model.patches.patchify(frames), x, x, x, everywhere, everywhere, everywhere
    )
    _, error = losses.frame_loss(model, out, None)
    predicted = model.patches.code.decode(model.unembed(x) * model.patches.std)
    pixels = Patches((3, SIDE, SIDE), 12).patchify(frames)
    true = pixels.float() / 127.5 - 1 - model.patches.mean
    expected = (predicted - true).square().mean((-1, -2))
    torch.testing.assert_close(error, expected, atol=1e-4, rtol=1e-3)


def test_predicted_frames_are_pictures():
    frames = pictures()
    model = build(patch=(12, 4))
    model.patches.fit(frames)
    action = torch.zeros(1, 8, dtype=torch.int64)
    first = torch.arange(8)[None] == 0
    memory, _ = model.observe(model.initial(1), frames[None, :8], action, first)
    rollout = model.imagine(
        memory, torch.zeros(1, 2, 3, dtype=torch.int64), decode=True
    )
    assert rollout.frames.shape == (1, 2, 3, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": (12, 5)}, "the side of a cell, 5, must divide that of a patch, 12"),
        (
            {"patch": (12, 4), "loss": LossWeights(coarse=1.0)},
            "model.loss.coarse needs pixels",
        ),
    ],
)
def test_unfit_cells_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
