"""Test the terms of the training loss."""

import dataclasses

import pytest
import torch
from lssvwm.worldmodel import LossWeights, ModelConfig, WorldModel, losses
from lssvwm.worldmodel.losses import (
    DARK_MARGIN,
    DARK_WRITE_COST,
    FIXED_WEIGHTS,
    lambda_returns,
    write_cost,
)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_lambda_returns_follow_their_recursion(length):
    g = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 8, length, generator=g, dtype=torch.float64)
    ends, first = torch.rand(2, 8, length, generator=g) < 0.2
    true = value.clone()
    for t in range(length - 2, -1, -1):
        rest = 0.1 * value[:, t + 1] + 0.9 * true[:, t + 1]
        going = reward[:, t + 1] + 0.97 * (~ends[:, t + 1]) * rest
        true[:, t] = torch.where(first[:, t + 1], value[:, t], going)
    assert torch.allclose(lambda_returns(reward, ends, first, value, 0.97, 0.9), true)


def test_terms_are_named_like_their_weights(sequences, batch_of, delta_config):
    names = [field.name for field in dataclasses.fields(LossWeights)]
    config = ModelConfig(
        patch=8,
        width=16,
        mixer=delta_config((3,)),
        loss=LossWeights(**dict.fromkeys(names, 1.0)),
    )
    model = WorldModel(config, (3, 24, 24), 2, discrete=False)
    frames, _, first = sequences()
    batch = batch_of(frames, torch.zeros(2, 13, 2), first)
    loss, metrics, _ = model.loss(batch)
    terms = {name[5:] for name in metrics if name.startswith("loss/")} - {"total"}
    assert terms == {*names, *FIXED_WEIGHTS} - {"motion"}
    total = sum(
        FIXED_WEIGHTS.get(name, 1.0) * metrics[f"loss/{name}"] for name in terms
    )
    assert total.item() == pytest.approx(loss.item(), rel=1e-5)


def test_policy_loss_takes_discrete_and_continuous_actions():
    logits = torch.randn(2, 3, 4)
    action = torch.randint(0, 4, (2, 3))
    chosen = logits.log_softmax(-1).gather(-1, action[..., None])[..., 0]
    torch.testing.assert_close(losses.policy_loss(logits, action), -chosen)
    continuous = torch.randn(2, 3, 4)
    error = (logits - continuous).square().sum(-1)
    torch.testing.assert_close(losses.policy_loss(logits, continuous), error)


def test_write_cost_closes_gates_of_dark_frames_by_a_margin():
    openings = torch.tensor([[[1.5], [0.5], [-2 * DARK_MARGIN], [-0.1]]])
    dark = torch.tensor([[False, True, True, False]])
    assert write_cost(openings, None) == pytest.approx(1.5 / 4)
    expected = (1 + DARK_WRITE_COST * (0.5 + DARK_MARGIN)) / 4
    assert write_cost(openings, dark) == pytest.approx(expected)
