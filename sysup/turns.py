"""The commands to one watcher: each in its turn, each until the watcher has come to rest.

What is asked is noted, in words, before anybody is told that it was accepted, until it has taken
effect on what is wanted. So a command that waits for its turn is not lost with the daemon: the
next one carries it out. Commands take effect in the order in which they came, so one number,
which is kept with what is wanted, says which of them have; none is carried out twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sysup.protocol import SysupError

Condition = Callable[[], bool]


class Superseded(SysupError):
    """A stop came before the command was through."""


@dataclass
class Asked:
    """A command that was asked for."""

    number: int
    words: list[Any]
    """What it is, as JSON can say it."""
    outlasts: bool
    """Whether it holds though a stop came after it."""
    is_superseded: bool = False
    my_turn: asyncio.Future[None] | None = field(default=None, repr=False)
    """What is done when those before it are through, once it waits for that."""


@dataclass
class Waiter:
    """A command that waits for the watcher to come to rest."""

    condition: Condition
    future: asyncio.Future[None] = field(repr=False)


class Turns:
    """Who may command now, and who waits for what.

    Args:
        loop: where the commands run.
        note: has the next daemon know a command by its number; None: no more.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, note: Callable[[int, list[Any] | None], None]
    ) -> None:
        self.number = 0
        """Of the last command that has taken effect."""
        self._loop = loop
        self._note = note
        self._queue: list[Asked] = []
        """In the order in which they were asked; the first is under way."""
        self._waiters: list[Waiter] = []
        self._asked: dict[int, Asked] = {}
        self._last = 0

    @property
    def taken(self) -> bool:
        """Whether a command is under way, or was asked for."""
        return bool(self._queue)

    def ask(self, words: list[Any], *, outlasts: bool = False, number: int = 0) -> Asked:
        """Take a command; it has to be `mine` soon, for those that come later wait for it.

        `number`: that which another daemon gave it.
        """
        asked = Asked(number or self._last + 1, words, outlasts)
        self._last = max(self._last, asked.number)
        self._asked[asked.number] = asked
        self._queue.append(asked)
        self._note(asked.number, words)
        return asked

    def becomes(self, asked: Asked, words: list[Any]) -> None:
        """Of a command only this is left to be done."""
        asked.words = words
        if asked.number in self._asked:
            self._note(asked.number, words)

    def takes_effect(self, asked: Asked) -> None:
        """Of a command nothing is left to be done, once what is wanted is saved."""
        self.number = asked.number

    def go_on(self, number: int) -> None:
        """Count on from another daemon, of which this command was the last to take effect."""
        self.number = number
        self._last = max(self._last, number)

    @asynccontextmanager
    async def mine(self, asked: Asked) -> AsyncIterator[None]:
        """Wait behind those that were asked for earlier."""
        try:
            if self._queue[0] is not asked:
                asked.my_turn = self._loop.create_future()
                await asked.my_turn
            yield
        finally:
            self._forget(asked)
            self._queue.remove(asked)
            if self._queue and (next_one := self._queue[0].my_turn) and not next_one.done():
                next_one.set_result(None)

    def forget_all(self) -> None:
        """No command is to be carried out any more."""
        for asked in list(self._asked.values()):
            self._forget(asked)

    def _forget(self, asked: Asked) -> None:
        if self._asked.pop(asked.number, None):
            self._note(asked.number, None)

    def rest(self, condition: Condition) -> asyncio.Future[None]:
        """What is done when an `answer` finds that the condition holds. Raises Superseded."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(Waiter(condition, future))
        return future

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
        """End all commands but those that outlast it, or wait for `spared`."""
        for asked in list(self._asked.values()):
            if not asked.outlasts:
                asked.is_superseded = True
                self._forget(asked)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.condition == spared:
                self._waiters.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_exception(Superseded(reason))
