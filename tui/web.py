"""Serves redirty top to a browser on this machine, through textual-serve.

Anyone who can open the page can trace. It is therefore served on the loopback interface only, and only with
the token in the printed address, which the browser then keeps as a cookie.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from redirty.collector.errors import RedirtyError, why
from textual_serve.server import Server

_HOST = "127.0.0.1"
_CLOSE_S, _END_S = 2.0, 20.0
_COOKIE = "redirty-token"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(port: int) -> int:
    """Serve until interrupted: each visit runs a separate redirty top; return the exit code.

    Raises:
        RedirtyError: the port cannot be used.
    """
    bound = _bound(port)
    port = bound.getsockname()[1]
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


async def _visits_ended(_app: web.Application) -> None:
    """Wait until all visits have ended: none outlives the server or is interrupted while releasing its target."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(
        OSError, TimeoutError
    ):  # the kernel may lack /proc/PID/task/TID/children
        async with asyncio.timeout(_END_S):
            while children.read_text().split():
                await asyncio.sleep(0.05)


class _Loopback(Server):
    """textual-serve's server, restricted to visitors that know the token."""

    def __init__(self, command: str, bound: socket.socket, port: int) -> None:
        # exec: leaves no shell in between, which would outlive a server that is killed
        super().__init__(f"exec {command}", host=_HOST, port=port, title="redirty top")
        self._bound = bound
        self._token = secrets.token_urlsafe(18)

    def initialize_logging(self) -> None:
        """Print nothing but the address."""

    async def on_startup(self, app: web.Application) -> None:
        """Print the address."""
        print(f"redirty: {self.public_url}/?token={self._token}  (ctrl+c to stop)", flush=True)

    async def _make_app(self) -> web.Application:
        app: web.Application = await super()._make_app()
        app.middlewares.append(self._authenticate)
        app.on_cleanup.append(_visits_ended)
        return app

    @property
    def _authenticate(self) -> Any:
        token = self._token

        @web.middleware
        async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
            given = request.query.get("token") or request.cookies.get(_COOKIE, "")
            # the server's own name, not one that was made to resolve to this address (DNS rebinding)
            here = request.host in (f"{_HOST}:{self.port}", f"localhost:{self.port}")
            if not here or not hmac.compare_digest(given.encode(), token.encode()):
                raise web.HTTPForbidden(text="redirty: open the printed address, with its token\n")
            response = await handler(request)
            if not response.prepared:
                response.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return response

        return authenticate

    def serve(self, debug: bool = False) -> None:
        """Serve until SIGINT or SIGTERM."""
        web.run_app(self._make_app(), sock=self._bound, print=None, shutdown_timeout=_CLOSE_S)
