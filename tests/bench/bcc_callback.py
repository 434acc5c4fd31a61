"""The program a user would write with BCC: a record for each write fault of a process, and a Python callback for
each record. The benchmark runs it with the system's Python: bcc_callback.py perf|ring PID
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

_KHEADERS = Path(__file__).resolve().parents[2] / "bpfprogs" / "kheaders"
_PROGRAM = """
struct event { u64 address; u64 error; };
#ifdef RING
BPF_RINGBUF_OUTPUT(events, 4096);
#else
BPF_PERF_OUTPUT(events);
#endif
struct bpf_raw_tracepoint_args;
int on_fault(struct bpf_raw_tracepoint_args *ctx) {
    if (bpf_get_current_pid_tgid() >> 32 != PID || !(ctx->args[2] & 2)) return 0;
    struct event e = { ctx->args[0], ctx->args[2] };
#ifdef RING
    events.ringbuf_output(&e, sizeof(e), 0);
#else
    events.perf_submit(ctx, &e, sizeof(e));
#endif
    return 0;
}
"""


def main() -> None:
    """Count faults by page until SIGINT, then print the counts."""
    os.environ["BCC_KERNEL_SOURCE"] = str(_KHEADERS)
    from bcc import BPF

    kind, pid = sys.argv[1], int(sys.argv[2])
    bpf = BPF(text=_PROGRAM, cflags=[f"-DPID={pid}", *(["-DRING"] if kind == "ring" else [])])
    bpf.attach_raw_tracepoint(tp="page_fault_user", fn_name="on_fault")
    events: Any = bpf[b"events"]
    counts: dict[int, int] = {}

    def on_event(_context: object, data: int, _size: int) -> None:
        page = events.event(data).address >> 12
        counts[page] = counts.get(page, 0) + 1

    if kind == "ring":
        events.open_ring_buffer(on_event)
    else:
        events.open_perf_buffer(on_event, page_cnt=1024)
    ended = []
    signal.signal(signal.SIGINT, lambda *_: ended.append(True))
    while not ended:
        if kind == "ring":
            bpf.ring_buffer_poll(200)
        else:
            bpf.perf_buffer_poll(200)
    for page, count in counts.items():
        print(f"{page:#x} {count}")


if __name__ == "__main__":
    main()
