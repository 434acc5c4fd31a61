"""Builds the box, starts it, runs the tests in it, takes it away: make vagrant-test

    python3 -m vagrant.box_check [--keep] [KERNEL ...]      default: 6.12; "all" for every one

It does with `vagrant` what a user does. The network is isolated, so that nothing depends on what the
guest can reach. Ends with a table of steps and times, and with 1 when any of them failed.
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
# Is it the machine that was asked for?
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
    """(step, shell command in the guest)."""
    there = "cd /vagrant && sudo"
    return [
        ("machine", MACHINE.format(release=shlex.quote(release))),
        ("redirty check", f"{there} .venv/bin/redirty check"),
        ("redirty demo", f"{there} .venv/bin/redirty demo"),
        ("traps", f"{there} env REDIRTY_REQUIRE=1 .venv/bin/python -m pytest -q tests/traps"),
    ]


def vagrant(*words: str, keep: bool) -> None:
    """What is not kept has its notes apart: those of a user's own machines are not root's.

    Raises StepError.
    """
    apart = {} if keep else {"VAGRANT_DOTFILE_PATH": str(BUILD / "trial")}
    show(["vagrant", *words], {**ENVIRONMENT, **apart})


def machine(name: str, info: dict[str, Any], steps: Steps, keep: bool) -> None:
    """One kernel's machine from up to destroy. Every test is run, also after one that failed.

    Raises StepError.
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
    """The last lines of a machine's console."""
    text = path.read_text(errors="replace") if path.is_file() else "(it said nothing)"
    return "\n  ".join(["its console:", *text.splitlines()[-CONSOLE_LINES:]])


def trial(names: Sequence[str], steps: Steps, keep: bool) -> list[str]:
    """What went wrong, one line each.

    Raises StepError, KernelError, InitramfsError for what all machines need.
    """
    with steps("packages of this machine"):
        show([PROJECT / ".ci/setup", "vagrant"])
    info = box.build(steps)
    with steps("wheels"):
        wheels.download()
    wrong = []
    with contextlib.ExitStack() as stack:
        with steps("libvirt"):
            print(f"  {stack.enter_context(daemons.running(keep))}")
        for name in names:
            try:
                machine(name, info, steps, keep)
            except StepError as error:
                wrong.append(str(error))
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python3 -m vagrant.box_check", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the machines running")
    parser.add_argument("kernels", nargs="*", default=[DEFAULT], metavar="KERNEL")
    options = parser.parse_args(arguments)
    names = list(kernels.KERNELS) if "all" in options.kernels else options.kernels
    if unknown := [name for name in names if name not in kernels.KERNELS]:
        parser.error(f"no kernel {unknown[0]} in vagrant/kernels.toml")
    steps = Steps()
    try:
        wrong = trial(names, steps, options.keep)
    except (StepError, kernels.KernelError, initramfs.InitramfsError, OSError) as error:
        wrong = [str(error)]
    except KeyboardInterrupt:
        wrong = ["interrupted"]
    print(f"\n{steps.table()}\n")
    for line in wrong:
        print(f"redirty: {line}", file=sys.stderr)
    if not wrong:
        print(f"the box works with {', '.join(names)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
