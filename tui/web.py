"""Serves redirty top to a browser on this machine, through textual-serve.

Anyone who can open the page can trace. It is therefore served on the loopback interface only, and only with
the token in the printed address, which is also in the paths of everything that the page loads. It is no cookie:
browsers send those to every other port of this machine, too, whoever listens there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from redirty.collector.errors import RedirtyError, why
from redirty.tui import web_page
from textual_serve.server import Server

_HOST = "127.0.0.1"
_CLOSE_S, _END_S = 2.0, 20.0
_DOWNLOAD = re.compile(r"/download/[0-9a-f]{32}")  # a secret of its own, which the page is told
_HEADERS = {
    "Referrer-Policy": "no-referrer",  # addresses have the token in them
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(port: int) -> int:
    """Serve until interrupted: each visit runs a separate redirty top; return the exit code.

    Raises:
        RedirtyError: the port cannot be used.
    """
    bound = _bound(port)
    port = bound.getsockname()[1]
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        # requests that are no HTTP: nobody's mistake but the stranger's
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        # a visit's program that ends after the server has
        logging.getLogger("asyncio").setLevel(logging.ERROR)
    _Loopback(shlex.join(argv_without_serve(sys.argv)), bound, port).serve()
    return 0


def argv_without_serve(argv: Sequence[str]) -> list[str]:
    """Return the command line of a visit: without --serve and its port."""
    words: list[str] = []
    port_may_follow = False
    for word in argv:
        if word == "--serve":
            port_may_follow = True
        elif not word.startswith("--serve=") and not (port_may_follow and word.isdigit()):
            words.append(word)
            port_may_follow = False
        else:
            port_may_follow = False
    return words


def _bound(port: int) -> socket.socket:
    """Return a listening socket on the loopback interface.

    Raises:
        RedirtyError: the port cannot be used.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((_HOST, port))
        bound.listen()  # before the address is printed: an early visitor has to wait, but is not refused
    except (OSError, OverflowError) as e:
        bound.close()
        reason = why(e) if isinstance(e, OSError) else "no such port"
        raise RedirtyError(
            f"cannot listen on {_HOST}:{port}: {reason}; choose another --serve PORT"
        ) from None
    return bound


async def _visits_ended(_app: web.Application | None = None) -> None:
    """Wait until all visits have ended: none outlives the server or is interrupted while releasing its target."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(
        OSError, TimeoutError
    ):  # the kernel may lack /proc/PID/task/TID/children
        async with asyncio.timeout(_END_S):
            while children.read_text().split():
                await asyncio.sleep(0.05)


class _Loopback(Server):
    """textual-serve's server, restricted to visitors that know the token, one at a time."""

    def __init__(self, command: str, bound: socket.socket, port: int) -> None:
        # exec: leaves no shell in between, which would outlive a server that is killed
        super().__init__(f"exec {command}", host=_HOST, port=port, title="redirty top")
        self._bound = bound
        self._token = secrets.token_urlsafe(18)
        self._visit: asyncio.Task[web.WebSocketResponse] | None = None
        self._entrance = asyncio.Lock()

    def initialize_logging(self) -> None:
        """Print nothing but the address."""

    async def on_startup(self, app: web.Application) -> None:
        """Print the address."""
        print(f"redirty: {self.public_url}/?token={self._token}  (ctrl+c to stop)", flush=True)

    async def _make_app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticate])
        base = f"/{self._token}"
        app.add_routes(
            [
                web.get("/", self._index),
                web.get(f"{base}/ws", self.handle_websocket),
                web.static(f"{base}/static", self.statics_path),
                web.get("/download/{key}", self.handle_download),
            ]
        )
        app.on_startup.append(self.on_startup)
        app.on_cleanup.append(_visits_ended)
        return app

    def _admits(self, request: web.Request) -> bool:
        """Return whether a request has the token, is for this server by its own name, and from its own page."""
        # not by a name that was made to resolve to this address (DNS rebinding)
        if request.host not in (f"{_HOST}:{self.port}", f"localhost:{self.port}"):
            return False
        if request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
            return False
        if _DOWNLOAD.fullmatch(request.path):
            return True
        first = request.path.split("/")[1:2]  # none in "OPTIONS *"
        given = request.query.get("token", "") if request.path == "/" else "".join(first)
        return hmac.compare_digest(
            given.encode(errors="backslashreplace"), self._token.encode(errors="backslashreplace")
        )

    @property
    def _authenticate(self) -> Any:
        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self._admits(request):
                raise web.HTTPForbidden(text="redirty: open the printed address, with its token\n")
            response = await handler(request)
            if not response.prepared:
                response.headers.update(_HEADERS)
            return response

        return authenticate

    async def _index(self, request: web.Request) -> web.Response:
        """Serve the page."""
        nonce = secrets.token_urlsafe(12)
        text = web_page.page(request.host, f"/{self._token}", nonce)
        headers = {"Content-Security-Policy": web_page.policy(request.host, nonce)}
        return web.Response(text=text, content_type="text/html", headers=headers)

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run the program of a visit, after that of an earlier one has ended: two cannot arm one target."""
        async with self._entrance:
            if self._visit is not None and not self._visit.done():
                self._visit.cancel()
                await asyncio.wait({self._visit})
            await _visits_ended()
            visit = self._visit = asyncio.create_task(super().handle_websocket(request))
        return await visit

    def serve(self, debug: bool = False) -> None:
        """Serve until SIGINT or SIGTERM."""
        web.run_app(
            self._make_app(),
            sock=self._bound,
            print=None,
            access_log=None,
            shutdown_timeout=_CLOSE_S,
        )
