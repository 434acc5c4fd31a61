"""redirty top --serve in a real browser: it renders and takes keys, and refuses everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp

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
    async def status(address: str, **headers: str) -> int:
        async with aiohttp.ClientSession() as client, client.get(address, headers=headers) as found:
            return found.status

    async def test(address: str) -> None:
        plain = address.split("?", maxsplit=1)[0]
        assert await status(address) == 200
        assert await status(plain) == 403
        assert await status(plain + "?token=wrong") == 403
        assert await status(plain + "ws") == 403
        assert await status(plain + "static/js/textual.js") == 403
        assert (
            await status(address, Host="evil.example") == 403
        )  # a name that resolves to this address

    with served("--replay", RECORDING) as (_, address):
        asyncio.run(test(address))


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
            return visits

    with served("--replay", RECORDING) as (process, address):
        assert asyncio.run(visit(process.pid, address)) == []
