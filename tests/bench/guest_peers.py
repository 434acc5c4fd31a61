"""Runs in the machine that peers.py boots: CRIU's pre-dumps to its page server, and a mirror over TCP, of the same
writer, by turns.

Usage: python -m tests.bench.guest_peers COUNT PRE_DUMPS PATTERN,... Prints JSON. Bytes are those that the loopback
counted, headers included. CRIU comes first in each turn; its downtime is then the mirror's goal.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.migration.guest_criu import MIB, PAGES, RATES
from tests.bench.migration.stats import parse
from tests.support.receiver import receive
from tests.support.redirty_cli import ProgramError, run_redirty
from tests.support.waiting import wait_until
from tests.workloads.driver import Writer

_LIFE_S = 100_000
_SETTLE_S = 3.0
_PATIENCE_S = 180.0


def main() -> int:
    """Measure all patterns."""
    subprocess.run(
        ["criu", "check", "--feature", "mem_dirty_track"], capture_output=True, check=True
    )
    count, dumps, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    found = []
    for name in names:
        with Writer(mib=MIB) as writer:
            writer.start(name, RATES[name], PAGES, _LIFE_S)
            time.sleep(_SETTLE_S)
            for _ in range(count):
                theirs = by_criu(writer.pid, dumps)
                ours = by_redirty(writer.pid, theirs["downtime_s"])
                found.append({"workload": name, "criu": theirs, "redirty": ours})
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            writer.signal(signal.SIGKILL)
    json.dump(found, sys.stdout)
    return 0


def sent_bytes() -> int:
    """Return the bytes that the loopback has carried."""
    (line,) = (
        x for x in Path("/proc/net/dev").read_text().splitlines() if x.strip().startswith("lo:")
    )
    return int(line.split()[9])


def by_criu(pid: int, dumps: int) -> dict[str, Any]:
    """Make `dumps` pre-dumps, one right after the other, then a dump of what is left."""
    with tempfile.TemporaryDirectory() as name:
        started, before = time.monotonic(), sent_bytes()
        stats = []
        for number in range(dumps + 1):
            stats.append(_one(pid, Path(name), number, "dump" if number == dumps else "pre-dump"))
        last = stats[-1]
        return {
            "bytes": sent_bytes() - before,
            "total_s": time.monotonic() - started,
            "downtime_s": last["freezing_s"] + last["frozen_s"],
            "passes": len(stats),
            "pages": sum(s["pages_written"] for s in stats),
            "stats": stats,
        }


def _one(pid: int, work: Path, number: int, verb: str) -> dict[str, Any]:
    """Make one pass, with a page server of its own, which ends with it."""
    here, there = work / f"here{number}", work / f"there{number}"
    here.mkdir()
    there.mkdir()
    port = _free_port()
    parent = ["--track-mem"]
    words = [
        "criu",
        "page-server",
        "--images-dir",
        str(there),
        "--port",
        str(port),
        "-v4",
        "-o",
        "log",
    ]
    if number:
        words += ["--prev-images-dir", f"../there{number - 1}"]
        parent += ["--prev-images-dir", f"../here{number - 1}"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(
                lambda: server.poll() is not None or _listens(port),
                "the page server",
                timeout_s=_PATIENCE_S,
            )
            argv = ["criu", verb, "--tree", str(pid), "--images-dir", str(here), *parent]
            argv += ["--page-server", "--address", "127.0.0.1", "--port", str(port), "--shell-job"]
            argv += ["-v4", "-o", "log", *(["--leave-running"] if verb == "dump" else [])]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                logs = [_end(here / "log"), "the page server:", _end(there / "log")]
                raise ProgramError(f"criu {verb} ended with {done.returncode}: {' '.join(logs)}")
            server.wait(60)
        except BaseException:
            server.kill()
            raise
    return asdict(parse((here / "stats-dump").read_bytes()))


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else "no log"


def _listens(port: int) -> bool:
    """Return whether a port has a listener: a probing connection would be taken for CRIU's own."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(w[1].endswith(f":{port:04X}") and w[3] == "0A" for w in map(str.split, lines))


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def by_redirty(pid: int, downtime_s: float) -> dict[str, Any]:
    """Mirror over TCP; downtime_s is missing from the answer when it missed the goal."""
    with tempfile.TemporaryDirectory() as name:
        before = sent_bytes()
        code = ("--code-file", Path(name, "code"))  # without it, no byte goes over the interface
        paths = Path(name, "m"), Path(name, "log")
        with receive(*paths, *code) as other:
            # detaching fentry's programs takes an emulated machine a minute, after the mirror is made
            goal = ["--downtime", f"{downtime_s * 1e3:.0f}ms", "--json", "--probe", "tracepoint"]
            words = ["mirror", "-p", pid, "--to", f"127.0.0.1:{other.port}", *code, *goal]
            done = run_redirty(*words, timeout_s=900)
            if done.code == 0:
                other.wait()
        if done.code:
            reason = re.sub(r"\s+", " ", done.err)[-300:]
            return {"bytes": sent_bytes() - before, "why": reason}
        answer = json.loads(done.out)
        return {
            "bytes": sent_bytes() - before,
            "total_s": answer["total_s"],
            "downtime_s": answer["downtime_s"],
            "passes": len(answer["passes"]),
            "pages": sum(p["sent_pages"] for p in answer["passes"]),
            "mirror": {
                k: answer[k] for k in ("stop_s", "boundary_s", "copy_s", "passes", "decisions")
            },
        }


if __name__ == "__main__":
    sys.exit(main())
