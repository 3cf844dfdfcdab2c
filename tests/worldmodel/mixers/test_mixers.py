"""Test the presets of all mixers, and that every command accepts them."""

import pytest
import torch
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.presets import options
from lssvwm.worldmodel import Batch, WorldModel
from lssvwm.worldmodel.mixers.attention import Attention

BASELINES = (
    "mamba2",
    "mamba2_local",
    "tile1",
    "untiled",
    "paper",
    "window",
    "attention",
    "attention_pose",
    "gru",
)


OURS = ("base", "large", "small", "tiny", "delta", "delta_tiled")
POSES = (
    "attention_given",
    "delta_given",
    "mamba2_given",
    "mamba2_local_given",
    "paper_given",
    "paper_integrated",
    "window_given",
)
"""Models with another source or use of the pose."""


def build(name: str) -> WorldModel:
    return WorldModel(compose([f"model={name}"]).model, (3, 64, 64), 3)


@pytest.mark.parametrize("name", BASELINES)
def test_preset_has_parameters_of_small(name):
    ours, theirs = (
        sum(p.numel() for p in build(n).parameters()) for n in ("small", name)
    )
    assert abs(theirs / ours - 1) < 0.05


def test_presets_are_complete():
    assert set(options("model")) == {*OURS, *BASELINES, *POSES}


def test_attention_forgets_frames_outside_window():
    torch.manual_seed(0)
    model = WorldModel(
        compose(["model=window", "model.mixer.window=4", "model.mixer.layers=1"]).model,
        (3, 64, 64),
        3,
    ).eval()
    make = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (1, 9, 3, 64, 64), dtype=torch.uint8, generator=make)
    action, first = (
        torch.zeros(1, 9, dtype=torch.int64),
        torch.zeros(1, 9, dtype=torch.bool),
    )
    other = frames.clone()
    other[:, :3] = 255 - other[:, :3]
    (a, out_a), (b, out_b) = (
        model.observe(model.initial(1), x, action, first) for x in (frames, other)
    )
    assert torch.allclose(out_a.policy[:, 6:], out_b.policy[:, 6:], atol=1e-6)
    assert not torch.allclose(out_a.policy[:, 5], out_b.policy[:, 5], atol=1e-6)
    assert a.diff(b).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_commands_accept_preset(name, tmp_path):
    run = str(tmp_path / "run")
    assert (
        cli.main(
            [
                "train",
                "experiment=smoke",
                f"model={name}",
                "train.steps=3",
                f"output={run}",
            ]
        )
        == 0
    )
    assert (
        cli.main(
            [
                "evaluate",
                f"checkpoint={run}",
                "tasks.count=4",
                f"output={tmp_path / 'evaluation'}",
            ]
        )
        == 0
    )
    assert (
        cli.main(
            [
                "record",
                f"checkpoint={run}",
                "record.episodes=1",
                f"output={tmp_path / 'video'}",
            ]
        )
        == 0
    )


def test_unknown_kind_is_named(capsys):
    assert cli.main(["train", "model.mixer.kind=transformer"]) == 2
    assert (
        "unknown model.mixer.kind=transformer; there are: attention, gru, tiled_delta, tiled_ssd"
        in capsys.readouterr().err
    )


def test_attention_with_path_integration_finds_place():
    torch.manual_seed(0)
    model = build("attention_pose")
    mixer = model.layers[0].mixer
    assert (
        isinstance(mixer, Attention)
        and len(model.path_integrators) == 3
        and build("attention").path_integrators == []
    )
    u, here = torch.randn(1, 1, 1, 9, 64), torch.zeros(1, 1, 1, 3)
    ahead = here + torch.tensor(
        [0.0, 2.0, 0.0]
    )  # by two tokens: its last row lies where the first row is now
    (q, *_), (_, k, _) = (
        mixer.project(u, mixer.phases(pose)[:, :, None]) for pose in (here, ahead)
    )
    q, k = (
        mixer._rotate_by_frame(x[0, 0, :, 0], torch.tensor(9)) for x in (q, k)
    )  # [h, S, d]
    share = torch.softmax(q @ k.transpose(-1, -2) / mixer.head_dim**0.5, -1)[:, :3]
    assert share[:, range(3), range(6, 9)].min() > 0.9


def test_attention_has_action_limits_with_path_integration():
    for name, has_limits in {"attention": False, "attention_pose": True}.items():
        config = compose([f"model={name}"]).model
        model = WorldModel(config, (3, 64, 64), 2, discrete=False)
        frames = torch.zeros(1, 3, 3, 64, 64, dtype=torch.uint8)
        none = torch.zeros(1, 3, dtype=torch.bool)
        action = torch.zeros(1, 3, 2)
        model.loss(Batch(frames, action, torch.zeros(1, 3), none, none, none))
        memory, _ = model.observe(model.initial(1), frames, action, none)
        model.imagine(memory, action[:, None])
        assert (model.action_limits is not None) == has_limits
