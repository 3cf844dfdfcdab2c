"""Compare packaged models with committed numbers, so that no restructuring changes what they compute.

`python tests/test_golden.py` writes the numbers again. Do so only for a change that should alter results.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.build import build_agent, build_env
from lssvwm.agent.config.composition import from_checkpoint
from lssvwm.agent.evaluation.evaluate import play_arm, task_seeds
from lssvwm.agent.training import loop, stages

FOLDER = Path(__file__).parent / "golden"
MODELS = (
    "memory17",
    "recall7",
    "recall9",
    "return9",
    "scavenge9",
    "spots",
    "tmaze",
    "tmaze_alone",
    "tworoom",
)
DECIDED = ("recall7", "tmaze")
"""Models whose decisions on TASKS tasks are compared."""
NEAR_TIES = 0.01
"""Share of decisions in which another build of torch may round to another candidate."""
FRAMES, HORIZON, TASKS = 24, 6, 20


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(name: str | Path, overrides: tuple[str, ...] = ()):
    """Return config, environment of two slots, model and agent of a packaged checkpoint."""
    folder = checkpoint.resolve(name)
    config = from_checkpoint(checkpoint.read_config(folder), overrides)
    model = checkpoint.load(folder, "cpu", "chunked")
    env = build_env(config.env, 2)
    return config, env, model, build_agent(config, model, env)


def walk(env) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return frames [2, T, C, H, W], actions and first flags of two guided episodes."""
    env.reset(np.arange(2), np.array([101, 202]))
    guide = env.guide(0)
    frames, actions = [env.frames().copy()], [np.array(env.last_action())]
    while len(frames) < FRAMES:
        env.step(guide.act())
        frames.append(env.frames().copy())
        actions.append(np.array(env.last_action()))
    first = torch.zeros(2, FRAMES, dtype=torch.bool)
    first[:, 0] = True
    return (
        torch.from_numpy(np.stack(frames, 1)),
        torch.from_numpy(np.stack(actions, 1)),
        first,
    )


@torch.no_grad()
def numbers(name: str) -> dict[str, np.ndarray]:
    """Return head outputs, imagined frames and one plan of a packaged model, in float32."""
    _, env, model, agent = packaged(name)
    frames, actions, first = walk(env)
    memory, heads = model.observe(model.initial(2), frames, actions, first)
    candidates = torch.stack((actions[:, -HORIZON:], actions[:, 1 : 1 + HORIZON]), 1)
    rollout = model.imagine(memory, candidates, decode=True)
    state = dataclasses.replace(
        agent.initial(2), memory=memory, policy=heads.policy[:, -1]
    )
    if (goal := env.goals()) is not None:
        state = dataclasses.replace(state, goal=torch.from_numpy(goal))
    _, state = agent.act(state)
    found = {
        f"observed_{key}": getattr(heads, key)
        for key in ("reward", "cont", "value", "policy")
    }
    found |= {
        f"imagined_{key}": getattr(rollout, key)
        for key in ("reward", "cont", "value", "policy", "frames")
    }
    found |= {"plan_actions": state.plan.actions, "plan_score": state.plan.score}
    return {key: value.numpy() for key, value in found.items()}


def decisions(name: str | Path) -> dict[str, np.ndarray]:
    """Return every action and the results of the agent with its memory on held-out tasks.

    In float64: the last bits of float32 differ between processors, and change decisions between equal plans.
    """
    config, _, model, _ = packaged(name)
    model = model.double()
    env = build_env(config.env, TASKS)
    agent = build_agent(config, model, env)
    made, act = [], agent.act

    def recorded(*arguments):
        action, state = act(*arguments)
        made.append(action.numpy().copy())
        return action, state

    agent.act = recorded
    result = play_arm(env, task_seeds(0, TASKS), "retained", agent).run()
    outcome = {
        key: getattr(result, key)
        for key in ("success", "outcome", "steps", "goal_distance", "evidence_age")
    }
    return {"actions": np.stack(made)} | outcome


@pytest.mark.parametrize("name", MODELS)
def test_packaged_model_matches_golden_numbers(name):
    with np.load(FOLDER / f"{name}.npz") as golden:
        found = numbers(name)
        assert set(found) == set(golden)
        for key, value in found.items():
            if value.dtype == np.uint8:
                assert np.abs(value.astype(int) - golden[key].astype(int)).max() <= 1, (
                    key
                )
            else:
                np.testing.assert_allclose(
                    value, golden[key], rtol=2e-4, atol=2e-4, err_msg=key
                )


@pytest.mark.parametrize("name", DECIDED)
def test_packaged_agent_repeats_golden_decisions(name):
    with np.load(FOLDER / f"{name}_decisions.npz") as golden:
        for key, value in decisions(name).items():
            assert np.mean(value != golden[key]) <= NEAR_TIES, key


def test_format1_checkpoint_repeats_golden_decisions():
    with np.load(FOLDER / "tmaze_format1_decisions.npz") as golden:
        for key, value in decisions(FOLDER / "tmaze_format1").items():
            np.testing.assert_array_equal(value, golden[key], err_msg=key)


def test_format1_run_resumes_with_golden_losses(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 5)  # as when the numbers were recorded
    shutil.unpack_archive(FOLDER / "run_format1.zip", tmp_path / "run")
    stages.resume(tmp_path / "run", ["train.steps=30"])
    found = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    for golden in json.loads((FOLDER / "run_format1.json").read_text()):
        row = next(row for row in found if row["step"] == golden["step"])
        for key, value in golden.items():
            assert row[key] == pytest.approx(value, rel=1e-3), key


if __name__ == "__main__":
    torch.set_num_threads(1)
    for model in MODELS:
        np.savez_compressed(FOLDER / f"{model}.npz", **numbers(model))
    for model in DECIDED:
        np.savez_compressed(FOLDER / f"{model}_decisions.npz", **decisions(model))
