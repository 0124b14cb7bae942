"""Output of the processes: pipes, what reads them, and where it goes.

The pump is a thread in C (pump.h has the theory); no byte passes through Python but those
for a class written in Python. Here live the names of its streams and sinks:

- a `Stream` is one pipe, from `Pump.add` to the call of its `on_eof`;
- a `Sink` is one user's hold on a place that bytes go to. Two users of one file, or of
  the daemon's stdout, hold one place, so that lines stay whole and one rotation is one;
- the place, a `_Place`, closes when nobody holds it and its last stream has ended.

All methods belong to the daemon's loop thread. Events of the pump come through one
descriptor: `loop.add_reader(pump.fileno(), pump.dispatch)`. Callbacks must not raise.
"""

from __future__ import annotations

import importlib
import os
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, Literal

from sysup._native import ffi, lib
from sysup.config import StreamSpec
from sysup.protocol import SysupError

StreamName = Literal["stdout", "stderr"]
OnEof = Callable[["Stream"], None]
OnState = Callable[["Sink", str | None], None]
"""Told why a sink fails ("cannot write ..."), and None when it works again."""

MAX_LINE = 65536
FILE_MODE = 0o666
"""Of a log that is created, less the daemon's umask."""
COLORS: Final = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")
FIRST_COLOR = 31
"""The terminal's number of the first of them (ECMA-48, SGR)."""
DAY_TIME = "%Y-%m-%d %H:%M:%S"


def _check(rc: int) -> int:
    """The result of a function of the extension; raises OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


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


@dataclass(frozen=True)
class FileOptions:
    """How a file is written; sizes in bytes, times in seconds."""

    max_bytes: int = 0
    backup_count: int = 0
    refresh_time: float = 0.0
    max_line: int = MAX_LINE

    def spec(self, path: Any = ffi.NULL, fd: int = -1) -> Any:
        """The `struct file_spec` of a path, or of a descriptor that is lent."""
        return ffi.new(
            "struct file_spec *",
            {
                "path": path,
                "fd": fd,
                "flags": lib.SINK_BORROWED_FD if fd >= 0 else 0,
                "max_bytes": self.max_bytes,
                "backup_count": self.backup_count,
                "refresh_ms": round(self.refresh_time * 1000),
                "max_line": self.max_line,
                "mode": FILE_MODE,
            },
        )


class Stream:
    """A pipe that is being read.

    Attributes:
        id: a number that the pump never gives again.
        pid: of the process that writes to it.
        ended: whether all that came is written, and the pipe closed.
        error: errno of the read that ended it; 0 at the end of the file.
    """

    def __init__(self, id: int, pid: int, place: _Place, tail: int, on_eof: OnEof | None) -> None:
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

    def __init__(self, place: _Place, style: Style | None, on_state: OnState | None) -> None:
        self.name = place.name
        self._place = place
        self._style = style
        self._on_state = on_state
        place.hold(self)

    @property
    def failure(self) -> str | None:
        """Why nothing can be written there now, or None. The processes wait meanwhile."""
        return self._place.failure

    def reopen(self) -> None:
        """Open the file again by its name, at once."""
        if self._place.is_open:
            lib.sink_reopen(self._place.native)

    def close(self) -> None:
        """Give it up; streams that were added to it are still written to their end."""
        self._place.release(self)

    def _tell(self, reason: str | None) -> None:
        if self._on_state:
            self._on_state(self, reason)


class _Place:
    """What sinks hold: the native sink, its holders and its streams."""

    def __init__(self, pump: Pump, name: str, key: Hashable) -> None:
        self.name = name
        self.id = next(pump.ids)
        self.native: Any = ffi.NULL
        self.failure: str | None = None
        self._pump = pump
        self._key = key
        self._sinks: list[Sink] = []
        self._streams = 0

    def opened(self, native: Any) -> None:
        self.native = native
        self._pump.places[self.id] = self
        self._pump.shared[self._key] = self

    @property
    def is_open(self) -> bool:
        """Whether the native sink is there; it may be closing."""
        return self.id in self._pump.places

    def is_held_by(self, sink: Sink) -> bool:
        return sink in self._sinks

    def hold(self, sink: Sink) -> None:
        self._sinks.append(sink)

    def release(self, sink: Sink) -> None:
        if sink in self._sinks:
            self._sinks.remove(sink)
            self._close_if_idle()

    def enter(self) -> None:
        self._streams += 1

    def leave(self) -> None:
        self._streams -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        """Only now, so that who opens it again meanwhile finds it and shares it."""
        if not self._sinks and not self._streams and self._unshare():
            lib.sink_close(self.native)

    def _unshare(self) -> bool:
        """Let nobody find it any more; whether somebody still could."""
        found = self._pump.shared.get(self._key) is self
        if found:
            del self._pump.shared[self._key]
        return found

    def handle(self, kind: int, error: int) -> None:
        """An event of the pump."""
        if kind == lib.PUMP_SINK_CLOSED:
            del self._pump.places[self.id]
            self._unshare()
            self.closed()
        elif kind == lib.PUMP_SINK_RECOVERED:
            self.report(None)
        elif kind == lib.PUMP_SINK_ROTATION_FAILED:
            self._tell(f"cannot rotate {self.name}: {os.strerror(error)}")
        else:
            self.report(f"cannot write {self.name}: {os.strerror(error)}")

    def closed(self) -> None:
        lib.sink_free(self.native)

    def report(self, failure: str | None) -> None:
        self.failure = failure
        self._tell(failure)

    def _tell(self, reason: str | None) -> None:
        for sink in list(self._sinks):
            sink._tell(reason)


class _File(_Place):
    """A file, or a descriptor of the daemon's own."""

    def __init__(self, pump: Pump, name: str, key: Hashable, options: FileOptions) -> None:
        super().__init__(pump, name, key)
        self._options = options

    @classmethod
    def named(cls, pump: Pump, filename: str, options: FileOptions) -> _File:
        """The place of a path; of those who share it the newest says how it is written.

        The directory is resolved, so that two names of it are one; the name itself is not,
        for whether to follow a link there is a question of who made it (file.c).
        """
        directory, name = os.path.split(os.path.abspath(filename))
        path = os.path.join(os.path.realpath(directory), name)
        place = pump.shared.get(path)
        if isinstance(place, _File):
            place.change(options)
            return place
        place = cls(pump, filename, path, options)
        text = ffi.new("char[]", os.fsencode(path))
        place._open(options.spec(path=text))
        return place

    @classmethod
    def lent(cls, pump: Pump, fd: int, name: str, options: FileOptions) -> _File:
        """The place behind a descriptor; stdout and stderr are one where they lead to one."""
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise SysupError(f"cannot write to {name}: {error.strerror}") from None
        key = (status.st_dev, status.st_ino)
        place = pump.shared.get(key)
        if isinstance(place, _File):
            return place
        place = cls(pump, name, key, options)
        place._open(options.spec(fd=fd))
        return place

    def _open(self, spec: Any) -> None:
        native = ffi.new("struct sink **")
        try:
            _check(lib.sink_file_new(self._pump.native, self.id, spec, native))
        except OSError as error:
            raise SysupError(f"cannot write to {self.name}: {error.strerror}") from None
        self.opened(native[0])

    def change(self, options: FileOptions) -> None:
        if options != self._options:
            self._options = options
            lib.sink_file_set(self.native, options.spec())


class _Python(_Place):
    """An object that is called with the lines, in a thread of its own.

    The thread sleeps in C, without the GIL, until there is a batch. While the object is
    slow, its streams alone wait. What it raises is told once, with the traceback, until
    a call goes well again; the lines of that call are lost, as the object has seen them.
    """

    def __init__(self, pump: Pump, name: str, target: Any, stream_name: StreamName) -> None:
        super().__init__(pump, name, object())
        self._target = target
        self._stream_name = stream_name
        self._raised = False
        self._ended = False
        native = ffi.new("struct sink **")
        _check(lib.sink_queue_new(pump.native, self.id, MAX_LINE, native))
        self.opened(native[0])
        self._thread = threading.Thread(target=self._run, name=f"sysup-{name}", daemon=True)
        self._thread.start()

    def closed(self) -> None:
        self._pump.leaving.append(self)

    def join(self, timeout: float) -> None:
        """Wait for the thread; one that a user's code holds for ever keeps its memory."""
        self._thread.join(timeout)

    def free(self) -> bool:
        """Free the sink if the thread needs it no more."""
        if self._ended:
            self._thread.join()
            lib.sink_free(self.native)
        return self._ended

    def _run(self) -> None:
        data = ffi.new("char **")
        while (length := lib.sink_queue_take(self.native, data, -1)) >= 0:
            at = 0
            while at < length:
                record = ffi.cast("struct queue_record *", data[0] + at)
                at += ffi.sizeof("struct queue_record")
                self._deliver(record.pid, bytes(ffi.buffer(data[0] + at, record.length)))
                at += (record.length + 7) & ~7
        if hasattr(self._target, "close"):
            self._guard(self._target.close)
        self._ended = True
        self._pump.notify()

    def _deliver(self, pid: int, data: bytes) -> None:
        self._guard(self._target, {"data": data, "pid": pid, "name": self._stream_name})

    def _guard(self, function: Callable[..., object], *args: object) -> None:
        """Call what a user wrote: whatever it raises stays here, and is told."""
        try:
            function(*args)
        except (Exception, SystemExit):  # noqa: BLE001
            if not self._raised:
                self._raised = True
                self._pump.notify(self, f"{self.name} raised:\n{traceback.format_exc()}")
        else:
            if self._raised:
                self._raised = False
                self._pump.notify(self, None)


class Pump:
    """The thread that reads the pipes; one of a daemon."""

    def __init__(self) -> None:
        native = ffi.new("struct pump **")
        _check(lib.pump_new(native))
        self.native = native[0]
        self.ids = count(1)
        self.places: dict[int, _Place] = {}
        self.shared: dict[Hashable, _Place] = {}
        self.leaving: list[_Python] = []
        self._streams: dict[int, Stream] = {}
        self._events = ffi.new("struct pump_event[]", 256)
        self._reports: deque[tuple[_Place, str | None]] = deque()
        self._lock = threading.Lock()
        self._stopped = False

    def fileno(self) -> int:
        """A descriptor that is readable while `dispatch` has something to do."""
        return lib.pump_eventfd(self.native)

    def dispatch(self) -> None:
        """Call the callbacks of what has happened, at most 256 of them."""
        taken = lib.pump_take(self.native, self._events, len(self._events))
        for event in self._events[0:taken]:
            if event.kind == lib.PUMP_STREAM_EOF:
                self._streams.pop(event.id)._end(event.error)
            else:
                self.places[event.id].handle(event.kind, event.error)
        while self._reports:
            place, reason = self._reports.popleft()
            place.report(reason)
        self.leaving = [place for place in self.leaving if not place.free()]

    def notify(self, place: _Place | None = None, reason: str | None = None) -> None:
        """From any thread: have `place` report, or only look around."""
        with self._lock:
            if place:
                self._reports.append((place, reason))
            if not self._stopped:
                os.eventfd_write(lib.pump_eventfd(self.native), 1)

    def add(
        self, fd: int, pid: int, sink: Sink, *, tail: int = 0, on_eof: OnEof | None = None
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
        stream = Stream(next(self.ids), pid, place, tail, on_eof)
        style, _memory = sink._style.of(pid) if sink._style else (ffi.NULL, [])
        native = ffi.new("struct stream **")
        _check(lib.pump_add(self.native, fd, stream.id, pid, place.native, style, tail, native))
        stream._native = native[0]
        self._streams[stream.id] = stream
        place.enter()
        return stream

    def reopen(self) -> None:
        """Open every file again by its name, as after logrotate."""
        for place in self.places.values():
            lib.sink_reopen(place.native)

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
        lost = lib.pump_stop(self.native, round(timeout * 1000))
        if lost < 0:
            return 0  # it hangs in a system call: nothing is known, nothing can be freed
        while self._streams or self.places:
            self.dispatch()
        for place in self.leaving:
            place.join(max(0.0, until - time.monotonic()))
        self.dispatch()
        with self._lock:
            self._stopped = True
        if not self.leaving:
            lib.pump_free(self.native)
        return lost


def _load(cls: str, options: dict[str, object]) -> Any:
    """An object of a user's class; raises SysupError, whatever the user's code raises."""
    module, _, name = cls.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**options)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SysupError(f"cannot load stream class {cls}: {reason}") from error


def open_sink(
    pump: Pump,
    spec: StreamSpec | None,
    stream_name: StreamName,
    on_state: OnState | None = None,
) -> Sink:
    """Where a stream of a watcher goes; to be closed by `Sink.close`.

    Args:
        spec: None is the daemon's own stdout or stderr.
        on_state: told when the sink fails, and when it works again.

    Raises SysupError if it can never work: an unknown class, one that can't be loaded, a
    missing option. A file that can't be opened is no such case: its failure is told, its
    processes wait, and it is tried again.
    """
    if spec is None:
        fd = 1 if stream_name == "stdout" else 2
        return Sink(_File.lent(pump, fd, stream_name, FileOptions()), None, on_state)
    options: dict[str, Any] = dict(spec.options)
    if "." in spec.cls:
        target = _load(spec.cls, options)
        return Sink(_Python(pump, spec.cls, target, stream_name), None, on_state)
    form = FileOptions(
        refresh_time=options.get("refresh_time") or 0.0, max_line=options.get("max_line", MAX_LINE)
    )
    time_format = options.get("time_format")
    if spec.cls == "FileStream":
        if not options.get("filename"):
            raise SysupError(f"cannot open {stream_name}_stream: FileStream needs a filename")
        form = replace(
            form,
            max_bytes=options.get("max_bytes", 0),
            backup_count=options.get("backup_count", 0),
        )
        style = Style(time_format) if time_format else None
        return Sink(_File.named(pump, options["filename"], form), style, on_state)
    if spec.cls == "StdoutStream":
        return Sink(_File.lent(pump, 1, "stdout", form), None, on_state)
    if spec.cls == "FancyStdoutStream":
        color = COLORS.index(options.get("color") or random.choice(COLORS)) + FIRST_COLOR
        style = Style(time_format or DAY_TIME, f"\033[{color}m", "\033[0m")
        return Sink(_File.lent(pump, 1, "stdout", form), style, on_state)
    raise SysupError(f"cannot open {stream_name}_stream: no such class: {spec.cls}")
