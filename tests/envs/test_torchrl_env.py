"""Batched environments inside TorchRL: specs, resets, seeds, and TorchRL's own collector and rollout."""

import numpy as np
import pytest
import torch
from lssvwm.envs import RecallConfig, ReturnConfig, ScavengeConfig, TMazeConfig, make
from lssvwm.envs.base import BatchedEnv, Box, Step
from lssvwm.envs.torchrl_env import TorchRLEnv
from torchrl.collectors import Collector
from torchrl.envs.utils import RandomPolicy, check_env_specs

CONFIGS = (
    TMazeConfig(length=5),
    ReturnConfig(tour=8),
    RecallConfig(n=7, objects=2, tour=6, delay=3),
    ScavengeConfig(),
)


class Slider(BatchedEnv):
    """Continuous stand-in: the frame shows the sum of the actions; ends after three steps."""

    frame_shape, actions, explorers = (3, 4, 4), Box((-1.0, 0.0), (1.0, 2.0)), ()

    def __init__(self, batch):
        self.batch, self.episode = batch, np.zeros(batch, np.int64)
        self.clock, self.last = (
            np.zeros(batch, np.int64),
            np.zeros((batch, 2), np.float32),
        )

    def reset(self, where, seeds):
        self.clock[where], self.last[where] = 0, 0
        self.episode[where] += 1

    def step(self, action):
        self.clock += 1
        self.last = np.asarray(action, np.float32)
        return Step(self.last.sum(1), np.zeros(self.batch, bool), self.clock >= 3)

    def frames(self):
        return np.broadcast_to(
            self.clock[:, None, None, None], (self.batch, 3, 4, 4)
        ).astype(np.uint8)

    def last_action(self):
        return self.last

    def in_context(self):
        return np.zeros(self.batch, bool)

    def truth(self):
        zero = np.zeros(self.batch, np.int64)
        return {
            "success": np.zeros(self.batch, bool),
            "goal_distance": zero - 1,
            "evidence_age": zero - 1,
            "outcome": zero,
            "goal": zero,
        }

    def explorer(self, name, seed):
        raise ValueError(name)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_specs_hold(config):
    check_env_specs(TorchRLEnv(make(config, 3)))


def test_continuous_actions_become_a_bounded_spec():
    env = TorchRLEnv(Slider(2))
    check_env_specs(env)
    rollout = env.rollout(7, break_when_any_done=False)
    assert env.action_spec.shape == (2, 2) and rollout["action"].dtype == torch.float32
    torch.testing.assert_close(rollout["next", "last_action"], rollout["action"])
    torch.testing.assert_close(
        rollout["next", "reward"], rollout["action"].sum(-1, keepdim=True)
    )


def test_rollout_aligns_frames_actions_and_resets():
    env = TorchRLEnv(make(TMazeConfig(length=4, budget=3), 4), seed=1)
    rollout = env.rollout(80, break_when_any_done=False)
    done, first = rollout["next", "done"][:, :-1], rollout["is_first"]
    assert first[:, 0].all() and done.any()
    assert torch.equal(first[:, 1:], done)
    assert not rollout["next", "is_first"].any()
    going_on = ~done.squeeze(-1)
    after, before = rollout["next", "pixels"][:, :-1], rollout["pixels"][:, 1:]
    assert torch.equal(after[going_on], before[going_on])
    assert torch.equal(
        rollout["next", "last_action"], rollout["action"]
    )  # nothing is forced without delay
    assert not rollout["last_action"][first.squeeze(-1)].any()
    assert torch.equal(
        rollout["next", "done"],
        rollout["next", "terminated"] | rollout["next", "truncated"],
    )


def test_forced_actions_are_reported_as_executed():
    env = TorchRLEnv(make(RecallConfig(n=7, objects=2, tour=3, delay=4), 2))
    rollout = env.rollout(
        7, policy=lambda td: td.set("action", torch.zeros(2, dtype=torch.int64))
    )
    done = rollout[
        "next", "last_action"
    ]  # all wanted to turn left: they are led home, then wait in the dark
    assert (done[:, 3:] == 3).all() and (done[:, :3] != 0).any(1).all()
    assert rollout["next", "truth", "in_context"].tolist() == [[True] * 6 + [False]] * 2


def test_partial_reset_leaves_the_others_alone():
    env = TorchRLEnv(make(ReturnConfig(), 3))
    td = env.step(env.rand_action(env.reset()))["next"]
    before, episodes = td["pixels"].clone(), env.env.episode.copy()
    td["_reset"] = torch.tensor([[False], [True], [False]])
    after = env.reset(td)
    assert after["is_first"].squeeze(-1).tolist() == [False, True, False]
    assert torch.equal(after["pixels"][[0, 2]], before[[0, 2]])
    assert (env.env.episode - episodes).tolist() == [0, 1, 0]


def test_same_seed_same_episodes():
    def frames(seed):
        env = TorchRLEnv(make(ReturnConfig(), 2))
        env.set_seed(seed)
        return env.rollout(
            150,
            policy=lambda td: td.set("action", torch.full((2,), 2)),
            break_when_any_done=False,
        )

    one, same, other = frames(4), frames(4), frames(5)
    assert torch.equal(one["pixels"], same["pixels"]) and not torch.equal(
        one["pixels"], other["pixels"]
    )


def test_reset_tasks_starts_the_given_episodes():
    env = TorchRLEnv(make(ReturnConfig(), 3))
    first = env.reset_tasks(torch.tensor([7, 8, 7]))
    assert torch.equal(first["pixels"][0], first["pixels"][2])
    assert env.env.seeds.tolist() == [7, 8, 7]  # pyright: ignore[reportAttributeAccessIssue]
    env.reset()
    assert env.env.seeds.tolist() != [7, 8, 7]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="3 seeds"):
        env.reset_tasks(torch.tensor([7]))


def test_collector_drives_it_through_episode_ends():
    env = TorchRLEnv(make(TMazeConfig(length=4, steps=9), 4))
    collector = Collector(
        env, RandomPolicy(env.action_spec), frames_per_batch=4 * 25, total_frames=4 * 50
    )
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    data = torch.cat(batches, dim=1)
    assert data.shape == (4, 50) and data["pixels"].dtype == torch.uint8
    assert torch.equal(data["is_first"][:, 1:], data["next", "done"][:, :-1])
    assert data["next", "truncated"].any()


def test_frames_kept_from_earlier_steps_do_not_change():
    env = TorchRLEnv(make(ReturnConfig(), 1))
    td = env.reset()
    kept, copy = td["pixels"], td["pixels"].clone()
    for _ in range(5):
        td = env.step(env.rand_action(td))["next"]
    assert torch.equal(kept, copy)
