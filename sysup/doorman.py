"""Who may connect over TCP: the answer to libzmq's question, asked at each CURVE handshake.

libzmq asks over an inproc socket (rfc.zeromq.org/spec/27, ZAP) and lets everybody in while
nobody is there to be asked, so this is bound before the first endpoint and closed after the last.
Who is let in has their public key as `User-Id` in the metadata of all they send: it is looked
up for each request, so that a key counts as long as its file is there, not its connection.
"""

from __future__ import annotations

import asyncio
import logging

import zmq
from zmq.utils import z85

from sysup.keys import Keys

log = logging.getLogger("sysup.doorman")

ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"sysup"
BATCH = 64
"""Handshakes answered before the loop gets its turn."""
QUIET = 10.0
"""Seconds between two messages of those who were refused."""


def secure(sock: zmq.Socket[bytes], keys: Keys) -> None:
    """Let a socket that is yet to be bound speak CURVE alone. Raises SysupError."""
    own = keys.server()
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
    sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)


class Doorman:
    """Answers whether a key may connect.

    Args:
        loop: the daemon's loop.
        context: that of the sockets it is asked about.
        keys: those that may.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: Keys,
    ) -> None:
        self._loop = loop
        self._keys = keys
        self._refused = 0
        self._quiet_until = 0.0
        self._asked: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._asked.setsockopt(zmq.LINGER, 0)
        self._asked.bind(ADDRESS)
        loop.add_reader(self._asked.fileno(), self._read)
        loop.call_soon(self._read)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._asked.fileno())
        self._asked.close(0)

    def _read(self) -> None:
        for _ in range(BATCH):
            if self._asked.closed:
                return
            try:
                frames = self._asked.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            split = frames.index(b"") + 1
            self._asked.send_multipart([*frames[:split], *self._answer(frames[split:])])
        self._loop.call_soon(self._read)

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """version, id, domain, address, identity, mechanism, credentials: an answer of theirs."""
        version, number, _, address, _, mechanism, *credentials = question
        public = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        holder = self._keys.authorized().get(public)
        if holder is None:
            self._tell(public, address.decode("utf-8", "replace"))
            return [version, number, b"400", b"not authorized", b"", b""]
        log.debug("%s connects from %s", holder.name, address.decode("utf-8", "replace"))
        return [version, number, b"200", b"OK", public.encode(), b""]

    def _tell(self, public: str, address: str) -> None:
        """Log who was refused, but not each of many."""
        self._refused += 1
        if self._loop.time() < self._quiet_until:
            return
        more = f" ({self._refused - 1} others before it)" if self._refused > 1 else ""
        log.warning("refused the key %s from %s: it is not authorized%s", public, address, more)
        self._refused, self._quiet_until = 0, self._loop.time() + QUIET
