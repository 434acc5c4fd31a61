"""Files of /proc for the helpers: the twin of linux/procfs.py and linux/maps.py. Bare library only.

A process may call itself anything: see linux/procfs.py. The first thread of a process may have ended
while others run; it looks like a zombie then.
"""

import os

# Paths of mappings that the kernel provides to every process.
VDSO, VSYSCALL = b"[vdso]", b"[vsyscall]"

Mapping = tuple[int, int, str]
"""Start address, end address (exclusive), permissions."""


def read(path: str) -> bytes:
    """Read the first 64 KiB of a file. Kept bare: it is called for each thread while all are stopped."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def lives(tid: int) -> bool:
    """Return whether a thread has not ended."""
    try:
        return read(f"/proc/{tid}/stat").rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def status_field(tid: int, name: str) -> str:
    """Return a field of a thread's status; empty if it has no such field. Raises: OSError."""
    _, found, rest = read(f"/proc/{tid}/status").partition(f"\n{name}:".encode())
    return rest.partition(b"\n")[0].decode(errors="replace").strip() if found else ""


def comm(tid: int) -> str:
    """Return the name of a thread. Raises: OSError."""
    return read(f"/proc/{tid}/comm").decode(errors="replace").strip()


def threads_of(pid: int) -> "list[int]":
    """Return the thread IDs of a process, ascending, also of threads not reaped. Raises: OSError."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208


def living_threads(pid: int) -> "list[int]":
    """Return the threads of a process that have not ended, ascending. Raises: OSError."""
    return [tid for tid in threads_of(pid) if lives(tid)]


def parse_maps(text: bytes) -> "list[tuple[Mapping, bytes]]":
    """Parse a maps file: each mapping, and the rest of its line, which ends with its path."""
    found = []
    for line in text.split(b"\n"):
        if line:
            bounds, perms, rest = line.split(b" ", 2)
            start, _, end = bounds.partition(b"-")
            found.append(((int(start, 16), int(end, 16), perms.decode()), rest))
    return found


def path_of(rest: bytes) -> bytes:
    """Return the path in the rest of a line from parse_maps(); empty for anonymous memory."""
    fields = rest.split(None, 3)
    return fields[3] if len(fields) == 4 else b""
