"""Live output: which streams are tapped, and what they are heard to say.

A stream is tapped while its topic begins with one that somebody subscribes to; all others
cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sysup import protocol
from sysup.streams import Stream

CHUNK = 8192
"""Bytes of a message, so that what is queued for a subscriber who reads nothing is bounded."""


@dataclass
class Tap:
    """A stream by the name that subscribers know it by."""

    watcher: str
    wid: int
    topic: bytes = b""
    """Empty while nobody wants it."""


class Taps:
    """The streams of all processes.

    Attributes:
        publish: takes (topic, payload).
    """

    def __init__(self) -> None:
        self.publish: Callable[[bytes, Mapping[str, Any]], None] = lambda topic, payload: None
        self._taps: dict[Stream, Tap] = {}
        self._wanted: tuple[bytes, ...] = ()

    def enter(self, stream: Stream, watcher: str, wid: int) -> None:
        """A stream has begun."""
        tap = self._taps[stream] = Tap(watcher, wid)
        if self._wanted:
            self._turn(stream, tap)

    def leave(self, stream: Stream) -> None:
        """It has ended."""
        self._taps.pop(stream, None)

    def want(self, topics: tuple[bytes, ...]) -> None:
        """Tap the streams whose topics begin so, and no others."""
        self._wanted = topics
        for stream, tap in self._taps.items():
            self._turn(stream, tap)

    def _turn(self, stream: Stream, tap: Tap) -> None:
        topic = protocol.output_topic(tap.watcher, tap.wid, stream.name)
        on = topic.startswith(self._wanted)
        if on != bool(tap.topic):
            tap.topic = topic if on else b""
            stream.tap(on)

    def take(self, stream: Stream, data: bytes, missed: int, at: int) -> None:
        """Publish what a stream has read up to position `at`, after `missed` bytes that
        nobody kept."""
        tap = self._taps.get(stream)
        if tap is None or not tap.topic:
            return
        at -= len(data)
        for begin in range(0, len(data), CHUNK):
            part = data[begin : begin + CHUNK]
            at += len(part)
            self.publish(tap.topic, described(stream, tap.wid, part, at, missed))
            missed = 0


def described(stream: Stream, wid: int, data: bytes, at: int, missed: int = 0) -> dict[str, Any]:
    """Output of a stream that ends at position `at`, as the wire has it."""
    return {
        "wid": wid,
        "pid": stream.pid,
        "stream": stream.name,
        "data": protocol.pack(data),
        "at": at,
        "missed": missed,
    }
