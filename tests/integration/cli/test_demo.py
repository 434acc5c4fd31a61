"""Run the demo as a newcomer does: a screenful, a verdict, what to do next; and as CI does: the self-check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.redirty_cli import run_redirty

pytestmark = pytest.mark.usefixtures("tracing")


def test_a_newcomer_sees_a_picture_verdicts_and_what_is_next(tmp_path: Path) -> None:
    done = run_redirty("demo", "-d", "2s", "-o", tmp_path / "rec")
    assert done.code == 0, done
    shown = done.out.splitlines()
    lines = [line for line in shown if str(tmp_path) not in line]  # that path is a long one here
    assert len(shown) <= 15 and all(len(line) <= 78 for line in lines)
    for area in ("hot", "warm", "cold"):
        assert any(line.startswith(f"  {area} ") for line in lines)
    assert "every written page was found, and no other" in lines
    assert any(line.startswith("  over 10.0 Gbit/s") for line in lines)
    assert "next:" in lines and f"  redirty report {tmp_path / 'rec'}" in shown
    assert run_redirty("report", tmp_path / "rec").code == 0


def test_the_self_check_compares_every_area() -> None:
    done = run_redirty("demo", "-d", "2s", "--verify")
    assert done.code == 0, done
    found = [line for line in done.out.splitlines() if "pages found" in line]
    assert len(found) == 3
    assert all("0 missing, 0 extra" in line for line in found)
    assert "re-dirtied" in done.out and "W(t)" not in done.out.partition("next:")[2]
