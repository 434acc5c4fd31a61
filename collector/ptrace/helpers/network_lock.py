"""Drops the output of network namespaces until this process ends. Run by the freezer with the bare library.

The kernel removes an nftables table that belongs to a netlink socket (NFT_TABLE_F_OWNER, Linux 5.12)
when that socket closes, and so when its process ends, however it does. The table has one rule, which drops what
leaves the namespace other than through its loopback. Only this process has the socket.

Sources: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h; net/netfilter/nf_tables_api.c
(nft_rcv_nl_event); namespaces(7).
"""

import ctypes
import errno
import os
import socket
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_NETLINK_NETFILTER, _NFTABLES = 12, 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 1, 4, 0x200, 0x400, 0x800
_ERROR = 2
_INET = 1  # NFPROTO_INET: both IPv4 and IPv6
_DORMANT, _OWNER = 1, 2
_OUTPUT, _FIRST = 3, -300  # NF_INET_LOCAL_OUT, NF_IP_PRI_RAW
_ACCEPT, _DROP = 1, 0
_REGISTER, _VERDICT = 8, 0  # NFT_REG32_00, NFT_REG_VERDICT
_OUT_INTERFACE, _DIFFERS = 5, 1  # NFT_META_OIF, NFT_CMP_NEQ
_LOOPBACK = 1  # the number of lo in every namespace
_NESTED = 0x8000
_ANSWER_S = 2.0


def _attribute(kind: int, content: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(content), kind) + content.ljust(
        -(-len(content) // 4) * 4, b"\0"
    )


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">i", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(parts))


def _expression(name: str, *data: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *data))


def _message(kind: int, flags: int, number: int, family: int, subsystem: int, body: bytes) -> bytes:
    head = struct.pack("=IHHII", 20 + len(body), kind, _REQUEST | flags, number, 0)
    return head + struct.pack(">BBH", family, 0, subsystem) + body


def _batch(steps: "list[tuple[int, int, bytes]]") -> bytes:
    """Build a transaction of steps (kind of message, flags, attributes)."""
    messages = [
        _message(_NFTABLES << 8 | kind, _ACK | flags, number, _INET, 0, body)
        for number, (kind, flags, body) in enumerate(steps, 1)
    ]
    begin = _message(_BATCH_BEGIN, 0, 0, 0, _NFTABLES, b"")
    end = _message(_BATCH_END, 0, len(steps) + 1, 0, _NFTABLES, b"")
    return b"".join([begin, *messages, end])


def lock_steps(name: str, *, dormant: bool) -> "list[tuple[int, int, bytes]]":
    """Return the steps that create the table, its chain and its rule; a dormant one drops nothing."""
    table, chain = _text(1, name), "out"
    flags = _OWNER | (_DORMANT if dormant else 0)
    hook = _nested(4, _number(1, _OUTPUT), _number(2, _FIRST))
    rule = _nested(
        4,
        _expression("meta", _number(1, _REGISTER), _number(2, _OUT_INTERFACE)),
        _expression(
            "cmp",
            _number(1, _REGISTER),
            _number(2, _DIFFERS),
            _nested(3, _attribute(1, struct.pack("=I", _LOOPBACK))),
        ),
        _expression("immediate", _number(1, _VERDICT), _nested(2, _nested(2, _number(1, _DROP)))),
    )
    of_chain = table + _text(3, chain) + hook + _number(5, _ACCEPT) + _text(7, "filter")
    return [
        (_NEW_TABLE, _CREATE | _EXCL, table + _number(2, flags)),
        (_NEW_CHAIN, _CREATE | _EXCL, of_chain),
        (_NEW_RULE, _CREATE | _APPEND, table + _text(2, chain) + rule),
    ]


def _commit(link: socket.socket, steps: "list[tuple[int, int, bytes]]") -> None:
    """Run a transaction. Raises: OSError when the kernel refuses it; nothing was changed then."""
    link.sendall(_batch(steps))
    answered = 0
    while answered < len(steps):
        data, at = link.recv(65536), 0
        while at + 20 <= len(data):
            size, kind = struct.unpack_from("=IH", data, at)
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, at + 16)
                if code:
                    raise OSError(-code, os.strerror(-code))
                answered += 1
            at += max(-(-size // 4) * 4, 16)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _link_in(namespace: int) -> socket.socket:
    """Open a netlink socket in another namespace: the socket stays there, this process returns."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(namespace)
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        finally:
            _enter(home)
    finally:
        os.close(home)


class NetworkLocks:
    """The network namespaces whose output is dropped now."""

    def __init__(self) -> None:
        self._locks: dict[int, tuple[socket.socket, str]] = {}

    def hold(self, pids: "list[int]", *, dormant: bool = False) -> None:
        """Drop what the namespaces of these processes' threads send; with dormant only check that it is possible.

        Raises:
            OSError: The kernel refused; namespaces locked before still are.
        """
        for pid in pids:
            for thread in _threads_of(pid):
                try:
                    number = os.stat(f"{thread}/ns/net").st_ino
                    if number in self._locks:
                        continue
                    namespace = os.open(f"{thread}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # the thread ended: it sends nothing
                try:
                    self._locks[number] = _locked(namespace, dormant)
                finally:
                    os.close(namespace)

    def release(self) -> None:
        """Let the namespaces send again."""
        for link, name in self._locks.values():
            try:
                # closing the socket has the same effect, but takes the kernel 10 ms
                _commit(link, [(_DELETE_TABLE, 0, _text(1, name))])
            except OSError:
                link.close()

    def close(self) -> None:
        """Close the sockets, which releases what is still locked."""
        for link, _ in self._locks.values():
            link.close()
        self._locks = {}


def _threads_of(pid: int) -> "list[str]":
    """List the threads of a process as paths: each may be in a different namespace."""
    try:
        return [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def _locked(namespace: int, dormant: bool) -> "tuple[socket.socket, str]":
    link, name = _link_in(namespace), f"redirty-{os.urandom(4).hex()}"
    try:
        link.settimeout(_ANSWER_S)
        link.bind((0, 0))
        _commit(link, lock_steps(name, dormant=dormant))
    except OSError as e:
        link.close()
        if isinstance(e, TimeoutError):
            raise OSError(errno.ETIMEDOUT, "nftables does not answer") from None
        raise
    return link, name
