"""Descriptors parked where they outlive this daemon: in the queue of a socket.

systemd keeps descriptors for a service, but its work for n of them grows as n * n, and it is
PID 1. So it gets two: both ends of a pair of sockets. All others are sent into one end by
SCM_RIGHTS (unix(7)) and lie in the queue of the other, each message with the text that says what
they are. They are taken by *peeking*, which leaves them there: a daemon that is killed while it
takes them harms nothing.

What lies there can't be taken out singly. A descriptor that must be closed (the writing end of a
pipe whose reader waits for the end) so needs a new lot without it.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from sysup.protocol import SysupError

Parcel: TypeAlias = tuple[Any, Sequence[int]]
"""What they are, as JSON can say it, and the descriptors."""

MOST = 250
"""Descriptors of one message; the kernel takes 253 (SCM_MAX_FD)."""
TEXT = 1 << 16
BUFFER = 1 << 25
"""Bytes that the queue may hold, where we may say so; each message takes about 1 KiB."""


class Lot:
    """The pair: what is sent into `entrance` waits at `exit`."""

    def __init__(self, entrance: socket.socket, exit: socket.socket) -> None:
        self.entrance = entrance
        self.exit = exit

    @classmethod
    def new(cls) -> Lot:
        """An empty one. Raises SysupError."""
        try:
            entrance, exit = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _cannot(error) from None
        entrance.setblocking(False)
        with contextlib.suppress(OSError):  # SO_SNDBUFFORCE: CAP_NET_ADMIN
            entrance.setsockopt(socket.SOL_SOCKET, 32, BUFFER)
        return cls(entrance, exit)

    @classmethod
    def of(cls, entrance: int, exit: int) -> Lot:
        """One that is there already, by its descriptors, ours from now. Raises OSError."""
        lot = cls(socket.socket(fileno=entrance), socket.socket(fileno=exit))
        lot.entrance.setblocking(False)
        return lot

    def park(self, parcels: Iterable[Parcel]) -> None:
        """Send descriptors there, those of a parcel together; they stay open here as well.

        Raises SysupError when the queue is full (then it may hold a part of them).
        """
        texts: list[str] = []
        fds: list[int] = []
        length = 0
        for what, several in parcels:
            text = json.dumps((what, len(several)))
            if texts and (len(fds) + len(several) > MOST or length + len(text) > TEXT):
                self._send(texts, fds)
                texts, fds, length = [], [], 0
            texts.append(text)
            length += len(text) + 1
            fds += several
        if texts:
            self._send(texts, fds)

    def take(self) -> Iterator[list[tuple[Any, list[int]]]]:
        """All that was parked, as new descriptors, bit by bit; it stays parked.

        What is parked between two bits is taken, too. Raises SysupError.
        """
        self.exit.setblocking(False)
        buffer = memoryview(bytearray(TEXT * 2))
        size = socket.CMSG_SPACE(4 * (MOST + 3))
        flags = socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
        try:
            self.exit.setsockopt(socket.SOL_SOCKET, 42, 0)  # SO_PEEK_OFF, Linux 3.4
            while True:
                try:
                    length, ancillary, _, _ = self.exit.recvmsg_into([buffer], size, flags)
                except BlockingIOError:
                    return
                if not length:
                    return
                fds, at = _descriptors(ancillary), 0
                found: list[tuple[Any, list[int]]] = []
                for what, number in json.loads(bytes(buffer[:length])):
                    found.append((what, fds[at : at + number]))
                    at += number
                yield found
        except OSError as error:
            raise _cannot(error) from None

    @property
    def ends(self) -> tuple[int, int]:
        """The descriptors of entrance and exit."""
        return self.entrance.fileno(), self.exit.fileno()

    def close(self) -> None:
        """Close it here; what is parked is gone if nobody else has both ends."""
        self.entrance.close()
        self.exit.close()

    def _send(self, texts: list[str], fds: list[int]) -> None:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        try:
            self.entrance.sendmsg([f"[{','.join(texts)}]".encode()], [rights] if fds else [])
        except OSError as error:
            raise _cannot(error) from None


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _cannot(error: OSError) -> SysupError:
    return SysupError(f"cannot park descriptors: {os.strerror(error.errno or 0)}")
