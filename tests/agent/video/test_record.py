"""Recording: what is filmed stands where it belongs, and every frame arrives in the file."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from lssvwm.agent import checkpoint
from lssvwm.agent.config.settings import RecordConfig, RecordRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.mpc import Agent, AgentState, MPCConfig
from lssvwm.agent.video import rendering as film
from lssvwm.agent.video.counterfactuals import BranchPainter, farthest
from lssvwm.agent.video.record import Stage, film_episode, record
from lssvwm.agent.video.rendering import (
    BEST_PSNR,
    CONTEXT,
    IMAGINED,
    TINTS,
    Painter,
    Scene,
)
from lssvwm.envs import CountingConfig, TMazeConfig
from lssvwm.envs.counting import decode, encode
from lssvwm.planners import CEMConfig, Plan
from lssvwm.worldmodel import ModelConfig, Rollout, WorldModel
from lssvwm.worldmodel.mixers.tiled_ssd import TiledSSDConfig
from PIL import Image
from pydantic import ValidationError

from lssvwm import envs

EPISODE = 13


class Clairvoyant:
    """Stands for agent and model in the counting environment: imagines exactly what will happen.

    Its memory is the last frame observed. It follows each plan for two of its four actions.
    """

    device = torch.device("cpu")

    def __init__(self):
        self.model, self.objective, self.plans = self, self, []

    def repeat_actions(self, actions):
        return actions

    def initial(self, batch):
        no = torch.zeros(batch, dtype=torch.int64)
        return AgentState(None, no, None, no, no.bool())  # type: ignore[arg-type]

    def observe(self, state, pixels, last_action, is_first, goal=None):
        episode, step, action = decode(pixels)
        assert bool(is_first[0]) == (step[0] == 0)
        assert last_action[0] == action[0]
        return replace(state, memory=(int(episode[0]), int(step[0])))

    def act(self, state):
        due = state.plan is None or int(state.used[0]) == 2
        if due:
            actions = (torch.arange(4) + len(self.plans)).remainder(5)[None]
            score, empty = torch.tensor([0.5]), torch.zeros(1, 0)
            self.plans.append(actions[0].tolist())
            plan = Plan(actions, score, empty, empty, empty, torch.tensor([4]))
            state = replace(state, plan=plan, used=torch.zeros(1, dtype=torch.int64))
        action = state.plan.actions[:, int(state.used[0])]
        return action, replace(
            state, used=state.used + 1, replanned=torch.tensor([due])
        )

    def imagine(self, memory, actions, *, decode=False, **_):
        episode, step = memory
        assert decode and actions.shape[:2] == (1, 1)
        taken = actions[0, 0].numpy()
        steps = step + 1 + np.arange(len(taken))
        frames = torch.from_numpy(
            encode(np.full_like(steps, episode), steps, taken, 16)
        )[None, None]
        reward = torch.from_numpy(0.01 * steps)[None, None]
        return Rollout(actions, reward, torch.ones_like(reward), reward, reward, frames)


def counting(mode, **settings):
    config = RecordRunConfig(
        env=CountingConfig(size=16, episode_length=EPISODE - 1),
        record=RecordConfig(mode=mode, **settings),
    )
    agent = Clairvoyant()
    stage = Stage(envs.make(config.env, 1), seed=5, walk_seed=1)
    return film_episode(config, agent, stage), agent  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["open_loop", "plan"])
def test_real_and_imagined_stand_side_by_side(mode):
    film_of, _ = counting(mode)
    assert [scene.step for scene in film_of.scenes] == list(range(EPISODE))
    for scene in film_of.scenes:
        _, step, action = decode(scene.real)
        assert (int(step), int(action)) == (scene.step, scene.taken or 0)
        assert scene.reward == pytest.approx(0.01 * scene.step)
        if (
            scene.step
        ):  # the clairvoyant is right only about the frame it was asked about
            assert scene.psnr == BEST_PSNR
            assert scene.predicted == pytest.approx(0.01 * scene.step)
    assert film_of.scenes[0].imagined is None
    assert [scene.outcome for scene in film_of.scenes[-2:]] == [None, "success"]


def test_open_loop_imagines_from_the_context_alone():
    scenes = counting("open_loop")[0].scenes
    assert [scene.kind for scene in scenes] == [CONTEXT] * 7 + [
        IMAGINED
    ] * 6  # half, without a context phase
    assert [scene.known_to for scene in scenes] == [None, *range(6), *[6] * 6]
    scenes = counting("open_loop", context=3, horizon=4)[0].scenes
    assert [scene.kind for scene in scenes] == [CONTEXT] * 3 + [IMAGINED] * 4
    assert scenes[-1].ahead == 4
    assert scenes[-1].outcome is None


def test_half_the_episode_is_observed_even_if_the_horizon_is_short():
    scenes = counting("open_loop", horizon=2)[0].scenes
    assert [scene.kind for scene in scenes] == [CONTEXT] * 7 + [IMAGINED] * 2


def test_a_context_that_leaves_nothing_is_refused():
    with pytest.raises(
        UserError, match=r"record\.context=13 leaves nothing.* 13 frames"
    ):
        counting("open_loop", context=EPISODE)
    assert counting("open_loop", context=EPISODE - 1)[0].scenes[-1].kind == IMAGINED


def test_plans_are_filmed_beside_what_came_of_them():
    film_of, agent = counting("plan")
    scenes, decisions = film_of.scenes, film_of.decisions
    assert [decision["actions"] for decision in decisions] == agent.plans
    assert [decision["step"] for decision in decisions] == list(
        range(0, EPISODE - 1, 2)
    )
    executed = [
        a for decision in decisions for a in decision["actions"][: decision["executed"]]
    ]
    assert executed == [scene.taken for scene in scenes[1:]]
    assert [scene.ahead for scene in scenes[1:]] == [1, 2] * 6
    assert scenes[4].plan is not None
    assert decode(scenes[4].plan.frames)[1].tolist() == [
        3,
        4,
        5,
        6,
    ]  # all of the plan made at step 2


def test_the_guide_ends_where_planning_starts():
    config = RecordRunConfig(
        env=TMazeConfig(length=6), record=RecordConfig(mode="open_loop", horizon=3)
    )
    model = WorldModel(SMALL, (3, 64, 64), 4)
    agent = checkpointed_agent(config, model)
    stage = Stage(envs.make(config.env, 1), seed=9, walk_seed=0)
    scenes = film_episode(config, agent, stage).scenes
    known = sum(scene.kind == CONTEXT for scene in scenes)
    assert not stage.env.in_context()[0]
    assert len(scenes) == known + 3
    assert known == int(stage.env.left_at[0]) + 1  # type: ignore[attr-defined]


# ---- files

SMALL = ModelConfig(
    width=16,
    mixer=TiledSSDConfig(tiles=(1,), state=8, head_dim=16),
    attention_heads=2,
)
PLANNER = CEMConfig(
    horizon=4,
    candidates=8,
    iterations=1,
    elites=2,
    keep_elites=1,
)
MPC = MPCConfig(replan=2, proposals=0)


def checkpointed_agent(config, model):
    from lssvwm.agent.build import build_agent

    return build_agent(
        replace(config, planner=PLANNER, mpc=MPC), model, envs.make(config.env, 1)
    )


@pytest.fixture
def config(monkeypatch):
    torch.manual_seed(0)
    model = WorldModel(SMALL, (3, 64, 64), 4)
    monkeypatch.setattr(checkpoint, "load", lambda *_: model)
    return RecordRunConfig(
        env=TMazeConfig(length=5),
        planner=PLANNER,
        mpc=MPC,
        record=RecordConfig(episodes=1, scale=1, horizon=6),
        checkpoint="here",
    )


def read_back(path):
    frames = imageio_ffmpeg.read_frames(str(path))
    columns, rows = next(frames)["size"]
    return [
        np.frombuffer(frame, np.uint8).reshape(rows, columns, 3) for frame in frames
    ]


@pytest.mark.parametrize("mode", ["open_loop", "plan"])
def test_record_writes_video_data_and_still(config, tmp_path, mode):
    config = replace(config, record=replace(config.record, mode=mode, gif=True))
    paths = record(config, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        f"{mode}-0.{kind}" for kind in ("mp4", "json", "png", "gif")
    ]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    data = json.loads(paths[1].read_text())
    pictures = read_back(paths[0])
    assert (
        len(pictures)
        == len(data["frames"])
        == data["context_frames"] + data["imagined_frames"]
    )
    assert pictures[0].shape[0] % 2 == pictures[0].shape[1] % 2 == 0
    assert Image.open(paths[2]).size == pictures[0].shape[1::-1]
    assert Image.open(paths[3]).n_frames == len(pictures)  # type: ignore[attr-defined]
    last = data["frames"][-1]
    assert (
        last["kind"] == IMAGINED
        and 0 < last["psnr"] < 40
        and last["action_name"] in data["action_names"]
    )
    assert (
        data["outcome"]
        == ("success" if mode == "open_loop" else data["outcome"])
        != "running"
    )


def test_same_seed_same_data(config, tmp_path):
    config = replace(config, record=replace(config.record, mode="plan", episodes=2))
    first, again = (record(config, tmp_path / name) for name in ("a", "b"))
    texts = [path.read_text() for path in first if path.suffix == ".json"]
    assert texts == [path.read_text() for path in again if path.suffix == ".json"]
    seeds = {json.loads(text)["task"]["seed"] for text in texts}
    assert len(seeds) == 2
    other = replace(config, tasks=replace(config.tasks, seed=1))
    assert (
        json.loads(record(other, tmp_path / "c")[1].read_text())["task"]["seed"]
        not in seeds
    )


@pytest.mark.parametrize(
    "setting", [{"mode": "openloop"}, {"episodes": 0}, {"scale": 40}, {"horizon": 0}]
)
def test_record_settings_have_ranges(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        RecordConfig(**setting)


def test_output_and_checkpoint_must_make_sense(config, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot write videos into"):
        record(config, tmp_path / "file")
    with pytest.raises(UserError, match="checkpoint="):
        record(replace(config, checkpoint=None), tmp_path)
    with pytest.raises(UserError, match="checkpoint is for frames"):
        record(replace(config, env=CountingConfig(size=32)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def greys(count, size=32):
    return [np.full((size, size, 3), 20 + 2 * i, np.uint8) for i in range(count)]


@pytest.mark.parametrize(("count", "fps"), [(1, 6), (2, 30), (100, 24)])
def test_every_frame_is_in_the_file_in_order(tmp_path, count, fps):
    path = tmp_path / "x.mp4"
    assert film.write_mp4(path, iter(greys(count)), (32, 32), fps) == count
    means = np.array([picture.mean() for picture in read_back(path)])
    np.testing.assert_allclose(means, 20 + 2 * np.arange(count), atol=2.5)
    assert (np.diff(means) > 0).all()


def test_a_failed_video_leaves_the_old_one_and_no_half_file(tmp_path, monkeypatch):
    path = tmp_path / "x.mp4"
    film.write_mp4(path, greys(3), (32, 32), 6)
    before = path.read_bytes()

    def broken():
        yield from greys(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.write_mp4(path, broken(), (32, 32), 6)
    monkeypatch.setattr(film, "count_frames", lambda _: 4)
    with pytest.raises(OSError, match="should hold 5 frames, 4 can be read"):
        film.write_mp4(path, greys(5), (32, 32), 6)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_ffmpeg_complains_of_is_one_line(tmp_path):
    with pytest.raises(OSError, match=r"ffmpeg could not write into .*gone") as caught:
        film.write_mp4(tmp_path / "gone" / "x.mp4", greys(60, 256), (256, 256), 6)
    assert "\n" not in str(caught.value)
    full = film._mended(
        OSError("[out] Error writing trailer: No space left on device"),
        tmp_path / "x.mp4",
    )
    assert full.errno == errno.ENOSPC


def test_a_truncated_video_does_not_count_as_whole(tmp_path):
    path = tmp_path / "x.mp4"
    film.write_mp4(path, greys(30), (32, 32), 6)
    assert film.count_frames(path) == 30
    path.write_bytes(path.read_bytes()[:400])
    assert film.count_frames(path) == 0


# ---- pictures


def test_psnr():
    grey = np.full((3, 4, 4), 100, np.uint8)
    assert film.psnr(grey, grey) == BEST_PSNR
    assert film.psnr(grey, grey + 51) == pytest.approx(20 * np.log10(5))
    assert film.psnr(grey, grey - 51) == film.psnr(
        grey, grey + 51
    )  # no wrap-around of bytes


def scene(kind, **fields):
    rng = np.random.default_rng(0)
    real, imagined = rng.integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    return Scene(
        4,
        kind,
        real,
        "left",
        0.0,
        imagined=imagined,
        predicted=0.1,
        known_to=2,
        **fields,
    )


def test_panels_show_the_pixels_within_a_border_that_tells_the_phase():
    scenes = [scene(CONTEXT), scene(IMAGINED)]
    painter = Painter(scenes, 4, "title")
    for shown, picture in zip(scenes, painter.pictures()):
        top, left = painter.layout.panels_top, painter.layout.gap
        assert picture.shape == (*painter.size[::-1], 3)
        assert shown.imagined is not None
        for frame in (
            shown.real,
            shown.imagined,
            film.heat(shown.real, shown.imagined),
        ):
            panel = picture[top : top + 256, left : left + 256]
            np.testing.assert_array_equal(
                panel, frame.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
            )
            for row, column in (
                (top - 2, left + 9),
                (top + 9, left - 2),
                (top + 257, left),
                (top, left + 257),
            ):
                assert tuple(picture[row, column]) == TINTS[shown.kind]
            left += 256 + painter.layout.gap


def test_the_error_panel_is_black_where_nothing_is_wrong():
    real = np.zeros((3, 2, 2), np.uint8)
    imagined = real.copy()
    imagined[1, 0, 0] = 255
    error = film.heat(real, imagined).sum(0)
    assert error[0, 0] > 500
    assert error.sum() == error[0, 0]


@pytest.mark.parametrize("size", [(1, 9, 7), (3, 33, 65)])
@pytest.mark.parametrize("scale", [1, 3])
def test_frames_of_any_shape_make_even_pictures(size, scale):
    frame = np.zeros(size, np.uint8)
    strip = film.Strip(
        np.zeros((40, *size), np.uint8), ("a long name",) * 40, (1.0,) * 40
    )
    shown = Scene(
        1,
        IMAGINED,
        frame,
        "left",
        0.0,
        None,
        frame,
        -0.001,
        1.0,
        0,
        np.zeros((3, 5, 90), np.uint8),
        strip,
    )
    picture = Painter([shown], scale, "title").draw(0)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def branching(**changes):
    """A small untrained agent before the choice of a T-maze, and its film."""
    env = envs.make(TMazeConfig(length=5), 1)
    torch.manual_seed(0)
    fields = {
        "width": 32,
        "mixer": TiledSSDConfig(tiles=(3,), state=16, head_dim=16),
        "attention_heads": 2,
    }
    model = WorldModel(ModelConfig(**fields), env.frame_shape, 4)
    agent = Agent(
        model,
        CEMConfig(candidates=8, horizon=6, iterations=1, elites=2, keep_elites=2),
        mpc=MPCConfig(proposals=2),
    )
    setting = RecordRunConfig(
        env=TMazeConfig(length=5), record=RecordConfig(mode="branches", **changes)
    )
    stage = Stage(env, 2**32, 0)
    return stage, film_episode(setting, agent, stage)


def test_branches_start_from_one_moment_and_leave_the_stage_as_it_was():
    stage, director = branching(plans=4)
    assert (
        director.start is not None
        and not director.start.guided
        and len(director.branches) == 4
    )
    assert (
        stage.step == director.start.step
        and (stage.now().pixels == director.start.pixels).all()
    )
    plans = [branch.actions.tolist() for branch in director.branches]
    assert len({tuple(plan) for plan in plans}) == 4 and all(
        len(plan) == 6 for plan in plans
    )
    assert director.branches[0].actions.tolist() == plans[0]


def test_what_really_happens_in_a_branch_is_what_the_actions_do():
    _, director = branching()
    for branch in director.branches:
        env, seed = envs.make(TMazeConfig(length=5), 1), 2**32
        again = Stage(env, seed, 0)
        while again.env.in_context()[0]:
            again.act(again.guide.act())
        for action, moment in zip(branch.actions, branch.moments):
            real = again.act(action[None])
            assert (real.pixels == moment.pixels).all() and real.reward == moment.reward
        assert again.outcome() == branch.outcome
        assert len(branch.moments) == 6 or again.ended


def test_plans_that_are_shown_end_as_far_apart_as_can_be():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [-3.0]])
    assert farthest(points, 3) == [0, 3, 4] and farthest(points, 9)[0] == 0


def test_branches_are_drawn_step_by_step():
    _, director = branching()
    assert director.start is not None
    assert (
        director.sketch is not None
        and len(director.sketch.past) == director.start.step + 1
    )
    plain = BranchPainter(director.start, director.branches, 2, "branches")
    painter = BranchPainter(
        director.start, director.branches, 2, "branches", director.sketch
    )
    assert (
        painter.columns == [*plain.columns, "remembered"]
        and painter.size[0] > plain.size[0]
    )
    pictures = list(painter.pictures())
    assert len(pictures) == painter.steps + 1
    assert all(p.shape == (painter.size[1], painter.size[0], 3) for p in pictures)
    assert painter.size[0] % 2 == painter.size[1] % 2 == 0
    assert (pictures[0] != pictures[-1]).any()
