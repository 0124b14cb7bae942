"""Figures of all processes: for who asks, and each second for those who subscribe.

Nothing is read while nobody wants it. A pass through /proc is made in turns of some milliseconds,
between which the loop does what else there is to do, however many processes there are. One pass is
made at a time, and those who ask for the same meanwhile share the next one. Who asks for the same
processes again before a clock tick is over gets what was read: the kernel counts in ticks.

The topics and what stands under them are those of Circus's circusd-stats, with two fields more:
the watcher's name as it is, and the slot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from sysup import protocol
from sysup.pace import in_turns
from sysup.stats import TICKS, Infos, Look, Stats, Steps
from sysup.watcher import Watcher

log = logging.getLogger("sysup.meter")

INTERVAL = 1.0
"""Seconds between two rounds for the subscribers."""
LOOKS = 10
"""How often within a round it is looked whether connections wait at a socket."""
DAEMON = "circus"
SOCKETS = "sockets"
"""In the place of a watcher's name in topics, as Circus has them."""

Table: TypeAlias = dict[str, dict[str, Any]]
"""Figures by watcher and pid."""
Publish = Callable[[bytes, Mapping[str, Any]], None]
SocketRows = Callable[[], Sequence[Mapping[str, Any]]]


class Meter:
    """The figures of one app.

    Args:
        watchers: the app's, as they are at any time.
        sockets: tells the listening ones, as `listsockets`.
        wall: seconds since the epoch.
        look: reads what the kernel tells of processes.
    Attributes:
        publish: takes (topic, payload).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watchers: Mapping[str, Watcher],
        sockets: SocketRows,
        wall: Callable[[], float],
        look: Look,
    ) -> None:
        self.publish: Publish = lambda topic, payload: None
        self._loop = loop
        self._watchers = watchers
        self._sockets = sockets
        self._wall = wall
        self._asked = Stats(look)
        self._streamed = Stats(look)
        """Of its own, as what a process used is told since the last look."""
        self._one_at_a_time = asyncio.Lock()
        self._handing_out = asyncio.Lock()
        """As what is shared by many is written out by each of them, in a turn of its own."""
        self._waiting: dict[frozenset[str], asyncio.Future[Table]] = {}
        """Passes that are yet to begin, by the watchers asked for."""
        self._newest: tuple[frozenset[str], list[int], Table] | None = None
        """What the last pass was asked for, the pids, and what it found; for a clock tick."""
        self._topics: frozenset[bytes] = frozenset()
        self._rounds: asyncio.Task[None] | None = None
        self._failed = False

    # ---- for who asks --------------------------------------------------------------------

    def own(self) -> dict[str, Any] | str:
        """Figures of this process."""
        return self._asked.info(os.getpid(), self._wall())

    async def infos(self, watchers: Iterable[Watcher]) -> Table:
        """Figures of the watchers' processes and their children, by watcher and pid."""
        key = frozenset(watcher.name for watcher in watchers)
        if key not in self._waiting:
            self._waiting[key] = self._loop.create_task(self._pass(key))
        table = await asyncio.shield(self._waiting[key])
        async with self._handing_out:
            await asyncio.sleep(0)
        return table

    async def _pass(self, names: frozenset[str]) -> Table:
        async with self._one_at_a_time:
            del self._waiting[names]
            present = [w for w in self._watchers.values() if w.name in names]
            pids = [body.process.pid for w in present for _, body in w.slots.bodies]
            if self._newest and self._newest[:2] == (names, pids):
                return self._newest[2]
            infos = await in_turns(self._asked.infos(pids, self._wall()))
            table = await in_turns(self._table(present, names, infos))
            self._newest = newest = names, pids, table
            self._loop.call_later(1 / TICKS, self._forget, newest)
            return table

    def _forget(self, newest: object) -> None:
        if self._newest is newest:
            self._newest = None

    def _table(self, watchers: list[Watcher], names: frozenset[str], infos: Infos) -> Steps[Table]:
        table: Table = {}
        for watcher in watchers:
            rows = table[watcher.name] = {}
            for place, body in watcher.slots.bodies:
                info = infos.get(body.process.pid)
                if info is None:  # it is younger than the answer
                    continue
                if isinstance(info, dict):
                    age = self._loop.time() - place.life.started
                    info = {**info, "wid": place.wid, "started": self._wall() - age}
                rows[str(body.process.pid)] = info
            yield
        return {**table, **{name: {} for name in names - table.keys()}}

    # ---- for those who subscribe ---------------------------------------------------------

    def want(self, topics: frozenset[bytes]) -> None:
        """Publish what stands under topics that begin so, from now on."""
        self._topics = topics
        if self._rounds is not None and not topics:
            self._rounds.cancel()
            self._rounds = None
        elif self._rounds is None and topics:
            self._rounds = self._loop.create_task(self._go_round())

    def close(self) -> None:
        """Publish nothing more."""
        self.want(frozenset())

    async def _go_round(self) -> None:
        while True:
            due = self._loop.time() + INTERVAL
            try:
                async with self._one_at_a_time:
                    await in_turns(self._round())
                    self._failed = False
            except OSError as error:  # no descriptor is left, say
                if not self._failed:
                    log.warning("cannot read statistics: %s", error.strerror)
                self._failed = True
            await self._wait(due)

    def _round(self) -> Steps[None]:
        """Publish the figures of all that is wanted."""
        for watcher in list(self._watchers.values()):
            topic = protocol.stats_topic(watcher.name)
            if is_wanted(topic, self._topics):
                yield from self._watcher_round(watcher, topic)
            yield
        topic = protocol.stats_topic(DAEMON)
        if is_wanted(topic, self._topics):
            pid = os.getpid()
            own = self._streamed.info(pid, self._wall())
            if isinstance(own, dict):
                more = {"subtopic": pid, "name": "circusd"}
                self.publish(protocol.stats_topic(DAEMON, pid), {**own, **more})
                self.publish(topic, together([own]))

    def _watcher_round(self, watcher: Watcher, topic: bytes) -> Steps[None]:
        infos = []
        for place, body in watcher.slots.bodies:
            pid = body.process.pid
            info = self._streamed.info(pid, self._wall())
            if isinstance(info, dict):
                infos.append(info)
                more = {"subtopic": pid, "name": None, "watcher": watcher.name, "wid": place.wid}
                self.publish(protocol.stats_topic(watcher.name, pid), {**info, **more})
            yield
        if infos:
            self.publish(topic, {**together(infos), "watcher": watcher.name})

    async def _wait(self, due: float) -> None:
        """Wait for the next round; meanwhile look at the sockets, if that is wanted."""
        wanted = is_wanted(protocol.stats_topic(SOCKETS), self._topics)
        rows = self._sockets() if wanted else ()
        if not rows:
            await asyncio.sleep(due - self._loop.time())
            return
        poll = select.poll()
        reads = {int(row["fd"]): 0 for row in rows}
        for fd in reads:
            poll.register(fd, select.POLLIN)
        for look in range(1, LOOKS + 1):
            await asyncio.sleep(due - INTERVAL * (1 - look / LOOKS) - self._loop.time())
            for fd, event in poll.poll(0):
                reads[fd] += bool(event & select.POLLIN)
        for row in rows:
            fd = row["fd"]
            told = {"fd": fd, "subtopic": fd, "reads": reads[fd], "address": address(row)}
            self.publish(protocol.stats_topic(SOCKETS, fd), told)
        everything = {"addresses": list(map(address, rows)), "reads": sum(reads.values())}
        self.publish(protocol.stats_topic(SOCKETS), everything)


def is_wanted(topic: bytes, topics: Iterable[bytes]) -> bool:
    """Whether somebody subscribes to a watcher's topic, or to one of its processes."""
    below = topic + b"."
    return any(topic.startswith(each) or each.startswith(below) for each in topics)


def together(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several processes as one, as Circus makes them."""
    return {
        "pid": [info["pid"] for info in infos],
        "cpu": round(sum(info["cpu"] for info in infos) / len(infos), 3),
        "mem": round(sum(info["mem"] for info in infos), 3),
        "age": max(info["age"] for info in infos),
    }


def address(row: Mapping[str, Any]) -> str:
    """Where a socket listens."""
    return str(row["path"] if "path" in row else f"{row['host']}:{row['port']}")
