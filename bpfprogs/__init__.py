"""The BPF programs, written in C; this module locates the sources.

The sources and the header tree are package data, so they lie in the package's directory, both installed
and in a checkout.
"""

from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
KHEADERS = DIRECTORY / "kheaders"


def source() -> str:
    """Return the source of the tracer, a single translation unit.

    BCC rewrites map accesses in the main file only, so the parts are joined rather than included.
    """
    return _joined("dirty.bpf.c", "tlb.bpf.c")


def tables_source() -> str:
    """Return the source of the reader of page tables."""
    return _joined("tables.bpf.c")


def system_source() -> str:
    """Return the source of the program that counts for all processes."""
    return _joined("system.bpf.c")


def _joined(*parts: str) -> str:
    return "\n".join(
        f'#line 1 "{name}"\n' + (DIRECTORY / name).read_text(encoding="utf-8") for name in parts
    )
