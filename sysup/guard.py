"""Bounds for what the peers of a ZeroMQ socket may cost, where libzmq has none.

libzmq bounds messages, not connections, nor the parts of a message that has no end, nor the bytes
of replies that nobody reads. What it does tell is the descriptor of each connection: by the
socket's monitor when one is made, and with each message (ZMQ_SRCFD). The kernel knows the rest:

- how many connections there are: those in excess are shut down at once;
- how much a TCP peer has sent (TCP_INFO in tcp(7)), against what of it came out as messages; a
  peer that is far ahead is shut down. It is looked at while there are connections, and only then;
- how much of what was sent to a peer has not been read (SIOCOUTQ in unix(7), tcp(7)). Where that
  is little nothing can wait in libzmq either; else what is sent is counted.

A descriptor may be closed by libzmq, and be another one's, at any moment. So it is only ever
used by a duplicate which was seen to be a connection of the very socket that is guarded.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import socket
import struct
import sys
import termios
from collections.abc import Iterator

import zmq

log = logging.getLogger("sysup.guard")

MOST_CONNECTIONS = 1000
"""To one endpoint; fewer where that were more than a quarter of the descriptors."""
LOOK = 0.25
"""Seconds between two looks at who is ahead."""
FRAMING = 64
"""Bytes that a frame may be longer on the wire: its head, and with CURVE what encrypts it."""
SIGNS_OF_LIFE = 32
"""Bytes between two looks that are no messages: ZMTP's pings."""
READ = 1 << 15
"""Bytes in the kernel's queue for a peer, below which it is taken to read."""
MOST_UNREAD = 8 << 20
"""Bytes that may wait for one peer."""
MOST_UNREAD_TOGETHER = 64 << 20
"""Bytes that may wait for all peers of a socket that do not read."""
BATCH = 256
"""Events of connections that are heeded before the loop gets its turn."""
QUIET = 10.0
"""Seconds between two messages on the same matter."""
BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` is in struct tcp_info (linux/tcp.h, since 4.1): 64 bits."""


class Guard:
    """Watches the connections of a socket.

    Args:
        loop: the daemon's loop.
        sock: the socket; it is to be bound after this.
        endpoint: what it will be bound to.
        ahead: bytes that a TCP peer may have sent of which no message has come out.
        excess: what it is when there are more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: zmq.Socket[bytes],
        endpoint: str,
        ahead: int,
        excess: str = "a message without end",
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._endpoint = endpoint
        self._ahead = ahead
        self._excess = excess
        self._is_tcp = endpoint.startswith("tcp://")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        self._most = min(MOST_CONNECTIONS, most) if most > 0 else MOST_CONNECTIONS
        self._taken: dict[int, int] = {}
        """Bytes of messages from each connection."""
        self._unread: dict[int, int] = {}
        self._quiet: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._monitor: zmq.Socket[bytes] = sock.get_monitor_socket(
            zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        )
        loop.add_reader(self._monitor.fileno(), self._read)
        loop.call_soon(self._read)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._taken)

    def close(self) -> None:
        """Watch no more; the socket may be closed after that."""
        self._loop.remove_reader(self._monitor.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._socket.disable_monitor()
        self._monitor.close(0)

    # ---- what peers send -----------------------------------------------------------------

    def took(self, fd: int, frames: list[bytes]) -> None:
        """A message came from a connection."""
        if fd in self._taken:
            self._taken[fd] += sum(map(len, frames)) + FRAMING * len(frames)

    def _read(self) -> None:
        for _ in range(BATCH):
            if self._monitor.closed:
                return
            try:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
            except zmq.Again:
                return
            kind = int.from_bytes(event[:2], sys.byteorder)
            fd = int.from_bytes(event[2:6], sys.byteorder)
            self._unread.pop(fd, None)
            if kind != zmq.EVENT_ACCEPTED:
                self._taken.pop(fd, None)
            elif len(self._taken) < self._most or fd in self._taken:
                self._taken[fd] = 0
                self._look_later()
            else:
                self._shut(fd, f"more than {self._most} connections")
        self._loop.call_soon(self._read)

    def _look_later(self) -> None:
        if self._is_tcp and self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        """Shut down who is ahead."""
        self._timer = None
        for fd, taken in list(self._taken.items()):
            with self._connection(fd) as found:
                if found is None:  # it ended, which the monitor is about to tell
                    continue
                told = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_RECEIVED + 8)
            received = int.from_bytes(told[BYTES_RECEIVED:], sys.byteorder)
            self._taken[fd] = min(taken + SIGNS_OF_LIFE, received)
            if received - taken > self._ahead:
                self._shut(fd, self._excess)
        if self._taken:
            self._look_later()

    def _shut(self, fd: int, reason: str) -> None:
        with self._connection(fd) as found:
            if found is None:
                return
            with contextlib.suppress(OSError):  # it has just ended
                # libzmq closes it then, and what the kernel holds of it goes at once
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                found.shutdown(socket.SHUT_RDWR)
        now = self._loop.time()
        if now >= self._quiet.get(reason, 0.0):
            self._quiet[reason] = now + QUIET
            log.warning("%s: a connection was cut: %s", self._endpoint, reason)

    # ---- what peers do not read ----------------------------------------------------------

    def may_send(self, fd: int, size: int) -> bool:
        """Whether a peer reads what it is sent, or little enough of it waits."""
        waiting = self._unread.get(fd, 0)
        if _queued(fd) < READ:
            if waiting:
                del self._unread[fd]
            return True
        if waiting + size > MOST_UNREAD:
            return False
        if sum(self._unread.values()) + size > MOST_UNREAD_TOGETHER:
            return False
        self._unread[fd] = waiting + size
        return True

    @contextlib.contextmanager
    def _connection(self, fd: int) -> Iterator[socket.socket | None]:
        """A duplicate of a connection of this socket; None if the descriptor is none any more."""
        try:
            found = socket.socket(fileno=os.dup(fd))
        except OSError:
            yield None
            return
        with found:
            yield found if self._is_ours(found) else None

    def _is_ours(self, sock: socket.socket) -> bool:
        try:
            name = sock.getsockname()
            sock.getpeername()
        except OSError:
            return False
        if self._is_tcp:
            port = self._endpoint.rpartition(":")[2]
            return sock.family in (socket.AF_INET, socket.AF_INET6) and str(name[1]) == port
        # It has the name that its listener was bound by: `PATH.PID`.
        return sock.family == socket.AF_UNIX and os.fsdecode(name).startswith(self._endpoint[6:])


def _queued(fd: int) -> int:
    """Bytes that were sent by a descriptor and not yet read; 0 if it is no socket any more."""
    if fd < 0:
        return 0
    answer = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, answer)
    except OSError:
        return 0
    return answer[0]
