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


def state(tid: int) -> bytes:
    """Return the state of a thread, as a letter. Raises: OSError."""
    return read(f"/proc/{tid}/stat").rpartition(b")")[2].split()[0]


def lives(tid: int) -> bool:
    """Return whether a thread has not ended."""
    try:
        return state(tid) not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def runs(tid: int) -> bool:
    """Return whether a thread runs, or waits for a processor."""
    try:
        return state(tid) == b"R"
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
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))


def living_threads(pid: int) -> "list[int]":
    """Return the threads of a process that have not ended, ascending. Raises: OSError."""
    return [tid for tid in threads_of(pid) if lives(tid)]


def directory(pid: int) -> str:
    """Return the directory with a process's maps and mem: its first living thread's.

    In the process's own they are empty once its first thread has ended. Raises: OSError.
    """
    for tid in threads_of(pid):
        if lives(tid):
            return f"/proc/{pid}/task/{tid}"
    return f"/proc/{pid}"


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


def frozen_by(pid: int) -> str:
    """Return the cgroup that keeps a process frozen, as a paused container is; empty if none does.

    Raises: OSError.
    """
    groups = read(f"/proc/{pid}/cgroup").decode(errors="surrogateescape")
    mounts = read_all("/proc/self/mountinfo").decode(errors="surrogateescape")
    for line in groups.split("\n"):
        _, _, rest = line.partition(":")
        controllers, found, path = rest.partition(":")
        if not found:
            continue
        for directory in cgroup_directories(mounts, controllers, path):
            if is_frozen(directory):
                return path
    return ""


def cgroup_directories(mounts: str, controllers: str, path: str) -> "list[str]":
    """Return where a cgroup's files are, by a mountinfo file; controllers: empty for version 2."""
    found: list[str] = []
    if controllers and "freezer" not in controllers.split(","):
        return found
    for line in mounts.split("\n"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 5 or kind[0] != ("cgroup" if controllers else "cgroup2"):
            continue
        if controllers and "freezer" not in kind[-1].split(","):
            continue
        root, point = (unescape(field) for field in fields[3:5])
        if root == "/":
            found.append(point + path)
        elif path == root or path.startswith(root + "/"):
            found.append(point + path[len(root) :])
    return found


def unescape(field: str) -> str:
    """Undo the octal escapes of a field of mountinfo."""
    for code, text in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, text)
    return field


def is_frozen(directory: str) -> bool:
    """Return whether the cgroup in a directory is frozen, or about to be, itself or by one above it."""
    try:
        if b"frozen 1" in read(f"{directory}/cgroup.events"):
            return True
    except OSError:
        pass
    for name, thawed in (("freezer.state", b"THAWED"), ("cgroup.freeze", b"0")):
        at = directory
        while at:
            try:
                if read(f"{at}/{name}").strip() != thawed:
                    return True
            except OSError:
                break
            at = at.rpartition("/")[0]
    return False


def read_all(path: str) -> bytes:
    """Read a whole file. Raises: OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()
