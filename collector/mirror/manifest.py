"""The contents of mirror.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from redirty.collector import VERSION
from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.image.committed import SCHEMA
from redirty.collector.mirror.missing import unread_pages
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.promise import FailedStop, kept
from redirty.collector.mirror.request import VERIFY_SENT, MirrorRequest
from redirty.collector.mirror.sources.page_hashes import SEED
from redirty.collector.mirror.stop_and_copy import StopResult
from redirty.collector.target.qemu import Piece, ram_blocks


def make_manifest(
    request: MirrorRequest,
    passes: Sequence[PassReport],
    decisions: Sequence[Decision],
    stopped: StopResult,
    *,
    failed: Sequence[FailedStop],
    digest: str | None,
    verify_s: float,
    sent_bytes: int,
    total_s: float,
    unmirrored: list[dict[str, Any]],
    guest_memory: Sequence[Piece],
) -> dict[str, Any]:
    """Return the contents of mirror.json but for the state and the names of the core files.

    The receiver adds these two.

    Args:
        request: what was mirrored.
        passes: all passes, stop-and-copy included.
        decisions: made between the passes.
        stopped: the result of stop-and-copy.
        failed: the stops before, after which the target was resumed.
        digest: of the mirror and of what it was compared with; None: it was not verified.
        verify_s: how long the comparison took.
        sent_bytes: sent in all passes.
        total_s: time from the start of the mirror.
        unmirrored: what the mirror lacks, see missing.unmirrored().
        guest_memory: guest-physical addresses of a QEMU's memory.
    """
    goal_s = request.goals.downtime_s
    return {
        "schema": SCHEMA,
        "redirty": VERSION,
        "target": {
            "description": request.target.description,
            "pids": [p.pid for p in stopped.processes],
            "ns_pids": list(stopped.ns_pids),
        },
        "passes": [p.as_json() for p in passes],
        "decisions": [d.as_json() for d in decisions],
        "bytes": sent_bytes,
        "total_s": round(total_s, 6),
        **stopped.as_json(),
        "downtime_goal_s": goal_s,
        "kept_downtime": kept(goal_s, stopped.downtime_s, failed),
        "failed_stops": [f.as_json() for f in failed],
        "verify_s": verify_s,
        "digest": digest,
        # What could not be read was not compared either.
        "verified": digest is not None and not unread_pages(unmirrored),
        "verified_by": request.verify if digest is not None else None,
        # as text: programs that read JSON's numbers as floating point would round it
        "digest_seed": f"{SEED:#x}" if digest and request.verify == VERIFY_SENT else None,
        "network_held": request.network is not None,
        "left": "stopped" if request.leave_stopped else "running",
        "unmirrored": unmirrored,
        "guest_ram": [
            {"pid": p.pid, "start": f"{a:#x}", "end": f"{b:#x}"}
            for p in stopped.processes
            for a, b in ram_blocks(p.pid)
        ],
        "guest_memory": [{k: f"{v:#x}" for k, v in asdict(p).items()} for p in guest_memory],
    }
