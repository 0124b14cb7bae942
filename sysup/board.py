"""What the watchers share, and the turns in which they act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sysup.body import Body, Setting
from sysup.pace import TURN, Backlog, Crowd
from sysup.process import OS
from sysup.remains import Remains
from sysup.streams import Pump


class Actor(Protocol):
    """A watcher, as the board sees it."""

    def save(self) -> None:
        """Have the next daemon know what is wanted."""

    def act(self, until: float) -> bool:
        """Act until the time is over; True: there is more to do."""


class Board:
    """What the watchers share: the loop, the system, the pump, and the turn to act.

    Args:
        publish: takes (watcher name, event, payload).
        rand: numbers in [0, 1), for jitter.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        os: OS,
        pump: Pump,
        publish: Callable[[str, str, Mapping[str, Any]], None],
        rand: Callable[[], float],
    ) -> None:
        self.loop = loop
        self.os = os
        self.publish = publish
        self.rand = rand
        self.setting = Setting(loop, os, pump)
        self.on_give_up: Callable[[int | None], None] = lambda exit_code: None
        self.ending = False
        """Whether all is to be down for good: nothing is started any more."""
        self.bodies: dict[int, Body] = {}
        """By pid: the processes that live in slots."""
        self.crowd = Crowd(loop)
        self.backlog = Backlog(loop, self.crowd)
        """What follows from deaths, of which there may be a thousand at once."""
        self.remains = Remains(loop, os, self.bodies.keys, self.backlog)
        self._awake: dict[Actor, None] = {}
        self._has_turn = False

    def wake(self, watcher: Actor) -> None:
        """Have the watcher's plan made and carried out in the loop's next turn."""
        watcher.save()
        self._awake[watcher] = None
        self._plan_turn()

    def must_pause(self, until: float) -> bool:
        """Whether who acts until then has to let others have their turn."""
        return self.loop.time() >= until or self.crowd.is_dense

    def known_bodies(self) -> list[Body]:
        """Those that live in slots, and those that are being cleared away."""
        return [*self.bodies.values(), *self.remains.bodies]

    def _plan_turn(self) -> None:
        if self._awake and not self._has_turn:
            self._has_turn = True
            self.crowd.when_thin(self._act)

    def _act(self) -> None:
        """Let watchers act one after the other, for TURN seconds; the rest waits its turn."""
        self._has_turn = False
        until = self.loop.time() + TURN
        waiting, self._awake = self._awake, {}
        busy: list[Actor] = []
        try:
            while waiting and not self.must_pause(until):
                watcher = next(iter(waiting))
                del waiting[watcher]
                if watcher.act(until):
                    busy.append(watcher)
        finally:  # what one raises, by a bug, must not stop the others
            # Those that did not come to act are before those that did and want to again.
            self._awake = {**waiting, **self._awake, **dict.fromkeys(busy)}
            self._plan_turn()
