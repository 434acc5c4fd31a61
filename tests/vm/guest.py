"""An emulated machine with a Debian kernel, as the tests boot it, and the scripts that run in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tiers import require, require_program, require_root
from tests.vm import initramfs, kernels, machine
from tests.workloads.driver import build

KERNEL = "6.12"
PYTHON = str(machine.PROJECT / ".venv/bin/python")
REDIRTY = str(machine.PROJECT / ".venv/bin/redirty")
SCRIPTS = Path(__file__).parent


def booted(
    append: str = "",
    *,
    kernel: str = KERNEL,
    memory_mib: int = 2048,
    qemu_args: Sequence[str] = (),
    shares: Sequence[Path] = (),
) -> machine.Vm:
    """Return a machine that is not running yet; skip where there can be none."""
    require_root()
    require_program("qemu-system-x86_64", "qemu-system-x86")
    require_program("mkfs.ext4", "e2fsprogs")
    require_program("modprobe", "kmod")
    require(initramfs.BUSYBOX.is_file(), "needs /bin/busybox (Debian package busybox-static)")
    require(Path(PYTHON).is_file(), "needs the checkout's .venv (make setup)")
    build()  # on this machine: the guest sees the programs, and a compiler would take too long in it
    try:
        return machine.Vm(
            kernel, memory_mib=memory_mib, append=append, shares=shares, qemu_args=qemu_args
        )
    except kernels.KernelError as e:
        require(False, f"needs Debian's kernel {kernel}: {e}")
        raise


def in_guest(
    vm: machine.Vm, script: str, *arguments: str, timeout_s: float = machine.LIMIT_S
) -> Any:
    """Run a script of this directory; return its output, parsed as JSON. Its stderr is this process's."""
    done = vm.run(
        [PYTHON, str(SCRIPTS / script), *arguments],
        env={"PYTHONPATH": str(machine.PROJECT)},
        timeout_s=timeout_s,
        follow=["stderr"],
    )
    assert done.exit_code == 0, done.stderr.decode()
    return json.loads(done.stdout)
