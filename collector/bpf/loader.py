"""Compiling, loading and attaching the BPF programs: the best kind of entry that this kernel takes.

The only module, with symbols.py, that imports bcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redirty.bpfprogs as programs
from redirty.collector.bpf import btf, fault_log, hooks, probe_support, syscalls
from redirty.collector.errors import RedirtyError

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None)
_one_at_a_time = threading.RLock()
_COMMON = (f"-I{programs.DIRECTORY}", "-Wno-unused-function")


@dataclass(frozen=True)
class Options:
    """How to load.

    probe: auto or one of trial.PROBES. regions: room for 2 MiB regions in each epoch's map.
    slots: targets with counters of their own. part: only chosen ranges of memory are recorded (see
    Tracer.choose). ring_bytes, stack_entries: powers of two.
    """

    probe: str = "auto"
    regions: int = 65536
    slots: int = 64
    targets: int = 16384
    events: bool = False
    stacks: bool = False
    ring_bytes: int = 64 << 20
    stack_entries: int = 16384
    follow_fork: bool = False
    part: bool = False
    force_byte_maps: bool = False


@dataclass(frozen=True)
class Loaded:
    """What runs in the kernel now, until bpf is cleaned up or this process ends.

    probe: one of trial.PROBES. attached: features (entries.py). byte_maps: see Tracer. refused: the
    probes that were tried before, with the reason.
    """

    bpf: Any
    probe: str
    attached: frozenset[str]
    byte_maps: bool
    refused: dict[str, str]


def load(options: Options) -> Loaded:
    """Loads and attaches with the probe asked for, or with auto the best that works.

    Errors: RedirtyError with every reason.
    """
    types = btf.load()
    refused: dict[str, str] = {}
    tries = {
        "fentry": lambda: probe_support.fentry(types),
        "kprobe": probe_support.kprobe,
        "tracepoint": probe_support.tracepoint,
    }
    flags = btf.offset_flags(types)
    for probe in probe_support.preference() if options.probe == "auto" else (options.probe,):
        found = tries[probe]() or _compile(options, probe, flags)
        if not isinstance(found, str):
            bpf, attached, byte_maps = found
            return Loaded(bpf, probe, attached, byte_maps, refused)
        refused[probe] = found
        log.info("probe %s: %s", probe, found)
    reasons = "; ".join(f"{p}: {r}" for p, r in refused.items())
    raise RedirtyError(f"cannot trace on this kernel: {reasons} (see: redirty check)")


def _compile(
    o: Options, probe: str, offset_flags: list[str]
) -> tuple[Any, frozenset[str], bool] | str:
    """(bpf, features, byte_maps) with one kind of entry, or why it went wrong."""
    flags = [
        *(*_COMMON, f"-DRD_ENTRY_{probe.upper()}"),
        *(f"-DRD_REGIONS={o.regions}", f"-DRD_SLOTS={o.slots}", f"-DRD_TARGETS={o.targets}"),
        f"-DRD_ROWS_BITS={fault_log.rows_bits(o.regions)}",
        *offset_flags,
    ]
    if o.events:
        flags += ["-DRD_EVENTS", f"-DRD_RING_PAGES={o.ring_bytes // mmap.PAGESIZE}"]
    if o.stacks:
        flags += ["-DRD_STACKS", f"-DRD_STACK_ENTRIES={o.stack_entries}"]
    if o.part:
        flags.append("-DRD_PART")
    compiler = bcc_compiler()
    byte_maps = o.force_byte_maps or not syscalls.has_atomics()
    if byte_maps:
        flags.append("-DRD_NO_ATOMIC_OR")
    bpf: Any = None
    with captured_stderr() as said:
        try:
            bpf = compiler(text=programs.source().encode(), cflags=flags)
            return bpf, hooks.attach(bpf, probe), byte_maps
        except Exception as e:
            reason = str(e).strip()
    log.debug("BCC said: %s", said.text)
    if bpf is not None:
        bpf.cleanup()
    return f"{reason} ({last_line(said.text)})"


def bcc_compiler() -> Any:
    """BCC's class BPF, made ready. Errors: RedirtyError when there is none."""
    os.environ["BCC_KERNEL_SOURCE"] = str(programs.KHEADERS)
    try:
        from bcc import BPF
    except ImportError:
        raise RedirtyError(
            "BCC is missing: install Debian's package python3-bpfcc, and run redirty with the "
            "system's python3 (the venv of 'make setup' does)"
        ) from None
    # BCC attaches what its naming rules match as soon as it compiles; redirty decides itself.
    BPF._trace_autoload = lambda self: None
    return BPF


class BpfError(RedirtyError):
    """The kernel, or the compiler, refused a program."""


def compile_programs(source: str, flags: list[str]) -> Any:
    """A bcc.BPF of a source that needs no attaching.

    Errors: BpfError; RedirtyError when BCC is not installed.
    """
    compiler = bcc_compiler()
    with captured_stderr() as said:
        try:
            return compiler(text=source.encode(), cflags=[*_COMMON, *flags])
        except Exception as e:
            reason = str(e).strip()
    log.debug("BCC said: %s", said.text)
    raise BpfError(f"{reason} ({last_line(said.text)})")


class _CompilerOutput:
    text = ""


@contextlib.contextmanager
def captured_stderr() -> Iterator[_CompilerOutput]:
    """BCC and LLVM write to descriptor 2 when they fail: keep that for -v, spare the user. One thread at a
    time: the descriptor is the whole process's, and the compiler crashes when two threads use it at once."""
    with _one_at_a_time:
        yield from _captured()


def _captured() -> Iterator[_CompilerOutput]:
    said = _CompilerOutput()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file, _told_at_exit(file.fileno(), saved):
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            _libc.fflush(None)
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            said.text = file.read().decode(errors="replace")


@contextlib.contextmanager
def _told_at_exit(captured: int, stderr: int) -> Iterator[None]:
    """LLVM ends the whole process by exit(3) where it gives up (a program that needs more than BPF's
    stack, say). No exception tells of that, and what it said is captured: its last line is said."""
    inside = True

    def say(_argument: int | None) -> None:
        if inside:
            _libc.fflush(None)
            text = os.pread(captured, 1 << 16, 0).decode(errors="replace")
            line = f"redirty: the compiler of the BPF programs gave up: {last_line(text)}\n"
            os.write(stderr, line.encode())

    owner = ctypes.create_string_buffer(1)  # of the handler: any address that is ours
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(say)
    _libc.__cxa_atexit(callback, None, owner)
    try:
        yield
    finally:
        inside = False
        _libc.__cxa_finalize(owner)  # takes it away: Python must not be called when it is gone


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "BCC gave no reason"
