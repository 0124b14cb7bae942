"""The event sockets: what is told to all, and output and statistics to those who ask for them.

The app's own socket is an XPUB, which tells who subscribes to what, so that output is copied, and
statistics are taken, only while somebody wants them. Other endpoints, which may be open to every
local user, are PUB sockets that never carry output, and an XPUB for statistics alone.

A subscription to "" is for events: circusctl and programs that know nothing of output have it.
libzmq would send them all else as well, so subscriptions are entered by hand (ZMQ_XPUB_MANUAL,
zmq_setsockopt(3)). Before libzmq 4.3.5 that is dangerous, since a peer that has gone may be
entered once more (zeromq/libzmq#4137): there they hear output while somebody else wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import zmq

from sysup import protocol
from sysup.doorman import secure
from sysup.endpoints import bind
from sysup.guard import Guard
from sysup.keys import Keys
from sysup.outside import REOPEN, Outside, Roll
from sysup.protocol import SysupError

log = logging.getLogger("sysup.events")

BATCH = 64
"""Subscriptions read before the loop gets its turn."""
LONGEST_TOPIC = 1024
MOST_TOPICS = 1024
"""Different topics that may be subscribed to on the app's own socket."""
MOST_OUTPUT_TOPICS = 128
"""As many of those that are compared with each stream."""
MOST_STATS_TOPICS = 128
"""As many of those that are compared with each watcher."""
MOST_SUBSCRIBED = 1 << 16
"""Bytes of subscriptions that a TCP peer may send; libzmq keeps them all."""
QUEUED = 1000
"""Messages that are held for a subscriber; further ones it loses."""
LINGER = 500
"""Milliseconds that the last events have to leave."""
HIDDEN = "(hidden)"

EVENTS = b"watcher"
"""What a subscription to "" is entered as; no other one is the same."""


class Topics:
    """What is subscribed to, and by how many.

    libzmq tells the descriptor of a peer that subscribes, so that a topic which it repeats
    counts once, but not that of one which has gone: then the others of the topic can't be told
    apart any more.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, list[int | None]] = {}
        self.output: tuple[bytes, ...] = ()
        """Those of output."""
        self.stats: tuple[bytes, ...] = ()
        """Those of statistics."""

    def add(self, topic: bytes, peer: int | None) -> bool:
        """A peer subscribes; False: there are too many topics."""
        if topic not in self._owners and self._is_full(topic):
            return False
        owners = self._owners.setdefault(topic, [])
        if peer is None or peer not in owners:
            owners.append(peer)
        self._changed(topic)
        return True

    def remove(self, topic: bytes, peer: int | None) -> None:
        """A peer (None: one that has gone) does so no more."""
        owners = self._owners.get(topic, [])
        if peer is None:
            owners[:] = [None] * (len(owners) - 1)
        elif peer in owners or None in owners:
            owners.remove(peer if peer in owners else None)
        if not owners:
            self._owners.pop(topic, None)
        self._changed(topic)

    def _is_full(self, topic: bytes) -> bool:
        of_output = is_output(topic) and len(self.output) >= MOST_OUTPUT_TOPICS
        of_stats = is_stats(topic) and len(self.stats) >= MOST_STATS_TOPICS
        return of_output or of_stats or len(self._owners) >= MOST_TOPICS

    def _changed(self, topic: bytes) -> None:
        if is_output(topic):
            self.output = tuple(filter(is_output, self._owners))
        elif is_stats(topic):
            self.stats = tuple(filter(is_stats, self._owners))


class Audience:
    """Those who hear statistics on an endpoint of the config. libzmq itself keeps count of them.

    Args:
        sock: an XPUB that is bound.
        changed: told when other topics are subscribed to than before.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: zmq.Socket[bytes],
        changed: Callable[[], None],
    ) -> None:
        self._told_apart: set[bytes] = set()
        self._others = 0
        """Topics that are too long, or too many, and so mean all."""
        self._loop = loop
        self.socket = sock
        self._changed = changed
        self._to_read = False
        loop.add_reader(sock.fileno(), self._read)
        self._read_soon()

    @property
    def topics(self) -> frozenset[bytes]:
        """Those that somebody subscribes to."""
        return frozenset((*self._told_apart, b"") if self._others > 0 else self._told_apart)

    def send(self, topic: bytes, body: bytes) -> None:
        """Tell those who want it."""
        self.socket.send_multipart([topic, body], zmq.NOBLOCK)
        self._read_soon()

    def close(self) -> None:
        """Have nobody hear any more."""
        self._loop.remove_reader(self.socket.fileno())
        self.socket.close()

    def _read_soon(self) -> None:
        if not self._to_read:
            self._to_read = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._to_read = False
        if self.socket.closed:
            return
        before = self.topics
        for _ in range(BATCH):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._note(frame[:1], frame[1:])
        else:
            self._read_soon()
        if self.topics != before:
            self._changed()

    def _note(self, sign: bytes, topic: bytes) -> None:
        """The first subscription to a topic (zmq_socket(3), ZMQ_XPUB), or the end of the last."""
        if sign == b"\0":
            if topic in self._told_apart:
                self._told_apart.remove(topic)
            else:
                self._others -= 1
        elif sign == b"\1":
            if len(topic) <= LONGEST_TOPIC and len(self._told_apart) < MOST_STATS_TOPICS:
                self._told_apart.add(topic)
            else:
                self._others += 1


class Events:
    """The daemon's event sockets.

    Args:
        loop: the daemon's loop.
        context: that of all its sockets.
        wall: seconds since the epoch, for events.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        wall: Callable[[], float],
    ) -> None:
        self.on_output_wanted: Callable[[tuple[bytes, ...]], None] = lambda topics: None
        """Told the topics of output that are subscribed to, each time they change."""
        self.on_stats_wanted: Callable[[frozenset[bytes]], None] = lambda topics: None
        """Told the same of statistics, on whichever endpoint."""
        self._loop = loop
        self._context = context
        self._wall = wall
        self._own: zmq.Socket[bytes] | None = None
        self._guards: dict[zmq.Socket[bytes], Guard] = {}
        self._outside: list[Outside] = []
        self._audience: Audience | None = None
        self._open_stats: Callable[[], None] = lambda: None
        self._roll: Roll | None = None
        """Of who may hear statistics."""
        self._reopening = False
        self._manual = zmq.zmq_version_info() >= (4, 3, 5)
        self._topics = Topics()
        self._told: tuple[bytes, ...] = ()
        self._told_stats: frozenset[bytes] = frozenset()
        self._echoes: list[bytes] = []
        self._to_read = False
        self._refused = False

    def serve(self, endpoint: str, mode: int, group: int) -> None:
        """Open the app's own socket; raises SysupError when it can't be bound."""
        own: zmq.Socket[bytes] = self._make(zmq.XPUB, endpoint, mode, group)
        self._own = own
        self._loop.add_reader(own.fileno(), self._read)
        self._read_soon()

    def serve_outside(self, endpoint: str, *, hidden: bool, keys: Keys | None = None) -> None:
        """Publish events on another endpoint, too; raises SysupError when it can't be bound.

        Args:
            endpoint: where.
            hidden: without what processes wrote.
            keys: who may listen; the doorman must be there.
        """

        def make() -> zmq.Socket[bytes]:
            return self._make(zmq.PUB, endpoint, 0o600, -1, keys)

        self._outside.append(Outside(make, self._unguard, hidden, keys))

    def serve_stats(self, endpoint: str, keys: Keys | None = None) -> None:
        """Publish statistics on another endpoint; raises SysupError when it can't be bound."""

        def open_stats() -> None:
            made = self._make(zmq.XPUB, endpoint, 0o600, -1, keys, manual=False)
            self._audience = Audience(self._loop, made, self._tell_stats_wanted)

        open_stats()
        self._open_stats = open_stats
        self._roll = Roll(keys) if keys is not None else None

    def _make(
        self,
        kind: int,
        endpoint: str,
        mode: int,
        group: int,
        keys: Keys | None = None,
        *,
        manual: bool = True,
    ) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, LINGER)
        made.setsockopt(zmq.SNDHWM, QUEUED)
        made.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE)
        if kind == zmq.XPUB and manual and self._manual:
            made.setsockopt(zmq.XPUB_MANUAL, 1)
        guard = Guard(self._loop, made, endpoint, MOST_SUBSCRIBED, "too many subscriptions")
        try:
            if keys is not None:
                secure(made, keys)
            bind(made, endpoint, mode, group)
        except BaseException:
            guard.close()
            made.close(0)
            raise
        self._guards[made] = guard
        return made

    def _unguard(self, sock: zmq.Socket[bytes]) -> None:
        """Have it closed by others: its monitor stands in the way."""
        self._guards.pop(sock).close()

    def close(self) -> None:
        """Let the last events leave, and close."""
        if self._own is not None:
            self._loop.remove_reader(self._own.fileno())
        for sock in [*self._guards]:
            self._unguard(sock)
        for each in (self._own, *(outside.socket for outside in self._outside)):
            if each is not None:
                each.close()
        if self._audience is not None:
            self._audience.close()
        self._own = self._audience = self._roll = None
        self._outside.clear()

    # ---- telling -------------------------------------------------------------------------

    def publish(self, watcher: str, event: str, payload: Mapping[str, Any]) -> None:
        """Tell the subscribers; a slow one loses events, never time of ours."""
        topic = protocol.topic(watcher, event)
        fields = {**payload, "time": self._wall()}
        self._send(topic, fields)
        self._check()
        for each in self._outside:
            if each.socket is not None:
                body = protocol.encode_event(concealed(fields) if each.hidden else fields)
                each.socket.send_multipart([topic, body], zmq.NOBLOCK)

    def _check(self) -> None:
        """See that those listen alone who may; what is made anew may need some time for it."""
        now = self._loop.time()
        for outside in self._outside:
            outside.check(now)
        if self._roll is not None and self._audience is not None and self._roll.has_shrunk(now):
            self._unguard(self._audience.socket)
            self._audience.close()
            self._audience = None
            self._tell_stats_wanted()
        is_shut = any(outside.socket is None for outside in self._outside) or self._is_mute()
        if is_shut and not self._reopening:
            self._reopening = True
            self._loop.call_later(REOPEN, self._reopen)

    def _is_mute(self) -> bool:
        """Whether statistics have an endpoint that waits to be made anew."""
        return self._audience is None and self._roll is not None

    def _reopen(self) -> None:
        self._reopening = False
        if self._is_mute():
            with contextlib.suppress(SysupError):  # it is tried again
                self._open_stats()
        self._check()

    def publish_output(self, topic: bytes, payload: Mapping[str, Any]) -> None:
        """Tell those who want it what a process wrote."""
        self._send(topic, {**payload, "time": self._wall()})

    def publish_stats(self, topic: bytes, payload: Mapping[str, Any]) -> None:
        """Tell those who want them figures."""
        self._check()
        body = protocol.encode_event(payload)
        if self._topics.stats:
            self._send_to_own(topic, body)
        if self._audience is not None:
            self._audience.send(topic, body)

    def _send(self, topic: bytes, fields: Mapping[str, Any]) -> None:
        self._send_to_own(topic, protocol.encode_event(fields))

    def _send_to_own(self, topic: bytes, body: bytes) -> None:
        if self._own is not None:
            self._own.send_multipart([topic, body], zmq.NOBLOCK)
            self._read_soon()

    # ---- subscriptions -------------------------------------------------------------------

    def _read_soon(self) -> None:
        """Any call on the socket may have used up its descriptor's edge."""
        if not self._to_read:
            self._to_read = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._to_read = False
        if self._own is None:
            return
        for _ in range(BATCH):
            try:
                frame = self._own.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._note(self._own, frame)
        else:
            self._read_soon()
        if self._topics.output != self._told:
            self._told = self._topics.output
            self.on_output_wanted(self._told)
        self._tell_stats_wanted()
        echoes, self._echoes = self._echoes, []
        for topic in echoes:
            self._send(topic, {})

    def _tell_stats_wanted(self) -> None:
        outside = self._audience.topics if self._audience is not None else ()
        wanted = frozenset((*self._topics.stats, *outside))
        if wanted != self._told_stats:
            self._told_stats = wanted
            self.on_stats_wanted(wanted)

    def _note(self, own: zmq.Socket[bytes], frame: zmq.Frame) -> None:
        """A subscription, b"\\1TOPIC", or its end, b"\\0TOPIC" (zmq_socket(3), ZMQ_XPUB)."""
        data = frame.bytes
        sign, topic = data[:1], data[1:]
        is_echo = topic.startswith(protocol.ECHO.encode())
        if sign == b"\0":
            self._topics.remove(topic, self._peer(frame))
            if self._manual:
                own.setsockopt(zmq.UNSUBSCRIBE, entered(topic))
        elif sign != b"\1" or is_by_chance(topic):
            return
        elif len(topic) > LONGEST_TOPIC or not (
            is_echo or self._topics.add(topic, self._peer(frame))
        ):
            if not self._refused:
                self._refused = True
                log.warning("too many or too long subscriptions: further ones are not heeded")
        else:
            if self._manual:
                own.setsockopt(zmq.SUBSCRIBE, entered(topic))
            if is_echo:
                self._echoes.append(topic)

    def _peer(self, frame: zmq.Frame) -> int | None:
        """The descriptor of who sent it; None if it has gone, or libzmq counts by itself."""
        if not self._manual:
            return None
        try:
            return int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, ValueError):
            return None


def is_output(topic: bytes) -> bool:
    """Whether it is a topic of output."""
    return topic.startswith(protocol.OUTPUT.encode())


def is_stats(topic: bytes) -> bool:
    """Whether it is a topic of statistics."""
    return topic.startswith(protocol.STATS.encode())


def is_by_chance(topic: bytes) -> bool:
    """Whether it is a beginning of `output.` or `stat.` that nobody can mean."""
    kinds = (protocol.OUTPUT.encode(), protocol.STATS.encode())
    return bool(topic) and any(len(topic) < len(k) and k.startswith(topic) for k in kinds)


def entered(topic: bytes) -> bytes:
    """What a subscription to `topic` is entered as."""
    return topic or EVENTS


def concealed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields without what a process wrote."""
    return {**fields, "last_output": HIDDEN} if fields.get("last_output") else fields
