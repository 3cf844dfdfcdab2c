"""The maze engine and its four tasks: rules, pictures, shortest paths, oracle and memoryless scores."""

from collections import deque

import numpy as np
import pytest
from lssvwm.envs import RecallConfig, ReturnConfig, ScavengeConfig, TMazeConfig, make
from lssvwm.envs.base import RUNNING, SUCCESS, TIMEOUT, WRONG, Mixture
from lssvwm.envs.maze import rendering as picture
from lssvwm.envs.maze.engine import AHEAD, LEFT, STAY, GridMaze
from lssvwm.envs.maze.layout import FAR, FORWARD, carve, distance_field, reachable

from lssvwm import envs

SMALL = (
    TMazeConfig(length=6, delay=3),
    ReturnConfig(n=7, objects=2, tour=20),
    RecallConfig(n=7, objects=2, tour=20, delay=5, budget=20),
    ScavengeConfig(n=7, objects=2, steps=60),
)


def by_kind(config):
    return config.kind


def start(config, seeds):
    env = config.build(len(seeds))
    env.reset(np.arange(len(seeds)), np.asarray(seeds))
    return env


def play(config, name, count, seed=0):
    """Play episodes 0 .. count - 1 in parallel to their ends; return outcomes and returns."""
    env = start(config, np.arange(count))
    explorer, done, total = (
        env.explorer(name, seed),
        np.zeros(count, bool),
        np.zeros(count),
    )
    while not done.all():
        step = env.step(explorer.act())
        total += step.reward
        done = step.terminated | step.truncated
    return env.truth()["outcome"], total


def searched_distances(floor, target):
    """Compute distances with a queue, one pose at a time."""
    field = np.full((4, *floor.shape), FAR)
    field[:, target[0], target[1]] = 0
    queue = deque((h, *target) for h in range(4))
    while queue:
        h, r, c = queue.popleft()
        before = [((h + 1) % 4, r, c), ((h - 1) % 4, r, c)]
        back = r - FORWARD[h][0], c - FORWARD[h][1]
        for pose in before + ([(h, *back)] if floor[back] else []):
            if field[pose] == FAR:
                field[pose] = field[h, r, c] + 1
                queue.append(pose)
    return field


@pytest.mark.parametrize("shape", [(9, 9), (15, 15), (12, 7)])
def test_distance_field_equals_a_plain_search(shape):
    rng = np.random.default_rng(0)
    floor = np.zeros(shape, bool)
    floor[1:-1, 1:-1] = rng.random((shape[0] - 2, shape[1] - 2)) < 0.65
    for row, col in np.argwhere(floor)[::7]:
        assert np.array_equal(
            distance_field(floor, (row, col)), searched_distances(floor, (row, col))
        )


@pytest.mark.parametrize("loops", [0.0, 0.3])
def test_mazes_are_connected_and_loops_add_ways(loops):
    floor = carve(15, loops, np.random.default_rng(3))
    field = distance_field(floor, (1, 1))
    assert (field[0][floor] < FAR).all() and (field[0][~floor] == FAR).all()
    assert not floor[[0, -1]].any() and not floor[:, [0, -1]].any()
    passages = floor.sum() - 49
    assert passages == 48 if loops == 0 else passages > 50


def test_reachable_refuses_an_object_behind_another():
    corridor = np.zeros((3, 7), bool)
    corridor[1, 1:6] = True
    assert reachable(corridor, (1, 3), [(1, 1), (1, 5)])
    assert not reachable(corridor, (1, 1), [(1, 3), (1, 5)])


def process_vis(clear):
    """MiniGrid's Grid.process_vis for a 3 x 3 view, clear bool [row, column]."""
    mask = np.zeros((3, 3), bool)
    mask[2, 1] = True
    for j in reversed(range(3)):
        for i, side in [(i, 1) for i in range(2)] + [(i, -1) for i in range(2, 0, -1)]:
            if mask[j, i] and clear[j, i]:
                mask[j, i + side] = True
                if j > 0:
                    mask[j - 1, i + side] = mask[j - 1, i] = True
    return mask


def test_occlusion_equals_minigrids():
    rng = np.random.default_rng(1)
    views = np.where(rng.random((200, 9)) < 0.4, picture.WALL, picture.FLOOR).astype(
        np.uint8
    )
    views[:, 7] = picture.FLOOR
    expected = [process_vis(view.reshape(3, 3) != picture.WALL) for view in views]
    assert np.array_equal(
        picture.hide_occluded(views) != picture.UNSEEN, np.stack(expected)
    )


def test_frame_shows_each_tile_where_it_lies_and_turns_with_the_agent():
    env = start(ReturnConfig(n=9, objects=2), [0])
    floor = np.zeros((9, 9), bool)
    floor[1:8, 1:8] = True
    env.lay(0, floor)
    env.put_tile(0, (2, 5), picture.OBJECT + 1)
    tile = picture.ATLAS[picture.OBJECT + 1].transpose(2, 0, 1)
    for pose, (row, col) in {
        (4, 4, 0): (0, 2),
        (2, 3, 1): (0, 1),
        (1, 6, 2): (1, 2),
        (1, 6, 3): (1, 0),
    }.items():
        env.put_agent(0, *pose)
        env._look()
        frame = env.frames()[0, :, 2:-2, 2:-2]
        assert np.array_equal(
            frame[:, row * 20 : row * 20 + 20, col * 20 : col * 20 + 20], tile
        ), pose


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_a_seed_alone_decides_an_episode(config):
    alone, among = start(config, [5]), start(config, [9, 5, 2])
    rng = np.random.default_rng(0)
    explorers = alone.explorer("cells", 1), among.explorer("cells", 1)
    among.reset(np.array([2]), np.array([8]))
    for _ in range(60):
        assert np.array_equal(alone.frames()[0], among.frames()[1])
        actions = explorers[0].act(), explorers[1].act()
        assert actions[0][0] == actions[1][1]
        others = rng.integers(4, size=3)
        others[1] = actions[0][0]
        one, three = alone.step(actions[0]), among.step(others)
        assert [x[0] for x in one] == [x[1] for x in three]
        assert all(
            value[0] == among.truth()[key][1] for key, value in alone.truth().items()
        )


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_ended_slots_stay_as_they_are(config):
    env = start(config, [0, 1])
    explorer = env.explorer("oracle", 0)
    for _ in range(200):
        step = env.step(explorer.act())
    frames, truth = env.frames().copy(), env.truth()
    assert (step.terminated ^ step.truncated).all()
    again = env.step(np.array([AHEAD, LEFT]))
    assert not again.reward.any()
    assert np.array_equal(again.terminated, step.terminated) and np.array_equal(
        again.truncated, step.truncated
    )
    assert np.array_equal(env.frames(), frames)
    assert all(np.array_equal(env.truth()[key], truth[key]) for key in truth)


def test_goal_distance_falls_by_one_along_the_oracle():
    for config in (TMazeConfig(), ReturnConfig(), RecallConfig(delay=8)):
        env = start(config, np.arange(8))
        oracle = env.explorer("oracle", 0)
        while env.in_context().any():
            env.step(oracle.act())
        running = np.ones(8, bool)
        while running.any():
            before = env.truth()["goal_distance"]
            step = env.step(oracle.act())
            assert np.array_equal(
                env.truth()["goal_distance"][running], before[running] - 1
            )
            running = ~step.terminated & ~step.truncated
        assert (env.truth()["outcome"] == SUCCESS).all() and (
            env.truth()["goal_distance"] == 0
        ).all()


def test_tmaze_shows_its_cue_only_at_the_foot_and_waits_in_the_dark():
    env = start(TMazeConfig(length=8, delay=4), np.arange(16))
    ages, dark, actions = [], [], []
    for _ in range(14):
        ages.append(env.truth()["evidence_age"])
        dark.append((env.frames() == 0).all((1, 2, 3)))
        actions.append(env.last_action())
        env.step(np.full(16, AHEAD))
    assert np.array_equal(ages, np.array([0, 0, *range(1, 13)])[:, None].repeat(16, 1))
    assert [bool(x.all()) for x in dark] == [2 <= t < 6 for t in range(14)]
    assert [int(x[0]) for x in actions] == [0, AHEAD, AHEAD, *[STAY] * 4, *[AHEAD] * 7]
    assert set(env.truth()["goal"]) == {0, 1}


def test_tmaze_context_ends_before_the_junction_and_the_budget_runs():
    env = start(TMazeConfig(length=6, budget=5), [0])
    flags = []
    for _ in range(5):
        flags.append(bool(env.in_context()[0]))
        env.step(np.array([AHEAD]))
    assert flags == [True] * 5 and not env.in_context()[0] and env.row[0] == 2
    ends = [env.step(np.array([STAY])) for _ in range(5)]
    assert [bool(end.truncated[0]) for end in ends] == [False] * 4 + [True]
    assert not ends[-1].terminated[0] and env.truth()["outcome"][0] == TIMEOUT


def test_tmaze_arms_pay_by_the_cue():
    env = start(TMazeConfig(length=4), np.arange(12))
    for action in [AHEAD] * 4 + [LEFT] + [AHEAD] * 2:
        step = env.step(np.full(12, action))
    assert step.terminated.all() and np.array_equal(
        step.reward, (env.cue == 0).astype(np.float32)
    )
    assert np.array_equal(
        env.truth()["outcome"], np.where(env.cue == 0, SUCCESS, WRONG)
    )
    assert len(np.unique(env.frames(), axis=0)) == 1  # no frame tells which arm paid


def test_tmaze_arms_look_alike_without_the_cue():
    env = start(TMazeConfig(length=6), np.arange(16))
    for _ in range(5):
        env.step(np.full(16, AHEAD))
    assert set(env.cue) == {0, 1} and (env.frames() == env.frames()[:1]).all()


def test_return_goes_back_to_the_start_with_a_cue_and_a_budget():
    env = start(ReturnConfig(n=7, objects=3, tour=12), np.arange(8))
    first, distance = env.frames().copy(), env.truth()["goal_distance"]
    rng = np.random.default_rng(0)
    for _ in range(12):
        assert env.in_context().all()
        env.step(rng.integers(4, size=8))
    assert not env.in_context().any()
    now = env.frames()
    assert np.array_equal(now[:, :, 2:-2, 2:-2], first[:, :, 2:-2, 2:-2])
    assert np.array_equal(now[:, :, 0, 0], picture.COLOURS[env.cue])
    budget = np.ceil(1.5 * distance).astype(int)
    for t in range(1, budget.max() + 1):
        step = env.step(np.full(8, STAY))
        assert np.array_equal(step.truncated, t >= budget) and not step.terminated.any()


@pytest.mark.parametrize(
    "config", [ReturnConfig(tour=30), RecallConfig(n=9, objects=3, tour=30)]
)
@pytest.mark.parametrize("walker", ["cells", "random", "noop"])
def test_a_tour_walks_home_without_a_jump(config, walker):
    env = start(config, np.arange(24))
    home, explorer, led = env.home.copy(), env.explorer(walker, 0), 0
    for _ in range(30):
        before, wanted = (
            (env.row.copy(), env.col.copy(), env.heading.copy()),
            explorer.act(),
        )
        env.step(wanted)
        now, done = (
            (env.row.copy(), env.col.copy(), env.heading.copy()),
            env.last_action(),
        )
        led += int((done != wanted).sum())
        for slot in range(24):
            env.put_agent(slot, *(int(v[slot]) for v in before))
        heading, row, col = env.next_pose(done)
        assert all(np.array_equal(a, b) for a, b in zip(now, (row, col, heading)))
        for slot in range(24):
            env.put_agent(slot, *(int(v[slot]) for v in now))
    assert np.array_equal(np.stack(now, -1), home)
    assert walker == "noop" or led > 24


def test_recall_delay_is_dark_frozen_and_logged_as_stay():
    config = RecallConfig(n=7, objects=3, tour=10, delay=6, budget=9)
    env = start(config, np.arange(8))
    headings = env.heading.copy()
    rng = np.random.default_rng(0)
    for t in range(1, 17):
        pose = env.row.copy(), env.col.copy(), env.heading.copy()
        env.step(rng.integers(3, size=8))
        if t > 10:
            assert (env.last_action() == STAY).all()
        if 10 <= t < 16:
            assert not env.frames().any() and env.in_context().all()
        if 10 < t < 16:
            assert all(
                np.array_equal(a, b)
                for a, b in zip(pose, (env.row, env.col, env.heading))
            )
    assert not env.in_context().any() and np.array_equal(env.start[:, 0], env.row)
    assert (env.heading != headings).any() and env.disguise.all()
    ends = [env.step(np.full(8, STAY)).truncated for _ in range(9)]
    assert ends[-1].all() and not ends[-2].any()


def test_recall_objects_look_alike_unless_asked_otherwise():
    def colours_at_query(coloured):
        env = start(
            RecallConfig(n=7, objects=3, tour=1, delay=0, coloured_query=coloured),
            np.arange(40),
        )
        env.step(np.full(40, STAY))
        return set(np.unique(env._view)) & set(range(picture.GREY, picture.PANEL))

    assert colours_at_query(False) == {picture.GREY}
    assert colours_at_query(True) == {
        picture.OBJECT,
        picture.OBJECT + 1,
        picture.OBJECT + 2,
    }


def test_recall_ends_at_the_first_object_touched():
    outcome, reward = play(RecallConfig(n=9, objects=3, tour=4, delay=0), "seek", 200)
    assert (outcome != RUNNING).all() and (outcome == TIMEOUT).mean() < 0.02
    assert np.array_equal(reward, outcome == SUCCESS) and 0.23 < reward.mean() < 0.44


def test_scavenge_pays_again_and_again_with_changing_cues():
    env = start(ScavengeConfig(n=7, objects=3, steps=80), np.arange(8))
    oracle, total = env.explorer("oracle", 0), np.zeros(8)
    for t in range(80):
        cue = env.cue.copy()
        step = env.step(oracle.act())
        paid = step.reward > 0
        total += step.reward
        assert np.array_equal(env.cue != cue, paid) and np.array_equal(
            env.truth()["success"], paid
        )
        assert not step.terminated.any() and step.truncated.all() == (t == 79)
    assert total.min() >= 2 and (env.truth()["outcome"] == TIMEOUT).all()


def test_evidence_age_counts_from_the_last_sight_of_the_cued_object():
    env = start(ReturnConfig(), np.arange(16))
    explorer, last = env.explorer("cells", 0), np.full(16, -1)
    for _ in range(50):
        seen = (env._view == picture.OBJECT + env.cue[:, None, None]).any((1, 2))
        last = np.where(seen, env.clock, last)
        assert np.array_equal(
            env.truth()["evidence_age"], np.where(last < 0, -1, env.clock - last)
        )
        env.step(explorer.act())
    assert (last >= 0).any()


def test_guides_show_all_there_is_to_remember():
    for config in (ReturnConfig(), RecallConfig()):
        env = start(config, np.arange(64))
        guide = env.explorer("guide", 0)
        while env.in_context().all():
            env.step(guide.act())
        assert (env.seen_at >= 0).all(1).mean() > 0.93


def test_mixture_keeps_one_explorer_per_episode():
    env = start(ScavengeConfig(n=7, objects=2, steps=30), np.arange(64))
    mixture = Mixture(env, {"noop": 1.0, "momentum": 1.0}, seed=0)
    acted = np.stack([mixture.act() for _ in range(10)])
    noop = (acted == STAY).all(0)
    assert 16 < noop.sum() < 48 and not (acted[:, ~noop] == STAY).any()
    with pytest.raises(ValueError, match="weights"):
        Mixture(env, {"noop": 0.0}, seed=0)


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_a_walk_does_not_depend_on_the_other_slots(config):
    for name in config.build(1).explorers:
        alone, among = start(config, [5]), start(config, [5, 6, 7])
        one, three = alone.explorer(name, 1), among.explorer(name, 1)
        for t in range(50):
            action, actions = one.act(), three.act()
            assert action[0] == actions[0], (name, t)
            alone.step(action)
            among.step(actions)
            if t % 7 == 0:  # the others stand elsewhere in their episodes
                among.reset(np.array([1 + t % 2]), np.array([t]))


@pytest.mark.parametrize("config", SMALL, ids=by_kind)
def test_every_explorer_runs(config):
    env = start(config, np.arange(4))
    for name in env.explorers:
        explorer = env.explorer(name, 0)
        for _ in range(40):
            action = explorer.act()
            assert action.shape == (4,) and action.dtype == np.int64
            env.step(action)
        env.reset(np.arange(4), np.arange(4))
    with pytest.raises(ValueError, match="oracle"):
        env.explorer("orcale", 0)


def test_wall_follower_keeps_its_hand_on_the_wall():
    env = start(ScavengeConfig(n=9, objects=2, steps=400, loops=0.0), [0])
    explorer, visited = env.explorer("wall", 0), set()
    for _ in range(400):
        env.step(explorer.act())
        visited.add((int(env.row[0]), int(env.col[0])))
    assert len(visited) == env.floor[0].sum()


@pytest.mark.parametrize(
    "config",
    [
        TMazeConfig(length=1),
        ReturnConfig(n=8),
        ReturnConfig(objects=7),
        ReturnConfig(slack=0.5),
        RecallConfig(tour=0),
        RecallConfig(n=5, objects=6),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(config):
    with pytest.raises(ValueError):
        make(config, 1)


def test_make_and_step_refuse_what_they_cannot_use():
    with pytest.raises(TypeError, match="tmaze"):
        make("tmaze", 1)
    with pytest.raises(ValueError, match="batch"):
        make(TMazeConfig(), 0)
    with pytest.raises(ValueError, match="0 to 3"):
        make(TMazeConfig(), 2).step(np.array([0, 4]))


def test_every_kind_has_its_configuration():
    assert {kind: cls().kind for kind, cls in envs.ENV_CONFIGS.items()} == {
        k: k for k in envs.ENV_CONFIGS
    }


def test_top_view_draws_the_whole_map():
    env = start(ReturnConfig(n=9), [0])
    assert isinstance(env, GridMaze)
    view = env.top_view(0)
    assert view.shape == (3, 180, 180) and view.dtype == np.uint8
    row, col = env.objects[0, 0]
    ball = picture.ATLAS[picture.OBJECT].transpose(2, 0, 1)
    assert np.array_equal(
        view[:, row * 20 : row * 20 + 20, col * 20 : col * 20 + 20], ball
    )


# Bounds: reference scores of the explorers, plus or minus 3 standard errors of 640 episodes (n = 11: 1.000,
# .255, .227, .108; n = 15: 1.000, .161, .156, .070; T-maze: 1.000, .492).
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name", "low", "high"),
    [
        (TMazeConfig(length=64), "oracle", 1.0, 1.0),
        (TMazeConfig(length=64), "seek", 0.44, 0.56),
        (ReturnConfig(), "oracle", 1.0, 1.0),
        (RecallConfig(), "oracle", 1.0, 1.0),
        (RecallConfig(), "seek", 0.205, 0.305),
        (RecallConfig(), "wall", 0.16, 0.28),
        (RecallConfig(), "random", 0.07, 0.145),
        (RecallConfig(n=15, objects=6), "oracle", 1.0, 1.0),
        (RecallConfig(n=15, objects=6), "seek", 0.118, 0.204),
        (RecallConfig(n=15, objects=6), "wall", 0.113, 0.199),
        (RecallConfig(n=15, objects=6), "random", 0.04, 0.1),
    ],
)
def test_success_over_640_episodes(config, name, low, high):
    outcome, _ = play(config, name, 640)
    assert low <= (outcome == SUCCESS).mean() <= high


# Reference: oracle 41 and 22, wall-following 6.2 and 2.7, "random" 2.3 and 0.9. The last fits a walk with
# momentum; uniformly random actions find about 0.5 and 0.2.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name", "low", "high"),
    [
        (ScavengeConfig(), "oracle", 36, 44),
        (ScavengeConfig(), "wall", 5.2, 7.6),
        (ScavengeConfig(), "momentum", 1.5, 2.6),
        (ScavengeConfig(n=15, objects=6), "oracle", 20, 25),
        (ScavengeConfig(n=15, objects=6), "wall", 2.2, 3.4),
        (ScavengeConfig(n=15, objects=6), "momentum", 0.6, 1.1),
    ],
)
def test_scavenging_over_256_episodes(config, name, low, high):
    _, reward = play(config, name, 256)
    assert low <= reward.mean() <= high


def test_without_a_guide_the_cue_is_behind_and_who_looks_finds_the_goal():
    env = make(TMazeConfig(length=12, autonomous=True), 64)
    env.reset(np.arange(64), np.arange(64))
    assert not env.in_context().any() and (env.truth()["evidence_age"] == -1).all()
    assert len(set(env.row.tolist())) > 3
    explorers = {"look": 1.0, "oracle": 1.0, "seek": 0.5}
    for name, share in explorers.items():
        env.reset(np.arange(64), np.arange(64))
        walker, seen = env.explorer(name, 0), np.zeros(64, bool)
        for _ in range(env.steps):
            env.step(walker.act())
            seen |= env.truth()["evidence_age"] >= 0
        assert abs(env.truth()["success"].mean() - share) < 0.15
        assert seen.all() == (name == "look")
    with pytest.raises(ValueError, match="autonomous T-maze needs length >= 7"):
        make(TMazeConfig(length=5, autonomous=True), 1)
