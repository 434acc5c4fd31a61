"""Tests of streaks of dirty rounds, compared with sets and lists of plain Python."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.metrics.streaks import Lengths, Streaks, length_classes
from redirty.collector.pageset import PageSet, drop_empty, empty, from_pages, page_numbers
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import meta, one_round, pages

# Few regions and few pages, so that streaks are long; one region is far away.
_PAGES = st.sets(
    st.builds(lambda r, p: r * 512 + p, st.sampled_from([3, 4, 1 << 30]), st.integers(0, 5)),
    max_size=14,
)
_ROUNDS = st.lists(_PAGES, max_size=24)


def of(numbers: set[int]) -> PageSet:
    return from_pages(np.array(sorted(numbers), np.uint64))


def in_classes(lengths: list[int]) -> list[int]:
    """Count the lengths in each class."""
    return [sum(a <= n <= b for n in lengths) for a, b in length_classes()]


def streaks_of(rounds: list[set[int]]) -> tuple[list[int], list[int]]:
    """Return the lengths of the streaks that ended, and of the ongoing ones."""
    ages: dict[int, int] = {}
    ended = []
    for dirty in rounds:
        ended += [age for page, age in ages.items() if page not in dirty]
        ages = {page: ages.get(page, 0) + 1 for page in dirty}
    return ended, list(ages.values())


def test_classes_cover_every_length_once() -> None:
    classes = length_classes()
    assert classes[:7] == [(1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15)]
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(classes))
    assert classes[-1][1] == 2**40 - 1
    assert len(Lengths().counts) == len(classes)


@settings(max_examples=200)
@given(_ROUNDS)
def test_streaks_are_those_of_a_dictionary(rounds: list[set[int]]) -> None:
    streaks, ended = Streaks(), Lengths()
    before: set[int] = set()
    for dirty in rounds:
        stayed, fresh = streaks.follow(of(dirty), ended)
        assert set(page_numbers(stayed).tolist()) == dirty & before
        assert set(page_numbers(fresh).tolist()) == dirty - before
        before = dirty
    ongoing = Lengths()
    streaks.add_ongoing(ongoing)
    truth = streaks_of(rounds)
    assert ended.counts.tolist() == in_classes(truth[0])
    assert ongoing.counts.tolist() == in_classes(truth[1])


def test_a_long_streak() -> None:
    """A streak of 1000 rounds is counted, next to one that ends in each round, and rows without a page."""
    streaks, ended = Streaks(), Lengths()
    always = of({5, 6})
    for number in range(1000):
        streaks.follow(always | of({512 + number % 2}), ended)
    streaks.follow(PageSet(np.array([0, 1], np.uint64), np.zeros((2, 8), np.uint64)), ended)
    assert ended.counts.tolist() == in_classes([1000, 1000] + [1] * 1000)
    streaks.follow(always, ended)
    ongoing = Lengths()
    streaks.add_ongoing(ongoing)
    assert ongoing.counts.tolist() == in_classes([1, 1])


def test_arguments_are_not_modified() -> None:
    """Page sets are shared with other consumers, so they are never modified."""
    streaks, lengths = Streaks(), Lengths()
    first, second = of({1, 2, 700}), of({2, 3, 700})
    kept = [first.words.copy(), second.words.copy()]
    for dirty in (first, second, first, first, second):
        streaks.follow(dirty, lengths)
    assert np.array_equal(first.words, kept[0])
    assert np.array_equal(second.words, kept[1])
    assert drop_empty(first) == of({1, 2, 700})


# ---- in a recording ----


def record(directory: Path, rounds: list[set[int]]) -> Path:
    made = RecordingWriter(directory, meta())
    for number, dirty in enumerate(rounds):
        made.add(one_round(number, log=of(dirty), missed=empty(), present=empty()))
    made.close(complete=True)
    return directory


@settings(max_examples=25)
@given(st.lists(st.sets(st.integers(16, 50), max_size=20), min_size=1, max_size=9))
def test_a_recording_has_the_same_streaks(rounds: list[set[int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        rec = record(Path(place) / "rec", rounds)
        stayed = pd.read_csv(rec / "rounds.csv")["stayed_dirty_pages"]
        mappings = pd.read_csv(rec / "mappings.csv")
        table = pd.read_csv(rec / "pages.csv")
        runs = pd.read_csv(rec / "runs.csv")
        windows = pd.read_csv(rec / "working_set.csv")
    pairs = [a & b for a, b in itertools.pairwise(rounds)]
    assert np.isnan(stayed[0]), "not known of the first round: empty, never 0"
    assert stayed[1:].tolist() == [len(pair) for pair in pairs]
    by_round = mappings[mappings["round"] > 0].groupby("round")["stayed_dirty_pages"].sum()
    for number, pair in enumerate(pairs, 1):
        assert by_round.get(number, 0) == len([p for p in pair if p <= 48])  # 49, 50: no mapping
    assert mappings[mappings["round"] == 0]["stayed_dirty_pages"].isna().all()
    ended, ongoing = streaks_of(rounds)
    assert table["runs"].sum() == len(ended) + len(ongoing)
    assert (table["rounds_dirty"] - table["runs"]).sum() == sum(map(len, pairs))
    assert runs["runs"].sum() == len(ended)
    assert runs["runs_going_on"].sum() == len(ongoing)
    assert len(windows) == sum(
        bool(set().union(*rounds[first : first + length]))
        for length in (2, 4, 8)
        for first in range(0, len(rounds) - length + 1, length)
    )


def test_another_program_in_the_same_process_starts_anew(tmp_path: Path) -> None:
    """After an exec the same addresses are other pages: none stayed dirty, and all streaks end."""
    made = RecordingWriter(tmp_path / "rec", meta())
    for number, spaces in enumerate([(4321,), (4321, 9), (9,)]):
        whole = one_round(number, log=pages(16, 17), missed=empty(), present=empty())
        (space,) = whole.spaces
        both = tuple(SpaceRound(**{**space.__dict__, "space": n}) for n in spaces)
        made.add(Round(number, number * 1.0, 1.0, 0.0, both, whole.stats))
    made.close(complete=True)
    rounds = pd.read_csv(tmp_path / "rec/rounds.csv")
    assert rounds["stayed_dirty_pages"].tolist()[1:] == [2, 2]
    runs = pd.read_csv(tmp_path / "rec/runs.csv")
    assert runs.to_numpy().tolist() == [[4321, 2, 2, 2, 2]]
    table = pd.read_csv(tmp_path / "rec/pages.csv")
    assert table["rounds_dirty"].tolist() == [4, 4]
    assert table["runs"].tolist() == [2, 2]
