"""The daemon's loop, which knows how long it was blocked, and long work that does not block it.

While the loop is at work on what came, it does nothing else: whoever asks then waits. That time is
taken around the selector, twice a turn, so a loop with nothing to do is not woken for it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

LATELY = 60.0
"""Seconds in which what is told of the last time was measured, at least; at most twice as many."""

TURN = 0.002
"""Seconds of work in one turn of the loop."""

CROWD = 2 * (os.cpu_count() or 1)
"""So many processes that are yet to execute their programs are a crowd."""
CROWDED = 0.02
"""Seconds for which one counts."""


class Pace(selectors.EpollSelector):
    """A selector that times the turns of its loop."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self.longest: float = 0.0
        """Seconds that the longest turn took."""
        self._current = self._before = 0.0
        self._since = time.monotonic()
        self.woke: float = self._since
        """When this turn of the loop began."""

    @property
    def lately(self) -> float:
        """Seconds that the longest turn of the last time took."""
        self._turn_over(time.monotonic())
        return max(self._current, self._before)

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait for what comes; a turn begins when it returns."""
        now = time.monotonic()
        self._turn_over(now)
        took = now - self.woke
        self._current = max(self._current, took)
        self.longest = max(self.longest, took)
        found = super().select(timeout)
        self.woke = time.monotonic()
        return found

    def _turn_over(self, now: float) -> None:
        """Forget what is long ago."""
        if now - self._since >= LATELY:
            self._before = self._current if now - self._since < 2 * LATELY else 0.0
            self._current, self._since = 0.0, now


SWITCH = 0.001
"""Seconds after which another thread of Python's gives way to the loop."""


class Loop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH)
        self._worker: ThreadPoolExecutor | None = None
        self.pace = Pace()
        super().__init__(self.pace)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """As asyncio's, with a worker of our own."""
        if executor is None and self._worker is None:
            self._worker = deaf_worker()
            self.set_default_executor(self._worker)
        return super().run_in_executor(executor, func, *args)


def deaf_worker() -> ThreadPoolExecutor:
    """A thread that gets no signals: who waits in the loop would not be woken by those."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        worker = ThreadPoolExecutor(1, "sysup-worker")
        worker.submit(int)  # its thread is begun, and has our mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return worker


def begin(loop: asyncio.AbstractEventLoop) -> None:
    """From now on there is somebody who would have to wait for the loop."""
    if isinstance(loop, Loop):
        loop.pace.begin()


def figures(loop: asyncio.AbstractEventLoop) -> dict[str, float]:
    """Seconds that the loop was blocked at most: since its beginning, and lately."""
    if not isinstance(loop, Loop):
        return {}
    pace = loop.pace
    return {
        "loop_blocked": round(pace.longest, 4),
        "loop_blocked_lately": round(pace.lately, 4),
    }


class Crowd:
    """Processes that were just made and are yet to execute their programs.

    They need processors as the loop does. If there are many of them it gets its own share of
    these no more, so who makes more waits for some of them; but not for any for long.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._since: dict[object, float] = {}
        self._waiting: list[Callable[[], None]] = []
        self._patience: asyncio.TimerHandle | None = None

    def join(self, one: object) -> None:
        """There is one more."""
        self._since[one] = self._loop.time()

    def leave(self, one: object) -> None:
        """There is one less."""
        self._since.pop(one, None)
        if self._waiting and not self.is_dense:
            self._call()

    @property
    def is_dense(self) -> bool:
        """Whether there are too many of them for one more."""
        if len(self._since) < CROWD:
            return False
        since = self._loop.time() - CROWDED
        for one in list(self._since):  # in the order in which they came
            if self._since[one] > since:
                break
            del self._since[one]
        return len(self._since) >= CROWD

    def when_thin(self, callback: Callable[[], None]) -> None:
        """Have it called, soon, in a turn of the loop in which it is not dense."""
        self._waiting.append(callback)
        if not self.is_dense:
            self._call()
        elif self._patience is None:
            oldest = next(iter(self._since.values()))
            self._patience = self._loop.call_at(oldest + CROWDED, self._call)

    def _call(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            self._loop.call_soon(callback)


class Backlog:
    """Pieces of work that may be many at once: done in order, some in each turn of the loop, and
    none while there is a crowd."""

    def __init__(self, loop: asyncio.AbstractEventLoop, crowd: Crowd) -> None:
        self._loop = loop
        self._crowd = crowd
        self._pieces: deque[Callable[[], object]] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def put(self, piece: Callable[[], object]) -> None:
        """Have it done soon."""
        if not self._pieces:
            self._crowd.when_thin(self._work)
        self._pieces.append(piece)

    def _work(self) -> None:
        until = self._loop.time() + TURN
        try:
            while self._pieces:
                self._pieces.popleft()()
                if self._loop.time() >= until or self._crowd.is_dense:
                    break
        finally:  # what one raises, by a bug, must not stop the others
            if self._pieces:
                self._crowd.when_thin(self._work)


class Breath:
    """For long work: lets others have their turns now and then."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._pace = loop.pace if isinstance(loop, Loop) else None
        self._begin()

    async def taken(self) -> None:
        """Let them, if it is time: if the loop's turn is long already, whoever made it so.

        So hundreds of long works go on side by side, and no turn is longer for it.
        """
        if time.monotonic() >= self._until:
            await asyncio.sleep(0)
            self._begin()

    def _begin(self) -> None:
        self._until = TURN + (self._pace.woke if self._pace else time.monotonic())


TOGETHER = 64
"""Works that are begun in one turn."""


async def gathered(works: Collection[Coroutine[Any, Any, Any]]) -> list[Any]:
    """As `asyncio.gather` with exceptions among the results; many are begun in several turns."""
    tasks: list[asyncio.Task[Any]] = []
    try:
        for work in works:
            tasks.append(asyncio.ensure_future(work))
            if len(tasks) % TOGETHER == 0:
                await asyncio.sleep(0)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        for work in itertools.islice(works, len(tasks), None):
            work.close()
        raise
    return await asyncio.gather(*tasks, return_exceptions=True)


def at_once(work: Generator[None, None, T]) -> T | None:
    """Do work, if it fits into a turn of the loop; None: the rest is to be done in turns."""
    until = time.monotonic() + TURN
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() >= until:
            return None


async def in_turns(work: Generator[None, None, T]) -> T:
    """Do work step by step, so that the loop is not blocked meanwhile."""
    breath = Breath()
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        await breath.taken()
