"""Test the copies of frames that the model is trained on."""

import torch
from lssvwm.worldmodel import corruption
from lssvwm.worldmodel.data import Trajectory
from lssvwm.worldmodel.losses import Outputs, frame_loss


def outputs(patches: torch.Tensor, in_frame_loss: torch.Tensor) -> Outputs:
    """Return outputs of a model that predicts nothing."""
    zeros = torch.zeros(*patches.shape[:3], 32).double()
    return Outputs(
        patches, zeros, zeros, zeros, in_frame_loss, in_frame_loss, in_frame_loss
    )


def test_predicted_frames_leak_nothing_of_the_true_ones(
    tiny, sequences, batch_of, blank_only
):
    model = tiny(
        self_forcing_prob=0.4,
        self_forcing_span=4,
        context_noise=0.0,
        rare_colour_power=0.0,
    ).train()
    frames, action, first = sequences(length=24)
    g = torch.Generator().manual_seed(3)
    span = corruption.self_forcing_spans(first, 0.4, 4, g)
    assert 0.2 < span.double().mean() < 0.7 and not (span & first).any()
    trajectory = Trajectory(action, first, writes=torch.ones_like(first))
    found = []
    for shown in (
        frames,
        torch.where(span[..., None, None, None], 255 - frames, frames),
    ):
        clean = model.embedding.frames(model.patches.patchify(shown))
        patch_embed = model.embedding.patch_embed
        copies = corruption.teacher_forcing(patch_embed, clean, None)
        predicted = model.predict_frames(copies, span, trajectory, model.initial(2))
        copies = corruption.write_predictions(copies, span, predicted)
        found.append(copies.tokens)
        assert (copies.written_level < 1).equal(span)
    assert torch.equal(found[0], found[1])
    loss, _, _ = model.loss(
        batch_of(frames, action, first), generator=torch.Generator().manual_seed(3)
    )
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


def test_self_forcing_lets_gradients_reach_written_frames(tiny, sequences):
    model = tiny(context_noise=0.0).train()
    frames, _, first = sequences()
    clean = model.embedding.frames(model.patches.patchify(frames))
    copies = corruption.teacher_forcing(model.embedding.patch_embed, clean, None)
    span = torch.zeros_like(first)
    copies = corruption.write_predictions(copies, span, torch.zeros_like(clean))
    assert copies.written.requires_grad


def test_white_noise_equals_embedded_pixel_noise(tiny):
    model, g = tiny(), torch.Generator().manual_seed(0)
    patch_embed = model.embedding.patch_embed
    tokens = corruption.white_noise(patch_embed, (20000,), g)
    noise = torch.randn(20000, model.patches.size, generator=g).double()
    pixels = noise @ patch_embed.weight.T
    a, b = (x.T @ x / len(x) for x in (tokens, pixels))
    assert (a - b).abs().max() < 0.05 * b.diagonal().max()
    assert (tokens.mean(0).abs() < 0.05).all()


def test_diffusion_forcing_writes_what_it_denoises(tiny, sequences, batch_of):
    """A clean prefix is written as it is, and no target of the loss."""
    model = tiny(
        forcing="diffusion_prefix", context_noise=0.0, rare_colour_power=0.0
    ).train()
    frames, action, first = sequences(length=24)
    clean = model.embedding.frames(model.patches.patchify(frames))
    patch_embed = model.embedding.patch_embed
    g = torch.Generator().manual_seed(0)
    copies = corruption.diffusion_forcing(patch_embed, clean, 1.0, g)
    counted = copies.in_frame_loss
    assert ((~counted).sum(1) >= 12).all() and counted.any()
    assert torch.equal(copies.written[~counted], clean[~counted])
    assert (copies.written_level[~counted] == 1).all()
    assert torch.equal(copies.noisy[counted], copies.written[counted])
    losses = []
    for shown in (
        frames,
        torch.where(counted[..., None, None, None], frames, 255 - frames),
    ):
        with torch.no_grad():
            out = outputs(model.patches.patchify(shown), counted)
            losses.append(frame_loss(model, out, torch.Generator())[0])
    assert losses[0] == losses[1]
    loss, metrics, _ = model.loss(
        batch_of(frames, action, first), generator=torch.Generator().manual_seed(0)
    )
    loss.backward()
    assert torch.isfinite(loss) and metrics["loss/reward"] > 0
