"""The demo's target: a hot, a warm and a cold area, written at a known rate.

Run as a script with the bare library. Arguments: bytes per second, seconds. It prints the addresses of its
areas, waits for a line, writes, and then prints exactly which pages it wrote.
"""

import ctypes
import json
import mmap
import random
import sys
import time

PAGE_SIZE = 4096
AREAS = (("hot", 8 << 20), ("warm", 64 << 20), ("cold", 128 << 20))
HOT_SHARE = 0.8  # of all writes
TICK_S = 0.005


def main() -> None:
    """Run the workload."""
    rate, seconds = float(sys.argv[1]), float(sys.argv[2])
    maps = {}
    areas = {}
    for name, size in AREAS:
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(15)  # MADV_NOHUGEPAGE: a huge page is dirty as a whole
        for at in range(0, size, PAGE_SIZE):
            area[at] = 1
        maps[name] = area
        areas[name] = [ctypes.addressof(ctypes.c_char.from_buffer(area)), size]
    print(json.dumps(areas), flush=True)
    sys.stdin.readline()

    chance = random.Random(1)
    hot_pages, warm_pages = (size // PAGE_SIZE for _, size in AREAS[:2])
    written: dict[str, set[int]] = {name: set() for name, _ in AREAS}
    started = time.monotonic()
    done = 0
    cursor = 0
    value = 1
    while (elapsed := time.monotonic() - started) < seconds:
        for _ in range(int(rate * elapsed / PAGE_SIZE) - done):
            done += 1
            value = value % 250 + 1
            if chance.random() < HOT_SHARE:
                cursor = (cursor + 1) % hot_pages
                maps["hot"][cursor * PAGE_SIZE] = value
                written["hot"].add(cursor)
            else:
                page = chance.randrange(warm_pages)
                maps["warm"][page * PAGE_SIZE] = value
                written["warm"].add(page)
        time.sleep(TICK_S)
    pages = {name: sorted(found) for name, found in written.items()}
    print(json.dumps({"writes": done, "pages": pages}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
