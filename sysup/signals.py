"""Signals to the daemon, as work for its loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from typing import Any


class Signals:
    """Has signals do their work in the loop, each at most once at a time.

    Not by `loop.add_signal_handler`: it learns of signals from bytes in a socket, and a burst of
    one signal that fills it (SIGCHLD, in one long turn) loses the next, which may be SIGTERM.
    Python's own handlers are flags: they can't be lost.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.due: set[int] = set()
        """Those that came, and whose work is yet to be done."""
        self._loop = loop
        self._work: Mapping[int, Callable[[], object]] = {}
        self._before: dict[int, Any] = {}

    def watch(self, work: Mapping[int, Callable[[], object]]) -> None:
        """Begin; what came while they were blocked by the program before is not lost."""
        self._work = work
        self._before = {signum: signal.signal(signum, self._note) for signum in work}
        self.let()

    def hold(self) -> None:
        """Let those that come wait."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)

    def let(self) -> None:
        """Let them come again."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def end(self) -> None:
        """They do what they did before; those that are held go on waiting."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        if signum not in self.due and not self._loop.is_closed():
            self.due.add(signum)
            self._loop.call_soon_threadsafe(self._act, signum)

    def _act(self, signum: int) -> None:
        self.due.discard(signum)
        self._work[signum]()
