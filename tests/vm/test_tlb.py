"""tests/integration/recording/test_tlb.py in emulated machines, with every kind of probe: flushes of a program that
makes a known number of them, compared with /proc/interrupts and the tracepoint.

REDIRTY_TEST_KERNELS names kernels (5.10,6.1,6.12,7.2) to run in every way; without it the usual one has two ways, as
the machine this runs on has the tracepoint.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.vm import machine
from tests.vm.guest import KERNEL, PYTHON, REDIRTY, booted
from tests.vm.test_probes import MAKE_EXT4

CHOSEN = os.environ.get("REDIRTY_TEST_KERNELS", "")
KERNELS = CHOSEN.split(",") if CHOSEN else [KERNEL]
PROBES = ("fentry", "kprobe", "tracepoint")


def ways(vm: machine.Vm) -> list[tuple[str, str]]:
    """Return every probe with the arming that `auto` chooses here, and the other arming with one of them."""
    done = vm.run([REDIRTY, "check", "--json"])
    assert done.exit_code == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert all(found["probes"][probe]["ok"] for probe in PROBES), found["probes"]
    others = [arm for arm, answer in found["arming"].items() if answer["ok"]]
    others.remove(found["auto"]["arm"])
    probes = PROBES if CHOSEN else ("kprobe",)
    return [
        *((probe, found["auto"]["arm"]) for probe in probes),
        *((PROBES[0], arm) for arm in others),
    ]


@pytest.mark.parametrize("kernel", KERNELS)
@machine.despite_the_emulator
def test_flushes_are_counted_as_the_kernel_counts_them(kernel: str) -> None:
    with booted(kernel=kernel) as vm:
        made = vm.run(["sh", "-c", MAKE_EXT4])  # reclaim takes no page of tmpfs without swap
        assert made.exit_code == 0, made.stderr.decode()
        output = {}
        for probe, arm in ways(vm):
            done = vm.run(
                [
                    PYTHON,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "tests/integration/recording/test_tlb.py",
                ],
                env={
                    **{"REDIRTY_TEST_PROBE": probe, "REDIRTY_TEST_ARM": arm},
                    **{"REDIRTY_REQUIRE": "1", "TMPDIR": "/tmp/ext4"},
                },
            )
            if done.exit_code:
                output[probe, arm] = done.stdout.decode()[-6000:]
    assert not output, "\n".join(f"{kernel}, {way}:\n{text}" for way, text in output.items())
