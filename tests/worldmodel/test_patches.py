"""Test the conversion of frames to patches, and the losses that depend on it."""

import dataclasses

import pytest
import torch
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel, losses
from lssvwm.worldmodel.losses import COARSE, Outputs
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from lssvwm.worldmodel.patches import ColourWeights, Patches

from lssvwm import worldmodel

SIDE = 24


def dots(n: int = 32, seed: int = 0) -> torch.Tensor:
    """Return frames uint8 [n, 3, 24, 24] of a red dot on a static background."""
    g = torch.Generator().manual_seed(seed)
    frames = torch.full((n, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    frames[:, :, :, 11:13] = 0
    red = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
    places = torch.randint(0, SIDE - 1, (n, 2), generator=g).tolist()
    for frame, (y, x) in zip(frames, places):
        frame[:, y : y + 2, x : x + 2] = red
    return frames


def build(tile: int = 3, **changes) -> WorldModel:
    """Return a model for frames of `dots`."""
    torch.manual_seed(0)
    mixer = TiledSSDConfig(tiles=(tile,), state=16, head_dim=16)
    loss = dataclasses.replace(ModelConfig().loss, **changes.pop("loss", {}))
    fields = {"width": 32, "patch": 10, "attention_heads": 2} | changes
    config = ModelConfig(mixer=mixer, loss=loss, **fields)
    return WorldModel(config, (3, SIDE, SIDE), 2)


def test_normalized_patches_have_unit_deviation_and_return():
    patches = Patches((3, SIDE, SIDE), 10, normalized=True)
    frames = dots()
    patches.fit(frames)
    x = patches.scale(patches.patchify(frames), torch.float32)
    assert x.mean(0).abs().max() < 1e-4
    assert x.square().mean() == pytest.approx(1.0, abs=1e-4)
    assert (patches.unpatchify(x).int() - frames.int()).abs().max() <= 1
    assert patches.pixel_error(torch.ones(())) == pytest.approx(float(patches.std) ** 2)


def test_scale_of_some_pixels_equals_those_of_all():
    patches = Patches((3, SIDE, SIDE), 10, normalized=True)
    patches.fit(dots())
    whole = patches.patchify(dots())
    pixels = torch.tensor([3, 50, 99])

    def some(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (3, 100))[..., pixels].flatten(-2)

    expected = some(patches.scale(whole, torch.float32))
    assert torch.equal(patches.scale(some(whole), torch.float32, pixels), expected)


def test_patches_without_normalization_fit_nothing():
    patches = Patches((3, SIDE, SIDE), 10)
    patches.fit(dots())
    x = patches.scale(patches.patchify(dots()), torch.float32)
    assert not list(patches.buffers())
    assert float(x.max()) == 1.0 and float(x.min()) == -1.0
    assert torch.equal(patches.unpatchify(x), dots())


def test_mean_and_deviation_are_saved(tmp_path):
    one = build(normalize_frames=True)
    one.patches.fit(dots())
    worldmodel.save(one, tmp_path)
    other = worldmodel.load(tmp_path)
    action = torch.zeros(1, 8, dtype=torch.int64)
    first = torch.arange(8)[None] == 0
    a, b = (
        model.eval().observe(model.initial(1), dots(8)[None], action, first)[0]
        for model in (one, other)
    )
    assert torch.equal(a.layers["0"]["mixer"]["state"], b.layers["0"]["mixer"]["state"])
    assert torch.equal(one.patches.mean, other.patches.mean)


def test_static_background_is_predicted_before_training():
    frames = dots()
    never = torch.zeros(1, 32, dtype=torch.bool)
    first = torch.arange(32)[None] == 0
    batch = Batch(frames[None], never.long(), never.float(), never, never, first)
    psnr = {}
    for normalize in (False, True):
        model = build(normalize_frames=normalize).eval()
        model.patches.fit(frames)
        psnr[normalize] = float(model.loss(batch)[1]["psnr"])
    assert psnr[True] > psnr[False] + 10


@pytest.mark.parametrize("normalize", [False, True])
def test_coarse_loss_compares_averages_of_fields(normalize):
    model = build(2, normalize_frames=normalize, patch=12, loss={"coarse": 1.0}).eval()
    model.patches.fit(dots())
    x = torch.randn(1, 4, 4, 32)
    patches = model.patches.patchify(dots(4))[None]
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    out = Outputs(patches, x, x, x, everywhere, everywhere, everywhere)
    found = losses.coarse_loss(model, out)
    size = 12 // COARSE
    predicted, true = (
        frame.unflatten(-1, (3, COARSE, size, COARSE, size)).mean((-1, -3))
        for frame in (model.unembed(x), model.patches.scale(patches, torch.float32))
    )
    expected = (predicted - true).square().mean().item()
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_colour_weights_prefer_rare_colours():
    pixels = torch.zeros(1, 3, 100, dtype=torch.uint8)
    pixels[..., 7] = 255
    weights = ColourWeights(0.5).train()
    for _ in range(50):
        weight = weights(pixels)
    assert weight.mean().item() == pytest.approx(1.0, rel=1e-5)
    assert weight[0, 0, 7] > 3 * weight[0, 0, 0]
