"""A locked-down kernel, in both modes: what redirty can do there, and how it explains the rest."""

from __future__ import annotations

from tests.vm.guest import REDIRTY, booted
from tests.vm.machine import despite_the_emulator

PROBES = ("fentry", "kprobe", "tracepoint")


@despite_the_emulator
def test_lockdown_is_explained() -> None:
    """Both modes are explained, in one machine: a running kernel can be locked further, never unlocked."""
    with booted("lockdown=integrity") as locked:
        done = locked.run([REDIRTY, "check"])
        text = done.stdout.decode()
        assert done.exit_code == 0, text  # BPF may read, so nothing is in the way
        assert "lockdown: integrity" in text
        how = "--probe tracepoint --arm soft-dirty"
        record = f"sleep 1000 & exec {REDIRTY} record -p $! {how} 100ms 2 -o /tmp/rec"
        done = locked.run(["sh", "-c", record])
        assert done.exit_code == 0, done.stderr.decode()

        more = "echo confidentiality >/sys/kernel/security/lockdown"
        assert locked.run(["sh", "-c", more]).exit_code == 0
        done = locked.run([REDIRTY, "check"])
        text = done.stdout.decode()
        assert done.exit_code == 1, text
        assert done.stderr == b""
        assert "lockdown: confidentiality" in text
        assert "tracing is not possible here" in text
        for probe in PROBES:
            (line,) = (line for line in text.splitlines() if f" {probe} " in line)
            assert line.split()[0] == "no"
            assert "locked down (confidentiality mode)" in line
        done = locked.run(["sh", "-c", f"sleep 1000 & exec {REDIRTY} record -p $! -o /tmp/none"])
        assert done.exit_code == 1
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("redirty: cannot trace on this kernel: ")
        assert "locked down (confidentiality mode)" in line
