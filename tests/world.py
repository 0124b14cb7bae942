"""A world in which watchers live: a clock, and a system and a pump that do as they are told.

The loop is asyncio's own, but its clock stands still while anything is left to do and jumps to
the next timer when nothing is: seven seconds of flapping take no time. Where nothing could
ever happen again, it raises, so a test that would hang fails.
"""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from sysup.board import Board
from sysup.config import WatcherSpec
from sysup.process import Unclear
from sysup.protocol import SysupError
from sysup.watcher import Watcher
from tests.fakes import FakePump, System

T = TypeVar("T")


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._still = False
        self.problems: list[Mapping[str, Any]] = []
        selector = selectors.DefaultSelector()
        self._really_select = selector.select
        selector.select = self._select  # type: ignore[method-assign]
        super().__init__(selector)
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def time(self) -> float:
        return self.now

    def _select(self, timeout: float | None = None) -> list[Any]:
        found = self._really_select(0)
        if found or timeout == 0:
            return found
        if self._still:
            self.stop()
        elif timeout is None:
            raise AssertionError("nothing will ever happen again")
        else:
            self.now += timeout
        return []

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """At once: a thread would take time of another clock."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            future.set_result(func(*args))
        except (SysupError, Unclear) as error:
            future.set_exception(error)
        return future

    def settle(self) -> None:
        """Do all that there is to do at this moment."""
        self._still = True
        self.run_forever()
        self._still = False

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.call_later(seconds, self.stop)
        self.run_forever()
        self.settle()


class World:
    """All of it, with a board on which watchers can be put."""

    def __init__(self, patch: Callable[[str, object], None]) -> None:
        self.loop = Loop()
        self.pump = FakePump()
        self.os = System(self.loop, self.pump)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.chance = 0.0
        patch("sysup.body.open_sink", self.pump.open_sink)
        self.board = Board(
            self.loop,
            self.os,
            self.pump,
            lambda _, event, payload: self.events.append((event, dict(payload))),
            lambda: self.chance,
        )

    def watcher(self, name: str = "web", **options: Any) -> Watcher:
        return Watcher(self.board, WatcherSpec(name, **{"cmd": name, **options}))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something and go on until it waits for the time to pass."""
        task = self.loop.create_task(work)
        self.loop.settle()
        return task

    def told(self, event: str) -> list[dict[str, Any]]:
        """The payloads of all events of that name."""
        return [payload for name, payload in self.events if name == event]

    def close(self) -> None:
        """Raises AssertionError when something went wrong in the loop meanwhile."""
        for process in self.os.living.values():
            os.close(process.pidfd)
        for fd in (self.board.setting.null, *self.os.inputs.values()):
            os.close(fd)
        os.close(self.pump.event)
        self.loop.close()
        assert self.loop.problems == []
