"""Sessions of visitors: modes, history, memory, plans, changes of the real world."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from lssvwm.agent.play import memory_file, views, walk
from lssvwm.agent.play.history import BRANCHES, HISTORY_STEPS
from lssvwm.agent.play.session import Session

FAULTY = Path(__file__).parents[2] / "envs" / "faulty_env.py"
LEFT, RIGHT, AHEAD, STAY = range(4)
PLAN = {
    "type": "plan",
    "planner": "cem",
    "candidates": 8,
    "iterations": 1,
    "horizon": 4,
}


def pixels(frame) -> np.ndarray:
    rgb = np.frombuffer(base64.b64decode(frame["rgb"]), np.uint8)
    return rgb.reshape(frame["height"], frame["width"], 3)


def same(memory, other) -> bool:
    return float(memory.diff(other).max()) == 0


def test_open_eyes_write_the_real_frames_into_memory(visitor) -> None:
    agent, world = visitor.session.pursuit.agent, visitor.session.walk.world
    state = agent.initial(1)
    shown = [(world.now().pixels, 0)]
    for control in (AHEAD, LEFT, LEFT):
        reply = visitor.step(control)
        shown.append((world.env.frames()[0], control))
    for i, (frame, action) in enumerate(shown):
        state = agent.observe(
            state,
            torch.from_numpy(frame[None].copy()),
            torch.tensor([action]),
            torch.tensor([i == 0]),
        )
    assert same(visitor.memory, state.memory)
    assert (pixels(reply["real"]) == world.env.frames()[0].transpose(1, 2, 0)).all()
    assert reply["step"] == 3 and reply["ahead"] == 0
    assert reply["error"]["percent"] > 0


def test_closed_eyes_imagine_while_the_world_steps(visitor) -> None:
    visitor.send(type="mode", mode="closed")
    before = visitor.memory
    rollout = visitor.session.pursuit.agent.model.imagine(
        before, torch.tensor([[[LEFT, AHEAD]]]), decode=True
    )
    visitor.step(LEFT)
    reply = visitor.step(AHEAD)
    expected = rollout.frames[0, 0, 1].permute(1, 2, 0).numpy()
    difference = np.abs(pixels(reply["imagined"]).astype(int) - expected)
    assert difference.max() <= 1  # rounding of another batch shape
    assert reply["step"] == 2 and reply["ahead"] == 2


def test_imagining_leaves_the_world_and_returns_to_its_memory(visitor) -> None:
    visitor.step(LEFT)
    memory, frame = visitor.memory, visitor.session.walk.world.now().pixels
    visitor.send(type="mode", mode="imagine")
    for control in (LEFT, AHEAD, RIGHT):
        reply = visitor.step(control)
    assert reply["step"] == 1 and reply["ahead"] == 3 and reply["error"] is None
    assert not same(visitor.memory, memory)
    assert (visitor.session.walk.world.now().pixels == frame).all()
    reply = visitor.send(type="mode", mode="open")["state"]
    assert same(visitor.memory, memory) and reply["ahead"] == 0


def test_comparison_carries_out_the_imagined_actions(visitor) -> None:
    assert "imagine some steps" in visitor.fails(type="compare")
    visitor.send(type="mode", mode="imagine")
    for control in (LEFT, LEFT):
        visitor.step(control)
    found = visitor.send(type="compare")["comparison"]
    assert found["real"]["count"] == found["imagined"]["count"] == 2
    assert visitor.session.walk.world.step == 0
    visitor.send(type="mode", mode="open")
    visitor.step(LEFT)
    error = visitor.step(LEFT)["error"]["percent"]
    assert found["errors"][0] > 0 and error > 0


def test_rewind_restores_world_memory_and_mode(visitor) -> None:
    for control in (AHEAD, LEFT):
        visitor.step(control)
    memory, frame = visitor.memory, visitor.session.walk.world.now().pixels
    visitor.step(AHEAD)
    visitor.send(type="forget", how="erase")
    visitor.send(type="mode", mode="imagine")
    visitor.step(LEFT)
    reply = visitor.send(type="rewind", steps=3)["state"]
    assert same(visitor.memory, memory)
    assert (visitor.session.walk.world.now().pixels == frame).all()
    assert reply["mode"] == "open" and reply["step"] == 2
    visitor.send(type="rewind", steps=10_000)
    assert "nothing to rewind" in visitor.fails(type="rewind", steps=1)


def test_branches_lead_back_and_are_limited(visitor) -> None:
    visitor.step(LEFT)
    memory, frame = visitor.memory, visitor.session.walk.world.now().pixels
    found = visitor.send(type="fork")["branches"]["branches"]
    assert len(found) == 1 and not found[0]["imagined"]
    for control in (RIGHT, AHEAD):
        visitor.step(control)
    visitor.send(type="branch", index=0)
    assert same(visitor.memory, memory)
    assert (visitor.session.walk.world.now().pixels == frame).all()
    visitor.step(AHEAD)
    visitor.send(type="branch", index=0)  # a branch can be used again
    assert (visitor.session.walk.world.now().pixels == frame).all()
    for _ in range(BRANCHES - 1):
        visitor.send(type="fork")
    assert "8 branches already" in visitor.fails(type="fork")
    assert len(visitor.send(type="drop", index=3)["branches"]["branches"]) == 7
    assert "no such branch" in visitor.fails(type="branch", index=7)


def test_history_is_bounded(visitor) -> None:
    for _ in range(HISTORY_STEPS + 5):
        reply = views.state(visitor.session.walk, "step")
        visitor.session.walk.history.add(visitor.session.walk.present())
    assert len(visitor.session.walk.history.past) == HISTORY_STEPS
    assert reply["bytes"] == visitor.memory.nbytes()


def test_memory_is_erased_swapped_and_cut_to_a_window(visitor, monkeypatch) -> None:
    monkeypatch.setattr(walk, "OTHER_STEPS", 9)
    for control in (LEFT, AHEAD) * 6:
        visitor.step(control)
    own = visitor.memory
    empty = visitor.session.pursuit.agent.model.initial(1)
    visitor.send(type="forget", how="window")
    assert not same(visitor.memory, own) and not same(visitor.memory, empty)
    assert int(visitor.memory.frames) == 8
    visitor.send(type="forget", how="swap")
    assert int(visitor.memory.frames) == 9
    visitor.send(type="forget", how="erase")
    assert same(visitor.memory, empty)
    visitor.send(type="rewind", steps=3)
    assert same(visitor.memory, own)


def test_saved_memory_is_loaded_with_the_same_numbers(visitor) -> None:
    visitor.step(LEFT)
    saved = visitor.memory
    data = visitor.send(type="save")["file"]["bytes"]
    visitor.send(type="forget", how="erase")
    (reply,) = visitor.session.handle(data)
    assert reply["type"] == "state" and same(visitor.memory, saved)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "damaged"),
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: data[:-9] + bytes(9), "damaged"),
        (lambda data: b"PK\x03\x04" + data, "no memory file"),
        (lambda data: data + bytes(2**17), "too large"),
    ],
)
def test_damaged_memory_files_change_nothing(visitor, spoil, words) -> None:
    before = visitor.memory
    data = memory_file.to_bytes(before)
    (reply,) = visitor.session.handle(spoil(data))
    assert words in reply["text"] and same(visitor.memory, before)


def test_memory_of_another_model_is_refused(visitor) -> None:
    model = visitor.session.pursuit.agent.model
    two = memory_file.to_bytes(model.initial(2))
    (reply,) = visitor.session.handle(two)
    assert "another model" in reply["text"]
    nan = model.initial(1)
    key = next(k for k, v in nan.layers.items(True, True) if v.is_floating_point())
    nan.layers[key] = torch.full_like(nan.layers[key], torch.nan)
    (reply,) = visitor.session.handle(memory_file.to_bytes(nan))
    assert "NaN" in reply["text"]


def test_plans_are_followed_and_end(visitor) -> None:
    plans = visitor.send(**PLAN)["plans"]["plans"]
    assert 1 <= len(plans) <= 4
    assert plans[0]["score"] == max(plan["score"] for plan in plans)
    assert plans[0]["clip"]["count"] == plans[0]["steps"] <= 4
    actions = visitor.session.pursuit.plans[0].actions
    for i in range(plans[0]["steps"]):
        reply = visitor.send(type="follow", plan=0)["state"]
        assert int(visitor.session.walk.world.env.last_action()[0]) == actions[i]
    assert reply["arrived"]
    assert "plan again" in visitor.fails(type="follow", plan=0)
    visitor.step(LEFT)
    assert "plan first" in visitor.fails(type="follow", plan=0)


def test_a_followed_plan_is_continued(visitor) -> None:
    visitor.send(**PLAN)
    for _ in range(2):
        visitor.send(type="follow", plan=0)
    warm = []
    search = visitor.session.pursuit.agent.planner
    plan = search.plan
    search.plan = lambda *a, **k: warm.append(k["warm"]) or plan(*a, **k)
    visitor.send(**PLAN)
    visitor.step(LEFT)
    visitor.send(**PLAN)
    assert warm[0] is not None and warm[1] is None


@pytest.mark.parametrize("planner", ["cem", "mppi", "icem", "shooting", "beam"])
def test_every_planner_seeks_a_goal_image(visitor, planner) -> None:
    visitor.send(type="mode", mode="imagine")
    frames = []
    for control in (LEFT, AHEAD):
        visitor.step(control)
        frames.append(visitor.session.walk.mind.frame)
    visitor.send(type="goal", goal="image")
    visitor.send(type="rewind", steps=2)
    message = PLAN | {"planner": planner, "candidates": 64, "horizon": 2}
    best = visitor.send(**message)["plans"]["plans"][0]
    assert best["score"] > -0.5  # per cent of error: the goal frame itself is found
    assert visitor.session.pursuit.plans[0].actions[: best["steps"]].tolist() == [
        LEFT,
        AHEAD,
    ]


def test_place_on_the_map_becomes_the_goal(visitor) -> None:
    for control in (AHEAD, LEFT, AHEAD):
        visitor.step(control)
    drawn = visitor.send(type="map")["map"]["memory"]
    x, y, _ = drawn["agent"]
    visitor.send(type="goal", goal="place", x=x, y=y)
    kind, place = visitor.session.pursuit.goal
    pose = visitor.session.walk.mind.places[-1, 1:]
    assert kind == "place"
    assert torch.tensor(place).sub(pose).norm() < 0.1
    plans = visitor.send(**PLAN | {"planner": "beam"})["plans"]["plans"]
    assert plans[0]["steps"] <= 4
    assert len(visitor.send(type="map")["map"]["memory"]["routes"]) == len(plans)


def test_map_shows_the_first_view(visitor) -> None:
    rows, columns = visitor.send(type="map")["map"]["memory"]["tokens"]
    assert rows >= 2 and columns >= 1
    visitor.send(type="mode", mode="imagine")
    for _ in range(4):
        visitor.step(LEFT)  # back to an observed pose, which is not hidden by it
    again = visitor.send(type="map")["map"]["memory"]["tokens"]
    assert again == [rows, columns]


def test_map_is_empty_without_memory(visitor) -> None:
    assert visitor.send(type="map")["map"]["memory"] is not None
    visitor.send(type="forget", how="erase")
    found = visitor.send(type="map")["map"]
    assert found["memory"] is None and found["real"].startswith("data:image/png")
    assert "no map" in visitor.fails(type="goal", goal="place", x=0.5, y=0.5)


def test_asking_for_a_ball_shows_its_colour(visitor) -> None:
    env = visitor.session.walk.world.env
    for k in (1, 0):
        reply = visitor.send(type="ask", object=k)["state"]
        corner = pixels(reply["real"])[0, 0].tolist()
        assert corner == [[235, 45, 40], [40, 205, 70]][k]
        assert int(env.cue[0]) == k
    visitor.send(type="mode", mode="imagine")
    assert "leave imagination" in visitor.fails(type="ask", object=0)
    visitor.send(type="mode", mode="open")
    assert "no such object" in visitor.fails(type="ask", object=5)


def test_moved_ball_is_undone_by_rewinding(visitor) -> None:
    env = visitor.session.walk.world.env
    before = env.objects.copy()
    visitor.send(type="move", object=1)
    env = visitor.session.walk.world.env
    assert (env.objects[0, 0] == before[0, 0]).all()
    assert (env.objects[0, 1] != before[0, 1]).any()
    visitor.send(type="rewind", steps=1)
    assert (visitor.session.walk.world.env.objects == before).all()


def test_guide_walks_only_in_the_real_world(visitor) -> None:
    assert visitor.send(type="guide")["state"]["step"] == 1
    visitor.send(type="mode", mode="imagine")
    assert "leave imagination" in visitor.fails(type="guide")


def test_ended_episode_can_be_imagined_on(small, visitor) -> None:
    visitor.send(type="start", model=str(small), seed=2**31 + 5, unlimited=False)
    while not visitor.session.walk.world.ended:
        state = visitor.send(type="guide")["state"]
    assert state["ended"] and state["outcome"] in ("success", "timeout")
    assert "has ended" in visitor.fails(type="step", control=0)
    visitor.send(type="mode", mode="imagine")
    assert visitor.step(LEFT)["ahead"] == 1


def test_messages_before_the_start_are_refused(visitor) -> None:
    fresh = Session(visitor.session.library)
    visitor.session = fresh
    assert "start an episode" in visitor.fails(type="fork")
    assert "in the list" in visitor.fails(type="start", model="/etc/passwd")
    (reply,) = fresh.handle(b"bytes")
    assert "start an episode" in reply["text"]


@pytest.mark.parametrize("steady", [True, False])
def test_environments_that_cannot_be_copied_repeat_their_actions(visit, steady) -> None:
    factory = f"env.factory={FAULTY}:Walk"
    kwargs = f"env.kwargs={{steady: {str(steady).lower()}}}"
    visitor = visit(["env=gym", factory, "env.size=64", kwargs], "trust=true")
    for control in (0, 1, 2):
        visitor.step(control)
    frame = visitor.session.walk.world.now().pixels
    (branch,) = visitor.send(type="fork")["branches"]["branches"]
    assert (pixels(branch["frame"]) == frame.transpose(1, 2, 0)).all()
    visitor.send(type="mode", mode="imagine")
    visitor.step(0)
    visitor.send(type="compare")
    assert (visitor.session.walk.world.now().pixels == frame).all()
    visitor.send(type="mode", mode="open")
    visitor.step(1)
    if steady:
        visitor.send(type="branch", index=0)
        assert (visitor.session.walk.world.now().pixels == frame).all()
    else:
        assert "other frames" in visitor.fails(type="branch", index=0)


def test_continuous_actions_have_two_controls_each(visit) -> None:
    visitor = visit(["env=pointmaze", "env.goal=none"])
    names = [control.name for control in visitor.session.controls]
    assert names == ["left", "right", "up", "down"]
    visitor.send(type="mode", mode="imagine")
    assert visitor.step(1)["ahead"] == 1
    visitor.send(type="compare")
    visitor.send(type="mode", mode="open")
    before = visitor.session.walk.world.env.position.copy()
    visitor.step(1)
    assert visitor.session.walk.world.env.position[0, 0] >= before[0, 0]
    assert visitor.send(**PLAN)["plans"]["plans"]
    assert visitor.send(type="map")["map"]["memory"] is None
    assert "discrete actions" in visitor.fails(**PLAN | {"planner": "beam"})
    visitor.send(type="goal", goal="image")  # the refused planner was not kept
