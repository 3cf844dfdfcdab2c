"""Test the published tests of memory in Memory Maze, in a small maze that stands in for it."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.benchmarks import memory_maze as benchmark
from lssvwm.agent.benchmarks import memory_probes as probes
from lssvwm.agent.benchmarks import pose_walks
from lssvwm.agent.benchmarks.maze_walks import NEVER
from lssvwm.agent.cli import main as cli
from lssvwm.agent.config.composition import compose
from lssvwm.agent.config.settings import BenchmarkRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.envs.base import Discrete, RandomExplorer, Step, flags
from lssvwm.worldmodel import WorldModel

SIZE, OBJECTS = 4, 2
FRAMES = 40
SETTINGS = [
    "env=memorymaze",
    f"env.steps={FRAMES}",
    "model.width=16",
    "model.mixer.state=16",
    "model.mixer.head_dim=16",
    "benchmark.walks=3",
    "benchmark.probed=12",
    "benchmark.probe_steps=100",
    "benchmark.horizon=5",
    "threads=1",
]


class SmallMaze:
    """Show white frames in a maze of floor only, and black ones in a maze of walls.

    The agent turns and steps freely.
    """

    frame_shape = (3, 64, 64)
    actions = Discrete(6, tuple("abcdef"))
    built = 0

    def __init__(self):
        type(self).built += 1
        self.batch = 1
        self.episode = np.zeros(1, np.int64)
        self.seeds = np.zeros(1, np.int64)
        self.poses = np.zeros((1, 3))

    def reset(self, where, seeds):
        rng = np.random.default_rng(seeds[0])
        self.episode += 1
        self.seeds = seeds
        self.floor = np.full((1, SIZE, SIZE), seeds[0] % 2 == 0)
        self.places = rng.uniform(0, SIZE, (1, OBJECTS, 2))
        self.poses = np.array([[0.0, 1.0, 1.0]])
        self.action = np.zeros(1, np.int64)

    def step(self, action):
        self.action = action
        self.poses[:, 0] += 0.3 * (action - 2)
        self.poses[:, 1] = (self.poses[:, 1] + 0.1) % SIZE
        return Step(np.zeros(1, np.float32), flags(1), flags(1))

    def frames(self):
        picture = self.floor.repeat(16, 1).repeat(16, 2)
        return (255 * picture[:, None].repeat(3, 1)).astype(np.uint8)

    def last_action(self):
        return self.action

    def pose(self):
        return self.poses.astype(np.float32)

    def layout(self):
        return self.floor

    def objects(self):
        return (self.places - self.poses[:, None, 1:]).astype(np.float32)

    def explorer(self, name, seed):
        return RandomExplorer(self, seed)

    def way_back(self, places):
        return SimpleNamespace(act=lambda: np.full(1, 5))

    def close(self):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return the folder of an untrained model, in a world with small mazes only."""
    monkeypatch.chdir(tmp_path)
    for module in (benchmark, pose_walks):
        monkeypatch.setattr(module, "build_env", lambda config, batch: SmallMaze())
    protocols = {"retrieval": (16, 16), "reasoning": (20, 8)}
    monkeypatch.setattr(benchmark, "PROTOCOLS", protocols)
    monkeypatch.setattr(probes, "WIDTHS", {"walls": 32, "objects": 32})
    monkeypatch.setattr(probes, "BATCH", 64)
    monkeypatch.setattr(probes, "SIZE", 256)
    monkeypatch.setattr(probes, "_SKETCHES", {})
    config = compose(SETTINGS, BenchmarkRunConfig)
    torch.manual_seed(0)
    model = WorldModel(config.model, SmallMaze.frame_shape, SmallMaze.actions.n)
    checkpoint.export(model, config, tmp_path / "run")
    return tmp_path / "run"


def measure(run, *settings):
    """Run the command; return the rows by test and arm."""
    chosen = [text for text in SETTINGS if text.startswith(("bench", "threads"))]
    command = ["benchmark", "memorymaze", f"checkpoint={run}", *chosen, *settings]
    assert cli.main(command) == 0
    found = json.loads(
        (run.parent / "runs/benchmark/memorymaze/run" / benchmark.FILE).read_text()
    )
    return {(row["test"], row["arm"]): row for row in found["rows"]}


def test_memory_maze_measures_and_continues(run, capsys, monkeypatch):
    rows = measure(run)
    constant = rows["walls", "constant"]["score"]["mean"]
    for arm in benchmark.ARMS:
        assert rows["walls", arm]["score"]["mean"] > constant + 0.1
    assert rows["objects", "retained"]["score"]["mean"] < 10
    for test in benchmark.PROTOCOLS:
        assert rows[test, "last_frame"]["psnr"] > 100  # all frames are the same
        assert rows[test, "retained"]["psnr"] < 30
    frames = sum(
        rows[g, "retained"]["n"] for g in benchmark.GROUPS if (g, "retained") in rows
    )
    assert frames == 3 * (FRAMES // 2 // 5) * 5
    page = capsys.readouterr().out
    assert "walls, % right" in page and "published" in page
    walks = list((run.parent / "runs/benchmark/memorymaze/walks").rglob("*.npz"))
    assert len(walks) == 15 + 3
    built = SmallMaze.built
    for part in ("memory_features", "imagine", "fit"):
        monkeypatch.setattr(benchmark, part, pytest.fail)
    assert measure(run) == rows
    assert SmallMaze.built == built + 1  # the settings are checked; nothing is recorded


def test_memory_maze_without_probes_has_none(run):
    assert "walls" not in {test for test, _ in measure(run, "benchmark.probed=0")}


@pytest.mark.parametrize(
    "settings",
    [["benchmark.horizon=21"], ["benchmark.probed=1", "benchmark.horizon=5"]],
)
def test_memory_maze_refuses_senseless_settings(run, settings, capsys):
    command = ["benchmark", "memorymaze", f"checkpoint={run}", "benchmark.walks=2"]
    assert cli.main([*command, *settings]) == 2
    assert settings[0] in capsys.readouterr().err


def test_memory_maze_refuses_other_environments(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", "memorymaze"]) == 2
    assert "which checkpoint?" in capsys.readouterr().err
    assert cli.main(["benchmark", "memorymaze", "checkpoint=tmaze"]) == 2
    assert "needs env=memorymaze, not env=tmaze" in capsys.readouterr().err


def test_damaged_walk_names_its_remedy(run, tmp_path):
    config = compose(SETTINGS, BenchmarkRunConfig)
    (job,) = pose_walks.jobs(config, tmp_path, np.array([1]), 5)
    pose_walks.record(job)
    job.file.write_bytes(job.file.read_bytes()[:200])
    with pytest.raises(UserError, match="delete it"):
        pose_walks.read_walk(job)


def test_walk_turns_back_after_its_context(run, tmp_path):
    config = compose(SETTINGS, BenchmarkRunConfig)
    (job,) = pose_walks.jobs(config, tmp_path, np.array([1]), 12, 6)
    pose_walks.record(job)
    walk = pose_walks.read_walk(job)
    assert (walk.action[6:] == 5).all() and not (walk.action[:6] == 5).all()


def test_visit_age_counts_from_the_last_visit_in_the_context():
    pose = np.zeros((8, 3), np.float32)
    pose[:, 1] = [0, 3, 0, 3, 6, 0.4, 6, 9]
    assert pose_walks.visit_age(pose, 5).tolist() == [3, 2, NEVER]
    pose[5, 0] = np.radians(30)
    assert pose_walks.visit_age(pose, 5).tolist() == [NEVER, 2, NEVER]
    pose[5, 0] = 2 * np.pi - np.radians(10)
    assert pose_walks.visit_age(pose, 5)[0] == 3


def test_sketch_keeps_distances_and_small_tensors():
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(20, 50_000, generator=generator)
    small = torch.randn(20, 7, generator=generator)
    sketch = probes.sketch_of((50_000, 7))
    found = sketch([large, small])
    assert torch.equal(found[:, -7:], small)
    assert found.shape[1] <= probes.SIZE + probes.LEAST
    before, after = (torch.pdist(v) for v in (large, found[:, :-7]))
    assert torch.allclose(after / before, torch.ones_like(before), atol=0.1)
    assert torch.equal(probes.Sketch([50_000, 7])([large, small]), found)


def test_scores_of_known_predictions():
    walls = torch.tensor([[[1.0, 0.0]] * 4])
    right = torch.tensor([[[0.0, 9.0]] * 2 + [[9.0, 9.0]] * 2])
    assert probes.score("walls", right, walls)["mean"] == 0.5  # the second half only
    objects = torch.zeros(2, 4, 4)
    guess = objects + torch.tensor([3.0, 4.0, 3.0, 4.0])
    assert probes.score("objects", guess, objects)["mean"] == 5.0


def test_constant_predicts_the_majority():
    y = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[1.0, 0.0]]])
    guess = probes.constant("walls", y, 3)
    score = probes.score("walls", guess, y)
    assert score["mean"] == pytest.approx(5 / 6)


def test_erased_features_depend_on_one_frame_only(run):
    model = checkpoint.load(run, "cpu").eval()
    rng = np.random.default_rng(0)
    walk = pose_walks.PoseWalk(
        frames=rng.integers(0, 255, (20, 3, 64, 64), np.uint8),
        action=np.zeros(20, np.int64),
        pose=np.zeros((20, 3), np.float32),
        objects=np.zeros((20, OBJECTS, 2), np.float32),
        layout=np.ones((SIZE, SIZE), bool),
    )
    other = dataclasses.replace(walk, frames=walk.frames.copy())
    other.frames[0] = 0

    def features(one, erased):
        return probes.memory_features(model, [one], erased, lambda: None)

    assert np.array_equal(features(walk, True), features(other, True))
    assert not np.array_equal(features(walk, False), features(other, False))
