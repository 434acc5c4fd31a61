"""What mirror.json says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from redirty.collector import VERSION
from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.image.core_reader import SCHEMA
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.stop_and_copy import StopResult
from redirty.collector.target.qemu import Piece, ram_blocks


def information_of(
    wish: MirrorRequest,
    passes: Sequence[PassReport],
    decisions: Sequence[Decision],
    stopped: StopResult,
    *,
    sent_bytes: int,
    total_s: float,
    unmirrored: list[dict[str, object]],
    guest_memory: Sequence[Piece],
) -> dict[str, Any]:
    """Everything but the state and the names of the core files, which the receiver adds. passes: the last
    one, too. unmirrored: mappings that have no contents in the mirror. guest_memory: of a QEMU, where it is."""
    digests = stopped.digests
    return {
        "schema": SCHEMA,
        "redirty": VERSION,
        "target": {
            "description": wish.target.description,
            "pids": [p.pid for p in stopped.processes],
            "ns_pids": list(stopped.ns_pids),
        },
        "passes": [p.as_json() for p in passes],
        "decisions": [d.as_json() for d in decisions],
        "bytes": sent_bytes,
        "total_s": round(total_s, 6),
        **stopped.as_json(),
        "digest": None if digests is None else digests[0],
        "verified": digests is not None,
        "network_held": wish.network is not None,
        "left": "stopped" if wish.leave_stopped else "running",
        "unmirrored": unmirrored,
        "guest_ram": [
            {"pid": p.pid, "start": f"{a:#x}", "end": f"{b:#x}"}
            for p in stopped.processes
            for a, b in ram_blocks(p.pid)
        ],
        "guest_memory": [{k: f"{v:#x}" for k, v in asdict(p).items()} for p in guest_memory],
    }
