"""The target screen on a recording, with keys to seek and to change the speed."""

from __future__ import annotations

from typing import ClassVar

from redirty.tui.screens.target import TargetScreen
from redirty.tui.screens.target_layout import HELP
from textual.binding import Binding, BindingType

_FAR = 10  # rounds
_TO_THE_END = 1 << 40


class ReplayScreen(TargetScreen):
    """The target screen on a recording; starts at the last round, paused."""

    HELP = (
        "A replay of a recording. It starts at the last round, paused; space plays it, from the first "
        "round if it is at the end.\n\n" + HELP
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "seek(-1)", "seek", id="seek.back", key_display="← →",
                tooltip="← back one round, → forward one round"),
        Binding("right", "seek(1)", "forward one round", show=False, id="seek.on"),
        Binding("shift+left", f"seek(-{_FAR})", "back ten rounds", show=False, id="seek.far_back"),
        Binding("shift+right", f"seek({_FAR})", "forward ten rounds", show=False, id="seek.far_on"),
        Binding("left_parenthesis", f"seek(-{_TO_THE_END})", "to the first round", show=False,
                id="seek.first", key_display="("),
        Binding("right_parenthesis", f"seek({_TO_THE_END})", "to the last round", show=False,
                id="seek.last", key_display=")"),
        Binding("comma", "speed(-1)", "speed", id="speed.down", key_display=", .",
                tooltip=", half the speed, . twice the speed"),
        Binding("full_stop", "speed(1)", "twice the speed", show=False, id="speed.up",
                key_display="."),
    ]  # fmt: skip

    def action_seek(self, rounds: int) -> None:
        """Seek by a number of rounds."""
        assert self.replay is not None
        self.replay.seek(rounds)

    def action_speed(self, steps: int) -> None:
        """Double the speed (1) or halve it (-1)."""
        assert self.replay is not None
        self.replay.scale_speed(2.0**steps)
