"""Test MiniGrid environments: ground truth, context and budget, error messages."""

import numpy as np
import pytest
from lssvwm.envs.base import TIMEOUT
from lssvwm.envs.minigrid.env import MiniGridConfig


@pytest.fixture
def at_the_fork(start):
    """Return a function that leads one agent to the end of the context."""

    def arrived(config):
        env = start(config, 1)
        guide = env.explorer("guide", 0)
        while env.in_context().any():
            env.step(guide.act())
        return env

    return arrived


def test_memory_truth_agrees_with_minigrid(start, twin):
    config = MiniGridConfig(size=11)
    env, other = start(config, [3]), twin(config).unwrapped
    other.reset(seed=3)
    cells = env.explorer("cells", 0)
    sight = []
    assert env.truth()["goal"] == ["ball", "key"].index(other.grid.get(1, 4).type)
    for _ in range(40):
        sight.append(other.agent_sees(1, 4))
        age = sight[::-1].index(True) if any(sight) else -1
        assert env.truth()["evidence_age"] == age
        action = cells.act()
        other.step(int(action[0]))
        step = env.step(action)
        if step.terminated.any() or step.truncated.any():
            break
    assert any(sight) and not all(sight)


def test_memory_budget_truncates_after_the_fork(start, run):
    env = start(MiniGridConfig(size=17, budget=5), 16)
    rows = run(env, "guide")
    assert (rows[-1]["outcome"] == TIMEOUT).all()
    ends = np.argmin([row["context"] for row in rows], axis=0)
    for slot, end in enumerate(ends):
        assert rows[end]["goal_distance"][slot] == 3
        assert rows[end]["evidence_age"][slot] > 0
    assert (env.steps == ends + 5).all()


@pytest.mark.parametrize("size", [7, 9, 11, 13, 17])
def test_memory_default_budget_prevents_looking_back(size, at_the_fork):
    env = at_the_fork(MiniGridConfig(size=size))
    patient = at_the_fork(MiniGridConfig(size=size, budget=100))
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


def test_minigrid_can_keep_its_own_reward(start):
    env = start(MiniGridConfig(binary_reward=False, max_steps=50), 1)
    explorer = env.explorer("oracle", 0)
    total = 0.0
    while not env.truth()["success"][0]:
        total += float(env.step(explorer.act()).reward[0])
    assert total == pytest.approx(1 - 0.9 * env.steps[0] / 50)


def test_minigrid_takes_another_time_limit(start):
    env = start(MiniGridConfig(max_steps=4), 1)
    flags = [env.step(np.zeros(1, np.int64)) for _ in range(4)]
    truncated = [bool(step.truncated[0]) for step in flags]
    assert truncated == [False, False, False, True]
    assert not flags[-1].terminated[0]
    assert env.truth()["outcome"] == TIMEOUT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"id": "MiniGrid-MemoryS8-v0"},
            "unknown .* 'MiniGrid-MemoryS8-v0'; nearest: MiniGrid-M",
        ),
        ({"size": 8}, "must be odd and at least 7, got size=8"),
        ({"tile": 10}, "do not fit a frame of 64"),
        ({"view": 4}, "view\n.*should be 3, 5, 7 or 9"),
        ({"actions": 8}, "actions\n.*less than or equal to 7"),
        (
            {"id": "MiniGrid-Empty-5x5-v0", "budget": 4},
            "budget is for Memory ids only",
        ),
        (
            {"kwargs": {"colour": 1}},
            "cannot make MiniGrid-MemoryS7-v0: .*colour",
        ),
    ],
)
def test_minigrid_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MiniGridConfig(**settings).build(1)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("MiniGrid-Empty-5x5-v0", 2, "cannot make MiniGrid-Empty-5x5-v0"),
        ("MiniGrid-Fetch-5x5-N2-v0", 3, "rejection sampling failed"),
    ],
)
def test_minigrid_without_room_is_named(start, name, size, message):
    with pytest.raises(ValueError, match=message):
        start(MiniGridConfig(id=name, size=size), 1)
