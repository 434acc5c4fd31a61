"""Queueing disciplines that limit a link: decodes netlink messages, finds the limits that apply to a transfer.

Messages are decoded here, since the decoders of pyroute2 know neither fq nor 64-bit rates.
All functions are pure. Source: linux/pkt_sched.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HEADER = 16 + 20  # struct nlmsghdr, struct tcmsg
_TCMSG = struct.Struct("=BBHiIII")
_KIND, _OPTIONS, _STATS, _STATS2 = 1, 2, 3, 7
_STATS_BASIC = 1
_ROOT = 0xFFFFFFFF
_NO_RATE = (0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_TBF_PARMS, _TBF_RATE64 = 1, 4
_HTB_PARMS, _HTB_INIT, _HTB_CEIL64 = 1, 2, 7
_HFSC_UPPER = 3
_FQ_FLOW_MAX_RATE = 7
_CAKE_BASE_RATE64 = 2
_NETEM_RATE, _NETEM_RATE64 = 6, 8
_NETEM_FIXED = 24  # struct tc_netem_qopt, before the attributes
# Qdiscs that pass everything on to a single qdisc below.
_ONE_CHILD = frozenset({"tbf", "netem", "red", "sfb"})
_MANY_QUEUES = frozenset({"mq", "mqprio", "taprio"})


@dataclass(frozen=True)
class Entry:
    """A qdisc, or a class of a qdisc.

    Attributes:
        kind: Its type.
        handle: As `tc` shows it, major << 16 | minor.
        parent: Likewise.
        options: The attribute TCA_OPTIONS.
        sent_bytes: Bytes sent since it was created.
    """

    kind: str
    handle: int
    parent: int
    options: bytes
    sent_bytes: int


@dataclass(frozen=True)
class Limit:
    """A limit to transfers over an interface.

    Attributes:
        rate: Bytes per second.
        what: Description of the qdisc or class that sets it: 'htb class 1:10'.
        sent_bytes: Bytes that passed through it since it was created, all of which share the rate; 0 for
            a limit on each flow.
    """

    rate: float
    what: str
    sent_bytes: int


def decode(message: bytes) -> Entry:
    """Decode a message RTM_NEWQDISC or RTM_NEWTCLASS, netlink header included."""
    _, _, _, _, handle, parent, _ = _TCMSG.unpack_from(message, 16)
    fields = attributes(message[_HEADER:])
    kind = fields.get(_KIND, b"").split(b"\0")[0].decode(errors="replace")
    basic = attributes(fields.get(_STATS2, b"")).get(_STATS_BASIC) or fields.get(_STATS, b"")
    sent = struct.unpack_from("=Q", basic)[0] if len(basic) >= 8 else 0
    return Entry(kind, handle, parent, fields.get(_OPTIONS, b""), sent)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return netlink attributes by type: the last of each type, up to where they are cut short."""
    found = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def limits(qdiscs: Sequence[Entry], classes: Sequence[Entry]) -> list[Limit]:
    """Return the limits that apply to a transfer that no filter classifies, from the root on.

    Filters are not followed: in htb and hfsc what they do not classify goes to the default class; htb
    sends it past all limits if there is none. Behind several queues a flow goes through one of them,
    so the slowest counts.

    Args:
        qdiscs: All qdiscs of an interface.
        classes: All its classes.
    """
    roots = [q for q in qdiscs if q.parent == _ROOT]
    return [limit for root in roots for limit in _below(root, qdiscs, classes)]


def _below(qdisc: Entry, qdiscs: Sequence[Entry], classes: Sequence[Entry]) -> Iterator[Limit]:
    if qdisc.kind in ("htb", "hfsc"):
        own = {c.handle: c for c in classes if c.handle >> 16 == qdisc.handle >> 16}
        leaf = own.get(qdisc.handle & 0xFFFF0000 | _default(qdisc))
        node = leaf
        while node is not None:
            rate = _htb_ceil(node) if qdisc.kind == "htb" else _hfsc_upper(node)
            if rate is not None:
                yield Limit(rate, f"{qdisc.kind} class {show(node.handle)}", node.sent_bytes)
            node = own.get(node.parent)
        children = [q for q in qdiscs if leaf is not None and q.parent == leaf.handle]
    else:
        rate = _rate(qdisc)
        if rate is not None and qdisc.kind == "fq":
            yield Limit(rate, f"fq {show(qdisc.handle)} maxrate, of each flow", 0)
        elif rate is not None:
            yield Limit(rate, f"{qdisc.kind} {show(qdisc.handle)}", qdisc.sent_bytes)
        # an mq that the kernel installed has handle 0, and so have the parents of those below it
        children = [q for q in qdiscs if q.parent >> 16 == qdisc.handle >> 16]
        if qdisc.kind in _MANY_QUEUES:
            below = [list(_below(child, qdiscs, classes)) for child in children]
            slowest = [min(found, key=lambda limit: limit.rate) for found in below if found]
            if slowest:
                yield min(slowest, key=lambda limit: limit.rate)
            return
        if qdisc.kind not in _ONE_CHILD or len(children) != 1:
            return  # which of several it is depends on its filters and priorities
    for child in children:
        yield from _below(child, qdiscs, classes)


def show(handle: int) -> str:
    """Format a handle as `tc` does: 0x10010 -> '1:10'."""
    return f"{handle >> 16:x}:{handle & 0xFFFF:x}" if handle & 0xFFFF else f"{handle >> 16:x}:"


def _default(qdisc: Entry) -> int:
    """Return the minor number of the default class; 0: there is none."""
    if qdisc.kind == "hfsc":  # struct tc_hfsc_qopt
        return _number("=H", qdisc.options, 0)
    return _number("=I", attributes(qdisc.options).get(_HTB_INIT, b""), 8)


def _rate(qdisc: Entry) -> float | None:
    options = qdisc.options
    if qdisc.kind == "tbf":
        given = attributes(options)
        return _wide(given.get(_TBF_RATE64, b""), given.get(_TBF_PARMS, b""), 8)
    if qdisc.kind == "fq":
        return _known(_number("=I", attributes(options).get(_FQ_FLOW_MAX_RATE, b""), 0))
    if qdisc.kind == "cake":
        return _known(_number("=Q", attributes(options).get(_CAKE_BASE_RATE64, b""), 0))
    if qdisc.kind == "netem":
        given = attributes(options[_NETEM_FIXED:])
        return _wide(given.get(_NETEM_RATE64, b""), given.get(_NETEM_RATE, b""), 0)
    return None


def _htb_ceil(node: Entry) -> float | None:
    given = attributes(node.options)
    # struct tc_htb_opt: struct tc_ratespec rate, ceil, whose last field is the rate
    return _wide(given.get(_HTB_CEIL64, b""), given.get(_HTB_PARMS, b""), 20)


def _hfsc_upper(node: Entry) -> float | None:
    """Return the long-term slope of the upper-limit curve, struct tc_service_curve."""
    return _known(_number("=I", attributes(node.options).get(_HFSC_UPPER, b""), 8))


def _wide(wide: bytes, narrow: bytes, at: int) -> float | None:
    """Return the 64-bit rate if there is one, as from 2^32 B/s on, else the 32-bit rate."""
    return _known(_number("=Q", wide, 0) or _number("=I", narrow, at))


def _number(form: str, data: bytes, at: int) -> int:
    """Unpack a number at an offset; 0 if the data is too short."""
    if len(data) < at + struct.calcsize(form):
        return 0
    return int(struct.unpack_from(form, data, at)[0])


def _known(rate: int) -> float | None:
    return None if rate in _NO_RATE else float(rate)
