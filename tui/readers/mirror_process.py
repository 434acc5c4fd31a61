"""Runs redirty mirror as a separate process and reads its lines.

If the screen ends in any way, the process notices that its output is no longer read, and releases the target.
"""

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
from redirty.tui.readers.base import Reader
from redirty.tui.snapshots.mirror import MirrorCommand, MirrorSnapshot
from redirty.tui.snapshots.mirror_progress import MirrorProgress, Stage
from redirty.tui.snapshots.snapshot import ReaderState

log = logging.getLogger(__name__)

_STDERR_BYTES = 4096
_TO_END_S = 20.0  # more than the longest time that a target may be stopped


class Mirror(Reader[MirrorSnapshot]):
    """A redirty mirror process: starts with start(); ends by itself, by cancel(), or by close()."""

    def __init__(self, command: MirrorCommand) -> None:
        super().__init__()
        self.command = command
        self._progress = MirrorProgress()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._started = time.monotonic()
        # An open pidfd shows whether the PID still names the process that was traced.
        self._pidfds = [_pidfd(pid) for pid in command.pids]
        self._publish("")

    # ---- from the screen ----

    def cancel(self) -> None:
        """Make the mirror end and discard what it copied, unless it has already ended."""
        with self._wake:
            if self._progress.stage.finished:
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
        """See Reader. A process that does not end is killed, which is safe for the target too."""
        self.request_stop()
        if self._thread.ident is None:
            self._close_pidfds()
            return
        self._thread.join(_TO_END_S)
        if self._thread.is_alive():
            with self._wake:
                self._signal(signal.SIGKILL)
            self._thread.join(_TO_END_S)

    def _signal(self, number: int) -> None:
        """Send a signal to the process, if it runs. The caller holds the lock."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(number)

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        with tempfile.TemporaryFile() as stderr:
            try:
                self._run_process(stderr)
            finally:
                self._close_pidfds()
            process = self._process
            assert process is not None
            size = stderr.seek(0, os.SEEK_END)
            stderr.seek(max(0, size - _STDERR_BYTES))
            lines = stderr.read().decode(errors="replace").strip().splitlines()
        code = process.returncode
        with self._wake:
            self._progress, message = self._progress.on_exit(
                code, lines[-1] if lines else "", cancelled=self._cancelled
            )
            self._publish(message)

    def _run_process(self, stderr: IO[bytes]) -> None:
        with self._wake:
            if None in self._pidfds:
                raise TargetEndedError("the target has ended; nothing was mirrored")
            if self.stopping:
                raise RedirtyError("cancelled before it started; nothing was mirrored")
            try:
                # In a new session (setsid): ctrl+c at the terminal is a key of the screen.
                self._process = subprocess.Popen(
                    self.command.argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                )
            except OSError as e:
                raise RedirtyError(f"cannot start redirty mirror: {why(e)}") from None
        process = self._process
        assert process.stdout is not None
        with process.stdout as out:
            try:
                for line in out:
                    self._apply(json.loads(line))
            except BaseException:
                process.terminate()
                raise
            finally:
                process.wait()

    def _apply(self, event: dict[str, Any]) -> None:
        if self._progress.stage is Stage.STARTING and self._pidfds:
            self._require_same()
        with self._wake:
            self._progress = self._progress.apply(event)
            self._publish("")

    def _require_same(self) -> None:
        """Raise TargetEndedError unless the process being mirrored is the one that was traced."""
        poll = select.poll()  # select() takes no descriptors above 1,023
        for descriptor in self._pidfds:
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        if poll.poll(0):
            raise TargetEndedError("the target has ended; nothing was mirrored")

    def _close_pidfds(self) -> None:
        while self._pidfds:
            if (descriptor := self._pidfds.pop()) is not None:
                os.close(descriptor)

    def failed(self, error: Exception) -> None:
        """See Reader."""
        self._close_pidfds()
        with self._wake:
            self._progress = replace(self._progress, stage=Stage.FAILED, running=None)
            self._publish(str(error) or type(error).__name__)

    def _publish(self, message: str) -> None:
        """Publish the progress. The caller holds the lock, as two threads publish."""
        state = ReaderState.FAILED if self._progress.stage is Stage.FAILED else ReaderState.LIVE
        self.publish(
            MirrorSnapshot(
                number=self.next_number(),
                state=state,
                command=self.command,
                progress=self._progress,
                message=message,
                elapsed_s=time.monotonic() - self._started,
            )
        )


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
