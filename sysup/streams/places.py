"""Places that bytes go to: the native sinks, who holds them, what became of them."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any

from sysup._native import ffi, lib
from sysup.protocol import SysupError

MAX_LINE = 65536
FILE_MODE = 0o666
"""Of a log that is created, less the daemon's umask."""

UINT32_MAX = 2**32 - 1

Tell = Callable[[str | None], None]
"""Told why a place fails ("cannot write ..."), and None when it works again."""


def check(rc: int) -> int:
    """The result of a function of the extension; raises OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


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
                "refresh_ms": min(round(self.refresh_time * 1000), UINT32_MAX),
                "max_line": min(self.max_line, UINT32_MAX),
                "mode": FILE_MODE,
            },
        )


class Places:
    """All places of a pump, and the way for their threads to be heard.

    Attributes:
        native: the pump.
        ids: numbers for streams and sinks, none twice.
    """

    def __init__(self, native: Any) -> None:
        self.native = native
        self.ids = count(1)
        self._open: dict[int, Place] = {}
        self._shared: dict[Hashable, Place] = {}
        self._leaving: list[Place] = []
        self._reports: deque[tuple[Place, str | None]] = deque()
        self._lock = threading.Lock()
        self._stopped = False

    def __len__(self) -> int:
        """How many are open or closing."""
        return len(self._open)

    def __contains__(self, place: Place) -> bool:
        return place.id in self._open

    def find(self, key: Hashable) -> Place | None:
        """The place that is shared by this key."""
        return self._shared.get(key)

    def enter(self, place: Place) -> None:
        """It has its native sink."""
        self._open[place.id] = self._shared[place.key] = place

    def hide(self, place: Place) -> bool:
        """Let nobody find it any more; whether somebody still could."""
        found = self._shared.get(place.key) is place
        if found:
            del self._shared[place.key]
        return found

    def handle(self, id: int, kind: int, error: int) -> None:
        """An event of the pump about a sink."""
        place = self._open[id]
        if kind == lib.PUMP_SINK_CLOSED:
            self.hide(place)
            self._leaving.append(self._open.pop(id))
        else:
            place.handle(kind, error)

    def notify(self, place: Place | None = None, reason: str | None = None) -> None:
        """From any thread: have `place` report, or only look around."""
        with self._lock:
            if place:
                self._reports.append((place, reason))
            if not self._stopped:
                os.eventfd_write(lib.pump_eventfd(self.native), 1)

    def attend(self) -> None:
        """Do what `notify` asked for, and free what is closed."""
        while self._reports:
            place, reason = self._reports.popleft()
            place.report(reason)
        self._leaving = [place for place in self._leaving if not place.free()]

    def reopen(self) -> None:
        for place in self._open.values():
            lib.sink_reopen(place.native)

    def stop(self, until: float) -> bool:
        """Wait for the threads, after pump_stop; whether nobody uses the pump any more."""
        for place in self._leaving:
            place.join(max(0.0, until - time.monotonic()))
        self.attend()
        with self._lock:
            self._stopped = True
        return not self._leaving


class Place:
    """A native sink, those who hold it, and the number of its streams."""

    def __init__(self, places: Places, name: str, key: Hashable) -> None:
        self.name = name
        self.key = key
        self.id = next(places.ids)
        self.native: Any = ffi.NULL
        self.failure: str | None = None
        self._places = places
        self._holders: dict[object, Tell] = {}
        self._streams = 0

    def hold(self, holder: object, tell: Tell) -> None:
        """It stays open until `release`; `tell` hears how it is."""
        self._holders[holder] = tell

    def is_held_by(self, holder: object) -> bool:
        return holder in self._holders

    def release(self, holder: object) -> None:
        if self._holders.pop(holder, None):
            self._close_if_idle()

    def enter(self) -> None:
        """A stream goes here."""
        self._streams += 1

    def leave(self) -> None:
        """A stream has ended."""
        self._streams -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        """Only now, so that who opens it again meanwhile finds it and shares it."""
        if not self._holders and not self._streams and self._places.hide(self):
            lib.sink_close(self.native)

    def reopen(self) -> None:
        if self in self._places:
            lib.sink_reopen(self.native)

    def handle(self, kind: int, error: int) -> None:
        """An event of the pump."""
        if kind == lib.PUMP_SINK_RECOVERED:
            self.report(None)
        elif kind == lib.PUMP_SINK_ROTATION_FAILED:
            self._tell(f"cannot rotate {self.name}: {os.strerror(error)}")
        else:
            self.report(f"cannot write {self.name}: {os.strerror(error)}")

    def report(self, failure: str | None) -> None:
        self.failure = failure
        self._tell(failure)

    def _tell(self, reason: str | None) -> None:
        for tell in list(self._holders.values()):
            tell(reason)

    def join(self, timeout: float) -> None:
        """Wait for the thread that reads it, if it has one."""

    def free(self) -> bool:
        """Free the sink, which is closed; False if a thread still needs it."""
        lib.sink_free(self.native)
        return True


class FilePlace(Place):
    """A file, or a descriptor of the daemon's own."""

    def __init__(self, places: Places, name: str, key: Hashable, options: FileOptions) -> None:
        super().__init__(places, name, key)
        self._options = options

    @classmethod
    def named(cls, places: Places, filename: str, options: FileOptions) -> FilePlace:
        """The place of a path; of those who share it the newest says how it is written.

        The directory is resolved, so that two names of it are one; the name itself is not,
        for whether to follow a link there is a question of who made it (file.c).
        """
        directory, name = os.path.split(os.path.abspath(filename))
        path = os.path.join(os.path.realpath(directory), name)
        place = places.find(path)
        if isinstance(place, FilePlace):
            place.change(options)
            return place
        place = cls(places, filename, path, options)
        text = ffi.new("char[]", os.fsencode(path))
        place._open(options.spec(path=text))
        return place

    @classmethod
    def lent(cls, places: Places, fd: int, name: str, options: FileOptions) -> FilePlace:
        """The place behind a descriptor; stdout and stderr are one where they lead to one."""
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise SysupError(f"cannot write to {name}: {error.strerror}") from None
        key = (status.st_dev, status.st_ino)
        place = places.find(key)
        if isinstance(place, FilePlace):
            return place
        place = cls(places, name, key, options)
        place._open(options.spec(fd=fd))
        return place

    def _open(self, spec: Any) -> None:
        native = ffi.new("struct sink **")
        try:
            check(lib.sink_file_new(self._places.native, self.id, spec, native))
        except OSError as error:
            raise SysupError(f"cannot write to {self.name}: {error.strerror}") from None
        self.native = native[0]
        self._places.enter(self)

    def change(self, options: FileOptions) -> None:
        if options != self._options:
            self._options = options
            lib.sink_file_set(self.native, options.spec())


class PythonPlace(Place):
    """An object that is called with the lines, in a thread of its own.

    The thread sleeps in C, without the GIL, until there is a batch. While the object is
    slow, its streams alone wait. What it raises is told once, with the traceback, until
    a call goes well again; the lines of that call are lost, as the object has seen them.
    """

    def __init__(self, places: Places, name: str, target: Any, stream_name: str) -> None:
        super().__init__(places, name, object())
        self._target = target
        self._stream_name = stream_name
        self._raised = False
        self._ended = False
        native = ffi.new("struct sink **")
        check(lib.sink_queue_new(places.native, self.id, MAX_LINE, native))
        self.native = native[0]
        places.enter(self)
        self._thread = threading.Thread(target=self._run, name=f"sysup-{name}", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread; one that a user's code holds for ever keeps its memory."""
        self._thread.join(timeout)

    def free(self) -> bool:
        """Free the sink when the thread has ended."""
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
        self._places.notify()

    def _deliver(self, pid: int, data: bytes) -> None:
        self._guard(self._target, {"data": data, "pid": pid, "name": self._stream_name})

    def _guard(self, function: Callable[..., object], *args: object) -> None:
        """Call what a user wrote: whatever it raises stays here, and is told."""
        try:
            function(*args)
        except (Exception, SystemExit):  # noqa: BLE001
            if not self._raised:
                self._raised = True
                self._places.notify(self, f"{self.name} raised:\n{traceback.format_exc()}")
        else:
            if self._raised:
                self._raised = False
                self._places.notify(self, None)
