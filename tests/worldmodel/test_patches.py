"""Frames as the model sees them: standardised, coarse; and back."""

import dataclasses

import pytest
import torch
from lssvwm.worldmodel import Batch, ModelConfig, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from lssvwm.worldmodel.model import COARSE
from lssvwm.worldmodel.patches import Patches

from lssvwm import worldmodel

SIDE = 24


def dots(n=32, seed=0):
    """A dot of 2 x 2 red pixels before a background that never changes: frames uint8 [n, 3, 24, 24]."""
    g = torch.Generator().manual_seed(seed)
    frames = torch.full((n, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    frames[:, :, :, 11:13] = 0
    for i, (y, x) in enumerate(
        torch.randint(0, SIDE - 1, (n, 2), generator=g).tolist()
    ):
        frames[i, :, y : y + 2, x : x + 2] = torch.tensor(
            [220, 30, 30], dtype=torch.uint8
        )[:, None, None]
    return frames


def model(**changes):
    torch.manual_seed(0)
    fields = {
        "width": 32,
        "patch": 10,
        "mixer": TiledSSDConfig(tiles=(3,), state=16, head_dim=16),
        "attention_heads": 2,
    }
    loss = dataclasses.replace(ModelConfig().loss, **changes.pop("loss", {}))
    return WorldModel(
        ModelConfig(**fields | {"loss": loss} | changes),
        (3, SIDE, SIDE),
        2,
    )


def test_standardised_frames_have_no_mean_and_spread_one_and_come_back():
    patches, frames = Patches((3, SIDE, SIDE), 10, normalize=True), dots()
    patches.fit(frames)
    x = patches.scaled(patches.cut(frames), torch.float32)
    assert x.mean(0).abs().max() < 1e-4 and x.square().mean() == pytest.approx(
        1.0, abs=1e-4
    )
    assert (patches.decode(x).int() - frames.int()).abs().max() <= 1
    some = torch.tensor([3, 50, 99])
    few = patches.cut(frames).unflatten(-1, (3, 100))[..., some].flatten(-2)
    assert torch.equal(
        patches.scaled(few, torch.float32, some),
        x.unflatten(-1, (3, 100))[..., some].flatten(-2),
    )
    assert patches.squared(torch.ones(())) == pytest.approx(float(patches.spread) ** 2)


def test_without_standardising_nothing_is_fitted():
    patches = Patches((3, SIDE, SIDE), 10)
    patches.fit(dots())
    x = patches.scaled(patches.cut(dots()), torch.float32)
    assert (
        not list(patches.buffers()) and float(x.max()) == 1.0 and float(x.min()) == -1.0
    )
    assert torch.equal(patches.decode(x), dots())


def test_mean_and_spread_are_saved_with_the_weights(tmp_path):
    one = model(normalize_frames=True)
    one.patches.fit(dots())
    worldmodel.save(one, tmp_path)
    other = worldmodel.load(tmp_path)
    frames, action, first = (
        dots(8)[None],
        torch.zeros(1, 8, dtype=torch.int64),
        torch.zeros(1, 8, dtype=torch.bool),
    )
    first[:, 0] = True
    a, b = (
        m.eval().observe(m.initial(1), frames, action, first)[0] for m in (one, other)
    )
    assert torch.equal(a.layers["0"]["mixer"]["state"], b.layers["0"]["mixer"]["state"])
    assert torch.equal(one.patches.centre, other.patches.centre)


def test_what_never_changes_is_predicted_before_any_training():
    frames = dots()
    none, first = (torch.zeros(1, 32, dtype=torch.bool) for _ in range(2))
    first[:, 0] = True
    batch = Batch(frames[None], none.long(), none.float(), none, none, first)
    psnr = {}
    for standardise in (False, True):
        one = model(normalize_frames=standardise).eval()
        one.patches.fit(frames)
        psnr[standardise] = float(one.loss(batch)[1]["psnr"])
    assert psnr[True] > psnr[False] + 10


@pytest.mark.parametrize("standardise", [False, True])
def test_the_coarse_loss_is_the_error_of_the_frame_averaged_over_fields(standardise):
    one = model(
        normalize_frames=standardise,
        patch=12,
        mixer=TiledSSDConfig(tiles=(2,), state=16, head_dim=16),
        loss={"coarse": 1.0},
    ).eval()
    one.patches.fit(dots())
    x, patches = torch.randn(1, 4, 4, 32), one.patches.cut(dots(4))[None]
    found = one._coarse_loss(x, patches, torch.ones(1, 4, dtype=torch.bool))
    fields = []
    for frame in (one._predict(x), one.patches.scaled(patches, torch.float32)):
        pooled = frame.unflatten(
            -1, (3, COARSE, 12 // COARSE, COARSE, 12 // COARSE)
        ).mean((-1, -3))
        fields.append(pooled)
    assert found.item() == pytest.approx(
        (fields[0] - fields[1]).square().mean().item(), rel=1e-3
    )
