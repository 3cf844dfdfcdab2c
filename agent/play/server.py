"""Serve the page to visitors of this machine: token, limits, websocket, clean end.

One thread computes for all sessions, one message after the other. It needs the extra `play`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import secrets
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from lssvwm.agent.cli.failures import unexpected
from lssvwm.agent.config.settings import PlayRunConfig
from lssvwm.agent.errors import UserError
from lssvwm.agent.interrupts import handled, interrupt
from lssvwm.agent.play import messages
from lssvwm.agent.play.library import Library
from lssvwm.agent.play.session import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

SESSIONS = 8
"""Pages open at once, at most."""
LARGEST_MESSAGE = 16 * 2**20
"""Bytes of the largest message, a memory file; longer ones close the connection."""
LOCAL = ("127.0.0.1", "localhost")
PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
WRONG_TOKEN = "wrong address: open the one that `lssvwm play` printed, with its token\n"
TOO_MANY = f"{SESSIONS} pages are open already: close one, then reload this page"
READY = messages.write({"type": "ready"})
"""Last reply to each message."""
POLICY_VIOLATION, TRY_LATER = 1008, 1013
"""Codes with which a websocket is closed."""


class Stopped(BaseException):
    """End the message in progress, because the server stops."""


class Worker:
    """Run the work of all sessions in one thread, which `stop` interrupts."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, "lssvwm-play")
        self.stopped = False
        self.thread = 0
        """Identity of the thread while it works, else 0."""

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Return what a function returns, after the work that waits before it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, self._work, function, *arguments)

    def _work(self, function: Any, *arguments: Any) -> Any:
        self.thread = threading.get_ident()
        try:
            return function(*arguments)
        finally:
            self.thread = 0

    def stop(self) -> None:
        """Raise `Stopped` in the thread if it works; leave out what waits."""
        self.stopped = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        if self.thread:
            identity = ctypes.c_ulong(self.thread)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                identity, ctypes.py_object(Stopped)
            )


class Visits:
    """Answer requests of pages that know the token."""

    def __init__(self, library: Library, token: str, worker: Worker):
        self.library = library
        self.token = token
        self.worker = worker
        self.sessions = 0

    def app(self, hosts: list[str]) -> Starlette:
        """Return the application, which answers requests to one of `hosts`."""
        return Starlette(
            routes=[
                Route("/{token}/{name:path}", self.page),
                Route("/{name:path}", _refused),
                WebSocketRoute("/{token}/socket", self.socket),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        )

    def _knows(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    async def page(self, request: Request) -> Response:
        """Return a file of the page."""
        if not self._knows(request.path_params["token"]):
            return await _refused(request)
        file = PAGE / (request.path_params["name"] or "index.html")
        if file.parent != PAGE or file.suffix not in TYPES or not file.is_file():
            return PlainTextResponse("no such page\n", 404, HEADERS)
        return Response(
            file.read_bytes(), headers=HEADERS, media_type=TYPES[file.suffix]
        )

    async def socket(self, socket: WebSocket) -> None:
        """Run the session of one page until it closes."""
        origin = urlsplit(socket.headers.get("origin", "")).netloc
        same_site = origin == socket.headers.get("host")
        if not (self._knows(socket.path_params["token"]) and same_site):
            await socket.close(POLICY_VIOLATION)
            return
        await socket.accept()
        if self.sessions >= SESSIONS:
            await socket.send_text(_error(TOO_MANY))
            await socket.close(TRY_LATER)
            return
        self.sessions += 1
        session = Session(self.library, lambda: self.worker.stopped)
        try:
            await self._converse(socket, session)
        except (WebSocketDisconnect, RuntimeError, asyncio.CancelledError, Stopped):
            pass  # the page was closed, or the server stops
        finally:
            self.sessions -= 1
            session.close()

    async def _converse(self, socket: WebSocket, session: Session) -> None:
        models = {"type": "models", "names": self.library.names}
        await socket.send_text(messages.write(models))
        while True:
            received = await socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            data = received.get("bytes")
            text = received.get("text") or ""
            replies = await self.worker.run(_answer, session, data, text)
            for reply in replies:
                content = reply.pop("bytes", None) if reply["type"] == "file" else None
                await socket.send_text(messages.write(reply))
                if content is not None:
                    await socket.send_bytes(content)
            await socket.send_text(READY)


async def _refused(request: Request) -> Response:
    return PlainTextResponse(WRONG_TOKEN, 403, HEADERS)


def _error(text: str) -> str:
    return messages.write({"type": "error", "text": text})


def _answer(session: Session, data: bytes | None, text: str) -> list[dict[str, Any]]:
    """Return the replies to a message; an unexpected error ends neither session nor server."""
    try:
        return session.handle(data if data is not None else messages.read(text))
    except UserError as error:
        return [{"type": "error", "text": str(error)}]
    except Exception as error:
        problem = unexpected(error, ["play"])
        print(f"lssvwm: {problem}", file=sys.stderr)
        return [{"type": "error", "text": problem}]


class Server(uvicorn.Server):
    """Interrupt the work in progress when a signal stops the server."""

    def __init__(self, config: uvicorn.Config, worker: Worker):
        super().__init__(config)
        self.worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop the work, then the server."""
        self.worker.stop()
        super().handle_exit(sig, frame)


def serve(config: PlayRunConfig) -> None:
    """Serve the page until a signal; prints its address.

    Raises UserError if the port cannot be used or the checkpoint cannot be loaded.
    """
    started = time.perf_counter()
    host = config.play.host
    opened = _bind(host, config.play.port)
    library = Library(config)
    library.entry(library.own)
    token = secrets.token_urlsafe(16)
    worker = Worker()
    hosts = [*LOCAL, host] if host in LOCAL else ["*"]
    app = Visits(library, token, worker).app(hosts)
    settings = uvicorn.Config(
        app,
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=LARGEST_MESSAGE,
        timeout_graceful_shutdown=1,
    )
    port = opened.getsockname()[1]
    took = time.perf_counter() - started
    address = f"[{host}]" if ":" in host else host
    print(
        f"ready after {took:.1f} s; open http://{address}:{port}/{token}/", flush=True
    )
    print("Ctrl-C stops it; everyone who knows the address can use it", flush=True)
    with handled(interrupt):
        Server(settings, worker).run(sockets=[opened])


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on host and port; 0: a free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small messages at once only if the socket names its protocol
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen()  # the printed address works at once
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen on {host}:{port} ({reason}); choose another play.port= or play.host="
        ) from None
    return opened
