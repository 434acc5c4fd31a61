"""The program redirty: reads the command line, runs a verb, turns errors into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from redirty.collector import VERSION
from redirty.collector.errors import RedirtyError, one_line

# verb -> (module, one line); the module is only imported when its verb is used
VERBS = {
    "check": ("check", "what this kernel and user can do, with the reason when not"),
    "record": ("record", "trace a target's write faults into a recording"),
    "report": ("report", "sum a recording up on the terminal"),
    "predict": ("predict", "would mirroring a target's memory converge, and how soon"),
    "mirror": ("mirror", "copy a running target's memory, then stop it for the rest"),
    "receive": ("receive", "the other end of a mirror that goes over a network"),
    "export-criu": ("export_criu", "a mirror as CRIU's page images"),
    "export-guest": ("export_guest", "the guest's memory of a mirrored QEMU, as a raw image"),
    "top": ("top", "the live screen, or a recording replayed on it"),
    "pagetables": ("pagetables", "where page tables live, and moving them between NUMA nodes"),
    "demo": ("demo", "the main job on a built-in workload"),
}

_EPILOG = """\
examples:
  sudo redirty check                                what works here, and why not
  sudo redirty record -p 1234 -d 10 -o rec          ten rounds of one second
  sudo redirty record --tree 1234 100ms 50 -o rec   fifty rounds of 100 ms, with children
  sudo redirty record -o rec -- ./server --port 80  a command from its first instruction
  redirty report rec                                what was dirty, and again
  redirty predict rec --bandwidth 1Gbit             would mirroring it converge?
  sudo redirty top -p 1234                          the same and more, live
  sudo redirty pagetables -p 1234                   on which NUMA nodes its page tables lie

exit codes: 0 done, 1 it could not, 2 wrong usage, 3 the target ended early
(what was recorded is kept), 130 interrupted (likewise kept)
"""


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one verb: the others would cost their imports."""
    parser = argparse.ArgumentParser(
        prog="redirty",
        description="Logs the write faults of a running workload with BPF: which pages it dirties, "
        "which it dirties again, and how fast.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"redirty {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, (module, line) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
        if name == verb:
            importlib.import_module(f"redirty.collector.cli.{module}").arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs redirty; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    verb = next((w for w in words if not w.startswith("-")), None)
    try:
        options = _parser(verb).parse_args(words)
    except SystemExit as e:  # argparse has said it
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return _nobody_reads()
        return e.code if isinstance(e.code, int) else 2
    except BrokenPipeError:
        return _nobody_reads()
    options.command = command
    debugging = bool(os.environ.get("REDIRTY_DEBUG"))
    if options.verbose or debugging:
        import logging

        level = logging.DEBUG if debugging else logging.INFO
        logging.basicConfig(level=level, format="redirty: %(message)s", stream=sys.stderr)
        logging.getLogger("pyroute2").setLevel(logging.WARNING)
    try:
        run = importlib.import_module(f"redirty.collector.cli.{VERBS[options.verb][0]}").run
        code: int = run(options)
        sys.stdout.flush()
        return code
    except RedirtyError as e:
        print(f"redirty: {one_line(str(e))}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("redirty: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as e:
        if debugging:
            raise
        print(
            f"redirty: internal error: {type(e).__name__}: {one_line(str(e))} (a bug: please "
            "report it with the output of the same command under REDIRTY_DEBUG=1)",
            file=sys.stderr,
        )
        return 1


def _nobody_reads() -> int:
    """Whoever read our output has enough: no traceback, also not at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
