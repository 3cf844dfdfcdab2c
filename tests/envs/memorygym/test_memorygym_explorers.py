"""Memory decides: explorers that remember succeed, those that forget fail."""

import numpy as np
import pytest
from lssvwm.envs import MemoryGymConfig

pytest.importorskip("memory_gym")

COUNT = 60
MYSTERY = MemoryGymConfig()
FREE_MYSTERY = MemoryGymConfig(id="MysteryPath-v0")
FREE_MORTAR = MemoryGymConfig(id="MortarMayhem-v0", options={"command_count": [3]})
MORTAR = MemoryGymConfig(id="MortarMayhem-Grid-v0", options={"command_count": [5]})


def success(play, config, name):
    outcome, _ = play(config, name, COUNT)
    return (outcome == 1).mean()


@pytest.mark.parametrize("name", ["oracle", "seek"])
def test_mystery_path_is_solved_from_remembered_falls(name, play):
    assert success(play, MYSTERY, name) > 0.95


@pytest.mark.parametrize("name", ["random", "noop", "guess"])
def test_mystery_path_needs_memory_of_falls(name, play):
    assert success(play, MYSTERY, name) < 0.2


def test_mortar_mayhem_needs_memory_of_commands(play):
    assert success(play, MORTAR, "oracle") == 1
    assert success(play, MORTAR, "guess") < 0.1


def test_single_command_is_guessed_by_chance(play):
    """The package counts every episode with one command as a success."""
    options = {"command_count": [1], "arena_size": 6}
    config = MemoryGymConfig(id="MortarMayhem-Grid-v0", options=options)
    assert success(play, config, "oracle") == 1
    assert 0.05 < success(play, config, "guess") < 0.5


@pytest.mark.parametrize(
    "config", [FREE_MYSTERY, FREE_MORTAR], ids=["mystery", "mortar"]
)
def test_oracle_moves_freely(config, play):
    outcome, _ = play(config, "oracle", 20)
    assert (outcome == 1).all()


def test_noisy_explorers_fall_and_go_on(start, run):
    env = start(MYSTERY, COUNT)
    for name in ("noisy", "stumble"):
        env.reset(np.arange(COUNT), np.arange(COUNT))
        rows = run(env, name)
        fell = sum(row["retries"] for row in rows) > 0
        assert (fell & rows[-1]["success"]).sum() > 5


def test_careless_explorers_repeat_falls_and_arrive(start):
    env = start(MYSTERY, COUNT)
    repeated = {}
    least = {"seek": 0.8, "careless": 0.6, "blind": 0.6, "wander": 0.3}
    for name in least:
        env.reset(np.arange(COUNT), np.arange(COUNT))
        explorer = env.explorer(name, 0)
        falls = [[] for _ in range(COUNT)]
        for _ in range(128):
            env.step(explorer.act())
            for places, game in zip(falls, env.games):
                if game.fell_at == game.frame:
                    places.append(game.cell)
        repeated[name] = sum(len(places) - len(set(places)) for places in falls)
        assert env.truth()["success"].mean() > least[name]
    assert repeated["seek"] == 0
    assert min(repeated["careless"], repeated["blind"]) > COUNT / 2
    assert repeated["wander"] > repeated["careless"]


def test_blind_explorer_walks_on_after_falls(start):
    """Let the action that led to a fall go on beyond it more often than by chance."""
    env = start(MYSTERY, COUNT)
    goes_on = {}
    for name in ("stumble", "blind"):
        env.reset(np.arange(COUNT), np.arange(COUNT))
        explorer = env.explorer(name, 0)
        actions, fell = [], []
        for _ in range(128):
            actions.append(explorer.act())
            env.step(actions[-1])
            fell.append([game.fell_at == game.frame for game in env.games])
        before, after = np.array(actions[:-2]), np.array(actions[2:])
        goes_on[name] = (before == after)[np.array(fell[:-2])].mean()
    assert goes_on["blind"] > goes_on["stumble"] + 0.05


def test_noisy_explorer_makes_late_mistakes(play):
    """Let it obey some commands before an episode ends with a mistake."""
    outcome, reward = play(MORTAR, "noisy", COUNT)
    assert 0.2 < (outcome == 1).mean() < 0.9
    obeyed = np.round(reward[outcome != 1] / 0.1)
    assert len(np.unique(obeyed)) > 2
