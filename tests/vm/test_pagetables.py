"""Page tables moved between two NUMA nodes: nothing else changes, whatever happens to redirty."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.vm import machine
from tests.vm.guest import booted, in_guest

KERNELS = os.environ.get("REDIRTY_TEST_KERNELS", "6.12").split(",")
MIB = int(os.environ.get("REDIRTY_TABLES_MIB", "128"))
TIMES = int(os.environ.get("REDIRTY_TABLES_TIMES", "2"))
KILLS = int(os.environ.get("REDIRTY_KILLS", "10"))
# Two nodes with memory, one processor each.
NODE_MIB = 1536
NODES = tuple(
    word
    for node in (0, 1)
    for word in (
        *("-object", f"memory-backend-ram,id=ram{node},size={NODE_MIB}M"),
        *("-numa", f"node,nodeid={node},cpus={node},memdev=ram{node}"),
    )
)
# One node has no memory.
BARE = (
    *("-object", f"memory-backend-ram,id=ram0,size={NODE_MIB}M"),
    *("-numa", "node,nodeid=0,cpus=0,memdev=ram0", "-numa", "node,nodeid=1,cpus=1"),
)
EXT4 = """
set -e
truncate -s 256M /tmp/ext4.image
/usr/sbin/mkfs.ext4 -q /tmp/ext4.image
/usr/sbin/modprobe -a loop ext4
mkdir /tmp/ext4
mount -o loop /tmp/ext4.image /tmp/ext4
"""
SCRIPT = "guest_pagetables.py"

pytestmark = [pytest.mark.timeout(3000), pytest.mark.xdist_group("pagetables")]


def there_and_back(found: dict[str, Any], tables: int) -> None:
    """What holds of every there_and_back() of the guest."""
    before = {int(n): c for n, c in found["before"].items()}
    assert before[0] >= tables, found
    # all but what can't be moved was on the node each time
    assert all(a <= b for a, b in zip(found["left"], found["kept"], strict=True)), found
    assert found["moved"] >= tables * len(found["left"]), found
    print(
        f"{found['moved']} tables moved in {len(found['left'])} moves, standing still {found['stopped_s']:.3f} s "
        f"in all, {found['longest_s']:.3f} s at most; stayed {found['reasons']}"
    )


@pytest.mark.parametrize("kernel", KERNELS)
@machine.despite_the_emulator
def test_moved_between_nodes(kernel: str) -> None:
    with booted(kernel=kernel, memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
        the_program(in_guest(vm, SCRIPT, "program"))
        for kind in ("private", "shared", "file"):
            found = in_guest(vm, SCRIPT, "mapping", kind, str(MIB), str(TIMES))
            there_and_back(found, MIB // 2 - 1)
            assert (found["wrong"], found["wrong_after_write"]) == (0, 0), (kind, found)
            assert found["same_maps"], kind
        found = in_guest(vm, SCRIPT, "writers", str(TIMES))
        there_and_back(found, 32)
        assert found["errors"] == 0, found
        assert found["loops"] > 0
        assert found["same_maps"]
        found = in_guest(vm, SCRIPT, "redis", str(TIMES))
        there_and_back(found, 1)
        assert found["alive"], found
        assert (found["pong"], found["kept_value"], found["errors"]) == ("PONG", "as it was", [])
        assert "error" not in found["said"].lower(), found["said"]


def the_program(found: dict[str, Any]) -> None:
    """What the command itself says."""
    looked = found["looked"]
    assert looked["source"] == "walk", looked["reason"]
    assert looked["nodes"]["with_memory"] == [0, 1]
    (process,) = looked["processes"]
    assert process["counted_pages"] == sum(r["pages"] for r in process["levels"]) - 1
    code, said, _ = found["would"]
    assert code == 0
    assert "nothing was moved: --yes does it" in said
    (moved,) = found["moved"]["processes"]
    assert moved["tables"] >= 31, moved
    assert moved["after"].get("1", 0) >= 31, moved
    assert moved["longest_pause_s"] > 0
    assert moved["tlb"]["flushes"] > 0, moved
    assert found["wrong"] == 0
    print(found["would"][1], moved)


@pytest.mark.parametrize("kernel", KERNELS)
@machine.despite_the_emulator
def test_killed_while_it_moves(kernel: str) -> None:
    with booted(kernel=kernel, memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
        found = in_guest(vm, SCRIPT, "kills", str(KILLS), timeout_s=2400)
    print(found)
    assert found["errors"] == 0, found
    assert found["loops"] > 0
    assert found["strange"] == [], "a mapping of redirty's was left"


@machine.despite_the_emulator
def test_writes_before_a_move_reach_the_file() -> None:
    with booted(memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
        made = vm.run(["sh", "-c", EXT4])
        assert made.exit_code == 0, made.stderr.decode()
        found = in_guest(vm, SCRIPT, "written_back")
        assert found["moved"] >= 31, found
        assert found["wrong"] == 0, found
        recorded = in_guest(vm, SCRIPT, "recorded")
    print(recorded)
    for way, said in recorded.items():
        assert said["lost_writes"] == 0, (way, said)
    # what is registered with a userfaultfd stays; what is moved looks written, and it is said
    assert recorded["uffd"]["kept"]["registered with a userfaultfd"] >= 15, recorded
    assert recorded["soft-dirty"]["moved"][0] >= 15, recorded
    assert recorded["soft-dirty"]["moved_pages"] > 0, recorded
    assert "mremap" in recorded["soft-dirty"]["said"], recorded


@machine.despite_the_emulator
def test_refusals_are_one_line() -> None:
    with booted(memory_mib=2 * NODE_MIB, qemu_args=NODES) as vm:
        found = in_guest(vm, SCRIPT, "refusals")
    for name, code, expected in (
        ("no_node", 1, "there is no node 7 here"),
        ("yes_alone", 2, "--to-node"),
        ("debugged", 1, "being debugged"),
    ):
        assert found[name][0] == code, found[name]
        assert len(found[name][2].splitlines()) == 1, found[name]
        assert expected in found[name][2]
    assert found["wrong"] == 0
    with booted(memory_mib=NODE_MIB, qemu_args=BARE) as vm:
        found = in_guest(vm, SCRIPT, "refusals")
    assert "node 1 has no memory" in found["bare_node"][2], found
