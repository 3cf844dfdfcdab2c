"""The server of the page: token, origin, limits, damaged messages, clean end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from lssvwm.agent.cli import commands
from lssvwm.agent.cli.main import main

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
client = pytest.importorskip("websockets.sync.client")
from lssvwm.agent.cli.commands import of_checkpoint  # noqa: E402
from lssvwm.agent.config.settings import PlayRunConfig  # noqa: E402
from lssvwm.agent.play import server  # noqa: E402
from lssvwm.agent.play.library import Library  # noqa: E402
from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token"


class Running:
    """Serve a checkpoint from a thread of this process."""

    def __init__(self, folder: Path):
        config = of_checkpoint("play", [f"checkpoint={folder}"], PlayRunConfig)
        self.folder = folder
        self.worker = server.Worker()
        self.visits = server.Visits(Library(config), TOKEN, self.worker)
        opened = server._bind("127.0.0.1", 0)
        self.port = opened.getsockname()[1]
        settings = uvicorn.Config(
            self.visits.app([*server.LOCAL]),
            log_level="error",
            ws="websockets-sansio",
            ws_max_size=2**20,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(settings)
        self.thread = threading.Thread(target=self.server.run, args=([opened],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.worker.stop()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()

    def get(self, path: str, host: str | None = None) -> tuple[int, str, dict]:
        headers = {} if host is None else {"Host": host}
        request = Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urlopen(request, timeout=10) as reply:
                return reply.status, reply.read().decode(), dict(reply.headers)
        except HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)

    def open(self, token: str = TOKEN, origin: str | None = None):
        own = f"http://127.0.0.1:{self.port}"
        address = f"ws://127.0.0.1:{self.port}/{token}/socket"
        return client.connect(address, origin=origin or own)


class Page:
    """Talk to a session as the page does."""

    def __init__(self, socket):
        self.socket = socket
        self.names = json.loads(socket.recv(10))["names"]

    def ask(self, message) -> list:
        """Send a message; return the replies before `ready`."""
        is_plain = isinstance(message, (str, bytes))
        self.socket.send(message if is_plain else json.dumps(message))
        found = []
        while True:
            received = self.socket.recv(30)
            reply = received if isinstance(received, bytes) else json.loads(received)
            if isinstance(reply, dict) and reply["type"] == "ready":
                return found
            found.append(reply)

    def start(self) -> list:
        return self.ask({"type": "start", "model": self.names[0], "seed": 2**31})


@pytest.fixture(scope="module")
def running(small: Path) -> Iterator[Running]:
    found = Running(small)
    yield found
    found.stop()


def test_page_needs_the_token(running: Running) -> None:
    status, text, headers = running.get(f"/{TOKEN}/")
    assert status == 200 and "<title>" in text
    assert "default-src 'none'" in headers["content-security-policy"]
    for path in ("/", "/play.js", "/a-tokem/", "/a-toke/", "/a-token2/play.js"):
        status, text, _ = running.get(path)
        assert status == 403 and "printed" in text and "<title>" not in text


def test_page_files_cannot_be_left(running: Running) -> None:
    for name in ("play.js", "play.css", "icon.svg"):
        assert running.get(f"/{TOKEN}/{name}")[0] == 200
    for name in ("../server.py", "%2e%2e/server.py", "..%2fserver.py", "/etc/passwd"):
        assert running.get(f"/{TOKEN}/{name}")[0] in (403, 404)


def test_page_loads_nothing_from_elsewhere() -> None:
    for file in server.PAGE.iterdir():
        text = file.read_text()
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", "").replace("://", "//") or (
            "http" not in text.replace('replace("http", "ws")', "")
        )


def test_other_hosts_are_refused(running: Running) -> None:
    assert running.get(f"/{TOKEN}/", host="evil.example")[0] == 400
    assert running.get(f"/{TOKEN}/", host=f"localhost:{running.port}")[0] == 200


@pytest.mark.parametrize(
    ("token", "origin"),
    [("wrong", None), (TOKEN, "http://evil.example"), (TOKEN, "http://127.0.0.1:1")],
)
def test_socket_needs_token_and_origin(running: Running, token, origin) -> None:
    with pytest.raises(InvalidStatus) as error, running.open(token, origin):
        pass
    assert error.value.response.status_code == 403


def test_sessions_are_independent_and_end_with_the_page(running: Running) -> None:
    with running.open() as one, running.open() as two:
        pages = [Page(one), Page(two)]
        for page in pages:
            assert [r["type"] for r in page.start()] == ["about", "state", "branches"]
        for _ in range(3):
            (state,) = pages[0].ask({"type": "step", "control": 0})
        assert state["step"] == 3
        (state,) = pages[1].ask({"type": "step", "control": 0})
        assert state["step"] == 1
        assert running.visits.sessions == 2
    for _ in range(200):
        if not running.visits.sessions:
            break
        time.sleep(0.02)
    assert running.visits.sessions == 0


def test_sessions_are_limited(running: Running, monkeypatch) -> None:
    monkeypatch.setattr(server, "SESSIONS", 1)
    with running.open() as one, running.open() as two:
        Page(one)
        assert json.loads(two.recv(10))["type"] == "error"
        with pytest.raises(ConnectionClosed):
            two.recv(10)


def test_wrong_messages_leave_the_session_running(running: Running) -> None:
    with running.open() as socket:
        page = Page(socket)
        page.start()
        wrong = ["", "{", '{"type": "step"}', "x" * 5000, b"", b"no memory", "[" * 4000]
        for message in wrong:
            (reply,) = page.ask(message)
            assert reply["type"] == "error" and len(reply["text"]) < 400
        assert page.ask({"type": "step", "control": 0})[0]["step"] == 1


def test_oversized_message_closes_the_connection(running: Running) -> None:
    with running.open() as socket:
        page = Page(socket)
        with pytest.raises(ConnectionClosed) as error:
            page.ask(b"x" * (2**20 + 1))
        assert error.value.rcvd.code == 1009


def test_replies_do_not_wait_for_one_another(running: Running) -> None:
    with running.open() as socket:
        page = Page(socket)
        page.start()
        times = []
        for _ in range(15):  # two replies each: 40 ms with Nagle's algorithm
            started = time.perf_counter()
            page.ask({"type": "mode", "mode": "open"})
            times.append(time.perf_counter() - started)
    assert min(times) < 0.03


def test_memory_travels_to_the_page_and_back(running: Running) -> None:
    with running.open() as socket:
        page = Page(socket)
        page.start()
        about, data = page.ask({"type": "save"})
        assert about["name"].endswith(".safetensors") and isinstance(data, bytes)
        assert page.ask(data)[0]["cause"] == "load"


def test_unexpected_errors_become_a_line(running: Running, monkeypatch, capsys) -> None:
    def fail(*_):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr(server.Session, "handle", fail)
    with running.open() as socket:
        (reply,) = Page(socket).ask({"type": "save"})
    assert "by accident" in reply["text"]
    assert capsys.readouterr().err.count("\n") == 1


def test_worker_stops_in_the_middle_of_work() -> None:
    worker = server.Worker()
    begun = threading.Event()

    def endless() -> None:
        begun.set()
        while True:
            time.sleep(0.001)

    async def work() -> None:
        task = asyncio.ensure_future(worker.run(endless))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        worker.stop()
        with pytest.raises(server.Stopped):
            await asyncio.wait_for(task, 5)

    asyncio.run(work())


def test_missing_extra_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(commands, "NEEDED_TO_PLAY", ("starlette", "no_such_package"))
    assert main(["play"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no_such_package" in error and "pip install 'lssvwm[play]'" in error


def test_used_port_is_one_line(running: Running, small: Path, capsys) -> None:
    settings = [f"checkpoint={small}", f"play.port={running.port}"]
    assert main(["play", *settings]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "play.port=" in error


def heed_interrupts() -> None:
    """Undo that a shell lets its background jobs ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_during_a_plan(small: Path, number) -> None:
    command = [sys.executable, "-m", "lssvwm", "play", "play.port=0"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    printed = [process.stdout.readline() for _ in range(3)]
    address = printed[1].split()[-1]
    with client.connect(
        address.replace("http", "ws") + "socket", origin=address.rsplit("/", 2)[0]
    ) as socket:
        page = Page(socket)
        page.start()
        long = {"planner": "cem", "candidates": 256, "iterations": 1, "horizon": 39}
        socket.send(json.dumps({"type": "plan"} | long))
        time.sleep(1)
        process.send_signal(number)
        started = time.perf_counter()
        _, error = process.communicate(timeout=30)
    assert time.perf_counter() - started < 10  # 1 s on an idle machine
    assert error.strip() == "lssvwm: stopped" and process.returncode == 130
