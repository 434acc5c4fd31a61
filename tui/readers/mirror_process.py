"""A mirror as a process of its own, whose lines are read: whatever happens to the screen, the process
finds that nobody reads it, and lets the target run."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from redirty.collector.errors import RedirtyError, TargetEndedError, UsageError, why
from redirty.collector.target.guest import Guest
from redirty.collector.target.targets import Cgroup, Pids, TargetSet, Tree
from redirty.tui.readers.base import Reader
from redirty.tui.snapshots.mirror_progress import Progress, Stage
from redirty.tui.snapshots.snapshot import State

log = logging.getLogger(__name__)

_PROGRAM = (sys.executable, "-m", "redirty.collector.cli.main")
_LAST_BYTES = 4096
_TO_END_S = 20.0  # the longest that a target may be held, and then some


@dataclass(frozen=True)
class MirrorWish:
    """What is to be done. words: the target, as on a command line. to: a directory, or HOST:PORT.
    bandwidth: bytes a second, None without a limit. present_pages: what is to be copied, as known."""

    title: str
    words: tuple[str, ...]
    pids: tuple[int, ...]
    to: str
    downtime_s: float
    bandwidth: float | None = None
    code_file: str | None = None
    verify: bool = False
    arm: str = "auto"
    probe: str = "auto"
    present_pages: int = 0

    @property
    def over_network(self) -> bool:
        """Whether it goes to another redirty."""
        from redirty.collector.mirror.transport.listener import parse_address

        return parse_address(self.to) is not None

    def command(self) -> list[str]:
        """What does it."""
        found = [*_PROGRAM, "mirror", "--json-lines", *self.words, "--to", self.to]
        found += ["--downtime", f"{self.downtime_s * 1e6:.0f}us"]
        found += ["--arm", self.arm, "--probe", self.probe]
        if self.bandwidth is not None:
            found += ["--bandwidth", f"{self.bandwidth:.0f}B"]
        if self.code_file is not None:
            found += ["--code-file", self.code_file]
        return [*found, "--verify"] if self.verify else found


def words_of(target: TargetSet) -> tuple[str, ...] | None:
    """A target as on a command line; None of a command, which is started only once."""
    if isinstance(target, Pids):
        return tuple(word for pid in target.pids for word in ("-p", str(pid)))
    if isinstance(target, Tree):
        return "--tree", str(target.root)
    if isinstance(target, Cgroup):
        return "--cgroup", str(target.directory)
    if isinstance(target, Guest):
        return "--vm", str(target.pid)
    return None


def pids_of(target: TargetSet) -> tuple[int, ...]:
    """Processes by whose numbers a target is named."""
    if isinstance(target, Pids):
        return tuple(target.pids)
    if isinstance(target, Tree):
        return (target.root,)
    return (target.pid,) if isinstance(target, Guest) else ()


def destination(text: str) -> str:
    """Where to: HOST:PORT, or a full path of a directory that is not there yet. Errors: UsageError,
    RedirtyError."""
    from redirty.collector.mirror.transport.listener import parse_address

    text = text.strip()
    if not text:
        raise UsageError("type a directory that does not exist yet, or HOST:PORT")
    if parse_address(text) is not None:
        return text
    path = Path.cwd() / Path(text).expanduser()
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} exists already: name a new directory")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}")
    return str(path)


def code_file(text: str) -> str | None:
    """A file with the receiver's code; "": none. Errors: UsageError."""
    if not text.strip():
        return None
    path = Path(text.strip()).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return str(path.absolute())


@dataclass(frozen=True)
class MirrorSnapshot:
    """A mirror at one moment. state: of the reader, as everywhere."""

    number: int
    state: State
    wish: MirrorWish
    progress: Progress
    message: str
    elapsed_s: float


class Mirror(Reader[MirrorSnapshot]):
    """Begins with start(); ends by itself, by cancel(), or when it is closed."""

    def __init__(self, wish: MirrorWish) -> None:
        super().__init__()
        self.wish = wish
        self._progress = Progress()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._begun = time.monotonic()
        # Held open, a descriptor tells whether the number is still that of the process that was traced.
        self._held = [_pidfd(pid) for pid in wish.pids]
        self._publish("")

    # ---- from the screen ----

    def cancel(self) -> None:
        """Has it end with no mirror, when it is not too late for that."""
        with self._wake:
            if self._progress.stage.over:
                return
            self._cancelled = True
            self._progress = replace(self._progress, stage=Stage.CANCELLING)
            self._signal(signal.SIGTERM)
            self._publish("")

    def request_stop(self) -> None:
        """See Reader."""
        super().request_stop()
        self.cancel()

    def close(self) -> None:
        """See Reader. A process that does not end is ended: that is safe for the target, too."""
        self.request_stop()
        if self._thread.ident is None:
            self._let_go()
            return
        self._thread.join(_TO_END_S)
        if self._thread.is_alive():
            with self._wake:
                self._signal(signal.SIGKILL)
            self._thread.join(_TO_END_S)

    def _signal(self, number: int) -> None:
        """With the lock held."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(number)

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        with tempfile.TemporaryFile() as said:
            try:
                self._read(said)
            finally:
                self._let_go()
            process = self._process
            assert process is not None
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - _LAST_BYTES))
            lines = said.read().decode(errors="replace").strip().splitlines()
        code = process.returncode
        with self._wake:
            self._progress, message = self._progress.ended(
                code, lines[-1] if lines else "", cancelled=self._cancelled
            )
            self._publish(message)

    def _read(self, said: IO[bytes]) -> None:
        with self._wake:
            if None in self._held:
                raise TargetEndedError("the target has ended; there is no mirror")
            if self.stopping:
                raise RedirtyError("cancelled before it began; there is no mirror")
            try:
                # A session of its own: ctrl+c at the terminal is a key of the screen.
                self._process = subprocess.Popen(
                    self.wish.command(),
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as e:
                raise RedirtyError(f"redirty mirror cannot be started: {why(e)}") from None
        process = self._process
        assert process.stdout is not None
        with process.stdout as out:
            try:
                for line in out:
                    self._take(json.loads(line))
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()

    def _take(self, event: dict[str, Any]) -> None:
        if self._progress.stage is Stage.STARTING and self._held:
            self._require_same()
        with self._wake:
            self._progress = self._progress.take(event)
            self._publish("")

    def _require_same(self) -> None:
        """The process that is mirrored is the one that was traced. Errors: TargetEndedError."""
        ended, _, _ = select.select([fd for fd in self._held if fd is not None], [], [], 0)
        if ended:
            raise TargetEndedError("the target has ended; there is no mirror")

    def _let_go(self) -> None:
        while self._held:
            if (descriptor := self._held.pop()) is not None:
                os.close(descriptor)

    def failed(self, error: Exception) -> None:
        """See Reader."""
        self._let_go()
        with self._wake:
            self._progress = replace(self._progress, stage=Stage.FAILED, going=None)
            self._publish(str(error) or type(error).__name__)

    def _publish(self, message: str) -> None:
        """With the lock held: two threads do it."""
        state = State.FAILED if self._progress.stage is Stage.FAILED else State.LIVE
        took_s = time.monotonic() - self._begun
        number = self.next_number()
        self.publish(MirrorSnapshot(number, state, self.wish, self._progress, message, took_s))


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
