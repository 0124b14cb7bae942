"""The pump's thread, its streams, and the sinks they go to."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sysup._native import ffi, lib
from sysup.streams.places import Place, Places, check

OnEof = Callable[["Stream"], None]
OnState = Callable[["Sink", str | None], None]
"""Told why a sink fails ("cannot write ..."), and None when it works again."""

OnTap = Callable[["Stream", bytes, int], None]
"""Told what a tapped stream has read, and how many bytes before it were missed."""


@dataclass(frozen=True)
class Style:
    """What stands around each line: BEFORE TIME [PID] | line AFTER."""

    time_format: str
    before: str = ""
    after: str = ""

    def of(self, pid: int) -> tuple[Any, list[Any]]:
        """A `struct line_style` for a process, and the memory that it points into."""
        texts = [self.before, self.time_format, f" [{pid}] | ", self.after]
        memory = [ffi.new("char[]", text.encode("utf-8", "surrogateescape")) for text in texts]
        return ffi.new("struct line_style *", memory), memory


class Stream:
    """A pipe that is being read.

    Attributes:
        id: a number that the pump never gives again.
        pid: of the process that writes to it.
        ended: whether all that came is written, and the pipe closed.
        error: errno of the read that ended it; 0 at the end of the file.
    """

    def __init__(self, id: int, pid: int, place: Place, tail: int, on_eof: OnEof | None) -> None:
        self.id = id
        self.pid = pid
        self.ended = False
        self.error = 0
        self._place = place
        self._on_eof = on_eof
        self._tail_size = tail
        self._last_tail = b""
        self._last_bytes = 0
        self._native: Any = ffi.NULL
        self.name = "stdout"
        self.tapped = 0
        """Position (as `bytes_read`) of the end of what `Pump.on_tap` was last given."""
        self._on_tap: Callable[[bool], None] = lambda on: None

    def tap(self, on: bool) -> None:
        """Have its output copied live, from here on, to `Pump.on_tap`."""
        self._on_tap(on)

    def tail_at(self) -> tuple[bytes, int]:
        """The newest output, and the position (as `bytes_read`) of its end."""
        before = self.bytes_read
        while True:
            tail, at = self.tail(), self.bytes_read
            if at == before:
                return tail, at
            before = at

    @property
    def bytes_read(self) -> int:
        """How many came so far."""
        return self._last_bytes if self.ended else lib.stream_bytes(self._native)

    def tail(self) -> bytes:
        """The newest output, at most as many bytes as `Pump.add` was asked to remember."""
        if self.ended:
            return self._last_tail
        buffer = ffi.new("char[]", max(1, self._tail_size))
        return bytes(ffi.buffer(buffer, lib.stream_tail(self._native, buffer, self._tail_size)))

    def close(self) -> None:
        """End it, though somebody holds the pipe open; what is in it now is still read."""
        if not self.ended:
            lib.stream_close(self._native)

    def _end(self, error: int) -> None:
        self._last_tail, self._last_bytes, self.error = self.tail(), self.bytes_read, error
        self.ended = True
        lib.stream_free(self._native)
        self._place.leave()
        if self._on_eof:
            self._on_eof(self)


class Sink:
    """One user's hold on a place that bytes go to; made by `open_sink`.

    Attributes:
        name: of the place, for messages: a path, "stdout", a class.
    """

    def __init__(self, place: Place, style: Style | None, on_state: OnState | None) -> None:
        self.name = place.name
        self._place = place
        self._style = style
        self._on_state = on_state
        place.hold(self, self._tell)

    @property
    def failure(self) -> str | None:
        """Why nothing can be written there now, or None. The processes wait meanwhile."""
        return self._place.failure

    @property
    def can_rotate(self) -> bool:
        """Whether it is a file that may be rotated."""
        return isinstance(self._place.key, str)

    def rotate(self) -> None:
        """Rotate the file now, at the next line's end."""

    def reopen(self) -> None:
        """Open the file again by its name, at once."""
        self._place.reopen()

    def close(self) -> None:
        """Give it up; streams that were added to it are still written to their end."""
        self._place.release(self)

    def _tell(self, reason: str | None) -> None:
        if self._on_state:
            self._on_state(self, reason)


class Pump:
    """The thread that reads the pipes; one of a daemon."""

    def __init__(self) -> None:
        native = ffi.new("struct pump **")
        check(lib.pump_new(native))
        self.native = native[0]
        self.places = Places(self.native)
        self._streams: dict[int, Stream] = {}
        self._events = ffi.new("struct pump_event[]", 256)
        self.on_tap: OnTap | None = None
        self._tapped: set[Stream] = set()
        self._ticks: threading.Thread | None = None

    def fileno(self) -> int:
        """A descriptor that is readable while `dispatch` has something to do."""
        return lib.pump_eventfd(self.native)

    def dispatch(self) -> None:
        """Call the callbacks of what has happened, at most 256 of them."""
        for stream in list(self._tapped):
            self._tell_tapped(stream)
        taken = lib.pump_take(self.native, self._events, len(self._events))
        for event in self._events[0:taken]:
            if event.kind == lib.PUMP_STREAM_EOF:
                self._tell_tapped(self._streams[event.id])
                self._streams.pop(event.id)._end(event.error)
            else:
                self.places.handle(event.id, event.kind, event.error)
        self.places.attend()

    def _tap(self, stream: Stream, on: bool) -> None:
        """A stand-in: what the tail still holds is looked for again and again."""
        if not on or stream.ended:
            self._tapped.discard(stream)
        elif stream not in self._tapped:
            stream.tapped = stream.bytes_read
            self._tapped.add(stream)
            if self._ticks is None:
                self._ticks = threading.Thread(target=self._tick, daemon=True)
                self._ticks.start()

    def _tick(self) -> None:
        while self._tapped:
            time.sleep(0.01)
            os.eventfd_write(lib.pump_eventfd(self.native), 1)
        self._ticks = None

    def _tell_tapped(self, stream: Stream) -> None:
        if stream not in self._tapped:
            return
        tail, at = stream.tail_at()
        new = at - stream.tapped
        if new:
            stream.tapped = at
            if self.on_tap:
                self.on_tap(stream, tail[-new:], max(0, new - len(tail)))

    def add(
        self,
        fd: int,
        pid: int,
        sink: Sink,
        *,
        name: str = "stdout",
        wid: int = 0,
        tail: int = 0,
        on_eof: OnEof | None = None,
    ) -> Stream:
        """Read `fd`, the pipe of a process, into `sink` until its end.

        Args:
            fd: the pump's own from now; on failure it stays the caller's.
            pid: of the process, for stamps and for Python sinks.
            tail: bytes of the newest output to remember.
            on_eof: called once all that was written is where it belongs.

        Raises OSError; ValueError for a sink that was closed.
        """
        place = sink._place
        if not place.is_held_by(sink):
            raise ValueError(f"cannot add a stream to {sink.name}: it is closed")
        stream = Stream(next(self.places.ids), pid, place, tail, on_eof)
        style, _memory = sink._style.of(pid) if sink._style else (ffi.NULL, [])
        native = ffi.new("struct stream **")
        check(lib.pump_add(self.native, fd, stream.id, pid, place.native, style, tail, native))
        stream._native = native[0]
        stream.name = name
        stream._on_tap = lambda on: self._tap(stream, on)
        self._streams[stream.id] = stream
        place.enter()
        return stream

    def reopen(self) -> None:
        """Open every file again by its name, as after logrotate."""
        self.places.reopen()

    @property
    def heartbeat(self) -> int:
        """Turns of the thread so far: it lives if this grows after `ping`."""
        return lib.pump_heartbeat(self.native)

    def ping(self) -> None:
        """Ask the thread for a turn."""
        lib.pump_ping(self.native)

    def stop(self, timeout: float) -> int:
        """End all streams and sinks, write what is held, end the thread.

        Takes at most `timeout` seconds and then gives up; returns the bytes that could not
        be written. The last callbacks are called before it returns.
        """
        until = time.monotonic() + timeout
        self._tapped.clear()
        if self._ticks:
            self._ticks.join()
        lost = lib.pump_stop(self.native, round(timeout * 1000))
        if lost < 0:
            return 0  # it hangs in a system call: nothing is known, nothing can be freed
        while self._streams or self.places:
            self.dispatch()
        if self.places.stop(until):
            lib.pump_free(self.native)
        return lost
