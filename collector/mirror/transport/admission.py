"""Lets senders in: a thread that reads from connections until they have proved who they are.

Strangers get a bounded share of everything: of time (a deadline for the whole greeting; rests while a mirror is
received), of memory (a number of places) and of places (when all are taken, the oldest candidate of the neighbourhood
with the most candidates gives way). Who has shown that he knows the code, or is root or this user, never gives way to a
stranger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.transport import rendezvous
from redirty.collector.mirror.transport.candidate import (
    Arrival,
    Candidate,
    Progress,
    neighbourhood,
    refuse,
)
from redirty.collector.mirror.transport.peer import require_own
from redirty.collector.mirror.transport.sockets import tune

log = logging.getLogger(__name__)

MAX_STRANGERS = 256
MAX_KNOWN = 16  # that have not greeted yet
_MAX_ARRIVED = 4  # that wait to be served
GREETING_S = 20.0  # from the connection to the end of the greeting
_ACCEPTS = 8  # a turn, so that all candidates make progress between them
_REST = 3.0  # while a mirror is received: rest for so many times as long as strangers took
_MAX_REST_S = 0.2
_NO_DESCRIPTORS_S = 0.05


class Admission:
    """Accepts connections and lets those in that have proved who they are and have greeted.

    Attributes:
        busy: a mirror is being received, which strangers must not slow down.
    """

    def __init__(
        self, tcp: socket.socket, tls: ssl.SSLContext | None = None, hint: bytes = b""
    ) -> None:
        """Start to accept.

        Args:
            tcp: a listening socket, which stays the caller's.
            tls: for senders that know the code; None: for root and this user, on this machine.
            hint: what such senders have in their first TLS record.

        Raises:
            OSError: the kernel refuses sockets.
        """
        self._tcp, self._tls, self._hint = tcp, tls, hint
        tcp.setblocking(False)
        self._here: socket.socket | None = None
        self._sign = b""
        if tls is None:
            self._here, self._sign = rendezvous.listen_here()
            self._here.setblocking(False)
        self.busy = False
        self._candidates: list[Candidate] = []
        self._arrived: deque[Arrival] = deque()
        self._lock = threading.Lock()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="admission", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a file descriptor that is readable when somebody has arrived."""
        return self._bell

    def take(self) -> Arrival | None:
        """Return the next sender that has arrived, if any."""
        with self._lock:
            if not self._arrived:
                return None
            arrival = self._arrived.popleft()
            if not self._arrived:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
            return arrival

    def close(self) -> None:
        """Turn away everybody who is not served yet, and stop."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        for candidate in self._candidates:
            candidate.close()
        while (arrival := self.take()) is not None:
            arrival.connection.close()
        if self._here is not None:
            self._here.close()
        os.close(self._bell)
        os.close(self._end)

    # ---- the thread ----

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Wait for something to happen and process it; return False at the end."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        for listener in filter(None, (self._tcp, self._here)):
            poll.register(listener.fileno(), select.POLLIN)
        for candidate in self._candidates:
            poll.register(candidate.fileno(), candidate.events)
        now = time.monotonic()
        wait = min((g.deadline - now for g in self._candidates), default=None)
        ready = {fd for fd, _ in poll.poll(None if wait is None else max(wait, 0) * 1000)}
        if self._end in ready:
            return False
        began = time.monotonic()
        for candidate in list(self._candidates):
            if candidate not in self._candidates:  # it gave way to another
                continue
            if candidate.fileno() in ready:
                self._advance(candidate)
            elif candidate.deadline < began:
                self._leave(candidate, "no greeting in time")
        if self._tcp.fileno() in ready:
            self._accept(self._tcp, self._receive_tcp)
        if self._here is not None and self._here.fileno() in ready:
            self._accept(self._here, self._receive_here)
        if self.busy:
            time.sleep(min(_REST * (time.monotonic() - began), _MAX_REST_S))
        return True

    def _accept(
        self, listener: socket.socket, receive: Callable[[socket.socket, str], None]
    ) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as e:  # no descriptor is free
                log.info("cannot accept a connection: %s", e)
                time.sleep(_NO_DESCRIPTORS_S)
                return
            try:
                receive(connection, address[0] if address else "")
            except (OSError, ValueError) as e:  # it is gone already
                log.info("rejected connection: %s", e)
                connection.close()

    def _receive_tcp(self, connection: socket.socket, address: str) -> None:
        if self._tls is None:
            connection.setblocking(False)
            connection.send(self._sign)
            connection.close()
            return
        tune(connection)
        where = neighbourhood(address)
        self._add(Candidate(connection, where, _deadline(), self._tls, self._hint))

    def _receive_here(self, connection: socket.socket, _address: str) -> None:
        try:
            require_own(connection)
        except RedirtyError as e:
            log.info("rejected connection: %s", e)
            refuse(connection, str(e))
            return
        self._add(Candidate(connection, "here", _deadline()))

    def _add(self, candidate: Candidate) -> None:
        """Take a candidate in, at the end of the list; one of the same kind gives way if there are too many."""
        known = candidate.progress >= Progress.HINTED
        same = [g for g in self._candidates if (g.progress >= Progress.HINTED) == known]
        if len(same) >= (MAX_KNOWN if known else MAX_STRANGERS):
            crowd = Counter(g.where for g in same)
            # the first of those that are equal is the oldest
            self._leave(max(same, key=lambda g: crowd[g.where]), "too many connections")
        self._candidates.append(candidate)

    def _leave(self, candidate: Candidate, reason: str) -> None:
        log.info("rejected connection from %s: %s", candidate.where, reason)
        self._candidates.remove(candidate)
        candidate.refuse(reason)

    def _advance(self, candidate: Candidate) -> None:
        before, at = candidate.progress, self._candidates.index(candidate)
        try:
            arrival = candidate.advance()
        except Exception as e:  # whatever a stranger causes: others are still let in
            self._leave(candidate, str(e))
            return
        self._candidates.remove(candidate)
        if arrival is not None:
            self._announce(arrival)
        elif before < Progress.HINTED <= candidate.progress:
            self._add(candidate)
        else:
            self._candidates.insert(at, candidate)

    def _announce(self, arrival: Arrival) -> None:
        with self._lock:
            if len(self._arrived) >= _MAX_ARRIVED:
                self._arrived.popleft().refuse("too many connections")
            self._arrived.append(arrival)
            os.eventfd_write(self._bell, 1)


def _deadline() -> float:
    return time.monotonic() + GREETING_S
