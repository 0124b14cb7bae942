"""Files, and descriptors of the daemon's own, as places: when they rotate, what is done then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sysup._native import ffi, lib
from sysup.protocol import SysupError
from sysup.streams.backups import Job
from sysup.streams.places import UINT32_MAX, Place, Places, Timer, check
from sysup.streams.schedule import Schedule

LONGEST_TIMER = 3600.0
"""Seconds after which a look at the clock is taken again: it may have been set."""


def wall() -> float:
    """Seconds since the epoch: logs are rotated by the clock on the wall."""
    return time.time()  # noqa: TID251


class FileOptions(NamedTuple):
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
        self,
        path: Any = ffi.NULL,
        fd: int = -1,
        due: tuple[int, str] | None = None,
        key: str = "",
    ) -> tuple[Any, Any]:
        """The `struct file_spec` of a path, or of a descriptor that is lent, and the memory
        that it points into; `due`: when it is rotated, and the suffix of that backup; `key`:
        `Place.lasting_key`."""
        at, suffix = due or (0, "")
        memory = ffi.new("char[]", suffix.encode()), ffi.new("char[]", os.fsencode(key))
        flags = (
            lib.SINK_BORROWED_FD * (fd >= 0)
            | lib.SINK_SYNC * (self.fsync == "interval")
            | lib.SINK_STAMPED * (self.schedule is not None)
        )
        spec = ffi.new(
            "struct file_spec *",
            {
                "path": path,
                "suffix": memory[0],
                "key": memory[1],
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
        try:
            directory, name = os.path.split(os.path.abspath(filename))
            path = os.path.join(os.path.realpath(directory), name)
            text = ffi.new("char[]", os.fsencode(path))
        except UnicodeEncodeError as error:
            reason = f"it can't be encoded as {error.encoding}"
            raise SysupError(f"cannot write to {filename!a}: {reason}") from None
        place = places.find(path)
        if isinstance(place, FilePlace):
            place.change(options)
            return place
        place = cls(places, filename, path, options)
        place._plan(place._written())
        place._open(options.spec(path=text, due=place._due, key=place.lasting_key))
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
        place.lasting_key = repr(("lent", name))  # of another process it may be another file
        place._open(options.spec(fd=fd, key=place.lasting_key))
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
            self._plan(self._written())
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

    def _plan(self, last: float | None = None) -> None:
        """Find out when the clock next asks for a rotation of what was written at `last`."""
        self._due = None
        if self._options.schedule:
            now = wall()
            self._due = self._options.schedule.next(now, last or now)
            self._await_due()

    def _await_due(self) -> None:
        if self._due:
            delay = min(max(0.0, self._due[0] - wall()), LONGEST_TIMER)
            self._after("rotate", delay, self._is_due)

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
            self._await_due()
        elif self in self.places:
            self._set()

    def _rotated(self) -> None:
        if self._options.schedule:
            self._plan()
            if self in self.places:
                self._set()
        for _, rotated in list(self._holders.values()):
            rotated()
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
        self.places.notify(self._tended_here, reason)

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
