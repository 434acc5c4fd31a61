"""The live screen: its first paint, its CPU time, how soon it answers a key, its memory."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from redirty.collector.linux.cpu_time import cpu_s

from tests.bench.figures import interval
from tests.bench.results import Row, not_run, number
from tests.support.redirty_cli import REDIRTY
from tests.support.screen_factories import make_round
from tests.workloads.driver import Crowd, Writer

_RECORDING = Path(__file__).resolve().parents[1] / "data" / "redis"
_FIRST_PAINT_GOAL_S, _CPU_GOAL, _KEY_GOAL_S = 1.0, 0.03, 0.05
_TIMEOUT_S = 60.0
_PROCESSES, _MAPPINGS = 1000, 5000
_REFRESHES, _SETTLED = 10_000, 1000
_ONE_MIB = 1 << 20
# a key, what only it brings to the screen, and the way back
_KEYS = (
    (b"6", b"not traced", b"1"),
    (b"?", b"press escape to close", b"\x1b"),
    (b"d", b"downtime: 300ms", b"\x1b"),
)
_EMPTY = """
from textual.app import App
from textual.widgets import Footer, Static
class Empty(App):
    def compose(self):
        yield Static("an empty app")
        yield Footer()
Empty().run()
"""


def rows(quick: bool) -> Iterator[Row]:
    """Measure each on the real program in a pseudo-terminal, except the memory of 10,000 refreshes."""
    if not REDIRTY.exists():
        yield not_run("redirty top", f"{REDIRTY} is missing: make setup")
        return
    paints, empty = [], []
    for _ in range(3 if quick else 9):  # in turn: the machine is not the same from one to the next
        paints.append(
            _first_paint([str(REDIRTY), "top", "--replay", str(_RECORDING)], b"re-dirtied")
        )
        empty.append(_first_paint([sys.executable, "-c", _EMPTY], b"an empty app"))
    yield Row("redirty top --replay, to the first paint", figure=interval(paints), unit="s",
              floor=f"{number(sorted(empty)[len(empty) // 2])} s", goal=_FIRST_PAINT_GOAL_S,
              note="rates on the screen; floor: an empty Textual app")  # fmt: skip
    seconds = 5.0 if quick else 20.0
    with _processes(_PROCESSES):
        used = [_cpu_share(("top",), b"write faults/s", seconds) for _ in range(1 if quick else 3)]
    yield Row(f"redirty top, {_PROCESSES} processes at 1 Hz", figure=interval(used),
              unit="of a CPU", goal=_CPU_GOAL)  # fmt: skip
    with Crowd("mappings", _MAPPINGS) as crowd, _writing(crowd):
        words = ("top", "-p", str(crowd.pid), "--max-overhead", "100%")
        used = [_cpu_share(words, b"re-dirtied", seconds) for _ in range(1 if quick else 3)]
        alone = _recording_share(crowd.pid, seconds)
    yield Row(f"redirty top of {_MAPPINGS} mappings at 1 Hz", figure=interval(used),
              unit="of a CPU", floor=f"{number(alone)} of a CPU", goal=_CPU_GOAL,
              note="recording included; floor: redirty record")  # fmt: skip
    with Writer(mib=512) as writer:
        writer.start("uniform", rate=200_000, pages=100_000, seconds=3600)
        answers = _key_answers(writer.pid, 10 if quick else 40)
        writer.signal(signal.SIGKILL)
    worst = max(answers)
    yield Row("a key, while recording at full load", figure=interval(answers), unit="s",
              goal=_KEY_GOAL_S, note=f"worst of {len(answers)}: {number(worst)} s")  # fmt: skip
    grown = asyncio.run(_grown(_REFRESHES // (10 if quick else 1)))
    yield Row(f"memory over {_REFRESHES // (10 if quick else 1)} refreshes", figure=interval([grown]),
              unit="MiB more", goal=8.0, note=f"after the first {_SETTLED}")  # fmt: skip


class Screen:
    """The program in a pseudo-terminal of 160x48, read all the time."""

    def __init__(self, words: Sequence[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(words[0], list(words))
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 48, 160, 0, 0))

    def wait(self, text: bytes, timeout_s: float = _TIMEOUT_S) -> float:
        """Wait until a text was written; return the CLOCK_MONOTONIC time."""
        seen = b""
        deadline = time.monotonic() + timeout_s
        while text not in seen:
            seen = seen[-4096:] + self.read(deadline - time.monotonic())
            if time.monotonic() > deadline:
                raise RuntimeError(f"{text!r} was not shown within {timeout_s:g} s")
        return time.monotonic()

    def read(self, timeout_s: float) -> bytes:
        """Return what was written since; empty when nothing came in time."""
        if not select.select([self._fd], [], [], max(timeout_s, 0))[0]:
            return b""
        return os.read(self._fd, 1 << 16)

    def quiet(self, seconds: float) -> None:
        """Read until nothing was written for `seconds`."""
        while self.read(seconds):
            pass

    def drain(self, seconds: float) -> None:
        """Read for `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read(deadline - time.monotonic())

    def key(self, text: bytes) -> float:
        """Press a key; return the CLOCK_MONOTONIC time."""
        os.write(self._fd, text)
        return time.monotonic()

    @property
    def drawing(self) -> int:
        """Return the process that draws, a child of the one that guards the terminal."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def close(self) -> None:
        """End the program."""
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGTERM)
            self.drain(0.5)
        deadline = time.monotonic() + _TIMEOUT_S
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.read(0.05)
        os.close(self._fd)


@contextlib.contextmanager
def _screen(words: Sequence[str]) -> Iterator[Screen]:
    screen = Screen(words)
    try:
        yield screen
    finally:
        screen.close()


def _first_paint(words: Sequence[str], text: bytes) -> float:
    started = time.monotonic()
    with _screen(words) as screen:
        return screen.wait(text) - started


def _cpu_share(words: tuple[str, ...], ready: bytes, seconds: float) -> float:
    """Return the share of one CPU, once it has settled."""
    with _screen([str(REDIRTY), *words]) as screen:
        screen.wait(ready)
        screen.drain(3.0)
        pid = screen.drawing
        before, started = cpu_s(pid), time.monotonic()
        screen.drain(seconds)
        after, passed = cpu_s(pid), time.monotonic() - started
    if before is None or after is None:
        raise RuntimeError("redirty top ended")
    return (after - before) / passed


def _recording_share(pid: int, seconds: float) -> float:
    """Return the share of one CPU that redirty record uses for the same rounds."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "rec")
        recording = subprocess.Popen([REDIRTY, "record", "-q", "-p", str(pid), "-o", place])
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while not (place / "rounds.csv").exists():
                if time.monotonic() > deadline:
                    raise RuntimeError("redirty record did not begin")
                time.sleep(0.1)
            time.sleep(3.0)
            before, started = cpu_s(recording.pid), time.monotonic()
            time.sleep(seconds)
            after, passed = cpu_s(recording.pid), time.monotonic() - started
        finally:
            recording.send_signal(signal.SIGINT)
            recording.wait()
    if before is None or after is None:
        raise RuntimeError("redirty record ended")
    return (after - before) / passed


@contextlib.contextmanager
def _processes(count: int) -> Iterator[None]:
    """Start `count` processes that sleep, a tenth of which touch memory now and then."""
    code = (
        "import os, sys, time\n"
        f"for i in range({count}):\n"
        "    if os.fork() == 0:\n"
        "        while i % 10 == 0:\n"
        "            time.sleep(0.5); m = bytearray(1 << 18)\n"
        "        time.sleep(100000)\n"
        "print('ready', flush=True)\n"
        "time.sleep(100000)\n"
    )
    words = [sys.executable, "-I", "-S", "-c", code]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        yield
    finally:
        os.killpg(parent.pid, signal.SIGKILL)  # the session that was started for it
        parent.wait()


@contextlib.contextmanager
def _writing(crowd: Crowd) -> Iterator[None]:
    """Write all private mappings of a crowd, ten times a second."""
    import threading

    stop = threading.Event()

    def write() -> None:
        seed = 0
        while not stop.wait(0.1):
            seed += 1
            crowd.write("private", seed, _MAPPINGS)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _key_answers(pid: int, count: int) -> list[float]:
    """Return the seconds from a key to its effect on the screen: another view, help, a prompt, by turns."""
    found = []
    words = [str(REDIRTY), "top", "-p", str(pid), "200ms", "--max-overhead", "100%"]
    with _screen(words) as screen:
        screen.wait(b"re-dirtied")
        screen.drain(2.0)
        for i in range(count):
            key, text, back = _KEYS[i % len(_KEYS)]
            screen.drain(0.05 + 0.137 * (i % 7))  # at any moment of a round
            pressed = screen.key(key)
            found.append(screen.wait(text) - pressed)
            screen.drain(0.05)
            screen.key(back)
            screen.drain(0.4)
    return found


async def _grown(refreshes: int) -> float:
    """Return the MiB by which the resident memory grows while the screen is drawn again and again with new rounds."""
    from redirty.tui.app import Appearance, TopApp
    from redirty.tui.readers.target import TargetReader
    from redirty.tui.screens.target import TargetScreen
    from redirty.tui.snapshots.convergence import ConvergenceQuestion
    from redirty.tui.snapshots.history import History
    from redirty.tui.snapshots.snapshot import ReaderState

    class Made(TargetReader):
        def work(self) -> None:
            while not self.stopping:
                with self._wake:
                    self._wake.wait(1.0)

    reader = Made(ConvergenceQuestion(1e9))
    history = History()
    app = TopApp(lambda: TargetScreen(reader), Appearance())
    settled = 0.0
    begin = min(_SETTLED, refreshes // 2)
    async with app.run_test(size=(160, 48)) as pilot:
        for i in range(refreshes):
            history.add(make_round(i, 50, 1 + i % 5))
            reader.publish(reader.snapshot(history, ReaderState.LIVE))
            await pilot.pause(0)
            if i == begin:
                settled = _resident_mib()
    reader.close()
    return _resident_mib() - settled


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _ONE_MIB
