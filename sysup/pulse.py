"""Signs of life for the service manager's watchdog, each after an honest look at oneself.

Twice within the interval that systemd allows, the daemon asks whether it would be of use:

- the loop turns: all of this runs in it;
- the pump's thread turns: it is asked to, by the eventfd that wakes it, and its count of turns
  has to grow;
- the control socket answers: a client of its own connects as any other does, by the path, and
  asks for the version. A connection that is kept would tell nothing of the listener.

Only when all of that came true is the sign given. What is late is asked anew at the next beat
and told in the log, which is the last that is heard of a daemon whom systemd then replaces. Two
beats in an interval cost some milliseconds, and between them nothing is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import select
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from sysup import protocol
from sysup.protocol import Request

log = logging.getLogger("sysup.pulse")

BEATS = 2
"""In an interval of the watchdog."""
LOOK = 0.02
"""Seconds between two looks whether the pump has turned, while it is awaited."""

NEEDED = 4
"""Descriptors that a connection takes, with both its ends."""

STALLED_PUMP = "the pump does not turn"


class Heart(Protocol):
    """What is asked of the pump."""

    @property
    def heartbeat(self) -> int:
        """Turns so far."""

    def ping(self) -> None:
        """Ask for a turn."""


class Pulse:
    """The beats.

    Args:
        heart: the pump.
        endpoint: of the control socket, `ipc://PATH`.
        interval: seconds within which a sign of life is due.
        alive: gives the sign.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        heart: Heart,
        endpoint: str,
        interval: float,
        alive: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._heart = heart
        self._endpoint = endpoint
        self._pause = interval / BEATS
        self._alive = alive
        self._context = zmq.Context(io_threads=1)
        self._client: zmq.Socket[bytes] | None = None
        self._numbers = itertools.count(1)
        self._asked = 0
        self._turns = 0
        self._awaited: set[str] = set()
        """What this beat has not seen yet."""
        self._troubled = False
        self._next: asyncio.TimerHandle | None = None
        self._glance: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Beat from now on."""
        self._beat()

    def close(self) -> None:
        """Beat no more."""
        self._cancel()
        self._hang_up()
        self._context.term()

    def _cancel(self) -> None:
        for timer in (self._next, self._glance):
            if timer is not None:
                timer.cancel()
        self._next = self._glance = None

    def _beat(self) -> None:
        self._cancel()
        self._see_turn()
        if self._awaited:
            self._troubled = True
            complaint = f"no sign of life to systemd: {' and '.join(sorted(self._awaited))}"
            log.error("%s", complaint)
            if STALLED_PUMP in self._awaited:
                write_past_the_pump(complaint)
        self._next = self._loop.call_later(self._pause, self._beat)
        self._awaited = {STALLED_PUMP}
        self._turns = self._heart.heartbeat
        self._heart.ping()
        if not out_of_descriptors():
            self._awaited.add("the control socket does not answer")
            self._ask()
        self._look()

    def _ask(self) -> None:
        """Be a client, from the connection on."""
        self._hang_up()
        self._asked = next(self._numbers)
        request = protocol.encode_request(Request("version", {}, id=self._asked))
        try:
            client = self._client = self._context.socket(zmq.DEALER)
            client.connect(self._endpoint)
            client.send(request, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("cannot ask the control socket: %s", error)
            return
        self._loop.add_reader(client.fileno(), self._read, client)
        self._loop.call_soon(self._read, client)  # its descriptor tells of changes alone

    def _read(self, client: zmq.Socket[bytes]) -> None:
        while client is self._client:
            try:
                reply = json.loads(client.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if self._is_answer(reply):
                self._hang_up()
                self._awaited.discard("the control socket does not answer")
                self._look()

    def _is_answer(self, reply: Any) -> bool:
        return bool(reply.get("id") == self._asked and reply.get("status") == "ok")

    def _hang_up(self) -> None:
        if self._client is not None:
            self._loop.remove_reader(self._client.fileno())
            self._client.close(linger=0)
            self._client = None

    def _see_turn(self) -> None:
        if self._heart.heartbeat != self._turns:
            self._awaited.discard(STALLED_PUMP)

    def _look(self) -> None:
        """Give the sign, if all came true; look again soon, if the pump alone is awaited."""
        self._glance = None
        self._see_turn()
        if not self._awaited:
            self._alive()
            if self._troubled:
                self._troubled = False
                log.info("signs of life again")
        elif self._client is None:
            self._glance = self._loop.call_later(LOOK, self._look)


def write_past_the_pump(text: str) -> None:
    """Write a line to standard error, for which the log itself needs the pump.

    Not where nobody reads: the loop must not wait.
    """
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(2, f"{text}\n".encode())


def out_of_descriptors() -> bool:
    """Whether this process may open nothing more, so that nobody could connect.

    Then there is no asking, and no harm in it: what runs is kept, and a new daemon would be no
    better off.
    """
    opened: list[int] = []
    try:
        opened += (os.dup(2) for _ in range(NEEDED))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    finally:
        for fd in opened:
            os.close(fd)
    return False
