"""Prints "kvm" if a guest really runs under KVM, else "qemu" (plain emulation).

    python3 -m vagrant.accel VMLINUZ INITRD

The presence of /dev/kvm proves little: in a machine that is itself virtual, guests may hang under it.
A guest is therefore started: one of our kernels, whose init prints hello and powers off. The answer is
cached until the next boot of this machine. $REDIRTY_VM_DRIVER, kvm or qemu, overrides it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "REDIRTY_VM_DRIVER"
DRIVERS = ("kvm", "qemu")
HELLO = "redirty: hello"
TIMEOUT_S = 30.0


def why_not_kvm(
    vmlinuz: str, initrd: str, device: str = "/dev/kvm", emulator: str = "qemu-system-x86_64"
) -> str | None:
    """Return why KVM cannot be used; None if a guest ran under it."""
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no access to {device}" if Path(device).exists() else f"no {device}"
    line = [
        emulator, "-no-user-config", "-nodefaults", "-display", "none",
        "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512M",
        "-no-reboot", "-serial", "stdio", "-kernel", vmlinuz, "-initrd", initrd,
        "-append", "console=ttyS0 panic=-1 redirty=hello",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return f"no {emulator}"
    except subprocess.TimeoutExpired:
        return f"{device} exists, but a guest under it hung"
    if done.returncode != 0 or HELLO not in done.stdout:
        last_line = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return f"a guest under KVM did not come up: {' '.join(last_line)}"
    return None


def driver(vmlinuz: str, initrd: str, cache: Path) -> tuple[str, str]:
    """Return the driver and the reason for it.

    Raises:
        ValueError: the variable has another value.
    """
    if chosen := os.environ.get(VARIABLE):
        if chosen not in DRIVERS:
            raise ValueError(f"{VARIABLE} must be {' or '.join(DRIVERS)}, got {chosen!r}")
        return chosen, f"set by {VARIABLE}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        cached = json.loads(cache.read_text())
        if cached["boot"] == boot and cached["driver"] in DRIVERS:
            return cached["driver"], cached["why"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    reason = why_not_kvm(vmlinuz, initrd)
    answer = ("qemu", reason) if reason else ("kvm", "a guest ran under it")
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps({"boot": boot, "driver": answer[0], "why": answer[1]}) + "\n")
    return answer


def cache_file() -> Path:
    """Return the file in which the answer is cached."""
    root = os.environ.get("REDIRTY_CACHE") or Path.home() / ".cache/redirty"
    return Path(root) / "vm-driver.json"


def main(arguments: Sequence[str]) -> int:
    """Print the driver to stdout and the reason to stderr; return the exit code."""
    try:
        found, why = driver(arguments[0], arguments[1], cache_file())
    except ValueError as error:
        print(f"redirty: {error}", file=sys.stderr)
        return 1
    print(f"redirty: driver {found}: {why}", file=sys.stderr)
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
