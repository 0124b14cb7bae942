"""Holds back what a peer asks for beyond its rate.

A ROUTER can't be told to read one peer alone, or not. So a request beyond the rate is taken, and
waits here until its turn comes: a peer that asks for much at once gets all of it, a little later.
What waits is bounded; who goes on sending all the same is told so.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

RATE = 5000
"""Requests of one connection that are answered in a second."""
BURST = 1000
"""So many at once, after it was silent."""
MOST_HELD = 256
"""Those of one connection that wait; further ones are refused."""
MOST_BYTES = 64 << 20
"""The same of all connections, in bytes."""
SOON = 0.002
"""Seconds until it is looked whose turn has come."""
SLICE = 0.005
"""Seconds of answering in one turn of the loop."""
REMEMBERED = 1024
"""Connections of which it is known what they asked for."""


class Bucket:
    """What a connection may ask for: it fills with the time, up to BURST."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = float(BURST)
        self._at = now

    def is_full(self, now: float) -> bool:
        """Whether it is as if nothing had ever been taken."""
        return self._tokens + (now - self._at) * RATE >= BURST

    def take(self, now: float) -> bool:
        """Take one, if there is one."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Throttle(Generic[T]):
    """The requests of all connections.

    Args:
        answer: takes a request whose turn has come; raises nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[T], None]) -> None:
        self._loop = loop
        self._answer = answer
        self._buckets: dict[int, Bucket] = {}
        self._held: dict[int, deque[tuple[T, int]]] = {}
        self._bytes = 0
        self._timer: asyncio.Handle | None = None

    def take(self, fd: int, request: T, size: int) -> bool:
        """A request of so many bytes came by a connection; False: too much of it waits."""
        if fd not in self._held and self._bucket(fd).take(self._loop.time()):
            self._answer(request)
            return True
        if len(self._held.get(fd, ())) >= MOST_HELD or self._bytes + size > MOST_BYTES:
            return False
        self._held.setdefault(fd, deque()).append((request, size))
        self._bytes += size
        self._plan(SOON)
        return True

    def close(self) -> None:
        """Answer nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _bucket(self, fd: int) -> Bucket:
        if fd not in self._buckets:
            now = self._loop.time()
            if len(self._buckets) >= REMEMBERED:
                spent = {fd: b for fd, b in self._buckets.items() if not b.is_full(now)}
                self._buckets = spent
            self._buckets[fd] = Bucket(now)
        return self._buckets[fd]

    def _plan(self, delay: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay, self._let)

    def _let(self) -> None:
        """Answer those whose turn has come, one of each connection after the other."""
        self._timer = None
        until = self._loop.time() + SLICE
        due = deque(self._held)
        while due and self._loop.time() < until:
            fd = due.popleft()
            if self._let_one(fd):
                due.append(fd)
        if self._held:
            self._plan(0.0 if due else SOON)

    def _let_one(self, fd: int) -> bool:
        """Answer one of a connection; False: none, or it was the last."""
        if not self._bucket(fd).take(self._loop.time()):
            return False
        held = self._held.pop(fd)
        request, size = held.popleft()
        self._bytes -= size
        if held:
            self._held[fd] = held  # behind the others, also in the next turn
        self._answer(request)
        return bool(held)
