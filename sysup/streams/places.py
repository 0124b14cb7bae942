"""Places that bytes go to: the native sinks, who holds them, what became of them."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from sysup._native import ffi, lib
from sysup.protocol import SysupError
from sysup.streams.backups import Job, Keeper
from sysup.streams.schedule import Schedule

UINT32_MAX = 2**32 - 1
LONGEST_TIMER = 3600.0
"""Seconds after which a look at the clock is taken again: it may have been set."""

Tell = Callable[[str | None], None]
"""Told why a place fails ("cannot write ..."), and None when it works again."""


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> object: ...


Later = Callable[[float, Callable[[], object]], Timer]
"""Calls a function after so many seconds: a loop's `call_later`."""


def check(rc: int) -> int:
    """The result of a function of the extension; raises OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def wall() -> float:
    """Seconds since the epoch: logs are rotated by the clock on the wall."""
    return time.time()  # noqa: TID251


@dataclass(frozen=True)
class FileOptions:
    """How a file is written; sizes in bytes, times in seconds.

    Attributes:
        owner, group, mode: None: as it comes.
        fsync: "never", "rotate" or "interval".
    """

    max_bytes: int = 0
    backup_count: int = 0
    refresh_time: float = 0.0
    buffer: int = 0
    owner: int | None = None
    group: int | None = None
    mode: int | None = None
    rotate_age: float = 0.0
    schedule: Schedule | None = None
    compress: str | None = None
    fsync: str = "never"
    fsync_interval: float = 1.0

    def spec(
        self, path: Any = ffi.NULL, fd: int = -1, due: tuple[int, str] | None = None
    ) -> tuple[Any, Any]:
        """The `struct file_spec` of a path, or of a descriptor that is lent, and the memory
        that it points into; `due`: when it is rotated, and the suffix of that backup."""
        at, suffix = due or (0, "")
        memory = ffi.new("char[]", suffix.encode())
        flags = (
            lib.SINK_BORROWED_FD * (fd >= 0)
            | lib.SINK_SYNC * (self.fsync == "interval")
            | lib.SINK_STAMPED * (self.schedule is not None)
        )
        spec = ffi.new(
            "struct file_spec *",
            {
                "path": path,
                "suffix": memory,
                "rotate_at": at,
                "max_bytes": self.max_bytes,
                "max_held": self.buffer,
                "owner": -1 if self.owner is None else self.owner,
                "group": -1 if self.group is None else self.group,
                "mode": -1 if self.mode is None else self.mode,
                "fd": fd,
                "flags": flags,
                "backup_count": self.backup_count,
                "rotate_age": min(round(self.rotate_age), UINT32_MAX),
                "refresh_ms": min(round(self.refresh_time * 1000), UINT32_MAX),
            },
        )
        return spec, memory


class Places:
    """All places of a pump, and the way for their threads to be heard.

    Attributes:
        native: the pump.
        ids: numbers for streams, outlets and sinks, none twice.
        later: see `Pump`.
        keeper: tends the backups of all files.
        outlets: by id, who is to hear that lines were left out.
    """

    def __init__(self, native: Any, later: Later | None = None) -> None:
        self.native = native
        self.ids = count(1)
        self.later = later
        self.keeper = Keeper()
        self.outlets: dict[int, Callable[[], None]] = {}
        self._open: dict[int, Place] = {}
        self._shared: dict[Hashable, Place] = {}
        self._leaving: list[Place] = []
        self._reports: deque[tuple[Tell, str | None]] = deque()
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
        """An event of the pump about an outlet or a sink."""
        if kind == lib.PUMP_OUTLET_LOSS:
            self.outlets[id]()
            return
        place = self._open[id]
        if kind == lib.PUMP_SINK_CLOSED:
            self.hide(place)
            self._leaving.append(self._open.pop(id))
        else:
            place.handle(kind, error)

    def notify(
        self,
        place: Place | None = None,
        reason: str | None = None,
        how: Tell | None = None,
    ) -> None:
        """From any thread: have `place` report (or do `how`), or only look around."""
        with self._lock:
            if place:
                self._reports.append((how or place.report, reason))
            if not self._stopped:
                os.eventfd_write(lib.pump_eventfd(self.native), 1)

    def attend(self) -> None:
        """Do what `notify` asked for, and free what is closed."""
        while self._reports:
            tell, reason = self._reports.popleft()
            tell(reason)
        self._leaving = [place for place in self._leaving if not place.free()]

    def reopen(self) -> None:
        for place in self._open.values():
            lib.sink_reopen(place.native)

    def stop(self, until: float) -> bool:
        """Wait for the threads, after pump_stop; whether nobody uses the pump any more."""
        if self.keeper.close(max(0.0, until - time.monotonic())):
            self.attend()  # the last that it told
            for place in self._leaving:
                place.forget_keeper()
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
        self.places = places
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
        if not self._holders and not self._streams and self.places.hide(self):
            lib.sink_close(self.native)

    def reopen(self) -> None:
        if self in self.places:
            lib.sink_reopen(self.native)

    def handle(self, kind: int, error: int) -> None:
        """An event of the pump."""
        if kind == lib.PUMP_SINK_RECOVERED:
            self.report(None)
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

    def forget_keeper(self) -> None:
        """The keeper has ended, and tells nothing more."""

    def free(self) -> bool:
        """Free the sink, which is closed; False if a thread still needs it."""
        lib.sink_free(self.native)
        return True


class FilePlace(Place):
    """A file, or a descriptor of the daemon's own."""

    def __init__(self, places: Places, name: str, key: Hashable, options: FileOptions) -> None:
        super().__init__(places, name, key)
        self._options = options
        self._due: tuple[int, str] | None = None
        self._timers: dict[str, Timer] = {}
        self._jobs = 0
        """Of the keeper, that need the sink."""

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
        place._plan()
        place._open(options.spec(path=text, due=place._due))
        place._tend()  # what an earlier daemon left to be done
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

    def _open(self, spec: tuple[Any, Any]) -> None:
        native = ffi.new("struct sink **")
        try:
            check(lib.sink_file_new(self.places.native, self.id, spec[0], native))
        except OSError as error:
            raise SysupError(f"cannot write to {self.name}: {error.strerror}") from None
        self.native = native[0]
        self.places.enter(self)

    @property
    def keeps_backups(self) -> bool:
        """Whether it is a file that is renamed when it is rotated."""
        options = self._options
        named = isinstance(self.key, str)
        return named and bool(options.backup_count or options.schedule)

    def change(self, options: FileOptions) -> None:
        """Go on with other options."""
        if options != self._options:
            self._options = options
            self._plan()
            self._set()

    def rotate(self) -> None:
        """Rotate at the next end of a line."""
        lib.sink_file_rotate(self.native)

    def _set(self) -> None:
        spec, _memory = self._options.spec(due=self._due)
        lib.sink_file_set(self.native, spec)

    def handle(self, kind: int, error: int) -> None:
        """An event of the pump."""
        if kind == lib.PUMP_SINK_ROTATED:
            self._rotated()
        elif kind == lib.PUMP_SINK_DIRTY:
            self._after("sync", self._options.fsync_interval, self._sync)
        elif kind == lib.PUMP_SINK_ROTATION_FAILED:
            self._tell(f"cannot rotate {self.name}: {os.strerror(error)}")
        elif kind == lib.PUMP_SINK_OWNER_FAILED:
            self._tell(f"cannot set owner and mode of {self.name}: {os.strerror(error)}")
        else:
            super().handle(kind, error)

    # ---- what is due though nobody writes

    def _after(self, what: str, seconds: float, function: Callable[[], object]) -> None:
        """Do it once in so many seconds; without a loop at once."""
        if timer := self._timers.pop(what, None):
            timer.cancel()
        if self.places.later:
            self._timers[what] = self.places.later(seconds, function)
        elif what == "sync":
            function()

    def _plan(self) -> None:
        """Find out when the clock next asks for a rotation."""
        self._due = None
        if self._options.schedule:
            now = wall()
            self._due = self._options.schedule.next(now, self._written() or now)
            self._after("rotate", min(max(0.0, self._due[0] - now), LONGEST_TIMER), self._is_due)

    def _written(self) -> float | None:
        """When a file that is there already was last written to."""
        try:
            status = os.stat(str(self.key))
        except OSError:
            return None
        return status.st_mtime if status.st_size else None

    def _is_due(self) -> None:
        """The pump looks at the clock itself; it only is to look though it has no line."""
        if self._due and wall() < self._due[0]:
            delay = min(self._due[0] - wall(), LONGEST_TIMER)
            self._after("rotate", delay, self._is_due)
        elif self in self.places:
            self._set()

    def _rotated(self) -> None:
        if self._options.schedule:
            now = wall()
            self._due = self._options.schedule.next(now, now)
            self._after("rotate", min(max(0.0, self._due[0] - now), LONGEST_TIMER), self._is_due)
            if self in self.places:
                self._set()
        self._tend()

    # ---- what the keeper does

    def _tend(self) -> None:
        options = self._options
        if not (options.compress or options.fsync != "never" or options.schedule):
            return
        self._jobs += 1
        job = Job(
            path=str(self.key),
            backup_count=options.backup_count,
            stamped=options.schedule is not None,
            compress=options.compress,
            fsync=options.fsync != "never",
            lock=self._names,
            done=self._tended,
        )
        self.places.keeper.tend(job)

    @contextmanager
    def _names(self) -> Iterator[None]:
        lib.sink_file_lock(self.native)
        try:
            yield
        finally:
            lib.sink_file_unlock(self.native)

    def _sync(self) -> None:
        fd = lib.sink_file_clean(self.native) if self in self.places else -1
        if fd >= 0:
            self._jobs += 1
            self.places.keeper.sync(fd, self._tended)

    def _tended(self, reason: str | None) -> None:
        """Called in the keeper's thread."""
        self.places.notify(self, reason, self._tended_here)

    def _tended_here(self, reason: str | None) -> None:
        self._jobs -= 1
        if reason:
            self._tell(reason)

    def forget_keeper(self) -> None:
        self._jobs = 0

    def free(self) -> bool:
        """Free the sink, unless the keeper needs it still."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        return not self._jobs and super().free()


class PythonPlace(Place):
    """An object that is called with the lines, in a thread of its own.

    The thread sleeps in C, without the GIL, until there is a batch. While the object is
    slow, its streams alone wait. What it raises is told once, with the traceback, until
    a call goes well again; the lines of that call are lost, as the object has seen them.
    """

    def __init__(
        self, places: Places, name: str, target: Any, stream_name: str, buffer: int = 0
    ) -> None:
        super().__init__(places, name, object())
        self._target = target
        self._stream_name = stream_name
        self._raised = False
        self._ended = False
        native = ffi.new("struct sink **")
        check(lib.sink_queue_new(places.native, self.id, buffer, native))
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
                record = ffi.cast("struct record *", data[0] + at)
                at += ffi.sizeof("struct record")
                self._deliver(record.pid, bytes(ffi.buffer(data[0] + at, record.length)))
                at += (record.length + 7) & ~7
        if hasattr(self._target, "close"):
            self._guard(self._target.close)
        self._ended = True
        self.places.notify()

    def _deliver(self, pid: int, data: bytes) -> None:
        self._guard(self._target, {"data": data, "pid": pid, "name": self._stream_name})

    def _guard(self, function: Callable[..., object], *args: object) -> None:
        """Call what a user wrote: whatever it raises stays here, and is told."""
        try:
            function(*args)
        except (Exception, SystemExit):  # noqa: BLE001
            if not self._raised:
                self._raised = True
                self.places.notify(self, f"{self.name} raised:\n{traceback.format_exc()}")
        else:
            if self._raised:
                self._raised = False
                self.places.notify(self, None)
