"""Builds the box, starts it, runs the tests in it and destroys it: make vagrant-test

    python3 -m vagrant.box_check [--keep] [KERNEL ...]      default: 6.12; "all": every kernel

It uses `vagrant` as a user does. The network is isolated, so that nothing depends on what the guest can
reach. It ends with a table of steps and times, and with exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.vm import initramfs, kernels
from vagrant import box, daemons, wheels
from vagrant.commands import BUILD, HERE, PROJECT, StepError, Steps, show

DEFAULT = "6.12"
ENVIRONMENT = {
    "VAGRANT_CWD": str(HERE),
    "VAGRANT_DEFAULT_PROVIDER": "libvirt",
    "VAGRANT_CHECKPOINT_DISABLE": "1",
    "REDIRTY_VM_NETWORK": "isolated",
}
# Checks that the machine is the requested one.
MACHINE = """\
set -eu
echo "kernel $(uname -r)"; test "$(uname -r)" = {release}
nodes=$(ls -d /sys/devices/system/node/node[0-9]* | wc -l)
echo "NUMA nodes $nodes"; test "$nodes" = 2
for node in 0 1; do
    pages=$(cat /sys/devices/system/node/node$node/hugepages/hugepages-2048kB/nr_hugepages)
    echo "node $node: $pages hugetlb pages"; test "$pages" -gt 0
done
tail -n +2 /proc/swaps; test "$(wc -l </proc/swaps)" -gt 1
large=/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled
if [ -e $large ]; then cat $large; grep -q '\\[madvise\\]' $large; else echo "no multi-size THP"; fi
"""
CONSOLE_LINES = 30


def commands(release: str) -> list[tuple[str, str]]:
    """Return (step, shell command in the guest)."""
    prefix = "cd /vagrant && sudo"
    return [
        ("machine", MACHINE.format(release=shlex.quote(release))),
        ("redirty check", f"{prefix} .venv/bin/redirty check"),
        ("redirty demo", f"{prefix} .venv/bin/redirty demo"),
        ("traps", f"{prefix} env REDIRTY_REQUIRE=1 .venv/bin/python -m pytest -q tests/traps"),
    ]


def vagrant(*words: str, keep: bool) -> None:
    """Run vagrant.

    Machines that are not kept have a state directory of their own, so that the user's machines do not come
    to belong to root.

    Raises:
        StepError: it failed.
    """
    separate = {} if keep else {"VAGRANT_DOTFILE_PATH": str(BUILD / "trial")}
    show(["vagrant", *words], {**ENVIRONMENT, **separate})


def machine(name: str, info: dict[str, Any], steps: Steps, keep: bool) -> None:
    """Run all tests in one kernel's machine, from up to destroy; a failed test does not stop the others.

    Raises:
        StepError: the machine did not start, or a test failed.
    """
    failed: list[str] = []
    kernel = info["kernels"][name]
    try:
        try:
            with steps(f"{name}: vagrant up"):
                vagrant("up", name, "--no-provision", keep=keep)
        except StepError:
            print(console(Path(kernel["console"])))
            raise
        with steps(f"{name}: vagrant provision"):
            vagrant("provision", name, keep=keep)
        for step, command in commands(kernel["release"]):
            try:
                with steps(f"{name}: {step}"):
                    vagrant("ssh", name, "-c", command, keep=keep)
            except StepError as error:
                failed.append(f"{step}: {error}")
    finally:
        if not keep:
            with steps(f"{name}: vagrant destroy"):
                vagrant("destroy", "--force", name, keep=False)
    if failed:
        raise StepError(f"{name}: " + "; ".join(failed))


def console(path: Path) -> str:
    """Return the last lines of a machine's console."""
    text = path.read_text(errors="replace") if path.is_file() else "(empty)"
    return "\n  ".join(["console:", *text.splitlines()[-CONSOLE_LINES:]])


def check(names: Sequence[str], steps: Steps, keep: bool) -> list[str]:
    """Test the machines of some kernels; return their errors, one line each.

    Raises:
        StepError: a step that all machines need failed.
        KernelError: a kernel cannot be fetched.
        InitramfsError: an initramfs cannot be built.
    """
    with steps("packages on this machine"):
        show([PROJECT / ".ci/setup", "vagrant"])
    info = box.build(steps)
    with steps("wheels"):
        wheels.download()
    errors = []
    with contextlib.ExitStack() as stack:
        with steps("libvirt"):
            print(f"  {stack.enter_context(daemons.running(keep))}")
        for name in names:
            try:
                machine(name, info, steps, keep)
            except StepError as error:
                errors.append(str(error))
    return errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the box; return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m vagrant.box_check", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the machines running")
    parser.add_argument("kernels", nargs="*", default=[DEFAULT], metavar="KERNEL")
    options = parser.parse_args(arguments)
    names = list(kernels.KERNELS) if "all" in options.kernels else options.kernels
    if unknown := [name for name in names if name not in kernels.KERNELS]:
        parser.error(f"no kernel {unknown[0]} in vagrant/kernels.toml")
    steps = Steps()
    try:
        errors = check(names, steps, options.keep)
    except (StepError, kernels.KernelError, initramfs.InitramfsError, OSError) as error:
        errors = [str(error)]
    except KeyboardInterrupt:
        errors = ["interrupted"]
    print(f"\n{steps.table()}\n")
    for line in errors:
        print(f"redirty: {line}", file=sys.stderr)
    if not errors:
        print(f"the box works with {', '.join(names)}")
    return 1 if errors else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
