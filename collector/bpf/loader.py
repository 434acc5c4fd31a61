"""Compiles, loads and attaches the BPF programs, with the best kind of hook that this kernel accepts.

The only module, with probe_support.py, that imports bcc.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import redirty.bpfprogs as programs
from redirty.collector.bpf import btf, fault_log, hooks, probe_support, syscalls
from redirty.collector.errors import RedirtyError, one_line
from redirty.collector.linux import procfs

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None)
_one_at_a_time = threading.RLock()
_COMMON_FLAGS = (f"-I{programs.DIRECTORY}", "-Wno-unused-function")
_CLONE_FS = 0x200
_MIN_REGIONS, _MAX_REGIONS = 1 << 16, 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """Options for loading the programs.

    Attributes:
        probe: "auto" or one of probe_support.PROBES.
        regions: Room for 2 MiB regions in each epoch's map.
        slots: Number of targets with counters of their own.
        targets: Number of processes that can be traced at once.
        events: Record single events in a ring.
        stacks: Count pages by stack.
        ring_bytes: Size of the ring, a power of two.
        stack_entries: Number of stacks, a power of two.
        follow_fork: Trace the children of targets.
        part: Record only some ranges of memory (see Tracer.add_ranges).
        force_byte_maps: See Tracer.byte_maps; for tests.
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
    """Programs that run in the kernel until bpf is cleaned up or this process ends.

    Attributes:
        bpf: The bcc.BPF.
        probe: One of probe_support.PROBES.
        hooks: Names of the hooks that are attached (hooks.py).
        byte_maps: See Tracer.
        refused: Probes that were tried before, with the reason.
    """

    bpf: Any
    probe: str
    hooks: frozenset[str]
    byte_maps: bool
    refused: dict[str, str]


def load(options: Options) -> Loaded:
    """Load and attach with the requested probe, or with "auto" the best that works.

    Raises:
        RedirtyError: No probe works; the message has every reason.
    """
    types = btf.load()
    refused: dict[str, str] = {}
    checks = {
        "fentry": lambda: probe_support.fentry(types),
        "kprobe": probe_support.kprobe,
        "tracepoint": probe_support.tracepoint,
    }
    flags = btf.offset_flags(types)
    for probe in probe_support.preference() if options.probe == "auto" else (options.probe,):
        found = checks[probe]() or _compile(options, probe, flags)
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
    """Compile and attach with one kind of hook.

    Returns:
        (bpf, names of the hooks, byte_maps), or the reason for the failure.
    """
    flags = [
        f"-DRD_ENTRY_{probe.upper()}",
        f"-DRD_REGIONS={o.regions}",
        f"-DRD_SLOTS={o.slots}",
        f"-DRD_TARGETS={o.targets}",
        f"-DRD_ROWS_BITS={fault_log.rows_bits(o.regions)}",
        *offset_flags,
    ]
    if o.events:
        flags += ["-DRD_EVENTS", f"-DRD_RING_PAGES={o.ring_bytes // mmap.PAGESIZE}"]
    if o.stacks:
        flags += ["-DRD_STACKS", f"-DRD_STACK_ENTRIES={o.stack_entries}"]
    if o.part:
        flags.append("-DRD_PART")
    byte_maps = o.force_byte_maps or not syscalls.has_atomics()
    if byte_maps:
        flags.append("-DRD_NO_ATOMIC_OR")
    try:
        bpf = compile_programs(programs.source(), flags)
    except BpfError as e:
        return str(e)
    try:
        return bpf, _run_bcc(lambda: hooks.attach(bpf, probe)), byte_maps
    except BpfError as e:
        bpf.cleanup()
        return str(e)


def bcc_compiler() -> Any:
    """Return BCC's class BPF, prepared for use.

    Raises:
        RedirtyError: BCC is not installed.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(programs.KHEADERS)
    try:
        from bcc import BPF
    except ImportError:
        raise RedirtyError(
            "BCC is missing: install Debian's package python3-bpfcc, and run redirty with the "
            "system's python3 (the venv of 'make setup' does)"
        ) from None
    # BCC attaches what its naming rules match as soon as it has compiled; redirty decides itself.
    BPF._trace_autoload = lambda self: None
    return BPF


class BpfError(RedirtyError):
    """The kernel, or the compiler, refused a program."""


def compile_programs(source: str, flags: list[str]) -> Any:
    """Compile a source; return its bcc.BPF, with nothing attached.

    Raises:
        BpfError: The compiler or the kernel refused it.
        RedirtyError: BCC is not installed.
    """
    compiler = bcc_compiler()
    return _run_bcc(
        lambda: _in_directory_of_our_own(
            lambda: compiler(text=source.encode(), cflags=[*_COMMON_FLAGS, *flags])
        )
    )


def _in_directory_of_our_own(action: Callable[[], T]) -> T:
    """Call BCC's compiler in a thread that works in the directory of the programs.

    BCC has the compiler search its working directory for every header, before any other: files of whoever can
    write there would become part of the programs. It also changes that directory meanwhile. In a thread with a
    working directory of its own the rest of the process does not notice.

    Raises:
        BaseException: what the call raises.
    """
    result: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        before = None
        try:
            if _libc.unshare(_CLONE_FS) != 0:  # refused by a filter: for the whole process, then
                with contextlib.suppress(OSError):  # it is gone, or its name cannot be reached
                    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.chdir(programs.DIRECTORY)
            result.append(action())
        except BaseException as e:
            error.append(e)
        finally:
            if before is not None:
                os.fchdir(before)
                os.close(before)

    thread = threading.Thread(target=work, name="compiler")
    thread.start()
    interrupted = None
    while thread.is_alive():  # the compiler cannot be interrupted
        try:
            thread.join()
        except KeyboardInterrupt as e:
            interrupted = e
    if interrupted is not None:
        raise interrupted
    if error:
        raise error[0]
    return result[0]


def _run_bcc(action: Callable[[], T]) -> T:
    """Call BCC with its output captured. Raises: BpfError for whatever it raises."""
    with captured_stderr() as output:
        try:
            return action()
        except Exception as e:
            reason = str(e).strip()
    log.debug("output of BCC: %s", output.text)
    raise BpfError(f"{reason} ({last_line(output.text)})")


class _CompilerOutput:
    text = ""


@contextlib.contextmanager
def captured_stderr() -> Iterator[_CompilerOutput]:
    """Capture the output of BCC and LLVM on descriptor 2, which -v shows when they fail.

    One thread at a time: the descriptor belongs to the whole process, and the compiler crashes when
    two threads use it at once.
    """
    with _one_at_a_time:
        yield from _captured()


def _captured() -> Iterator[_CompilerOutput]:
    output = _CompilerOutput()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file, _reported_at_exit(file.fileno(), saved):
        os.dup2(file.fileno(), 2)
        try:
            yield output
        finally:
            _libc.fflush(None)
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            output.text = file.read().decode(errors="replace")


@contextlib.contextmanager
def _reported_at_exit(captured: int, stderr: int) -> Iterator[None]:
    """Print the last line of the captured output if the process ends meanwhile.

    LLVM ends the whole process by exit(3) where it gives up (such as on a program that needs more than BPF's
    stack). No exception reports that, and its output is captured.
    """
    inside = True

    def report(_argument: int | None) -> None:
        if inside:
            _libc.fflush(None)
            output = os.pread(captured, 1 << 16, 0).decode(errors="replace")
            line = f"redirty: the BPF compiler gave up: {last_line(output)}"
            os.write(stderr, one_line(line).encode() + b"\n")

    owner = ctypes.create_string_buffer(1)  # of the handler: any address of this process
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(report)
    _libc.__cxa_atexit(callback, None, owner)
    try:
        yield
    finally:
        inside = False
        _libc.__cxa_finalize(owner)  # removes the handler: Python must not be called after its end


def last_line(text: str) -> str:
    """Return the last line of the compiler's output that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "BCC gave no reason"


def regions_for(pids: list[int]) -> int:
    """Return the value of Options.regions that lets processes dirty all their memory in one round.

    The value is a power of two; each region takes 128 bytes of kernel memory.
    """
    regions = 0
    for pid in pids:
        status = procfs.read_status(pid)
        resident, mapped = (
            int(status.get(name, "0").split()[0] or 0) for name in ("VmRSS", "VmSize")
        )
        regions += min(resident // 4, mapped // 2048 + 1)  # scattered, or all of it
    wanted = max(_MIN_REGIONS, min(regions + regions // 2, _MAX_REGIONS))
    return 1 << (wanted - 1).bit_length()
