"""The pump's thread, its streams, and the sinks they go to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sysup._native import ffi, lib
from sysup.streams.files import FilePlace
from sysup.streams.places import UINT32_MAX, Later, Place, Places, check

OnEof = Callable[["Stream"], None]
OnState = Callable[["Sink", str | None], None]
"""Told why a sink fails ("cannot write ..."), and None when it works again."""
OnLoss = Callable[["Sink", "Losses"], None]
"""Told how much was left out since it was told before."""
OnRotated = Callable[["Sink"], None]
"""Told that its file has one backup more."""
OnTap = Callable[["Stream", bytes, int, int], None]
"""Given (stream, bytes, how many were missed before them, `bytes_read` at their end)."""
Label = Callable[[int, int], str]
"""What is put before the lines of the process (wid, pid)."""

TAP_BYTES = 1 << 18
"""Of tapped output that is handed out by one dispatch."""
EVENTS = 256


class Losses(NamedTuple):
    """What was left out: dropped where nothing could be written, suppressed above a rate."""

    dropped_lines: int = 0
    dropped_bytes: int = 0
    suppressed_lines: int = 0
    suppressed_bytes: int = 0

    @classmethod
    def read(cls, function: Callable[[Any, Any], None], native: Any) -> Losses:
        """What C counts for a stream or an outlet."""
        found = ffi.new("struct losses *")
        function(native, found)
        return cls(
            found.dropped_lines,
            found.dropped_bytes,
            found.suppressed_lines,
            found.suppressed_bytes,
        )

    def since(self, before: Losses) -> Losses:
        """The difference."""
        return Losses(
            self.dropped_lines - before.dropped_lines,
            self.dropped_bytes - before.dropped_bytes,
            self.suppressed_lines - before.suppressed_lines,
            self.suppressed_bytes - before.suppressed_bytes,
        )

    def __bool__(self) -> bool:
        return bool(self.dropped_bytes or self.suppressed_bytes)


class Orphan(NamedTuple):
    """Bytes that another process left, and nobody has taken up.

    Attributes:
        stream: id of the stream that they are of; None: they are a sink's, whole lines.
        key: `Place.lasting_key` of the sink.
        size: how many.
    """

    stream: int | None
    key: str
    size: int


NOTHING: tuple[bytes, int, Losses] = (b"", 0, Losses())
"""What a stream has had: its tail, bytes, losses."""


class Work(NamedTuple):
    """What is done to each line: the options of a `struct outlet_spec`.

    Attributes:
        form: FORMAT_RAW, FORMAT_PREFIX, FORMAT_JSON or FORMAT_RECORD.
        time_format: None, "iso", "tai64n", or a format of strftime(3).
        label: what stands before the lines of a process, in the form's way.
        patterns: which lines are taken.
        rate: lines, in so many seconds, and lines at once; None: any number.
    """

    form: int
    name: str = ""
    before: str = ""
    after: str = ""
    time_format: str | None = None
    label: Label = lambda wid, pid: ""
    note_label: str = ""
    patterns: Sequence[str] = ()
    rate: tuple[int, float, int] | None = None
    drop: bool = False
    level_prefix: bool = False
    priority: int = 6
    max_line: int = 65536

    def spec(self) -> tuple[Any, list[Any]]:
        """The `struct outlet_spec`, and the memory that it points into."""
        forms = {None: lib.TIME_NONE, "iso": lib.TIME_ISO, "tai64n": lib.TIME_TAI64N}
        texts = (self.time_format or "", self.before, self.after, self.name, self.note_label)
        memory = [_text(text) for text in (*texts, *self.patterns)]
        patterns = ffi.new("char *[]", memory[len(texts) :])
        lines, seconds, burst = self.rate or (0, 0.0, 0)
        fields = dict(
            zip(("time_format", "before", "after", "name", "label"), memory, strict=False)
        )
        spec = ffi.new(
            "struct outlet_spec *",
            {
                **fields,
                "patterns": patterns,
                "n_patterns": len(self.patterns),
                "format": self.form,
                "time_form": forms.get(self.time_format, lib.TIME_STRFTIME),
                "flags": lib.OUTLET_DROP * self.drop | lib.OUTLET_LEVEL_PREFIX * self.level_prefix,
                "priority": self.priority,
                "max_line": min(self.max_line, UINT32_MAX),
                "rate_lines": lines,
                "rate_ns": round(min(seconds, 1e9) * 1e9),
                "rate_burst": burst,
            },
        )
        return spec, [*memory, patterns]


def _text(text: str) -> Any:
    return ffi.new("char[]", text.encode("utf-8", "surrogateescape"))


class Stream:
    """A pipe that is being read.

    Attributes:
        id: a number that no other has, nor had since the machine was started.
        pid: of the process that writes to it.
        wid: of its slot.
        name: "stdout" or "stderr".
        ended: whether all that came is written, and the pipe closed.
        error: errno of the read that ended it; 0 at the end of the file.
    """

    __slots__ = (
        *("id", "pid", "wid", "name", "ended", "error"),
        *("_sink", "_on_eof", "_tail_size", "_last", "_native"),
    )

    def __init__(
        self, id: int, pid: int, wid: int, name: str, sink: Sink, tail: int, on_eof: OnEof | None
    ) -> None:
        self.id = id
        self.pid = pid
        self.wid = wid
        self.name = name
        self.ended = False
        self.error = 0
        self._sink = sink
        self._on_eof = on_eof
        self._tail_size = tail
        self._last = NOTHING
        self._native: Any = ffi.NULL

    @property
    def bytes_read(self) -> int:
        """How many came so far."""
        return self._last[1] if self.ended else lib.stream_bytes(self._native)

    @property
    def losses(self) -> Losses:
        """What of it was left out so far."""
        return self._last[2] if self.ended else Losses.read(lib.stream_losses, self._native)

    def tail(self) -> bytes:
        """The newest output, at most as many bytes as `Pump.add` was asked to remember."""
        return self.tail_at()[0]

    def tail_at(self) -> tuple[bytes, int]:
        """The newest output, and `bytes_read` at its end."""
        if self.ended:
            return self._last[:2]
        buffer, at = ffi.new("char[]", max(1, self._tail_size)), ffi.new("uint64_t *")
        length = lib.stream_tail(self._native, buffer, self._tail_size, at)
        return bytes(ffi.buffer(buffer, length)), at[0]

    def tap(self, on: bool) -> None:
        """Have a copy of what is read from now on given to `Pump.on_tap`, or no more."""
        if not self.ended:
            lib.stream_tap(self._native, on)

    def close(self) -> None:
        """End it, though somebody holds the pipe open; what is in it now is still read."""
        if not self.ended:
            lib.stream_close(self._native)

    def _end(self, error: int) -> None:
        self._last, self.error = (*self.tail_at(), self.losses), error
        self.ended = True
        lib.stream_free(self._native)
        self._sink._leave()
        # Who is told mostly holds the stream; without a way back it needs no garbage collector.
        on_eof, self._on_eof = self._on_eof, None
        if on_eof:
            on_eof(self)


class Sink:
    """One user's way to a place that bytes go to; made by `open_sink`.

    Attributes:
        name: of the place, for messages: a path, "stdout", a class.
    """

    def __init__(
        self,
        place: Place,
        work: Work,
        on_state: OnState | None = None,
        on_loss: OnLoss | None = None,
        on_rotated: OnRotated | None = None,
    ) -> None:
        self.name = place.name
        self._place = place
        self._label = work.label
        self._on_state = on_state
        self._on_loss = on_loss
        self._on_rotated = on_rotated
        self._told = Losses()
        self._streams = 0
        self._closed = False
        self._id = next(place.places.ids)
        spec, _memory = work.spec()
        native = ffi.new("struct outlet **")
        check(lib.outlet_new(place.native, self._id, spec, native))
        self._native = native[0]
        place.places.outlets[self._id] = self
        place.hold(self, self._tell, self._rotated)

    @property
    def failure(self) -> str | None:
        """Why nothing can be written there now, or None. The processes wait meanwhile."""
        return self._place.failure

    @property
    def can_rotate(self) -> bool:
        """Whether it is a file that keeps backups."""
        return isinstance(self._place, FilePlace) and self._place.keeps_backups

    def reopen(self, on_done: Callable[[], object] = lambda: None) -> None:
        """Open the file again by its name, at once; `on_done` is called when that was tried, and
        `failure` says how it went."""
        self._place.reopen(on_done)

    def rotate(self) -> None:
        """Rotate the file at the next end of a line; nothing where it can't be."""
        if isinstance(self._place, FilePlace):
            self._place.rotate()

    def close(self) -> None:
        """Give it up; streams that were added to it are still written to their end."""
        if not self._closed:
            self._closed = True
            self._place.release(self)
            self._free_if_idle()

    def _add(self, stream: Stream, fd: int) -> None:
        label = _text(self._label(stream.wid, stream.pid))
        spec = ffi.new(
            "struct stream_spec *",
            {
                "id": stream.id,
                "label": label,
                "fd": fd,
                "pid": stream.pid,
                "tail": stream._tail_size,
            },
        )
        native = ffi.new("struct stream **")
        check(lib.pump_add(self._native, spec, native))
        stream._native = native[0]
        self._streams += 1
        self._place.enter()

    def _leave(self) -> None:
        self._streams -= 1
        self._free_if_idle()
        self._place.leave()

    def park(self) -> None:
        """The pump goes, and its streams are no more."""
        self._closed, self._streams = True, 0
        self._free_if_idle()

    def _free_if_idle(self) -> None:
        if self._closed and not self._streams:
            del self._place.places.outlets[self._id]
            lib.outlet_free(self._native)
            self._native = ffi.NULL

    def _tell(self, reason: str | None) -> None:
        if self._on_state:
            self._on_state(self, reason)

    def _rotated(self) -> None:
        if self._on_rotated:
            self._on_rotated(self)

    def lost(self) -> None:
        """Tell how much was left out since it was told before."""
        now = Losses.read(lib.outlet_losses, self._native)
        lost, self._told = now.since(self._told), now
        if self._on_loss and lost:
            self._on_loss(self, lost)


class Pump:
    """The thread that reads the pipes; one of a daemon.

    What was read and not yet written can outlive the daemon: a memfd holds it, of which the
    next one makes its pump. That goes on with all of it as places are opened again, and
    streams added by their old ids.

    Args:
        memfd: holds what was read and not yet written, empty or of another process's pump;
            -1: this process's memory. Raises OSError, EPROTO, for one of another version.
        later: calls a function after so many seconds, as a loop's `call_later`, for what is
            due though nobody writes; without it that waits for the next line.

    Attributes:
        on_tap: takes what is read from streams that are tapped.
    """

    def __init__(self, memfd: int = -1, later: Later | None = None) -> None:
        native = ffi.new("struct pump **")
        check(lib.pump_new(memfd, native))
        self.native = native[0]
        self.places = Places(self.native, later)
        self.on_tap: OnTap | None = None
        self._streams: dict[int, Stream] = {}
        self._tapped: Any = None
        self._events = ffi.new("struct pump_event[]", EVENTS)

    def fileno(self) -> int:
        """A descriptor that is readable while `dispatch` has something to do."""
        return lib.pump_eventfd(self.native)

    def dispatch(self) -> None:
        """Call the callbacks of what has happened, at most 256 of them."""
        taken = lib.pump_take(self.native, self._events, EVENTS)
        for event in self._events[0:taken]:
            if event.kind == lib.PUMP_STREAM_EOF:
                self._take_tapped()
                self._streams.pop(event.id)._end(event.error)
            elif event.kind == lib.PUMP_TAPPED:
                self._tapped = self._tapped or ffi.new("char[]", TAP_BYTES)
                self._take_tapped()
            else:
                self.places.handle(event.id, event.kind, event.error)
        self.places.attend()

    def add(
        self,
        fd: int,
        pid: int,
        sink: Sink,
        *,
        wid: int = 0,
        name: str = "stdout",
        tail: int = 0,
        on_eof: OnEof | None = None,
        id: int | None = None,
    ) -> Stream:
        """Read `fd`, the pipe of a process, into `sink` until its end.

        Args:
            fd: the pump's own from now; on failure it stays the caller's.
            pid: of the process, for stamps and for Python sinks.
            wid: of its slot, likewise.
            name: "stdout" or "stderr".
            tail: bytes of the newest output to remember, at most.
            on_eof: called once all that was written is where it belongs.
            id: of the stream that another process had of this pipe; a new one if None.

        Raises OSError; ValueError for a sink that was closed.
        """
        if sink._closed:
            raise ValueError(f"cannot add a stream to {sink.name}: it is closed")
        id = next(self.places.ids) if id is None else id
        stream = Stream(id, pid, wid, name, sink, tail, on_eof)
        sink._add(stream, fd)
        self._streams[stream.id] = stream
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

    def _take_tapped(self) -> None:
        if self._tapped is None:
            return  # nobody ever tapped
        at, size = 0, lib.pump_tap_take(self.native, self._tapped, TAP_BYTES)
        while at < size:
            record = ffi.cast("struct tapped *", self._tapped + at)
            at += ffi.sizeof("struct tapped")
            stream = self._streams.get(record.stream)
            if stream and self.on_tap:
                data = bytes(ffi.buffer(self._tapped + at, record.length))
                self.on_tap(stream, data, record.missed, record.at)
            at += (record.length + 7) & ~7

    def orphans(self) -> list[Orphan]:
        """What another process left and nobody has taken up so far."""
        size = lib.pump_orphans(self.native, ffi.NULL, 0)
        found = ffi.new("struct orphan[]", size)
        lib.pump_orphans(self.native, found, size)
        return [
            Orphan(None, os.fsdecode(ffi.string(one.key)), one.length)
            if one.key
            else Orphan(one.id, "", one.length)
            for one in found
        ]

    def park(self, timeout: float) -> None:
        """End the thread and write nothing, so that another pump goes on with the memfd.

        Raises OSError, ETIMEDOUT, where the thread hangs in a system call.
        """
        until = time.monotonic() + timeout
        check(lib.pump_park(self.native, round(timeout * 1000)))
        ended = True
        while ended:
            before = len(self._streams)
            self.dispatch()
            ended = len(self._streams) < before
        self.places.park()
        self.places.stop(until)

    def stop(self, timeout: float) -> int:
        """End all streams and sinks, write what is held, end the thread.

        Takes at most `timeout` seconds and then gives up; returns the bytes that could not
        be written. The last callbacks are called before it returns.
        """
        until = time.monotonic() + timeout
        lost = lib.pump_stop(self.native, round(timeout * 1000))
        if lost < 0:
            return 0  # it hangs in a system call: nothing is known, nothing can be freed
        while self._streams or self.places:
            self.dispatch()
        if self.places.stop(until):
            lib.pump_free(self.native)
        return lost
