"""A pump in the hands of a test."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sysup._native import lib
from sysup.config import StreamSpec
from sysup.streams import Losses, Pump, Sink, Source, Stream, open_sink
from sysup.streams.files import FileOptions, FilePlace
from sysup.streams.pump import Work

PATIENCE = 60.0


class House:
    """A pump, its pipes, and all that it told."""

    def __init__(self, memfd: int = -1, later: Any = None) -> None:
        self.pump = Pump(memfd, later)
        self.told: list[tuple[str, str | None]] = []
        self.lost: list[Losses] = []
        self.ended: list[Stream] = []
        self.stopped = False

    def sink(self, cls: str, **options: object) -> Sink:
        source = Source("stdout", "web", "shop")
        sink = open_sink(self.pump, StreamSpec(cls, options), source, self.tell, self.lose)
        assert isinstance(sink, Sink)
        return sink

    def file(self, path: Path, **options: object) -> Sink:
        return self.sink("FileStream", filename=str(path), **options)

    def lent(self, fd: int, **work: Any) -> Sink:
        place = FilePlace.lent(self.pump.places, fd, "lent", FileOptions())
        return Sink(place, Work(lib.FORMAT_RAW, **work), self.tell)

    def tell(self, sink: Sink, reason: str | None) -> None:
        self.told.append((sink.name, reason))

    def lose(self, sink: Sink, losses: Losses) -> None:
        self.lost.append(losses)

    def again(self, sink: Sink, fd: int, id: int, **options: Any) -> Stream:
        """A stream of another pump, by its id."""
        return self.pump.add(fd, 1, sink, wid=1, on_eof=self.ended.append, id=id, **options)

    def stream(self, sink: Sink, pid: int = 1, tail: int = 100, wid: int = 1) -> tuple[Stream, int]:
        """A stream, and the end of its pipe to write to."""
        reading, writing = os.pipe()
        stream = self.pump.add(reading, pid, sink, wid=wid, tail=tail, on_eof=self.ended.append)
        return stream, writing

    def until(self, condition: Callable[[], object]) -> None:
        """Dispatch until it holds; looks again every few milliseconds."""
        late = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < late, "waited in vain"
            select.select([self.pump], [], [], 0.005)
            self.pump.dispatch()

    def turn(self) -> None:
        """Wait until the pump's thread has looked around, and hear what it says."""
        before = self.pump.heartbeat
        self.pump.ping()
        self.until(lambda: self.pump.heartbeat > before)
        self.pump.dispatch()

    def is_quiet(self) -> bool:
        """Whether the pump's thread sleeps unless it is asked to look around."""
        before = self.pump.heartbeat
        self.turn()
        return self.pump.heartbeat == before + 1

    def pour(self, sink: Sink, data: bytes, pid: int = 1, wid: int = 1) -> Stream:
        """Write all of a process's life, and wait for its end."""
        stream, writing = self.stream(sink, pid=pid, wid=wid)
        write_all(writing, data)
        os.close(writing)
        self.until(lambda: stream.ended)
        return stream

    def park(self) -> dict[int, int]:
        """Leave all to the next one, as the end of the daemon's process does; the pipes, by the ids
        of their streams."""
        self.stopped = True
        self.pump.park(PATIENCE)
        pipes = {}
        for id, stream in self.pump._streams.items():
            pipes[id] = lib.stream_detach(stream._native)
            lib.stream_free(stream._native)
        if not self.pump.places._leaving:
            lib.pump_free(self.pump.native)
        return {id: fd for id, fd in pipes.items() if fd >= 0}

    def stop(self, timeout: float = PATIENCE) -> int:
        self.stopped = True
        return self.pump.stop(timeout)


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def write_and_close(fd: int, data: bytes) -> None:
    write_all(fd, data)
    os.close(fd)


def content(path: Path) -> bytes:
    """What is in a file, that may not be there yet."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == path:
                return True
    return False


def reason(path: Path, number: int) -> tuple[str, str]:
    return str(path), f"cannot write {path}: {os.strerror(number)}"


def backup_number(path: Path) -> int:
    """N of a file that is named path.N; 0 of the newest."""
    return int(path.suffix[1:] or 0)
