"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.waiting import PATIENCE_S
from tests.tiers import require

_PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")


class Page:
    """A page of the browser.

    Attributes:
        frames: texts of the websocket messages it received.
        requests: addresses it requested.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.frames: list[str] = []
        self.requests: list[str] = []
        self._reading = asyncio.create_task(self._read())
        self._session = ""

    async def _read(self) -> None:
        async for message in self._socket:
            reply = message.json()
            if reply.get("id") in self._answers:
                self._answers.pop(reply["id"]).set_result(reply)
            elif reply.get("method") == "Network.webSocketFrameReceived":
                frame = reply["params"]["response"]
                data = frame["payloadData"]
                if frame["opcode"] == 2:
                    data = base64.b64decode(data).decode(errors="replace")
                self.frames.append(data)
            elif reply.get("method") == "Network.requestWillBeSent":
                self.requests.append(reply["params"]["request"]["url"])

    async def do(self, method: str, **parameters: Any) -> Any:
        """Run a DevTools command and return its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        answer = self._answers[number]
        await self._socket.send_json(message)
        reply = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in reply, reply
        return reply["result"]

    async def open(self, address: str) -> None:
        """Open an address in a new page."""
        target = await self.do("Target.createTarget", url="about:blank")
        attached = await self.do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.do("Network.enable")
        await self.do("Page.enable")
        await self.do("Page.navigate", url=address)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def key(self, text: str) -> None:
        """Press and release a character key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" else {}
            await self.do("Input.dispatchKeyEvent", type=kind, key=text, **more)

    async def click(self) -> None:
        """Click in the middle of the page, which gives it the focus."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.do("Input.dispatchMouseEvent", type=kind, x=600, y=400, button="left",
                          clickCount=1)  # fmt: skip

    async def picture(self) -> bytes:
        """Return a screenshot of the page (PNG)."""
        return base64.b64decode((await self.do("Page.captureScreenshot"))["data"])

    async def wait_for_text(self, text: str) -> None:
        """Wait until the server has sent a text."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while text not in "".join(self.frames):
            assert asyncio.get_running_loop().time() < deadline, f"{text!r} was not sent"
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Stop reading messages."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """Run a browser and yield a page of it."""
    found = [path for name in _PROGRAMS if (path := shutil.which(name))]
    require(found, "needs Chromium (Debian package chromium-headless-shell)")
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            found[0],
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1200,800",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            for _ in range(int(PATIENCE_S / 0.1)):
                if port_file.exists() and len(port_file.read_text().splitlines()) == 2:
                    break
                await asyncio.sleep(0.1)
            port, path = port_file.read_text().splitlines()
            async with (
                aiohttp.ClientSession() as client,
                client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=1 << 26) as socket,
            ):
                page = Page(socket)
                try:
                    yield page
                finally:
                    await page.close()
                    await socket.send_json({"id": 0, "method": "Browser.close"})
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), PATIENCE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what was found may be a wrapper script
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
