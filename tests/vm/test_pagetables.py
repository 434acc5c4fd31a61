"""Page tables moved between two NUMA nodes: nothing else changes, whatever happens to redirty."""

from __future__ import annotations

import functools
import os
import re
import sys
from typing import Any

import pytest

from tests.vm import machine
from tests.vm.guest import KERNEL, booted, in_guest
from tests.vm.mover import BARE, FAR

KERNELS = os.environ.get("REDIRTY_TEST_KERNELS", KERNEL).split(",")
MIB = int(os.environ.get("REDIRTY_TABLES_MIB", "32"))
TIMES = int(os.environ.get("REDIRTY_TABLES_TIMES", "1"))
KILLS = int(os.environ.get("REDIRTY_KILLS", "5"))
NODE_MIB = 2048
# Linux numbers those with a processor first: 0 has both, 1 has no memory, 2 no processor.
NODES = (
    "-object",
    f"memory-backend-ram,id=ram0,size={NODE_MIB}M",
    "-object",
    f"memory-backend-ram,id=ram2,size={NODE_MIB}M",
    "-numa",
    "node,nodeid=0,cpus=0,memdev=ram0",
    "-numa",
    "node,nodeid=1,cpus=1",
    "-numa",
    "node,nodeid=2,memdev=ram2",
)
MAPPINGS = tuple(f"mapping:{kind}:{MIB}:{TIMES}" for kind in ("private", "shared", "file"))
TORTURE_S = os.environ.get("REDIRTY_TORTURE_S", "5")
WRITERS, REDIS, KILLED = f"writers:{TIMES}", f"redis:{TIMES}", f"kills:{KILLS}"
TORTURE = f"torture:{TORTURE_S}"
# attaching to functions, and detaching, takes half a minute in an emulated machine
RECORDED = f"recorded:{'auto' if TIMES > 1 else 'tracepoint'}"
PARTS = (
    "program",
    *MAPPINGS,
    WRITERS,
    REDIS,
    KILLED,
    "written_back",
    "watched",
    RECORDED,
    TORTURE,
    "refusals",
)

pytestmark = [pytest.mark.timeout(4 * 3600), pytest.mark.xdist_group("pagetables")]


@machine.despite_the_emulator
def run(kernel: str) -> dict[str, Any]:
    """Run all parts in one machine: booting it, and importing there, takes longer than most."""
    with booted(kernel=kernel, memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
        print(f"{kernel}: booted in {vm.boot_s:.0f} s", file=sys.stderr)
        found: dict[str, Any] = in_guest(vm, "guest_pagetables.py", *PARTS, timeout_s=4 * 3600)
    return found


@functools.cache
def ran(kernel: str) -> dict[str, Any]:
    """Run all parts once; when the machine itself fails, each part has its error."""
    try:
        return run(kernel)
    except machine.VmError as e:
        return {words: {"error": str(e)} for words in PARTS}


@pytest.fixture(params=KERNELS)
def parts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the answer of each part on a kernel."""
    return ran(request.param)


def part(parts: dict[str, Any], words: str) -> Any:
    """Return the answer of one part; fail with its error."""
    found = parts[words]
    assert "error" not in found, found["error"]
    return found


def there_and_back(found: dict[str, Any], tables: int) -> None:
    """Assert what holds of every there_and_back() of the guest."""
    before = {int(n): c for n, c in found["before"].items()}
    assert before[0] >= tables, found
    # all but what can't be moved was on the node each time
    assert all(a <= b for a, b in zip(found["left"], found["kept"], strict=True)), found
    assert found["moved"] >= tables * len(found["left"]), found
    print(
        f"{found['moved']} tables moved in {len(found['left'])} moves ({found['took_s']:.1f} s), stopped "
        f"for {found['stopped_s']:.3f} s in all,  {found['longest_s']:.3f} s at most; stayed {found['reasons']}"
    )


@pytest.mark.parametrize("words", MAPPINGS)
def test_the_tables_of_a_mapping_move_and_nothing_else_changes(
    parts: dict[str, Any], words: str
) -> None:
    found = part(parts, words)
    there_and_back(found, MIB // 2 - 1)
    assert (found["wrong"], found["wrong_after_write"], found["wrong_entries"]) == (0, 0, []), found
    assert all(found["bits"][kind] for kind in ("accessed", "dirty", "not accessed")), found
    assert found["bits"]["present"] == MIB << 8
    assert found["changes"] == []


def test_threads_that_write_are_unharmed_by_a_move(parts: dict[str, Any]) -> None:
    found = part(parts, WRITERS)
    there_and_back(found, 16)
    assert found["errors"] == 0, found
    assert found["loops"] > 0
    assert found["changes"] == []


def test_redis_under_load_is_unharmed_by_a_move(parts: dict[str, Any]) -> None:
    found = part(parts, REDIS)
    there_and_back(found, 1)
    assert found["alive"], found
    assert (found["pong"], found["kept_value"], found["errors"]) == ("PONG", "as it was", [])
    assert "error" not in found["output"].lower(), found["output"]


def test_the_command_reports_and_moves_tables(parts: dict[str, Any]) -> None:
    found = part(parts, "program")
    sampled = found["sampled"]
    assert sampled["source"] == "walk", sampled["reason"]
    assert sampled["nodes"]["with_memory"] == [0, FAR]
    (process,) = sampled["processes"]
    # The kernel holds a table in reserve for each huge page (all of them are of private memory).
    walked = sum(row["pages"] for row in process["levels"]) - 1
    assert process["counted_pages"] == walked + process["huge_pages"], process
    code, output, _ = found["would"]
    assert code == 0
    assert "nothing was moved: --yes moves them" in output
    (moved,) = found["moved"]["processes"]
    assert moved["tables"] >= 15, moved
    assert moved["after"].get(str(FAR), 0) >= 15, moved
    assert moved["longest_pause_s"] > 0
    assert moved["tlb"]["flushes"] > 0, moved
    assert found["wrong"] == 0
    print(output, moved)


def test_a_mover_killed_at_any_moment_leaves_the_target_unchanged(parts: dict[str, Any]) -> None:
    found = part(parts, KILLED)
    print({**found, "kills": KILLS})
    assert found["trouble"] == []
    assert found["in_place"] == KILLS, found
    assert found["errors"] == 0, found
    assert found["loops"] > 0


def test_writes_before_a_move_reach_the_file(parts: dict[str, Any]) -> None:
    found = part(parts, "written_back")
    assert found["moved"] >= 8, found
    assert found["pages"] == 16 << 8
    assert found["wrong"] == 0, found


def test_a_live_screen_follows_a_move(parts: dict[str, Any]) -> None:
    near, far = part(parts, "watched")["output"]
    assert re.fullmatch(r"page tables [\d.]+ KiB: node 0 100%; ran on node 0", near), near
    shares = rf"page tables [\d.]+ KiB: node 0 \d+%, node {FAR} [89]\d%; ran on node 0"
    assert re.fullmatch(shares, far), far


def test_a_move_in_a_round_loses_no_page(parts: dict[str, Any]) -> None:
    """Armed by soft-dirty bits, a moved page looks written, and redirty reports that."""
    found = part(parts, RECORDED)
    print(found)
    assert found["lost_writes"] == 0, found
    assert min(found["moved"]) >= 15, found
    assert found["moved_pages"] > 0, found
    assert "mremap" in found["output"], found


def test_a_mirror_kept_while_tables_move_equals_the_memory(parts: dict[str, Any]) -> None:
    found = part(parts, TORTURE)
    print(found["output"])
    assert found["losses"] == [], found
    assert found["late"] == 0, found
    assert found["laps"] > 0
    assert found["moved"] > 0


def test_refusals_are_one_line(parts: dict[str, Any]) -> None:
    found = part(parts, "refusals")
    for name, code, expected in (
        ("no_node", 1, "this machine has no node 7"),
        ("bare_node", 1, f"node {BARE} has no memory"),
        ("yes_alone", 2, "--to-node"),
        ("debugged", 1, "already traced by process"),
    ):
        assert found[name][0] == code, found[name]
        assert len(found[name][2].splitlines()) == 1, found[name]
        assert expected in found[name][2]
    assert found["wrong"] == 0
