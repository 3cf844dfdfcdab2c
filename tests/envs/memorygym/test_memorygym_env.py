"""Compare the adapter with the package itself: frames, rewards, ends and truth."""

import numpy as np
import pytest
from lssvwm.envs import MemoryGymConfig
from lssvwm.envs.base import SUCCESS, TIMEOUT, WRONG
from lssvwm.envs.memorygym.env import GAMES
from lssvwm.envs.torchrl_env import TorchRLEnv
from torchrl.envs.utils import check_env_specs

pytest.importorskip("memory_gym")
gymnasium = pytest.importorskip("gymnasium")

MYSTERY = MemoryGymConfig()
MORTAR = MemoryGymConfig(id="MortarMayhem-Grid-v0", options={"command_count": [3]})


@pytest.mark.parametrize("name", GAMES)
def test_frames_and_rewards_are_those_of_the_package(name, start):
    """Step three environments, which share pygame's screen, and one of the package."""
    env = start(MemoryGymConfig(id=name), [3, 2**31 + 7, 5])
    theirs = gymnasium.make(name, disable_env_checker=True).unwrapped
    picture, _ = theirs.reset(seed=2**31 + 7)
    rng = np.random.default_rng(0)
    done = False
    for _ in range(60):
        assert (env.frames()[1] == picture.transpose(2, 1, 0)).all()
        if done:
            break
        action = rng.integers(env.actions.n, size=3)
        step = env.step(action)
        native = action[1] if env.actions.n == 4 else divmod(int(action[1]), 3)
        picture, reward, done, _, _ = theirs.step(native)
        assert step.reward[1] == np.float32(reward)
        assert (step.terminated | step.truncated)[1] == done


@pytest.mark.parametrize("config", [MYSTERY, MORTAR], ids=["mystery", "mortar"])
def test_torchrl_accepts_the_environment(config):
    check_env_specs(TorchRLEnv(config.build(2), seed=1))


@pytest.mark.parametrize("config", [MYSTERY, MORTAR], ids=["mystery", "mortar"])
def test_ended_slot_stays_until_it_is_reset(config, start, run):
    env = start(config, 2)
    run(env, "random")
    frames = env.frames()
    again = env.step(np.ones(2, np.int64))
    assert (again.terminated | again.truncated).all()
    assert (again.reward == 0).all()
    assert (env.frames() == frames).all()
    env.reset(np.array([1]), np.array([9]))
    after = env.step(np.zeros(2, np.int64))
    assert (after.terminated | after.truncated).tolist() == [True, False]


def test_frames_are_upright(start):
    """Let the agent, which looks up first, walk to the upper edge."""
    env = start(MemoryGymConfig(options={"cardinal_origin_choice": [3]}), 1)
    assert env.frames()[0, :, -12:].any()
    assert not env.frames()[0, :, :42].any()


def test_time_limit_truncates_mystery_path(start, run):
    env = start(MYSTERY, 3)
    rows = run(env, "noop")
    assert len(rows) == 129
    assert (rows[-1]["outcome"] == TIMEOUT).all()
    assert env._truncated.all() and not env._terminated.any()


def test_mistake_terminates_mortar_mayhem(start, run):
    env = start(MORTAR, 8)
    last = run(env, "guess")[-1]
    wrong = last["outcome"] == WRONG
    assert wrong.sum() >= 5
    assert (env._terminated & ~env._truncated).all()
    assert (last["goal_distance"][wrong] == -1).all()


@pytest.mark.parametrize("config", [MYSTERY, MORTAR], ids=["mystery", "mortar"])
def test_oracle_needs_the_goal_distance(config, start, run):
    rows = run(start(config, 20), "oracle")
    assert (rows[-1]["outcome"] == SUCCESS).all()
    left = sum(row["running"] for row in rows)
    for row in rows:
        assert (row["goal_distance"] == left).all()
        left = left - row["running"]


def test_context_lasts_while_commands_are_shown(start, run):
    """Show three commands for three frames each, with a pause of one."""
    rows = run(start(MORTAR, 4), "random")
    context = np.stack([row["context"] for row in rows])
    assert context[:11].all()
    assert not context[11:].any()
    actions = np.stack([row["action"] for row in rows])
    assert not actions[:12].any()
    assert actions[12:].any()


def test_command_ages_from_its_last_picture(start, run):
    rows = run(start(MORTAR, 4), "oracle")
    ages = np.stack([row["evidence_age"] for row in rows])
    assert (ages[:3] == 0).all()
    assert (ages[11] == 9).all()  # the first command was last shown in frame 2
    assert (ages[-1] == len(rows) - 1 - 10).all()  # and the third one in frame 10


def test_fall_is_the_evidence_of_mystery_path(start, run):
    rows = run(start(MYSTERY, 6), "guess")
    ages = np.stack([row["evidence_age"] for row in rows])
    retries = np.stack([row["retries"] for row in rows])
    assert (ages[0] == -1).all()
    assert retries.sum() > 20
    assert (retries == (ages == 1)).all()


def test_wrong_option_error_lists_known_ones():
    with pytest.raises(
        ValueError, match=r"no option 'commands'; it has .*command_count"
    ):
        MemoryGymConfig(id="MortarMayhem-Grid-v0", options={"commands": 3}).build(1)
    with pytest.raises(ValueError, match=r"arena_size.* does not fit"):
        MemoryGymConfig(id="MortarMayhem-Grid-v0", options={"arena_size": 9}).build(1)
