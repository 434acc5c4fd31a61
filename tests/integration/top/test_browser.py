"""redirty top --serve in a real browser: it renders and takes keys, and refuses everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
from aiohttp import web
from redirty.tui import web_page

from tests.support.browser import browser
from tests.support.paths import TESTS
from tests.support.redirty_cli import REDIRTY
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require

RECORDING = TESTS / "data" / "redis"


@contextlib.contextmanager
def served(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; yield it and its address with the token."""
    require(REDIRTY.exists(), "needs redirty: make setup")
    server = subprocess.Popen(
        [str(REDIRTY), "top", "--serve", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stdout is not None
        match = re.search(r"(http://127\.0\.0\.1:\d+/\?token=\S+)", server.stdout.readline())
        assert match
        yield server, match[1]
    finally:
        server.send_signal(signal.SIGTERM)
        stderr = server.communicate(timeout=PATIENCE_S)[1]
    assert stderr == ""


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds, while the browser goes on."""
    await asyncio.to_thread(wait_until, condition, what)


def _visits(server: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{server}/task/{server}/children").read_text().split()]


def test_the_page_renders_and_takes_keys() -> None:
    async def test(server: int, address: str) -> None:
        async with browser() as page:
            await page.open(address)
            await page.wait_for_text("redis-server")
            await page.wait_for_text("would mirroring converge?")
            await page.click()
            await asyncio.sleep(1)
            summary = await page.picture()
            assert await page.evaluate("document.querySelectorAll('.xterm canvas').length") or (
                await page.evaluate("document.querySelectorAll('.xterm-rows').length")
            )
            await page.key("6")
            await page.wait_for_text("who writes")
            while await page.picture() == summary:
                await asyncio.sleep(0.1)
            await page.key("?")
            await page.wait_for_text("press escape to close")
            assert len(_visits(server)) == 1
        await until(lambda: not _visits(server), "the page is closed, which ends its program")

    with served("--replay", RECORDING) as (server, address):
        asyncio.run(test(server.pid, address))


def test_visitors_without_the_token_are_refused() -> None:
    async def test(address: str) -> None:
        plain, token = address.split("?token=")
        host = plain.split("/")[2]
        port = host.partition(":")[2]
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:

            async def status(path: str, **headers: str) -> int:
                async with client.get(plain + path, headers=headers) as found:
                    assert "Set-Cookie" not in found.headers
                    return found.status

            for path in (f"?token={token}", f"{token}/static/js/textual.js"):
                assert await status(path) == 200
                assert await status(path, Host=f"localhost:{port}") == 200
                assert await status(path, Origin=f"http://{host}") == 200
                # names that resolve to this address
                for name in ("evil.example", f"evil.example:{port}", f"{host}.evil.example", ""):
                    assert await status(path, Host=name) in (400, 403), name
                for origin in (
                    "http://127.0.0.1:9999",
                    "http://evil.example",
                    "null",
                    f"https://{host}",
                ):
                    assert await status(path, Origin=origin) == 403, origin
            assert await status(f"{token}/ws", Origin="http://evil.example") == 403
            wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
            for path in (
                "", "?token=", "?token=wrong", f"?token={wrong}", "?token=%ff%fe", "?token=%ed%a0%80",
                f"?Token={token}", "ws", f"ws?token={token}", "static/js/textual.js", "static/", "x",
                f"{wrong}/ws", f"{wrong}/static/js/textual.js", f"static/?token={token}",
                "download/x", f"download/x?token={token}",
            ):  # fmt: skip
                assert await status(path) == 403, path
                assert await status(path, Cookie=f"redirty-token={token}; token={token}") == 403, (
                    path
                )
            assert await status("download/" + "0" * 32) == 404
            assert await status(f"{token}/static/../server.py") in (403, 404)
            assert await status(f"{token}/static/%2e%2e/server.py") in (403, 404)

    with served("--replay", RECORDING) as (_, address):
        asyncio.run(test(address))


NO_REQUESTS = [
    b"GET /?token=\xff HTTP/1.1\r\nHost: HERE\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: HERE\r\nCookie: redirty-token=\xff\xfe\r\n\r\n",
    b"GET /\xff/ws HTTP/1.1\r\nHost: HERE\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\xff\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: HERE\r\nOrigin: \xff\xfe\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: HERE\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: HERE\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: HERE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"\0" * 20000 + b"\r\n\r\n",
]


def test_requests_that_are_none_are_no_tracebacks() -> None:
    """The server prints nothing of them, which `served` checks."""
    with served("--replay", RECORDING) as (_, address):
        host = address.split("/")[2]
        name, _, port = host.partition(":")
        for request in NO_REQUESTS:
            with socket.create_connection((name, int(port))) as stranger:
                stranger.settimeout(PATIENCE_S)
                stranger.sendall(request.replace(b"HERE", host.encode()))
                with contextlib.suppress(ConnectionResetError):
                    answer = stranger.recv(4096)
                    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer), (request, answer)
                    assert b"Traceback" not in answer


def test_the_page_asks_no_other_host_and_another_port_learns_nothing() -> None:
    """A page of somebody else's on another port, in the browser that shows redirty's."""

    async def test(address: str) -> None:
        own, token = address.split("/")[2], address.split("=")[1]
        asked: list[str] = []

        async def serve(request: web.Request) -> web.Response:
            asked.append(f"{request.path_qs} {dict(request.headers)}")
            script = f"""
                for (const path of ["ws", "{own}/ws"]) {{
                  const s = new WebSocket("ws://{own}/" + path + "?width=90&height=25");
                  s.onmessage = () => fetch("/got"); s.onclose = () => fetch("/refused");
                }}
                fetch("http://{own}/").catch(() => fetch("/unread"));
            """
            text = f"<script>{script}</script><img src=http://{own}/>"
            return web.Response(text=text, content_type="text/html")

        app = web.Application()
        app.add_routes([web.get("/{rest:.*}", serve)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with browser() as page:
                await page.open(address)
                await page.wait_for_text("redis-server")
                fonts = "document.fonts.load('16px Roboto Mono').then(f => f.length)"
                assert await page.evaluate(f"{fonts} && true") is True
                loaded = [
                    r for r in page.requests if not r.startswith(("data:", "about:", "blob:"))
                ]
                assert any("textual.js" in r for r in loaded)
                assert all(r.startswith((f"http://{own}/", f"ws://{own}/")) for r in loaded), loaded
                assert await page.evaluate("document.cookie") == ""
                await page.do("Page.navigate", url=f"http://127.0.0.1:{port}/evil")
                for _ in range(600):
                    if sum("/refused" in a for a in asked) >= 2 and any(
                        "/unread" in a for a in asked
                    ):
                        break
                    await asyncio.sleep(0.1)
            assert sum("/refused" in a for a in asked) >= 2, asked
            assert not any("/got" in a for a in asked)
            assert not any(token in a for a in asked)
        finally:
            await runner.cleanup()

    with served("--replay", RECORDING) as (_, address):
        asyncio.run(test(address))


def test_the_page_itself_names_no_other_host() -> None:
    text = web_page.page("127.0.0.1:1", "/secret", "nonce")
    assert set(re.findall(r"(?:https?:|wss?:)?//[^\s\"')]+", text)) == {
        "ws://127.0.0.1:1/secret/ws"
    }
    loaded = re.findall(r"""(?:href|src)="([^"]+)"|url\("([^"]+)"\)""", text)
    assert {a or b for a, b in loaded} == {
        "data:,",
        "/secret/static/css/xterm.css",
        "/secret/static/fonts/RobotoMono-VariableFont_wght.ttf",
        "/secret/static/js/textual.js",
    }
    assert not re.search(r"\son\w+=", text)  # the policy forbids them


def test_a_second_page_ends_the_first() -> None:
    async def ended(page: aiohttp.ClientWebSocketResponse) -> None:
        while (await page.receive()).type not in (
            aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING,
        ):  # fmt: skip
            pass

    async def test(server: int, address: str) -> None:
        plain, token = address.split("?token=")
        url = f"{plain}{token}/ws?width=100&height=30"
        async with aiohttp.ClientSession() as client:
            page = await client.ws_connect(url)
            for _ in range(2):
                assert await page.receive_bytes()
                end = asyncio.create_task(ended(page))
                page = await client.ws_connect(url)
                assert await page.receive_bytes()
                await end
                assert len(_visits(server)) == 1
            await page.close()

    with served("--replay", RECORDING) as (process, address):
        asyncio.run(test(process.pid, address))


def test_a_terminated_server_ends_its_visits() -> None:
    async def visit(server: int, address: str) -> list[int]:
        async with browser() as page:
            await page.open(address)
            await page.wait_for_text("redis-server")
            visits = _visits(server)
            assert len(visits) == 1
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, PATIENCE_S)
            return [pid for pid in visits if Path(f"/proc/{pid}").exists()]

    with served("--replay", RECORDING) as (process, address):
        assert asyncio.run(visit(process.pid, address)) == []


def test_a_killed_server_leaves_no_process() -> None:
    async def visit(server: int, address: str) -> list[int]:
        async with browser() as page:
            await page.open(address)
            await page.wait_for_text("redis-server")
            visits = _visits(server)
            assert len(visits) == 1
            process.kill()
            await until(
                lambda: not any(Path(f"/proc/{pid}").exists() for pid in visits), "their end"
            )
            return [pid for pid in visits if Path(f"/proc/{pid}").exists()]

    with served("--replay", RECORDING) as (process, address):
        assert asyncio.run(visit(process.pid, address)) == []
