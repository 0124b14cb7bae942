"""A pump that goes on where another one, or another process, has ended."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sysup.streams import Pump
from sysup.streams.pump import Orphan
from tests.streams.house import House, content, write_all, write_and_close


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("arena")
    yield fd
    os.close(fd)


class Houses:
    """One after the other, with one arena."""

    def __init__(self, memfd: int) -> None:
        self._memfd = memfd
        self._all: list[House] = []

    def next(self) -> House:
        self._all.append(House(memfd=self._memfd))
        return self._all[-1]

    def stop(self) -> None:
        for house in self._all:
            if not house.stopped:
                assert house.stop() == 0


@pytest.fixture
def houses(house: House, memfd: int) -> Iterator[Houses]:
    """After `house`, which looks for what is left open."""
    houses = Houses(memfd)
    yield houses
    houses.stop()


FORMS: list[dict[str, Any]] = [
    {},
    {"format": "prefix"},
    {"time_format": "%H"},
    {"format": "json"},
    {"select": ["+*"]},
]


@pytest.mark.parametrize("options", FORMS)
def test_a_line_goes_on(houses: Houses, tmp_path: Path, options: dict[str, Any]) -> None:
    house = houses.next()
    sink = house.file(tmp_path / "log", **options)
    stream, writing = house.stream(sink)
    write_all(writing, b"one\ntw")
    house.until(lambda: stream.bytes_read == 6 and b"one" in content(tmp_path / "log"))
    pipes = house.park()
    assert list(pipes) == [stream.id]
    assert stream.bytes_read == 6

    house = houses.next()
    again = house.again(house.file(tmp_path / "log", **options), pipes[stream.id], stream.id)
    assert again.bytes_read == 6
    assert house.pump.orphans() == []
    write_and_close(writing, b"o\nthree\n")
    house.until(lambda: again.ended)
    assert again.bytes_read == 14
    lines = content(tmp_path / "log").split(b"\n")
    assert len(lines) == 4
    for line, text in zip(lines, (b"one", b"two", b"three", b""), strict=True):
        assert text in line


def test_what_could_not_be_written_is(houses: Houses, tmp_path: Path) -> None:
    house = houses.next()
    sink = house.file(tmp_path / "gone" / "log", on_full="drop")
    stream, writing = house.stream(sink)
    write_all(writing, b"a whole line\nand a part")
    house.until(lambda: stream.bytes_read == 23)
    pipes = house.park()

    house = houses.next()
    assert house.pump.orphans() == [
        Orphan(stream.id, "", 10),
        Orphan(None, repr(str(tmp_path / "gone" / "log")), 13),
    ]
    (tmp_path / "gone").mkdir()
    sink = house.file(tmp_path / "gone" / "log", on_full="drop")
    house.until(lambda: content(tmp_path / "gone" / "log") == b"a whole line\n")
    assert house.pump.orphans() == [Orphan(stream.id, "", 10)]
    again = house.again(sink, pipes[stream.id], stream.id)
    os.close(writing)
    house.until(lambda: again.ended)
    assert content(tmp_path / "gone" / "log") == b"a whole line\nand a part"


def test_nobody_comes_for_it(houses: Houses, tmp_path: Path) -> None:
    house = houses.next()
    stream, writing = house.stream(house.file(tmp_path / "gone" / "log", on_full="drop"))
    write_and_close(writing, b"line\nrest")
    house.until(lambda: stream.bytes_read == 9)
    house.turn()
    for fd in house.park().values():
        os.close(fd)
    for _ in range(3):  # it waits for as long as it takes
        house = houses.next()
        assert sum(orphan.size for orphan in house.pump.orphans()) == 9
        assert house.stop() == 0


def test_the_end_of_a_stream_that_is_gone(houses: Houses, tmp_path: Path) -> None:
    """What was its unfinished line is written when it is added with an empty pipe."""
    house = houses.next()
    sink = house.file(tmp_path / "log", format="prefix")
    stream, writing = house.stream(sink, pid=7)
    write_all(writing, b"rest")
    house.until(lambda: stream.bytes_read == 4)
    os.close(house.park()[stream.id])
    os.close(writing)

    house = houses.next()
    [orphan] = house.pump.orphans()
    assert orphan == Orphan(stream.id, "", 4)
    reading, writing = os.pipe()
    os.close(writing)
    again = house.again(house.file(tmp_path / "log", format="prefix"), reading, stream.id)
    house.until(lambda: again.ended)
    assert content(tmp_path / "log") == b"web.1[1]: rest\n"


def test_two_streams_do_not_mix(houses: Houses, tmp_path: Path) -> None:
    """A line longer than max_line is in the file in part; another's line comes between."""
    house = houses.next()
    sink = house.file(tmp_path / "log", max_line=100)
    (one, writing), (two, other) = house.stream(sink), house.stream(sink)
    write_all(writing, b"x" * 150)
    house.until(lambda: content(tmp_path / "log") == b"x" * 150)
    pipes = house.park()

    house = houses.next()
    sink = house.file(tmp_path / "log", max_line=100)
    streams = [house.again(sink, pipes[stream.id], stream.id) for stream in (one, two)]
    write_and_close(other, b"other\n")
    house.until(lambda: streams[1].ended)
    write_and_close(writing, b"yy\n")
    house.until(lambda: streams[0].ended)
    assert content(tmp_path / "log") == b"x" * 150 + b"\nother\nyy\n"


def test_it_is_the_same_line_to_go_on_with(houses: Houses, tmp_path: Path) -> None:
    house = houses.next()
    stream, writing = house.stream(house.file(tmp_path / "log", max_line=100))
    write_all(writing, b"x" * 150)
    house.until(lambda: content(tmp_path / "log") == b"x" * 150)
    pipes = house.park()

    house = houses.next()
    sink = house.file(tmp_path / "log", max_line=100)
    again = house.again(sink, pipes[stream.id], stream.id)
    write_and_close(writing, b"yy\n")
    house.until(lambda: again.ended)
    assert content(tmp_path / "log") == b"x" * 150 + b"yy\n"


def test_losses_are_counted_on(houses: Houses, tmp_path: Path) -> None:
    house = houses.next()
    options: dict[str, Any] = {"on_full": "drop", "buffer": 1}
    stream, writing = house.stream(house.file(tmp_path / "gone" / "log", **options))
    for n in range(3):
        write_all(writing, b"line\n")
        house.until(lambda n=n: stream.bytes_read == 5 * (n + 1))  # type: ignore[misc]
    house.until(lambda: stream.losses.dropped_lines == 2)
    pipes = house.park()

    house = houses.next()
    again = house.again(
        house.file(tmp_path / "gone" / "log", **options), pipes[stream.id], stream.id
    )
    assert again.losses == stream.losses
    (tmp_path / "gone").mkdir()
    write_and_close(writing, b"end\n")
    house.until(lambda: again.ended)


class Slow:
    """Takes nothing until it is let."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def __call__(self, record: dict[str, Any]) -> None:
        self.got.append(record["data"])


def test_a_class_of_python(houses: Houses, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Slow()
    monkeypatch.setattr("tests.streams.test_restore.Slow", lambda: target)
    house = houses.next()
    stream, writing = house.stream(house.sink("tests.streams.test_restore.Slow"))
    write_all(writing, b"one\ntw")
    house.until(lambda: target.got == [b"one\n"])
    pipes = house.park()

    house = houses.next()
    again = house.again(house.sink("tests.streams.test_restore.Slow"), pipes[stream.id], stream.id)
    write_and_close(writing, b"o\n")
    house.until(lambda: again.ended and b"two\n" in target.got)
    house.stop()
    assert b"".join(target.got) == b"one\ntwo\n"


def as_it_is(memfd: int) -> int:
    """What a process that is killed now leaves."""
    copy, at, size = os.memfd_create("copy"), 0, os.fstat(memfd).st_size
    os.ftruncate(copy, size)
    with contextlib.suppress(OSError):  # ENXIO: nothing follows
        while at < size:
            at = os.lseek(memfd, at, os.SEEK_DATA)
            end = os.lseek(memfd, at, os.SEEK_HOLE)
            os.pwrite(copy, os.pread(memfd, end - at, at), at)
            at = end
    return copy


class Gate(Slow):
    """Waits in each call until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.on = threading.Semaphore(0)

    def __call__(self, record: dict[str, Any]) -> None:
        super().__call__(record)
        self.on.acquire()


def test_a_kill_in_a_call(memfd: int, houses: Houses, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other calls have had does not come again."""
    gate, target = Gate(), Slow()
    monkeypatch.setattr("tests.streams.test_restore.Slow", lambda: gate)
    house = houses.next()
    sink = house.sink("tests.streams.test_restore.Slow")
    (one, writing), (two, writing_too) = house.stream(sink), house.stream(sink)
    write_all(writing, b"in hand\n")
    house.until(lambda: gate.got)
    write_all(writing, b"waits\n")
    house.until(lambda: one.bytes_read == 14)
    house.turn()
    write_all(writing, b"gathered\n")  # in one batch, as two records
    write_all(writing_too, b"gathered too\n")
    house.until(lambda: one.bytes_read == 23 and two.bytes_read == 13)
    gate.on.release(3)
    house.until(lambda: len(gate.got) == 4)
    copy = as_it_is(memfd)
    gate.on.release()
    for fd in (writing, writing_too):
        os.close(fd)

    monkeypatch.setattr("tests.streams.test_restore.Slow", lambda: target)
    other = House(copy)
    os.close(copy)
    other.sink("tests.streams.test_restore.Slow")
    other.until(lambda: target.got)
    assert other.stop() == 0
    assert gate.got[:2] == [b"in hand\n", b"waits\n"]
    assert sorted(gate.got[2:]) == [b"gathered\n", b"gathered too\n"]
    assert target.got == gate.got[3:]


def test_a_tail_is_the_new_ones_own(houses: Houses, tmp_path: Path) -> None:
    house = houses.next()
    stream, writing = house.stream(house.file(tmp_path / "log"))
    write_all(writing, b"x" * 1000 + b"\n")
    house.until(lambda: stream.bytes_read == 1001)
    pipes = house.park()

    house = houses.next()
    again = house.again(house.file(tmp_path / "log"), pipes[stream.id], stream.id, tail=100)
    assert again.tail_at() == (b"", 1001)
    write_and_close(writing, b"new\n")
    house.until(lambda: again.ended)
    assert again.tail_at() == (b"new\n", 1005)


def test_what_is_no_arena(house: House, memfd: int) -> None:
    os.write(memfd, b"something else")
    with pytest.raises(OSError, match=os.strerror(errno.EPROTO)):
        Pump(memfd)
