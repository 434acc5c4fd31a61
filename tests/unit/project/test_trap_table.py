"""The table kernel x trap: the sums over the outcomes of tests."""

from __future__ import annotations

import pytest

from tests.traps.results import Outcome, Run, failed, notes, outcome_of, pick, render
from tests.vm.matrix import KernelRun, refusals, report, ways

PASS = Outcome(3, "test_03_first", "pass")
FAIL = Outcome(3, "test_03_second", "fail", "AssertionError: 1 missing")
NOT = Outcome(18, "test_18_collapse", "n/a", "MADV_COLLAPSE: Invalid argument")
SKIP = Outcome(8, "test_08_file", "skip", "needs ext4")


def run(*outcomes: Outcome, kernel: str = "6.12", way: str = "fentry+uffd") -> Run:
    return Run(kernel, way, outcomes)


def report_of(when: str, outcome: str, longrepr: object = None) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid="tests/traps/test_x.py::test_18_words[a]",
        location=("tests/traps/test_x.py", 1, "test_18_words[a]"),
        keywords={},
        outcome=outcome,  # type: ignore[arg-type]
        longrepr=longrepr,  # type: ignore[arg-type]
        when=when,  # type: ignore[arg-type]
    )


def outcome(when: str, result: str, longrepr: object = None) -> Outcome | None:
    made = report_of(when, result, longrepr)
    return outcome_of(made.nodeid, made)


def test_a_test_counts_under_its_number() -> None:
    assert outcome("call", "passed") == Outcome(18, "test_18_words[a]", "pass")
    assert outcome("setup", "passed") is None
    found = outcome("setup", "skipped", ("file", 1, "Skipped: n/a: no such call"))
    assert found == Outcome(18, "test_18_words[a]", "n/a", "no such call")
    found = outcome("call", "skipped", ("file", 1, "Skipped: needs root"))
    assert found == Outcome(18, "test_18_words[a]", "skip", "needs root")
    found = outcome("teardown", "failed", "E   AssertionError: left\nmore")
    assert found == Outcome(18, "test_18_words[a]", "fail", "E   AssertionError: left")
    assert (
        outcome_of("tests/integration/test_x.py::test_18_words", report_of("call", "passed"))
        is None
    )
    assert outcome_of("tests/traps/test_x.py::test_helper", report_of("call", "passed")) is None


def test_one_failure_is_a_failure() -> None:
    assert pick([run(PASS)], 3) == "pass"
    assert pick([run(PASS, FAIL)], 3) == "fail"
    assert pick([run(PASS), run(FAIL)], 3) == "fail"
    assert pick([run(NOT)], 18) == "n/a"
    assert pick([run(NOT, Outcome(18, "test_18_split", "pass"))], 18) == "pass"
    assert pick([run(NOT), run(Outcome(18, "test_18_split", "pass"))], 18) == "pass 1/2"
    assert pick([run(SKIP), run(PASS)], 8) == "skip"
    assert pick([run(PASS)], 4) == ""


def test_failures_and_skips_fail_the_run() -> None:
    assert failed([run(PASS, NOT)]) == []
    assert len(failed([run(PASS, FAIL, NOT, SKIP)])) == 2


def test_each_reason_is_listed_once_with_all_its_runs() -> None:
    other = run(NOT, kernel="5.10", way="kprobe+soft-dirty")
    (line,) = notes([run(NOT, PASS), run(NOT, way="kprobe+uffd"), other])
    assert line == (
        "n/a   18  MADV_COLLAPSE: Invalid argument  "
        "[6.12 (fentry+uffd, kprobe+uffd); 5.10 (kprobe+soft-dirty)]"
    )


def test_the_table_names_what_has_no_test() -> None:
    text = render([run(PASS, NOT), run(PASS, kernel="5.10", way="kprobe+soft-dirty")])
    lines = text.splitlines()
    assert lines[0].split() == ["trap", "6.12", "5.10"]
    assert lines[1].split() == ["3", "pass", "pass"]
    assert lines[2].split() == ["18", "n/a"]
    assert lines[3].startswith("no test of: 1, 2, 4, 5,")


def test_a_run_is_read_as_it_was_written() -> None:
    made = run(PASS, FAIL, NOT)
    assert Run.from_json(made.as_json()) == made


CHECK = {
    "probes": {
        "fentry": {"ok": False, "reason": "no type information"},
        "kprobe": {"ok": True, "reason": None},
        "tracepoint": {"ok": True, "reason": None},
    },
    "arming": {
        "uffd": {"ok": True, "reason": None},
        "soft-dirty": {"ok": True, "reason": None},
    },
    "auto": {"probe": "kprobe", "arm": "uffd"},
}


def test_auto_runs_all_traps_and_other_ways_the_marked_ones() -> None:
    marked = [
        "kprobe+uffd:every_way",
        "tracepoint+uffd:every_way",
        "kprobe+soft-dirty:every_way",
        "tracepoint+soft-dirty:every_way",
    ]
    assert ways(CHECK, marked=True) == marked
    assert ways(CHECK) == [*marked, "kprobe+uffd:not every_way"]
    assert refusals(CHECK) == {"fentry": "no type information"}


def test_a_machine_that_does_not_boot_is_a_failure() -> None:
    found = KernelRun("6.1", trouble=["kernel 6.1.0 did not boot within 240 s"])
    assert found.failures
    assert "FAILED 6.1: kernel 6.1.0 did not boot within 240 s" in report([found])
    assert report([KernelRun("6.1", runs=[run(PASS)])]).endswith("no failures\n")
