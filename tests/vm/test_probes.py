"""Every kind of probe and of arming in an emulated machine with a Debian kernel that has them all.

The host this runs on may allow none of them, so the guest observed what is asserted here: see guest_phases.py for
the phases, each of which writes an exactly known set of pages.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from redirty.collector.bpf import abi

from tests.vm import machine
from tests.vm.guest import PYTHON, REDIRTY, booted, in_guest
from tests.workloads.driver import build

PROBES = ("fentry", "kprobe", "tracepoint")
# Userfaultfd with every kind of probe is what test_traps.py does most of.
ARMS = ("soft-dirty",)
COMBINATIONS = [(arm, probe) for arm in ARMS for probe in PROBES]
# A file system with page_mkwrite, which tmpfs does not have.
MAKE_EXT4 = """
set -e
truncate -s 64M /tmp/ext4.image
/usr/sbin/mkfs.ext4 -q /tmp/ext4.image
/usr/sbin/modprobe -a loop ext4
mkdir /tmp/ext4
mount -o loop /tmp/ext4.image /tmp/ext4
"""

Run = dict[str, Any]

pytestmark = pytest.mark.xdist_group("one machine")


@pytest.fixture(scope="module")
def vm() -> Iterator[machine.Vm]:
    with booted() as running:
        done = running.run(["sh", "-c", MAKE_EXT4])
        assert done.exit_code == 0, done.stderr.decode()
        yield running


@pytest.fixture(scope="module")
def runs(vm: machine.Vm) -> dict[tuple[str, str], Run]:
    """Return the results of all phases by (arm, probe)."""
    found = in_guest(vm, "guest_probes.py", "/tmp/ext4", ",".join(ARMS), ",".join(PROBES))
    return {(run["arm"], run["probe"]): run for run in found}


def indices(ranges: list[list[int]]) -> set[int]:
    """Return page indices of inclusive ranges."""
    return {i for first, last in ranges for i in range(first, last + 1)}


def areas_of(run: Run) -> Iterator[tuple[str, dict[str, set[int]]]]:
    """Yield (phase and area, the sets) for every area in every phase."""
    for phase in run["rounds"]:
        for area, sets in phase["areas"].items():
            yield f"{phase['name']}/{area}", {name: indices(r) for name, r in sets.items()}


def phase_of(run: Run, name: str) -> dict[str, Any]:
    """Return one phase."""
    found: dict[str, Any] = next(p for p in run["rounds"] if p["name"] == name)
    return found


# ---- check ----


def test_check_finds_every_way(vm: machine.Vm) -> None:
    done = vm.run([REDIRTY, "check", "--json"])
    assert done.exit_code == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["kernel"] == vm.kernel.release
    for section, names in (
        ("probes", PROBES),
        ("arming", ("uffd", *ARMS)),
        ("other", ("bcc", "btf")),
    ):
        answers = found[section]
        assert {n: answers[n]["ok"] for n in names} == dict.fromkeys(names, True), answers
    assert found["auto"] == {"probe": "fentry", "arm": "uffd"}


# ---- the sets ----


@pytest.mark.parametrize(("arm", "probe"), COMBINATIONS)
def test_dirty_is_what_was_written(runs: dict[tuple[str, str], Run], arm: str, probe: str) -> None:
    run = runs[arm, probe]
    wrong = {
        where: (sorted(sets["dirty"] - sets["truth"]), sorted(sets["truth"] - sets["dirty"]))
        for where, sets in areas_of(run)
        if sets["dirty"] != sets["truth"]
    }
    assert not wrong, "(too many, too few)"
    assert sum(len(sets["truth"]) for _, sets in areas_of(run)) > 4000, "it wrote a lot"


@pytest.mark.parametrize(("arm", "probe"), COMBINATIONS)
def test_redirtied_is_what_was_there_before(
    runs: dict[tuple[str, str], Run], arm: str, probe: str
) -> None:
    run = runs[arm, probe]
    wrong = {
        where: (sorted(sets["redirtied"]), sorted(sets["truth_redirtied"]))
        for where, sets in areas_of(run)
        if sets["redirtied"] != sets["truth_redirtied"]
    }
    assert not wrong, "(output to be, known to be)"
    first, again = (dict(areas_of(run))[f"{name}/anon"] for name in ("first_touch", "rewrite"))
    assert not first["redirtied"], "first touches are new"
    assert again["redirtied"] == again["dirty"] == first["dirty"] != set()


@pytest.mark.parametrize("arm", ARMS)
def test_fentry_and_kprobe_log_the_same(runs: dict[tuple[str, str], Run], arm: str) -> None:
    one, other = (dict(areas_of(runs[arm, probe])) for probe in ("fentry", "kprobe"))
    assert list(one) == list(other)
    different = {w: sorted(one[w]["log"] ^ other[w]["log"]) for w in one}
    assert {w: pages for w, pages in different.items() if pages} == {}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("probe", ["fentry", "kprobe"])
def test_nothing_is_missed(runs: dict[tuple[str, str], Run], arm: str, probe: str) -> None:
    """The kernel's own writes are logged, too: read(2), O_DIRECT, process_vm_writev, /proc/PID/mem."""
    assert {w: s["missed"] for w, s in areas_of(runs[arm, probe]) if s["missed"]} == {}


@pytest.mark.parametrize("arm", ARMS)
def test_with_tracepoints_missed_has_what_the_log_lacks(
    runs: dict[tuple[str, str], Run], arm: str
) -> None:
    """Tracepoints see only faults of the processor, not the kernel's own accesses, and one page of a huge one;
    missed has exactly the rest.
    """
    not_seen = {
        "kernel_read_direct/anon",
        "kernel_read_direct/shared",
        "proc_mem/anon",
        *(f"process_vm_writev/{area}" for area in ("anon", "memfd", "private_file")),
    }
    huge = {"huge_first_touch/huge", "huge_second/huge"}
    if arm == "soft-dirty":
        huge |= {"huge_rewrite/huge"}
    run = runs[arm, "tracepoint"]
    for where, sets in areas_of(run):
        assert sets["missed"] == sets["truth"] - sets["log"], where
        if where in not_seen:
            assert not sets["log"] and sets["missed"], where
        elif where in huge:
            assert (len(sets["log"]), len(sets["missed"])) == (1, 511), where
        else:
            assert not sets["missed"], where


@pytest.mark.parametrize("arm", ARMS)
def test_a_huge_page_is_logged_whole(runs: dict[tuple[str, str], Run], arm: str) -> None:
    for probe in ("fentry", "kprobe"):
        run = runs[arm, probe]
        first = phase_of(run, "huge_first_touch")
        assert indices(first["areas"]["huge"]["log"]) == set(range(512))
        assert first["kinds"][5] == 1, "one huge page was made"
        assert phase_of(run, "rewrite")["kinds"][5] == 0
        # A huge page that is armed is written whole by soft-dirty; userfaultfd splits it.
        assert phase_of(run, "huge_rewrite")["kinds"][5] == (arm == "soft-dirty")


# ---- what was attached and counted ----


@pytest.mark.parametrize(("arm", "probe"), COMBINATIONS)
def test_hooks_that_this_kernel_has_were_attached(
    runs: dict[tuple[str, str], Run], arm: str, probe: str
) -> None:
    if probe == "tracepoint":
        expected = {"write_faults", "first_touch", "write_protect", "tlb"}
    else:
        # Not "cow": this kernel has wp_page_copy inlined.
        expected = {"write_faults", "write_protect", "mkwrite", "huge", "huge_wp", "collapse"}
        expected |= {"tlb", "tlb_time", "tlb_batch_time", "tlb_cpus"}
    assert set(runs[arm, probe]["attached"]) == expected


@pytest.mark.parametrize(("arm", "probe"), COMBINATIONS)
def test_counters_agree_with_the_pages(
    runs: dict[tuple[str, str], Run], arm: str, probe: str
) -> None:
    run = runs[arm, probe]
    for phase in run["rounds"]:
        assert phase["lost"] == 0
        # The tracer's own count of pages, by time, is that of the set, except for those that wait
        # for the next reading of the clock.
        waiting = phase["log_pages"] - phase["hist_pages"]
        assert abs(waiting) < abi.CLOCK_EVERY, phase["name"]
        assert waiting == 0 or phase["log_pages"] > abi.CLOCK_EACH, phase["name"]
        assert phase["kinds"][0] >= phase["log_pages"] - 512 * phase["kinds"][5], phase["name"]
    quiet = phase_of(run, "nothing")
    assert set(quiet["kinds"]) == {0}, "arming does not count as the target's own faults"
    assert phase_of(run, "rewrite")["kinds"][2] >= 1000, "write-protected pages were written"


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("probe", ["fentry", "kprobe"])
def test_the_file_system_is_asked_once_for_each_page(
    runs: dict[tuple[str, str], Run], arm: str, probe: str
) -> None:
    """Shared file pages (trap 8) call page_mkwrite once each, also after they were written back."""
    for name in ("rewrite", "written_back"):
        phase = phase_of(runs[arm, probe], name)
        sets = phase["areas"]["shared_file"]
        written = indices(sets["truth"])
        # Under userfaultfd a page that was not present faults twice: it is mapped protected.
        new = len(written - indices(sets["truth_redirtied"])) if arm == "uffd" else 0
        assert phase["kinds"][4] == len(written) + new
        assert len(written) >= 128


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("probe", ["fentry", "kprobe"])
def test_flushes_of_the_tlb_are_counted_and_timed(
    runs: dict[tuple[str, str], Run], arm: str, probe: str
) -> None:
    run = runs[arm, probe]
    protected = phase_of(run, "reprotected")  # three calls of mprotect
    assert protected["tlb_flushes"][6] >= 3
    assert protected["tlb_ns"][6] > 0
    quiet = phase_of(run, "nothing")
    assert quiet["tlb_flushes"][6] == 0, "arming is not the target's own flushing"


# ---- the program ----


def test_record_writes_a_complete_recording(vm: machine.Vm) -> None:
    found = in_guest(vm, "guest_record.py", "/tmp/ext4")
    assert (found["exit"], found["out"]) == (0, ""), found["err"]
    assert "Traceback" not in found["err"]
    assert found["meta"]["complete"] is True
    assert (found["meta"]["probe"], found["meta"]["arm"]) == ("fentry", "uffd")
    assert [row["round"] for row in found["rounds"]] == ["0", "1", "2"]
    for row in found["rounds"]:
        assert int(row["dirty_pages"]) > 0
        assert int(row["log_pages"]) == int(row["dirty_pages"])
        assert (row["missed_pages"], row["lost_events"]) == ("0", "0")
        assert row["cow_faults"] == "", "unknown on this kernel: empty, not 0"
        assert int(row["mkwrite_faults"]) > 0
        assert int(row["tlb_flushes"]) > 0
        assert float(row["tlb_flush_s"]) > 0
    assert int(found["rounds"][1]["redirtied_pages"]) > 0
    classes = {row["mapping_class"] for row in found["mappings"] if row["dirty_pages"] != "0"}
    assert classes >= {"anon_private", "file_shared"}
    assert len(found["curve"]) > 10
    assert any(row["reason"] == "flush_tlb_mm_range" and row["time_s"] for row in found["tlb"])


def test_counts_of_all_processes(vm: machine.Vm) -> None:
    """The overview of the live screen counts what only kprobes and fentry report."""
    found = in_guest(vm, "guest_counts.py", "/tmp/ext4")
    # Not "cow": see above.
    assert set(found["features"]) == {"first_touch", "mkwrite", "tlb"}
    pages = found["pages"]
    touched, shared, copied = (found["phases"][name] for name in ("touch", "shared_file", "fork"))
    for phase in (touched, shared, copied):
        assert pages <= phase["write_faults"] <= pages + 300, phase
    assert pages <= touched["first_touch"] <= pages + 300
    assert copied["first_touch"] <= 300
    assert touched["mkwrite"] == copied["mkwrite"] == 0
    assert shared["mkwrite"] == pages
    # and an unknown share is not shown on the screen
    assert found["shown"]["cow"] is None
    assert found["shown"]["mkwrite"] == pytest.approx(found["shown"]["write_faults"], rel=0.3)


TARGET = "tests/integration/recording/test_vm_target.py::test_only_the_guests_memory_counts"


def test_only_a_guests_memory_counts(vm: machine.Vm) -> None:
    """The guest kernel's fentry and soft-dirty bits count only a VM's guest memory, too; the host covers the other
    methods.
    """
    done = vm.run(
        [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", TARGET],
        env={
            **{"REDIRTY_TEST_PROBE": "fentry", "REDIRTY_TEST_ARM": "soft-dirty"},
            "REDIRTY_REQUIRE": "1",
        },
    )
    assert done.exit_code == 0, done.stdout.decode()[-6000:]


def test_the_workloads_are_built_here_not_in_the_guest() -> None:
    programs = subprocess.run(
        ["make", "-q", "-C", machine.PROJECT / "tests/workloads", f"BUILD={build()}"], check=False
    )
    assert programs.returncode == 0
