"""The daemon's loop, which knows how long it was blocked, and long work that does not block it.

While the loop is at work on what came, it does nothing else: whoever asks then waits. That time is
taken around the selector, twice a turn, so a loop with nothing to do is not woken for it.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")

LATELY = 60.0
"""Seconds in which what is told of the last time was measured, at least; at most twice as many."""

TURN = 0.003
"""Seconds of work in one turn of the loop."""


class Pace(selectors.EpollSelector):
    """A selector that times the turns of its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0
        """Seconds that the longest turn took."""
        self._woke = self._since = time.monotonic()
        self._current = self._before = 0.0

    @property
    def lately(self) -> float:
        """Seconds that the longest turn of the last time took."""
        self._turn_over(time.monotonic())
        return max(self._current, self._before)

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait for what comes; a turn begins when it returns."""
        now = time.monotonic()
        self._turn_over(now)
        took = now - self._woke
        self._current = max(self._current, took)
        self.longest = max(self.longest, took)
        found = super().select(timeout)
        self._woke = time.monotonic()
        return found

    def _turn_over(self, now: float) -> None:
        """Forget what is long ago."""
        if now - self._since >= LATELY:
            self._before = self._current if now - self._since < 2 * LATELY else 0.0
            self._current, self._since = 0.0, now


class Loop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self.pace = Pace()
        super().__init__(self.pace)


def figures(loop: asyncio.AbstractEventLoop) -> dict[str, float]:
    """Seconds that the loop was blocked at most: since its beginning, and lately."""
    if not isinstance(loop, Loop):
        return {}
    pace = loop.pace
    return {
        "loop_blocked": round(pace.longest, 4),
        "loop_blocked_lately": round(pace.lately, 4),
    }


class Backlog:
    """Pieces of work that may be many at once: done in order, some in each turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: deque[Callable[[], object]] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def put(self, piece: Callable[[], object]) -> None:
        """Have it done soon."""
        if not self._pieces:
            self._loop.call_soon(self._work)
        self._pieces.append(piece)

    def _work(self) -> None:
        until = self._loop.time() + TURN
        try:
            while self._pieces:
                self._pieces.popleft()()
                if self._loop.time() >= until:
                    break
        finally:  # what one raises, by a bug, must not stop the others
            if self._pieces:
                self._loop.call_soon(self._work)


async def in_turns(work: Generator[None, None, T]) -> T:
    """Do work step by step, so that the loop is not blocked meanwhile."""
    until = time.monotonic() + TURN
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() >= until:
            await asyncio.sleep(0)
            until = time.monotonic() + TURN
