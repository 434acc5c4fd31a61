"""Command line that boots a Debian kernel in an emulated machine and runs one command in it.

Tests use machine.Vm, which boots once and runs many commands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is run by its path
from tests.vm import initramfs, kernels
from tests.vm.machine import Vm, VmError, VmTimeoutError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/vm/runner.py",
        description="""\
Boot a Debian kernel in an emulated machine and run one command in it, as root.
The command sees this machine's files at the same paths and may change them:
changes stay in the machine's memory, except below the --share directories.""",
        epilog="""examples:
  python3 tests/vm/runner.py -- uname -a
  python3 tests/vm/runner.py --kernel 6.1 --share /tmp/out -- sh -c 'dmesg > /tmp/out/dmesg'
  python3 tests/vm/runner.py --append transparent_hugepage=never -- .venv/bin/redirty check

exit codes: the command's own; 124 it took too long; 125 the machine failed; 127 no such command.
Kernels are downloaded once, into $REDIRTY_CACHE/kernels (default ~/.cache/redirty/kernels).""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kernel", choices=kernels.KERNELS, default="6.12", help="default 6.12")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="default 2048")
    parser.add_argument("--append", default="", metavar="WORDS", help="more kernel command line")
    parser.add_argument(
        "--share",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory that the command may write; repeatable",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="for the command; default 600"
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's log at the end")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser


def main() -> int:
    """Run what the command line requests; return the exit code."""
    options = _parser().parse_args()
    try:
        with Vm(
            options.kernel,
            cpus=options.cpus,
            memory_mib=options.memory,
            append=options.append,
            shares=options.share,
        ) as vm:
            print(f"{vm.kernel.release} booted in {vm.boot_s:.1f} s", file=sys.stderr)
            done = vm.run(
                options.command,
                timeout_s=options.timeout,
                cwd=Path.cwd(),
                follow=["stdout", "stderr"],
            )
            if options.console:
                print(vm.console(), file=sys.stderr)
            return done.exit_code
    except VmTimeoutError as error:
        print(error, file=sys.stderr)
        return 124
    except (VmError, kernels.KernelError, initramfs.InitramfsError, OSError) as error:
        print(error, file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
