"""The target screen over a recording: with keys to seek, and for its speed."""

from __future__ import annotations

from typing import ClassVar

from redirty.tui.screens.target import TargetScreen
from redirty.tui.screens.target_layout import HELP
from textual.binding import Binding, BindingType

_FAR = 10
_TO_THE_END = 1 << 40


class ReplayScreen(TargetScreen):
    """Begins at the last round, paused."""

    HELP = (
        "A recording, as it went. It begins at its last round; space plays it, from the beginning "
        "when it is at the end.\n\n" + HELP
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "seek(-1)", "seek", id="seek.back", key_display="← →",
                tooltip="← a round back, → a round on"),
        Binding("right", "seek(1)", "a round on", show=False, id="seek.on"),
        Binding("shift+left", f"seek(-{_FAR})", "ten rounds back", show=False, id="seek.far_back"),
        Binding("shift+right", f"seek({_FAR})", "ten rounds on", show=False, id="seek.far_on"),
        Binding("left_parenthesis", f"seek(-{_TO_THE_END})", "to the first round", show=False,
                id="seek.first", key_display="("),
        Binding("right_parenthesis", f"seek({_TO_THE_END})", "to the last round", show=False,
                id="seek.last", key_display=")"),
        Binding("comma", "speed(-1)", "speed", id="speed.down", key_display=", .",
                tooltip=", plays at half the speed, . at twice"),
        Binding("full_stop", "speed(1)", "play at twice the speed", show=False, id="speed.up",
                key_display="."),
    ]  # fmt: skip

    def action_seek(self, rounds: int) -> None:
        """So many rounds."""
        assert self.replay is not None
        self.replay.seek(rounds)

    def action_speed(self, steps: int) -> None:
        """Twice as fast, or half."""
        assert self.replay is not None
        self.replay.faster(2.0**steps)
