"""A program in a real terminal, held by tmux: sends keys and reads the screen back."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import PATIENCE_S
from tests.tiers import require_program

_NUMBERS = itertools.count()


class Terminal:
    """A terminal in which a command runs.

    The line settings (stty) before and after the command go into files of the directory.
    """

    def __init__(
        self,
        words: Sequence[object],
        directory: Path,
        columns: int = 80,
        lines: int = 24,
        env: str = "",
    ) -> None:
        self._tmux = require_program("tmux", "tmux")
        self._socket = f"redirty-test-{os.getpid()}-{next(_NUMBERS)}"
        self._directory = directory
        command = shlex.join(map(str, words))
        script = (
            f"cd {shlex.quote(str(directory))}; stty -g > before; {env} {command}; "
            "echo exit-code:$?:; stty -g > after; exec sleep infinity"
        )
        self._do("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", lines, script)

    def _do(self, *words: object) -> str:
        done = subprocess.run(
            [self._tmux, "-L", self._socket, *map(str, words)],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Send keys, by their tmux names: Enter, Escape, Space, a."""
        self._do("send-keys", *keys)

    def screen(self) -> str:
        """Return the text on the screen."""
        return self._do("capture-pane", "-p")

    def colours(self) -> str:
        """Return the text on the screen with its escape sequences."""
        return self._do("capture-pane", "-p", "-e")

    def resize(self, columns: int, lines: int) -> None:
        """Change the size."""
        self._do("resize-window", "-x", columns, "-y", lines)

    def wait(self, *texts: str, gone: bool = False) -> str:
        """Wait until each of some texts has been on the screen, or gone from it; return the screen.

        Not all at once: what is drawn may be caught in the middle, and goes on.
        """
        for text in texts:
            shown = self.wait_for(lambda shown, text=text: (text in shown) is not gone, repr(text))  # type: ignore[misc]
        return shown

    def wait_round(self, number: int) -> str:
        """Wait until that round or a later one is on the screen; return the screen."""

        def there(shown: str) -> bool:
            match = re.search(r"round (\d+)", shown)
            return match is not None and int(match[1]) >= number

        return self.wait_for(there, f"round {number}")

    def wait_for(self, condition: Callable[[str], object], what: str) -> str:
        """Wait until the text on the screen meets a condition; return it. what: names it in the error."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition(shown := self.screen()):
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s\n{shown}"
            time.sleep(0.05)
        return shown

    def exit_code(self) -> int:
        """Wait for the command's end and return its exit code; assert that the terminal is restored."""
        shown = self.wait("exit-code:")
        deadline = time.monotonic() + PATIENCE_S
        while not (self._directory / "after").exists() or not self._after:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert self._after == (self._directory / "before").read_text(), "line settings"
        flags = ("alternate_on", "mouse_any_flag", "keypad_flag")
        state = self._do("display-message", "-p", " ".join(f"#{{{f}}}" for f in flags)).split()
        assert state == ["0"] * len(flags), dict(zip(flags, state, strict=True))
        assert self._do("display-message", "-p", "#{cursor_flag}").strip() == "1", "cursor"
        return int(shown.split("exit-code:")[1].split(":")[0])

    @property
    def _after(self) -> str:
        return (self._directory / "after").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run([self._tmux, "-L", self._socket, "kill-server"], check=False)
