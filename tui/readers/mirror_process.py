"""A mirror as a process of its own, whose lines are read: whatever happens to the screen, the process
finds that nobody reads it, and lets the target run."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from typing import IO, Any

from redirty.collector.errors import RedirtyError, TargetEndedError, why
from redirty.collector.target.guest import Guest
from redirty.collector.target.targets import Cgroup, Pids, TargetSet, Tree
from redirty.tui.readers.base import Reader
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import MirrorProgress, Stage
from redirty.tui.snapshots.snapshot import ReaderState

log = logging.getLogger(__name__)

_LAST_BYTES = 4096
_TO_END_S = 20.0  # the longest that a target may be held, and then some


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


class Mirror(Reader[MirrorSnapshot]):
    """Begins with start(); ends by itself, by cancel(), or when it is closed."""

    def __init__(self, wish: MirrorCommand) -> None:
        super().__init__()
        self.wish = wish
        self._progress = MirrorProgress()
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
        state = ReaderState.FAILED if self._progress.stage is Stage.FAILED else ReaderState.LIVE
        took_s = time.monotonic() - self._begun
        number = self.next_number()
        self.publish(MirrorSnapshot(number, state, self.wish, self._progress, message, took_s))


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
