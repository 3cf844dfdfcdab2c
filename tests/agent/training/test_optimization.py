"""Gradient steps: segments carry memory on, groups and rates are as documented."""

import dataclasses

import numpy as np
import pytest
import torch
from lssvwm.agent.config.settings import TrainConfig
from lssvwm.agent.training.collection import gather
from lssvwm.agent.training.optimization import (
    TrainingBatch,
    in_bf16,
    learning_rate,
    parameter_groups,
    update_ema,
)
from lssvwm.agent.training.run import build
from lssvwm.envs import TMazeConfig
from lssvwm.worldmodel import WorldModel

from tests.agent.conftest import TINY
from tests.agent.training.conftest import short_run, training


def test_gradient_carries_memory_through_segments(tmp_path, monkeypatch):
    model = dataclasses.replace(TINY, context_noise=0.0)
    config = training(
        short_run(TMazeConfig(length=5), model=model),
        tbptt_length=10,
        burn_in=4,
        precision="float32",
    )
    run = build(config, tmp_path)
    gather(run.collection, run.replay, 400, 0)
    sequences = run.replay.sample(2, 24, 0.0, np.random.default_rng(0))
    seen = []
    loss = run.model.loss

    def spy(batch, memory=None, **rest):
        before = None if memory is None else memory.detach().clone()
        seen.append((batch.is_first.shape[1], before))
        return loss(batch, memory, **rest)

    monkeypatch.setattr(run.model, "loss", spy)
    found = run.learner.gradient(TrainingBatch(sequences, burn_in=4))
    assert [frames for frames, _ in seen] == [10, 10]
    assert torch.isfinite(found["loss/total"])
    run.model.eval()
    for end, (_, memory) in zip((4, 14), seen):
        part = sequences[:end]
        with torch.no_grad():
            truth, _ = run.model.observe(
                run.model.initial(2), part.pixels, part.action, part.is_first
            )
        assert memory is not None and memory.diff(truth).max() < 1e-4


def test_learner_refuses_gradients_that_are_not_finite(tmp_path, monkeypatch):
    config = short_run(TMazeConfig(length=5))
    run = build(config, tmp_path)
    gather(run.collection, run.replay, 100, 0)
    batch = TrainingBatch(run.replay.sample(2, 8, 0.0, np.random.default_rng(0)))
    before = [p.clone() for p in run.model.parameters()]
    loss = run.model.loss

    def infinite(*arguments, **options):
        value, *rest = loss(*arguments, **options)
        return value * float("inf"), *rest

    monkeypatch.setattr(run.model, "loss", infinite)
    with pytest.raises(FloatingPointError, match="not finite at step 3"):
        run.learner.step(batch, 3)
    assert all(map(torch.equal, before, run.model.parameters()))


def test_parameter_groups_hold_every_parameter_once():
    model = WorldModel(TINY, (3, 64, 64), 4)
    weights, rest, integrators = parameter_groups(model)
    held = [p for group in (weights, rest, integrators) for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(model.parameters()))
    assert all(p.dim() > 1 for p in weights["params"]) and integrators["params"]
    assert weights["weight_decay"] > 0 == rest["weight_decay"]
    assert integrators["scale"] < 1 == weights["scale"]


def test_learning_rate_rises_then_follows_a_cosine():
    config = TrainConfig(steps=100, learning_rate=1.0, final_learning_rate=0.2)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 50) == pytest.approx(0.6)
    assert learning_rate(config, 100) == pytest.approx(0.2)


def test_update_ema_moves_towards_the_model():
    model = WorldModel(TINY, (3, 64, 64), 4)
    ema = WorldModel(TINY, (3, 64, 64), 4)
    before = [p.clone() for p in ema.parameters()]
    update_ema(ema, model, 0.75)
    for averaged, old, new in zip(ema.parameters(), before, model.parameters()):
        torch.testing.assert_close(averaged, 0.75 * old + 0.25 * new)


def test_in_bf16_follows_the_setting():
    cpu = torch.device("cpu")
    assert in_bf16("bf16", cpu) and not in_bf16("float32", cpu)
    assert isinstance(in_bf16("auto", cpu), bool)
