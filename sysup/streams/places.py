"""Places that bytes go to: the native sinks, who holds them, what became of them."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Protocol

from sysup._native import ffi, lib
from sysup.streams.backups import Keeper

UINT32_MAX = 2**32 - 1

Tell = Callable[[str | None], None]
"""Told why a place fails ("cannot write ..."), and None when it works again."""


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> object: ...


class Outlet(Protocol):
    """A user of a place, as the pump knows it."""

    def lost(self) -> None:
        """Lines were left out."""

    def park(self) -> None:
        """The pump goes: free what is native."""


Later = Callable[[float, Callable[[], object]], Timer]
"""Calls a function after so many seconds: a loop's `call_later`."""


def check(rc: int) -> int:
    """The result of a function of the extension; raises OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


class Places:
    """All places of a pump, and the way for their threads to be heard.

    Attributes:
        native: the pump.
        ids: numbers for streams, outlets and sinks, none twice.
        later: see `Pump`.
        keeper: tends the backups of all files.
        outlets: by id.
    """

    def __init__(self, native: Any, later: Later | None = None) -> None:
        self.native = native
        self.ids = count(time.monotonic_ns())  # another process's, of the arena, are lower
        self.later = later
        self.keeper = Keeper()
        self.outlets: dict[int, Outlet] = {}
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
            self.outlets[id].lost()
            return
        place = self._open[id]
        if kind == lib.PUMP_SINK_CLOSED:
            self.hide(place)
            self._leaving.append(self._open.pop(id))
            place.reopened()
        else:
            place.handle(kind, error)

    def notify(self, tell: Tell | None = None, reason: str | None = None) -> None:
        """From any thread: have `tell` called in the loop's, or only look around."""
        with self._lock:
            if tell:
                self._reports.append((tell, reason))
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

    def park(self) -> None:
        """Their sinks are closed for good, though they hold something: let all go."""
        for outlet in list(self.outlets.values()):
            outlet.park()
        self._leaving += self._open.values()
        self._open.clear()
        self._shared.clear()

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
    """A native sink, those who hold it, and the number of its streams.

    Attributes:
        name: for messages.
        key: what it is shared by.
        lasting_key: what it is known by to the next process, which takes up what was on its
            way there; "": it is not.
    """

    def __init__(
        self, places: Places, name: str, key: Hashable, lasting_key: str | None = None
    ) -> None:
        self.name = name
        self.key = key
        self.lasting_key = repr(key) if lasting_key is None else lasting_key
        self.id = next(places.ids)
        self.native: Any = ffi.NULL
        self.failure: str | None = None
        self.places = places
        self._holders: dict[object, tuple[Tell, Callable[[], None]]] = {}
        self._reopening: list[Callable[[], object]] = []
        self._streams = 0

    def hold(self, holder: object, tell: Tell, rotated: Callable[[], None]) -> None:
        """It stays open until `release`; `tell` hears how it is, `rotated` of a new backup."""
        self._holders[holder] = tell, rotated

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

    def reopen(self, on_done: Callable[[], object]) -> None:
        """Open it again, and call `on_done` when that was tried, and its failure is known."""
        self._reopening.append(on_done)
        if self in self.places:
            lib.sink_reopen(self.native)
        else:
            self.reopened()

    def reopened(self) -> None:
        """It is open, or failed, or closed."""
        waiting, self._reopening = self._reopening, []
        for on_done in waiting:
            on_done()

    def handle(self, kind: int, error: int) -> None:
        """An event of the pump."""
        if kind == lib.PUMP_SINK_REOPENED:
            self.reopened()
        elif kind == lib.PUMP_SINK_RECOVERED:
            self.report(None)
        else:
            self.report(f"cannot write {self.name}: {os.strerror(error)}")

    def report(self, failure: str | None) -> None:
        self.failure = failure
        self._tell(failure)

    def _tell(self, reason: str | None) -> None:
        for tell, _ in list(self._holders.values()):
            tell(reason)

    def join(self, timeout: float) -> None:
        """Wait for the thread that reads it, if it has one."""

    def forget_keeper(self) -> None:
        """The keeper has ended, and tells nothing more."""

    def free(self) -> bool:
        """Free the sink, which is closed; False if a thread still needs it."""
        lib.sink_free(self.native)
        return True


class PythonPlace(Place):
    """An object that is called with the lines, in a thread of its own.

    The thread sleeps in C, without the GIL, until there is a batch. While the object is
    slow, its streams alone wait. What it raises is told once, with the traceback, until
    a call goes well again; the lines of that call are lost, as the object has seen them.
    Those of a call in which the daemon was killed come again.
    """

    def __init__(
        self, places: Places, name: str, target: Any, source: tuple[str, str], buffer: int = 0
    ) -> None:
        """`source`: the watcher, and "stdout" or "stderr"."""
        watcher, stream_name = source
        super().__init__(places, name, object(), repr(("class", name, watcher, stream_name)))
        self._target = target
        self._stream_name = stream_name
        self._raised = False
        self._ended = False
        native = ffi.new("struct sink **")
        key = ffi.new("char[]", os.fsencode(self.lasting_key))
        check(lib.sink_queue_new(places.native, self.id, key, buffer, native))
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
                lib.sink_queue_did(self.native, data[0] + at)
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
                self.places.notify(self.report, f"{self.name} raised:\n{traceback.format_exc()}")
        else:
            if self._raised:
                self._raised = False
                self.places.notify(self.report, None)
