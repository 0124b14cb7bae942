"""The commands to one watcher: each in its turn, each until the watcher has come to rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sysup.protocol import SysupError

Condition = Callable[[], bool]


class Superseded(SysupError):
    """A stop came before the command was through."""


@dataclass
class Waiter:
    """A command that waits for the watcher to come to rest."""

    condition: Condition
    future: asyncio.Future[None] = field(repr=False)


class Turns:
    """Who may command now, and who waits for what.

    Args:
        loop: where the commands run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = asyncio.Lock()
        self._waiters: list[Waiter] = []
        self._superseded = 0

    @property
    def taken(self) -> bool:
        """Whether a command is under way."""
        return self._lock.locked()

    @asynccontextmanager
    async def mine(self) -> AsyncIterator[Callable[[], bool]]:
        """Wait behind earlier commands; gives a function that tells whether it is still so.

        It is not when `supersede` was called since the command came.
        """
        superseded = self._superseded
        async with self._lock:
            yield lambda: self._superseded == superseded

    async def rest(self, condition: Condition) -> None:
        """Wait until an `answer` finds that the condition holds. Raises Superseded."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(Waiter(condition, future))
        await future

    def answer(self) -> None:
        """The watcher has come to rest: end those that waited for what is so now."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.future.done():
                continue
            if waiter.condition():
                waiter.future.set_result(None)
            else:
                self._waiters.append(waiter)

    def supersede(self, reason: str, spared: Condition) -> None:
        """End all commands but those that wait for `spared`."""
        self._superseded += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.condition == spared:
                self._waiters.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_exception(Superseded(reason))
