"""A browser draws a report from disk without any request, on wide and narrow screens, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lssvwm.agent.report.page import write_report

from tests.agent.report.conftest import MakeRun
from tests.agent.report.test_page import HOSTILE

pytestmark = pytest.mark.slow
api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
DRAWN = "() => [...document.querySelectorAll('.plot')].filter(p => p.children.length).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield launched
        launched.close()


class Visit:
    """Open a page, and note its requests and complaints."""

    def __init__(self, browser: Any, file: Path, width: int, theme: str):
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=theme
        )
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self.note)
        self.page.goto(file.resolve().as_uri())

    def note(self, message: Any) -> None:
        """Note an error, also one of the content security policy."""
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def drawn(self, count: int) -> None:
        """Wait until this many charts are drawn."""
        self.page.wait_for_function(f"({DRAWN})() >= {count}", timeout=60_000)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_is_drawn_without_requests(
    browser: Any, make_run: MakeRun, width: int, theme: str
) -> None:
    file = write_report([make_run("a"), make_run("b", "seed=1")])
    visit = Visit(browser, file, width, theme)
    visit.drawn(5)
    outside = [url for url in visit.requests if not url.startswith("data:")]
    assert outside == [file.as_uri()]
    assert [text for text in visit.complaints if "video" not in text.lower()] == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    background = visit.page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (max(background) < 60) == (theme == "dark")


def test_details_and_legends_work(browser: Any, make_run: MakeRun) -> None:
    visit = Visit(browser, write_report([make_run("a"), make_run("b")]), 1280, "light")
    visit.drawn(5)
    visit.page.locator("#training summary").click()
    visit.drawn(6)
    button = visit.page.locator("button[data-series]").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    visit.page.emulate_media(color_scheme="dark")
    visit.drawn(6)
    assert visit.complaints == []


def test_hostile_names_run_nothing(browser: Any, make_run: MakeRun) -> None:
    file = write_report([make_run(HOSTILE.replace("/", "|")), make_run("b")])
    visit = Visit(browser, file, 1280, "light")
    visit.drawn(5)
    assert [url for url in visit.requests if not url.startswith("data:")] == [
        visit.page.url
    ]
    assert visit.page.evaluate("document.querySelectorAll('img').length") == 0
    assert visit.complaints == []
