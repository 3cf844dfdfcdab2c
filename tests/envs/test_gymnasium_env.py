"""The MiniGrid, Gymnasium and counting environments: pictures, episodes, explorers, error messages."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from lssvwm.envs.base import SUCCESS, TIMEOUT, WRONG, BatchedEnv, Box, Discrete
from lssvwm.envs.counting import CountingConfig, decode, encode
from lssvwm.envs.gymnasium_env import GymConfig
from lssvwm.envs.minigrid.env import MiniGridConfig, MiniGridEnv
from lssvwm.envs.torchrl_env import TorchRLEnv
from minigrid.wrappers import RGBImgPartialObsWrapper
from omegaconf import OmegaConf
from torchrl.envs.utils import check_env_specs


class PictureEnv(gymnasium.Env):
    """Shows its step count as a flat picture in a layout of choice; ends after 4 steps with reward 1."""

    def __init__(
        self, layout: str = "hwc", box: bool = False, side: int = 32, space=None
    ):
        hwc, chw, grey = (side, side, 3), (3, side, side), (side, side)
        shape = {"hwc": hwc, "chw": chw, "grey": grey, "dict": (side, side, 1)}
        self.layout = layout
        self.picture = spaces.Box(0, 255, shape.get(layout, (5,)), np.uint8)
        words = spaces.Box(0, 255, (5,), np.uint8)
        self.observation_space = self.picture
        if layout == "dict":
            self.observation_space = spaces.Dict(
                {"words": words, "camera": self.picture}
            )
        default = spaces.Box(-1.0, 2.0, (2,)) if box else spaces.Discrete(3, start=-1)
        self.action_space = default if space is None else space

    def _observe(self):
        picture = np.full(self.picture.shape, 10 * self.count + self.shade, np.uint8)
        return (
            {"words": np.zeros(5, np.uint8), "camera": picture}
            if self.layout == "dict"
            else picture
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shade, self.count, self.taken = int(self.np_random.integers(100)), 0, []
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        self.taken.append(action)
        return self._observe(), float(self.count == 4), self.count == 4, False, {}


def picture_env(**kwargs) -> GymConfig:
    return GymConfig(
        factory=f"{__name__}:PictureEnv", size=kwargs.pop("size", 32), kwargs=kwargs
    )


def start(env: BatchedEnv, first: int = 0) -> BatchedEnv:
    env.reset(np.arange(env.batch), first + np.arange(env.batch))
    return env


CONFIGS = [CountingConfig(), MiniGridConfig(max_steps=9), picture_env()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_torchrl_accepts_the_environment(config):
    check_env_specs(TorchRLEnv(config.build(2), seed=1))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_an_ended_slot_stays_as_it_is_until_it_is_reset(config):
    env = start(config.build(2))
    random = env.explorer("random", 0)
    for _ in range(9):
        step = env.step(random.act())
    assert (step.terminated ^ step.truncated).all()
    frames, action = env.frames(), env.last_action()
    again = env.step(random.act())
    assert (again.reward == 0).all()
    assert (again.terminated == step.terminated).all() and (
        again.truncated == step.truncated
    ).all()
    assert (env.frames() == frames).all() and (env.last_action() == action).all()
    env.reset(np.array([1]), np.array([5]))
    after = env.step(np.zeros(2, np.int64))
    assert (after.terminated | after.truncated).tolist() == [True, False]
    assert env.episode.tolist() == [1, 2]


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.kind)
def test_the_seed_alone_decides_the_episode(config):
    one, many = start(config.build(1), first=7), start(config.build(3))
    many.step(np.zeros(3, np.int64))
    many.reset(np.array([2]), np.array([7]))
    for _ in range(3):
        assert (one.frames()[0] == many.frames()[2]).all()
        one.step(np.full(1, 1))
        many.step(np.full(3, 1))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_configs_fit_hydra_and_unknown_explorers_are_named(config):
    assert OmegaConf.to_object(OmegaConf.structured(config)) == config
    with pytest.raises(ValueError, match=r"no explorer 'rando'; it has random, noop"):
        config.build(1).explorer("rando", 0)


# ---------------------------------------------------------------------------------------------- counting


def test_counting_frames_tell_episode_step_and_action():
    env = CountingConfig(episode_length=3).build(2)
    random = env.explorer("random", 3)
    for episode in (1, 2):
        start(env)
        last = np.zeros(2, np.int64)
        for step in range(4):
            seen = decode(env.frames())
            assert [part.tolist() for part in seen] == [
                [episode] * 2,
                [step] * 2,
                last.tolist(),
            ]
            assert env.last_action().tolist() == last.tolist()
            if step < 3:
                last = random.act()
                result = env.step(last)
                assert result.reward == pytest.approx(0.01 * (step + 1))
        assert result.terminated.all() == (episode == 2) and result.truncated.all() == (
            episode == 1
        )


def test_decoding_is_exact_and_refuses_altered_frames():
    numbers = np.array([[0, 255, 256, 65535], [7, 511, 3, 0], [1, 2, 300, 4]])
    frames = encode(*numbers, size=10)
    assert (np.array(decode(frames[:, None])) == numbers[:, :, None]).all()
    frames[0, 1, 3, 3] += 1
    with pytest.raises(ValueError, match="not a counting frame"):
        decode(frames)


# ---------------------------------------------------------------------------------------------- MiniGrid

LOOKS = [
    MiniGridConfig(size=9),
    MiniGridConfig(view=5, tile=12, kwargs={"random_length": True}, size=13),
    MiniGridConfig(id="MiniGrid-DoorKey-6x6-v0", actions=7),
    MiniGridConfig(id="MiniGrid-KeyCorridorS3R2-v0", actions=7),
    MiniGridConfig(id="MiniGrid-MultiRoom-N4-S5-v0", actions=7),
    MiniGridConfig(id="MiniGrid-ObstructedMaze-1Dlhb-v0", actions=7),
    MiniGridConfig(id="MiniGrid-Dynamic-Obstacles-6x6-v0"),
    MiniGridConfig(id="MiniGrid-LavaCrossingS9N2-v0", view=9, tile=7),
    MiniGridConfig(id="MiniGrid-FourRooms-v0"),
    MiniGridConfig(id="MiniGrid-Empty-8x8-v0", view=3, tile=8),
    MiniGridConfig(id="BabyAI-GoToLocal-v0", actions=7),
]


def twin(config: MiniGridConfig) -> gymnasium.Env:
    """Return the environment as MiniGrid alone makes and draws it."""
    kwargs = dict(config.kwargs) | (
        {} if config.size is None else {"size": config.size}
    )
    env = gymnasium.make(
        config.id, agent_view_size=config.view, disable_env_checker=True, **kwargs
    )
    return RGBImgPartialObsWrapper(env.unwrapped, tile_size=config.tile)


@pytest.mark.parametrize("config", LOOKS, ids=lambda config: config.id)
def test_minigrid_equals_minigrid_bit_for_bit(config):
    env, other, pixels = config.build(2), twin(config), config.view * config.tile
    explorer = env.explorer("momentum" if config.actions == 7 else "random", 1)
    start(env, first=10)
    expected, _ = other.reset(seed=11)
    for _ in range(60):
        frame = env.frames()[1]
        assert (
            frame[:, :pixels, :pixels] == expected["image"].transpose(2, 0, 1)
        ).all()
        assert not frame[:, pixels:].any() and not frame[:, :, pixels:].any()
        action = explorer.act()
        step = env.step(action)
        expected, reward, terminated, truncated, _ = other.step(action[1])
        assert step.reward[1] == (1 if terminated and reward > 0 else reward)
        assert (step.terminated[1], step.truncated[1]) == (terminated, truncated)
        if terminated or truncated:
            break


def run(env: BatchedEnv, name: str, limit: int = 200) -> list[dict[str, np.ndarray]]:
    """Let explorer `name` play one episode in every slot; return the truth (and the flags) of every step."""
    explorer, rows = env.explorer(name, 0), []
    for _ in range(limit):
        rows.append(
            env.truth()
            | {"context": env.in_context(), "done": np.zeros(env.batch, bool)}
        )
        step = env.step(explorer.act())
        if (step.terminated | step.truncated).all():
            break
    return [
        *rows,
        env.truth()
        | {"context": env.in_context(), "done": step.terminated | step.truncated},
    ]


@pytest.mark.parametrize("size", [7, 17, 33])
def test_memory_oracle_always_wins_and_a_blind_choice_does_half_the_time(size):
    env = MiniGridConfig(size=size).build(64)
    last = run(start(env), "oracle")[-1]
    assert (
        (last["outcome"] == SUCCESS).all()
        and last["success"].all()
        and (last["goal_distance"] == 0).all()
    )
    assert last["evidence_age"].min() >= size - 2
    blind = run(start(env), "seek")[-1]
    assert set(blind["outcome"].tolist()) == {SUCCESS, WRONG}
    assert 0.3 < blind["success"].mean() < 0.7
    assert 0.3 < last["goal"].mean() < 0.7


def test_memory_truth_agrees_with_minigrid():
    config = MiniGridConfig(size=11)
    env, other = start(config.build(1), first=3), twin(config).unwrapped
    other.reset(seed=3)
    cells, sight = env.explorer("cells", 0), []
    assert env.truth()["goal"] == ["ball", "key"].index(other.grid.get(1, 4).type)
    for _ in range(40):
        sees = other.agent_sees(1, 4)
        sight.append(sees)
        age = sight[::-1].index(True) if any(sight) else -1
        assert env.truth()["evidence_age"] == age
        action = cells.act()
        other.step(int(action[0]))
        step = env.step(action)
        if step.terminated.any() or step.truncated.any():
            break
    assert any(sight) and not all(sight)


def test_memory_distance_falls_by_one_with_every_step_of_the_oracle():
    rows = run(start(MiniGridConfig(size=13).build(8)), "oracle")
    for before, after in pairwise(rows):
        walking = ~before["context"] & (before["outcome"] == 0)
        assert (after["goal_distance"] == before["goal_distance"] - 1)[walking].all()


def test_memory_context_ends_at_the_fork_and_the_budget_truncates():
    env = start(MiniGridConfig(size=17, budget=5).build(16))
    rows = run(env, "guide")
    assert (rows[-1]["outcome"] == TIMEOUT).all()
    ends = np.argmin([row["context"] for row in rows], axis=0)
    for slot, end in enumerate(ends):
        assert rows[end]["goal_distance"][slot] == 3
        assert rows[end]["evidence_age"][slot] > 0
    assert (env.steps == ends + 5).all()


@pytest.mark.parametrize("size", [7, 9, 11, 13, 17])
def test_memory_default_budget_is_too_short_to_look_back(size):
    env, patient = (
        at_the_fork(MiniGridConfig(size=size)),
        at_the_fork(MiniGridConfig(size=size, budget=100)),
    )
    started = patient.steps[0]
    for action in [0, 0] + [2] * size:
        patient.step(np.array([action]))
        if patient.truth()["evidence_age"] == 0:
            break
    assert patient.truth()["evidence_age"] == 0
    needed = patient.steps[0] - started + patient.truth()["goal_distance"][0]
    while not env.step(np.zeros(1, np.int64)).truncated[0]:
        assert env.steps[0] < 200
    assert 3 <= env.steps[0] - started < needed


def at_the_fork(config: MiniGridConfig) -> MiniGridEnv:
    env = config.build(1)
    start(env)
    guide = env.explorer("guide", 0)
    while env.in_context().any():
        env.step(guide.act())
    return env


@pytest.mark.parametrize(
    ("size", "name", "limit", "shown"),
    [(7, "cells", 300, 1.0), (17, "cells", 300, 1.0), (17, "stumble", 900, 0.95)],
)
def test_noisy_memory_explorers_show_the_cue_and_end(size, name, limit, shown):
    env = start(MiniGridConfig(size=size).build(64))
    last = run(env, name, limit)[-1]
    assert (last["evidence_age"] >= 0).mean() >= shown and (last["outcome"] > 0).all()
    assert 0.25 < last["success"].mean() < 0.7
    assert len(set(env.steps.tolist())) > 10


def test_goal_oracle_reaches_the_goal_by_a_shortest_path():
    env = start(MiniGridConfig(id="MiniGrid-FourRooms-v0").build(8))
    least = env.truth()["goal_distance"]
    assert run(env, "oracle")[-1]["success"].all()
    assert (env.steps == least).all()


def test_minigrid_offers_no_oracle_where_doors_are_in_the_way():
    env = start(MiniGridConfig(id="MiniGrid-DoorKey-5x5-v0", actions=7).build(1))
    assert env.explorers == ("random", "noop", "momentum")
    assert env.truth()["goal_distance"] == -1


def test_minigrid_keeps_its_own_reward_and_time_limit_when_told():
    env = start(MiniGridConfig(binary_reward=False, max_steps=50).build(1))
    explorer, total = env.explorer("oracle", 0), 0.0
    while not env.truth()["success"][0]:
        total += float(env.step(explorer.act()).reward[0])
    assert total == pytest.approx(1 - 0.9 * env.steps[0] / 50)
    limited = start(MiniGridConfig(max_steps=4).build(1))
    flags = [limited.step(np.zeros(1, np.int64)) for _ in range(4)]
    assert [bool(step.truncated[0]) for step in flags] == [False, False, False, True]
    assert not flags[-1].terminated[0] and limited.truth()["outcome"] == TIMEOUT


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MiniGridConfig(id="MiniGrid-MemoryS8-v0"),
            "unknown .* 'MiniGrid-MemoryS8-v0'; nearest: MiniGrid-M",
        ),
        (MiniGridConfig(size=8), "must be odd and at least 7, got size=8"),
        (MiniGridConfig(tile=10), "do not fit a frame of 64"),
        (MiniGridConfig(view=4), "got view=4"),
        (MiniGridConfig(actions=8), "actions must be from 1 to 7, got 8"),
        (
            MiniGridConfig(id="MiniGrid-Empty-5x5-v0", budget=4),
            "budget is for Memory ids only",
        ),
        (
            MiniGridConfig(kwargs={"colour": 1}),
            "cannot make MiniGrid-MemoryS7-v0: .*colour",
        ),
    ],
)
def test_minigrid_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(1)


@pytest.mark.slow
def test_minigrid_speed():
    env = start(MiniGridConfig(size=17, max_steps=10_000).build(16))
    random = env.explorer("noop", 0)
    began = time.perf_counter()
    for _ in range(200):
        env.step(random.act())
        env.frames()
    assert 200 * 16 / (time.perf_counter() - began) > 5_000


# ---------------------------------------------------------------------------------------------- Gymnasium


@pytest.mark.parametrize("layout", ["hwc", "chw", "grey", "dict"])
@pytest.mark.parametrize("size", [32, 16, 48])
def test_gym_finds_the_image_and_resizes_it(layout, size):
    env = start(picture_env(layout=layout, size=size).build(2))
    shade = [one.shade for one in env.envs]
    env.step(np.array([0, 2]))
    frames = env.frames()
    assert frames.shape == (2, 3, size, size) and frames.dtype == np.uint8
    for slot in range(2):
        assert (frames[slot] == shade[slot] + 10).all()


def test_gym_averages_when_it_shrinks_a_picture():
    from lssvwm.envs.gymnasium_env import _resized

    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = 200
    assert (_resized(board, 32) == 50).all()


def test_gym_episode_ends_with_success_and_discrete_actions_are_shifted():
    env = start(picture_env().build(1))
    results = [env.step(np.array([action])) for action in (0, 1, 2, 0)]
    assert env.envs[0].taken == [-1, 0, 1, -1]
    assert [float(step.reward[0]) for step in results] == [0, 0, 0, 1]
    assert results[-1].terminated[0] and not results[-1].truncated[0]
    assert env.truth()["outcome"] == SUCCESS


def test_gym_takes_continuous_actions_and_its_own_time_limit():
    config = GymConfig(
        factory=f"{__name__}:PictureEnv", kwargs={"box": True}, max_steps=2
    )
    env = start(config.build(2))
    assert env.actions == Box((-1.0, -1.0), (2.0, 2.0))
    random = env.explorer("random", 0)
    env.step(random.act())
    last = random.act()
    step = env.step(last)
    assert last.dtype == np.float32 and (env.last_action() == last).all()
    assert step.truncated.all() and not step.terminated.any()
    assert (env.truth()["outcome"] == TIMEOUT).all()


@pytest.mark.parametrize(
    ("space", "combinations", "last"),
    [
        (spaces.MultiDiscrete([2, 3]), 6, [1, 2]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), 6, [6, 1]),
        (spaces.MultiDiscrete([[2, 2], [3, 1]]), 12, [[1, 1], [2, 0]]),
        (spaces.MultiBinary(3), 8, [1, 1, 1]),
    ],
)
def test_gym_numbers_the_combinations_of_several_choices(space, combinations, last):
    env = start(picture_env(space=space).build(1))
    assert isinstance(env.actions, Discrete) and env.actions.n == combinations == len(
        set(env.actions.names)
    )
    for action in (0, combinations - 1):
        env.step(np.array([action]))
    assert env.envs[0].taken[-1].tolist() == last
    assert env.last_action().tolist() == [combinations - 1]


def test_the_robots_point_maze_is_seen_through_its_camera(monkeypatch):
    if "DISPLAY" not in os.environ:
        monkeypatch.setenv("MUJOCO_GL", "egl")  # read when it is imported
    pytest.importorskip("gymnasium_robotics")
    config = GymConfig(
        id="gymnasium_robotics:PointMaze_UMaze-v3",
        kwargs={"continuing_task": False},
        render=True,
        max_steps=20,
    )
    env = start(config.build(1))
    assert env.actions == Box((-1.0, -1.0), (1.0, 1.0))
    before = env.frames()
    for _ in range(20):
        step = env.step(np.array([[1.0, 0.0]]))
    assert step.truncated.all() and before.std() > 1 and (env.frames() != before).any()


def test_gym_renders_when_there_is_no_image():
    env = start(GymConfig(id="CartPole-v1", render=True).build(1))
    assert env.actions == Discrete(2, ("action 0", "action 1"))
    before = env.frames()
    assert before.std() > 1
    for _ in range(5):
        env.step(np.array([1]))
    assert (env.frames() != before).any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            GymConfig(id="CartPool-v1"),
            "unknown environment 'CartPool-v1'; nearest: CartPole-v1",
        ),
        (
            GymConfig(id="CartPole-v1"),
            "CartPole-v1 observes Box.*no image.*render=True",
        ),
        (GymConfig(id="MiniGrid-Empty-5x5-v0"), "no image"),
        (
            GymConfig(id="Pendulum-v1", kwargs={"colour": 1}),
            "cannot make Pendulum-v1 with colour",
        ),
        (GymConfig(), "give either id or factory"),
        (GymConfig(factory="json"), '"package.module:callable"'),
        (GymConfig(factory="jsonn:loads"), "No module named 'jsonn'"),
        (GymConfig(factory="json:load_s"), "has no 'load_s'; did you mean 'loads'"),
        (picture_env(layout="words"), "no image"),
        (GymConfig(id="CartPole-v1", render=True, size=0), "size must be at least"),
    ],
)
def test_gym_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(1)


def test_gym_refuses_actions_it_cannot_take():
    from lssvwm.envs.gymnasium_env import _actions

    env = PictureEnv()
    env.action_space = spaces.MultiDiscrete([20, 20])
    with pytest.raises(ValueError, match=r"acts through MultiDiscrete.*up to 256"):
        _actions(env, "toy")
    env.action_space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match="bounded float Box"):
        _actions(env, "toy")
