"""Panels fit their size, whatever they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.tui.readers.recording import LoadedRecording
from redirty.tui.readers.target import TargetReader
from redirty.tui.render import convergence as verdict
from redirty.tui.render import target as draw
from redirty.tui.render.charts import Canvas, bars, heat_rows, nice, sparkline
from redirty.tui.render.rows import STYLES, Row, width_of
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import History
from redirty.tui.snapshots.snapshot import ReaderState, TargetInfo, TargetSnapshot

from tests.support.screen_factories import REDIS, make_round

PANELS = (
    draw.rates, verdict.curve, verdict.convergence, draw.heat, draw.faults, draw.tlb, draw.writers,
)  # fmt: skip


def snapshot(history: History, bandwidth: float = 12e6) -> TargetSnapshot:
    reader = TargetReader(ConvergenceQuestion(bandwidth, 0.1))
    reader.about = TargetInfo("process 1: x", "tracepoint", "uffd", 1.0)
    return replace(reader.snapshot(history, ReaderState.LIVE), writers=history.writers())


REDIS_SHOWN = snapshot(History(LoadedRecording(REDIS).rounds))
OTHERS = (
    snapshot(History()),
    snapshot(History([make_round(0, 1)])),
    snapshot(History([make_round(n, 300) for n in range(250)]), 1e13),
    snapshot(History([make_round(n, 0) for n in range(3)])),
)


def fits(rows: list[Row], width: int) -> None:
    for row in rows:
        assert width_of(row) <= width, row
        assert {style for _, style in row} <= set(STYLES)
        assert all(text.isprintable() for text, _ in row)


@pytest.mark.parametrize("make", PANELS)
@given(st.integers(30, 300), st.integers(3, 100))
def test_a_panel_of_a_recording_fits(make: draw.Picture, width: int, height: int) -> None:
    rows = make(REDIS_SHOWN, width, height)
    assert rows
    fits(rows, width)


@pytest.mark.parametrize("make", PANELS)
@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_a_panel_of_little_or_much_fits(make: draw.Picture, number: int) -> None:
    for width, height in ((80, 10), (30, 3), (200, 60)):
        rows = make(OTHERS[number], width, height)
        assert rows
        fits(rows, width)


@pytest.mark.parametrize("length", [1, 30, 60, 500])
def test_state_and_round_are_visible_whatever_the_title(length: int) -> None:
    shown = replace(REDIS_SHOWN, about=replace(REDIS_SHOWN.about, title="x" * length))
    first, *_ = draw.heading(shown, 80, paused=False)
    assert " live  round 31" in "".join(text for text, _ in first)
    fits([first], 80)


def test_a_message_is_shown_to_its_end() -> None:
    words = [f"word{n}" for n in range(40)]
    shown = replace(REDIS_SHOWN, message=" ".join(words), state=ReaderState.FAILED)
    _, *rows = draw.heading(shown, 60, paused=False)
    fits(rows, 60)
    assert " ".join(text for row in rows for text, _ in row).split() == words


def test_bars_show_their_values() -> None:
    lower, upper = np.array([0.0, 4.0, 8.0]), np.array([0.0, 8.0, 8.0])
    rows = bars(lower, upper, 11 + 3 * 4, 4, lambda v: f"{v:g}")
    columns = ["".join(text for text, _ in row)[11:] for row in rows]
    assert columns == [
        "    ░░░░████",
        "    ░░░░████",
        "    ████████",
        "    ████████",
    ]
    assert "".join(text for text, _ in rows[0]).startswith("         8│")


def test_a_sparkline_has_the_newest_on_the_right() -> None:
    assert sparkline([0, 1, 8], 5) == "  ▁▁█"
    assert sparkline([], 3) == "   "
    assert sparkline([0, 0], 2) == "▁▁"


@given(st.floats(1e-6, 1e15))
def test_the_top_of_an_axis_is_just_above(value: float) -> None:
    assert value <= nice(value) <= 1.34 * value


def test_a_heat_map_shows_more_pages_darker() -> None:
    rows = heat_rows(np.array([[0, 1, 10, 1000]]), 1, 4)
    assert "".join(text for text, _ in rows[0]) == " ░▒█"


def test_rows_of_a_heat_map_that_do_not_fit_are_added_up() -> None:
    rows = heat_rows(np.ones((10, 2), np.int64), 2, 2)
    assert len(rows) == 2


def test_dots_outside_of_a_canvas_are_left_out() -> None:
    canvas = Canvas(4, 2)
    for x, y in ((-1.0, 0.5), (0.5, 2.0), (9.0, 9.0)):
        canvas.dot(x, y, "curve")
        canvas.mark(x, y, "+", "link")
    assert all(text.strip() == "" for row in canvas.rows() for text, _ in row)
    canvas.curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "curve")
    assert sum(ch not in " " for row in canvas.rows() for text, _ in row for ch in text) >= 4


def test_names_cannot_send_escape_sequences_to_the_terminal() -> None:
    reader = TargetReader(ConvergenceQuestion(1e9))
    reader.about = TargetInfo("evil \x1b[2J\nname")
    shown = reader.snapshot(History(), ReaderState.FAILED, "why \x07 not\r\n")
    for row in draw.heading(shown, 80, False):
        assert all(text.isprintable() for text, _ in row)
