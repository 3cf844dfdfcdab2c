"""The page in a real browser: everything that a visitor can do, by mouse, touch and keyboard.

They need playwright, and Chromium: that of the system, or playwright's own.
Set SCREENSHOTS to a folder to look at the pages.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lssvwm.agent.config.composition import compose
from lssvwm.agent.play.world import World

pytest.importorskip("starlette")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120
"""Seconds for anything on the page, on a busy machine."""


def heed_interrupts() -> None:
    """Undo that a shell lets its background jobs ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Serving:
    """Run `lssvwm play` in a process."""

    def __init__(self, checkpoint: str = "return9"):
        command = [sys.executable, "-m", "lssvwm", "play", f"checkpoint={checkpoint}"]
        self.process = subprocess.Popen(
            [*command, "play.port=0"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_interrupts,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.address = self.process.stdout.readline().split()[-1]

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, error = self.process.communicate(timeout=30)
        return self.process.returncode, error.strip()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    found = Serving()
    yield found
    assert found.stop() == (130, "lssvwm: stopped")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    own = shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


class Tab:
    """Use one page; script errors and requests to elsewhere fail at the end."""

    def __init__(self, browser, address: str, **context: Any):
        self.address = address
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.until("state !== null && map !== null")

    def until(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition}: {self.status}"
            time.sleep(0.02)

    def idle(self) -> None:
        """Wait until the server has answered everything."""
        self.page.evaluate("queue.then(() => true)")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")

    def state(self, name: str) -> Any:
        return self.page.evaluate(f"state.{name}")

    def click(self, selector: str) -> None:
        self.page.click(selector)
        self.idle()

    def press(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            before = self.page.evaluate("[state.step, state.ahead]")
            time.sleep(0.13)  # faster presses are those of a held key
            self.page.keyboard.press(key)
            self.until(
                f"'{before[0]},{before[1]}' !== [state.step, state.ahead].join()"
            )
            self.idle()

    def picture(self, name: str) -> list[int]:
        """Return the bytes of a canvas."""
        script = (
            "(id) => { const c = document.getElementById(id);"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"
        )
        return self.page.evaluate(script, name)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.wait_for_timeout(700)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def close(self) -> None:
        self.context.close()
        assert self.problems == []
        host = self.address.split("/")[2]
        others = [url for url in self.requests if url.split("/")[2:3] != [host]]
        assert [url for url in others if not url.startswith("data:")] == []


@pytest.fixture
def tab(browser, serving: Serving) -> Iterator[Tab]:
    found = Tab(browser, serving.address, viewport={"width": 1280, "height": 900})
    yield found
    found.close()


def error_against_real(tab: Tab) -> float:
    """Return the mean difference of the two pictures without their borders, in per cent.

    The model may imagine the coloured border of the query, which follows a tour.
    """
    shown = [
        np.array(tab.picture(name), np.int64).reshape(64, 64, 4)[3:-3, 3:-3, :3]
        for name in ("real", "imagined")
    ]
    return float(np.abs(shown[0] - shown[1]).mean() / 2.55)


def tour(tab: Tab, steps: int, seed: int | None = None) -> None:
    """Start an episode, and let the guide walk for so many steps."""
    start = {"type": "start", "model": "return9", "seed": seed}
    if seed is not None:
        tab.page.evaluate("(message) => send(message)", start)
    tab.page.evaluate(
        "async (steps) => { for (let i = 0; i < steps; i++) await send({type: 'guide'}); }",
        steps,
    )


def test_walking_and_imagining(tab: Tab) -> None:
    tab.press("ArrowLeft")
    tab.press("w")
    tab.click("[aria-label=right]")
    assert tab.state("step") == 3 and tab.state("ahead") == 0
    tab.click("#guide")
    tab.until("state.step >= 8")
    tab.page.keyboard.press("Escape")
    tour(tab, 31, 2**31 + 8)
    tab.shot("walk")
    step, real = tab.state("step"), tab.picture("real")
    tab.click("[data-mode=imagine]")
    tab.press("ArrowLeft", 4)
    assert tab.state("step") == step and tab.state("ahead") == 4
    assert tab.picture("real") == real
    assert error_against_real(tab) < 3  # a full turn leads back to the same view
    tab.click("#compare")
    tab.until("byId('strips').querySelectorAll('canvas').length === 2")
    assert "4 steps" in tab.page.inner_text("#comparison-note")
    tab.shot("imagine")
    tab.click("[data-mode=closed]")
    tab.press("ArrowLeft")
    assert tab.state("step") == step + 1 and tab.state("ahead") == 1


def test_ball_is_in_place_after_fifty_imagined_steps(tab: Tab) -> None:
    """Look at a ball, imagine 23 steps away, turn, and come back."""
    seed, steps = 2**31 + 8, 31
    world = World(compose(["env=return"]).env, seed)
    for _ in range(steps):
        world.act(world.scripted_action())
    assert world.evidence_age() == 0
    away = []
    ahead = world.copy().resume()
    for _ in range(23):
        away.append(int(ahead.scripted_action()))
        ahead.act(away[-1])
    opposite = {0: 1, 1: 0, 2: 2}
    back = [opposite[action] for action in reversed(away)]
    path = [*away, 0, 0, *back, 0, 0]
    tour(tab, steps, seed)
    assert tab.state("age") == 0
    tab.click("[data-mode=imagine]")
    for action in path:
        tab.press(("ArrowLeft", "ArrowRight", "ArrowUp")[action])
    assert tab.state("ahead") == 50
    assert error_against_real(tab) < 3
    tab.shot("fifty")
    tab.click("#erase")
    tab.press("ArrowLeft", 4)
    assert error_against_real(tab) > 5


def test_memory_controls(tab: Tab) -> None:
    tour(tab, 20)
    step = tab.state("step")
    tab.click("#fork")
    assert tab.page.locator(".branch").count() == 1
    tab.press("ArrowLeft", 3)
    tab.page.locator("#rewind").evaluate(
        "(slider) => { slider.value -= 2; slider.dispatchEvent(new Event('change')); }"
    )
    tab.until(f"state.step === {step + 1}")
    tab.click(".branch > button >> nth=0")
    assert tab.state("step") == step
    tab.click("#erase")
    tab.until("map === null")
    assert tab.page.is_visible("#map-empty")
    tab.click("#swap")
    tab.until("map !== null")
    tab.shot("swapped")
    tab.click("#window")
    tab.page.keyboard.press("r")
    tab.idle()
    for _ in range(7):
        tab.click("#fork")
    assert tab.page.is_disabled("#fork")
    tab.click(".branch .drop >> nth=2")
    assert tab.page.locator(".branch").count() == 7


def test_memory_is_saved_and_loaded(tab: Tab, tmp_path: Path) -> None:
    tour(tab, 20)
    with tab.page.expect_download() as waiting:
        tab.page.click("#save")
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.suffix == ".safetensors"
    tab.click("[data-mode=imagine]")
    tab.press("ArrowLeft")
    turned = tab.picture("imagined")
    tab.press("r")
    tab.click("#erase")
    tab.page.set_input_files("#load", file)
    tab.until("state.cause === 'load'")
    tab.press("ArrowLeft")
    assert tab.picture("imagined") == turned
    file.write_bytes(file.read_bytes()[:-5])
    tab.page.set_input_files("#load", file)
    tab.until("byId('status').textContent.includes('damaged')")
    tab.press("ArrowLeft")


def test_plans_are_shown_and_followed(tab: Tab) -> None:
    tour(tab, 30)
    tab.click("#ask button >> nth=1")
    assert "green" in tab.status
    step = tab.state("step")
    tab.click("#plan")
    tab.until("plans.length > 0 && map.routes.length === plans.length")
    tab.shot("plan")
    tab.click("#go")
    tab.until("running === null")
    assert tab.state("step") > step
    if not tab.state("ended"):
        tab.click("#agent")
        tab.until(f"state.ended || state.step > {step + 12}")
        tab.page.keyboard.press("Escape")


def test_click_on_the_map_walks_there(tab: Tab) -> None:
    tour(tab, 31, 2**31 + 8)
    tab.page.evaluate("send({type: 'map'})")
    x, y = tab.page.evaluate("map.observed.at(-9)")
    box = tab.page.locator("#map").bounding_box()
    inner = tab.page.evaluate("mapBox()")
    scale = box["width"] / 480
    at = {
        "x": (inner["left"] + x * inner["width"]) * scale,
        "y": (inner["top"] + y * inner["height"]) * scale,
    }
    tab.page.locator("#map").click(position=at)
    tab.until("byId('status').textContent.includes('ends here')")
    tab.page.evaluate("send({type: 'map'})")
    found = tab.page.evaluate("[map.agent, map.routes[0].at(-1), map.tokens]")
    agent, end, (rows, columns) = found
    assert abs(agent[0] - end[0]) * columns < 1 and abs(agent[1] - end[1]) * rows < 1


def test_agent_notices_a_moved_ball(tab: Tab) -> None:
    tour(tab, 30)
    tab.press("ArrowLeft", 2)
    before = tab.page.get_attribute("#real-map", "src")
    for index in range(3):
        tab.click(f"#moves button >> nth={index}")
        if "was moved" in tab.status:
            break
    assert "was moved" in tab.status
    tab.until(f"byId('real-map').src !== {before!r}")


def test_visitors_are_independent(browser, serving: Serving, tab: Tab) -> None:
    other = Tab(browser, serving.address)
    tab.press("ArrowLeft", 2)
    assert other.state("step") == 0 and tab.state("step") == 2
    other.press("ArrowLeft")
    assert other.state("step") == 1 and tab.state("step") == 2
    other.close()


def test_reload_begins_a_new_session(tab: Tab) -> None:
    tab.press("ArrowLeft", 2)
    for _ in range(12):  # more than the limit: closed pages free their place
        tab.page.reload()
        tab.until("state !== null && map !== null")
    assert tab.state("step") == 0


def test_every_packaged_model_can_be_chosen(tab: Tab) -> None:
    names = tab.page.evaluate("[...byId('model').options].map((o) => o.value)")
    assert len(names) >= 9
    for name in names:
        tab.page.evaluate("points.push({}), map = null")
        tab.page.select_option("#model", name)
        tab.until(f"about.model.name === {name!r} && state.step === 0 && !waiting")
        tab.page.click("#pad button >> nth=0")
        tab.until("state.step === 1")
        tab.click("[data-mode=imagine]")
        tab.page.click("#pad button >> nth=1")
        tab.until("state.ahead === 1")
        tab.page.click("#about summary >> nth=0")
        assert "parameters" in tab.page.inner_text("#facts")
        tab.shot(f"model-{name}")
        tab.page.click("#about summary >> nth=0")


def test_wrong_token_says_what_to_do(browser, serving: Serving) -> None:
    page = browser.new_page()
    wrong = serving.address[:-4] + "abc/"
    reply = page.goto(wrong)
    assert reply.status == 403 and "with its token" in page.inner_text("body")
    page.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_server_is_reported(browser, number) -> None:
    serving = Serving()
    tab = Tab(browser, serving.address)
    tab.page.select_option("#planner", "cem")
    tab.page.click("#plan")
    tab.page.wait_for_timeout(300)
    started = time.monotonic()
    serving.process.send_signal(number)
    _, error = serving.process.communicate(timeout=30)
    assert time.monotonic() - started < 10  # 1 s on an idle machine
    assert (serving.process.returncode, error.strip()) == (130, "lssvwm: stopped")
    tab.page.wait_for_selector("#notice:visible")
    assert "has stopped" in tab.page.inner_text("#notice")
    assert tab.page.is_disabled("#plan")
    tab.shot("stopped")
    tab.close()


def test_phone_shows_everything_in_its_width(browser, serving: Serving) -> None:
    phone = {"width": 375, "height": 740}
    tab = Tab(browser, serving.address, viewport=phone, has_touch=True, is_mobile=True)
    width = tab.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
    tab.page.tap("[aria-label=left]")
    tab.until("state.step === 1")
    tab.page.tap("[data-mode=imagine]")
    tab.until("state.mode === 'imagine'")
    tab.shot("phone")
    small = tab.page.evaluate(
        "[...document.querySelectorAll('#pad button, .modes button')]"
        ".filter((b) => b.getBoundingClientRect().height < 40).length"
    )
    assert small == 0
    tab.close()


def test_keyboard_alone_is_enough(tab: Tab) -> None:
    keyboard = tab.page.keyboard
    focused: list[str] = []
    for _ in range(60):
        keyboard.press("Tab")
        name = "document.activeElement.id || document.activeElement.dataset.mode"
        focused.append(tab.page.evaluate(f"String({name})"))
    for wanted in (
        "model",
        "restart",
        "demo",
        "map",
        "imagine",
        "fork",
        "erase",
        "plan",
    ):
        assert wanted in focused
    tab.page.evaluate("document.activeElement.blur()")
    tab.press("ArrowUp")
    tab.press("d")
    keyboard.press("3")
    tab.until("state.mode === 'imagine'")
    tab.press("ArrowLeft", 2)
    keyboard.press("c")
    tab.page.wait_for_selector("#comparison:visible")
    keyboard.press("f")
    tab.page.wait_for_selector(".branch")
    keyboard.press("e")
    tab.until("state.cause === 'erase'")
    keyboard.press("r")
    tab.until("state.cause === 'rewind'")
    keyboard.press("1")
    tab.until("state.mode === 'open' && map !== null && !waiting")
    tab.page.focus("#map")
    keyboard.press("ArrowRight")
    assert tab.page.evaluate("cross !== null")
    assert tab.state("step") == 2  # the arrow moved the cross, not the agent
    keyboard.press("Enter")
    tab.until("plans.length > 0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_are_readable(browser, serving: Serving, scheme) -> None:
    tab = Tab(browser, serving.address, color_scheme=scheme)
    tab.shot(f"theme-{scheme}")
    script = """(pairs) => pairs.map(([ink, ground]) => {
      const probe = document.createElement('i');
      document.body.append(probe);
      const light = (name) => {
        probe.style.color = getComputedStyle(document.documentElement).getPropertyValue(name);
        const parts = getComputedStyle(probe).color.match(/\\d+/g).map((v) => v / 255)
          .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
      };
      const [a, b] = [light(ink), light(ground)];
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    })"""
    pairs = [
        ["--ink", "--card"],
        ["--dim", "--card"],
        ["--dim", "--ground"],
        ["--danger", "--button"],
        ["--on-primary", "--primary"],
    ]
    assert min(tab.page.evaluate(script, pairs)) >= 4.5  # WCAG AA
    tab.close()


def test_show_me_explains_memory(tab: Tab) -> None:
    tab.page.click("#demo")
    tab.until("byId('status').textContent.startsWith('The model still knows')")
    tab.shot("show-me")
    assert error_against_real(tab) < 8
    tab.until("byId('status').textContent.startsWith('Your turn')")
    assert tab.page.is_visible("#map-empty")
