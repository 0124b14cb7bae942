"""The listening sockets of an app over their life: bound, handed to watchers, kept, changed."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from sysup.board import Board
from sysup.body import used_sockets
from sysup.config import Delta, Impact, SocketSpec
from sysup.estate import Estate
from sysup.machine import Want
from sysup.moves import Start
from sysup.plan import NOT_SERVING
from sysup.serving import Serving
from sysup.sockets import Sockets
from sysup.watcher import Watcher


class Sharing:
    """Those of one app.

    Args:
        board: whose moulds are to have them.
        estate: keeps them for the next daemon, but for those that systemd holds.
        serving: tries again what can't be bound.
        sockets: none of them bound yet.
        watchers: of the app, by name; they change.
    """

    def __init__(
        self,
        board: Board,
        estate: Estate,
        serving: Serving,
        sockets: Sockets,
        watchers: Mapping[str, Watcher],
    ) -> None:
        self.sockets = sockets
        self._watchers = watchers
        self._board = board
        self._estate = estate
        self._serving = serving
        self._wanted: Mapping[str, SocketSpec] = {}

    def begin(self, wanted: Mapping[str, SocketSpec]) -> None:
        """Have the sockets of the config: those of the daemon before, and new ones."""
        self._wanted = wanted
        for spec in wanted.values():
            if self.sockets.is_given(spec.name):
                continue
            if found := self._estate.claim("socket", spec.name):
                self.sockets.adopt(spec, found[1][0])
        self._open_all(spec for spec in wanted.values() if self._lacks(spec))

    async def change(
        self, delta: Delta, wanted: Mapping[str, SocketSpec], watchers: Collection[Watcher]
    ) -> None:
        """Close, open and bind anew; those that use them follow.

        An address is free only when nobody has the old socket any more, and its number here
        may become another file's. So its users are down meanwhile.
        """
        self._wanted = wanted
        gone = (*delta.removed, *delta.changed)
        users = [w for w in watchers if used_sockets(w.spec, gone)]
        were_up = [w for w in users if w.want is Want.UP]
        await asyncio.gather(*(w.stop() for w in users))
        for name in gone:
            self.sockets.close_one(name)
            self._estate.unpark("socket", name, soon=True)
        self._estate.clean()
        self._open_all(wanted[name] for name in (*delta.added, *delta.changed))
        if delta.added:
            users += [w for w in watchers if w.spec.use_sockets and w not in users]
        for watcher in users:
            watcher.apply(watcher.spec, {Impact.RELOAD}, watcher.overrides)
        for watcher in were_up if not self._board.ending else ():
            watcher.begin_start()

    def _open_all(self, specs: Iterable[SocketSpec]) -> None:
        self._board.setting.socket_problems = self.sockets.problems
        for spec in specs:
            self._serving.until_bound(
                f"socket {spec.name}", partial(self._open, spec), partial(self._lacks, spec)
            )
        self._board.setting.sockets = self.sockets.fds()

    def _open(self, spec: SocketSpec) -> None:
        problem = self.sockets.problems.get(spec.name)
        self.sockets.open(spec)
        if not self.sockets.is_given(spec.name):
            self._estate.park(["socket", spec.name], [self.sockets.fds()[spec.name]])
        self._board.setting.sockets = self.sockets.fds()
        if problem:
            self._retry(problem)

    def _retry(self, problem: str) -> None:
        """Start at once what could not be for want of a socket that is there now."""
        for watcher in self._watchers.values() if not self._board.ending else ():
            for place in list(watcher.slots.places.values()):
                if place.life.state in NOT_SERVING and place.life.reason == problem:
                    watcher.slots.handle(place, Start())
                    self._board.wake(watcher)

    def _lacks(self, spec: SocketSpec) -> bool:
        return self._wanted.get(spec.name) == spec and not self.sockets.holds(spec.name)
