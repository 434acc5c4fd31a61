"""The demo's picture: shades in proportion, from the first page on, in characters that the output has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.cli.output.demo_picture import COLUMNS, bar, picture, ramp

SHADES = " .:*#"
PAGE = 4096


def test_shades_are_in_proportion() -> None:
    assert bar(np.array([0.0, 0.01, 0.26, 0.75, 1.0]), SHADES) == " .:*#"
    assert bar(np.repeat([1.0, 0.0], 440), SHADES) == "#" * 22 + " " * 22
    assert bar(np.zeros(1), SHADES) == " "


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=300))
def test_whatever_was_written_shows_and_nothing_else(written: list[float]) -> None:
    shown = bar(np.array(written), SHADES)
    assert 1 <= len(shown) <= 44
    assert (shown.strip() == "") == (max(written) == 0)


@pytest.mark.parametrize(
    ("encoding", "last"),
    [("utf-8", "█"), ("ascii", "#"), ("latin-1", "#"), (None, "#"), ("x-none", "#")],
)
def test_characters_are_those_that_the_output_has(encoding: str | None, last: str) -> None:
    assert ramp(encoding)[-1] == last


def test_pages_are_drawn_in_their_area() -> None:
    areas = {"hot": [0x10000, 8 * PAGE], "cold": [0x90000, 16 * PAGE]}
    pages = np.array([0x10000, 0x10000 + 7 * PAGE, 0x50000], np.uint64)
    heading, hot, cold = picture(areas, pages, np.array([4, 1, 4]), 4, SHADES, PAGE)
    assert "#" in heading
    assert hot.endswith("12% again")
    assert "#      ." in hot and "*" not in hot
    assert cold.endswith("never") and not set("#*:.") & set(cold.partition("KiB")[2])
    assert all(len(line) <= COLUMNS for line in (heading, hot, cold))
