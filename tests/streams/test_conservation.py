"""Whatever befalls the files: bytes in are bytes out, and those that were left out are counted.

Each line begins with its writer and number, so where it got to can be told; a line longer than
`max_line` goes on with the digit of its writer alone, so its pieces can be found again. Files
that are taken away are kept open, lest what was written there after be overlooked.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysup.config.streams import Rate
from sysup.streams import Stream
from tests.streams.house import House, write_and_close

MAX_LINE = 1000
RECORD = re.compile(rb"sysup: .*?(\d+) lines?")
HEAD = re.compile(rb"(\d):(\d{5}):")
HEAD_SIZE = 8


class Writer:
    """One end of a pipe; what does not fit waits here, so that the test does not.

    Attributes:
        lines: all that it was told to write.
        is_last_ended: whether the last of them has an end.
    """

    def __init__(self, number: int, house: House, sink: object) -> None:
        self.number = number
        self.stream, self._fd = house.stream(sink, pid=number + 1)  # type: ignore[arg-type]
        os.set_blocking(self._fd, False)
        self.lines: list[bytes] = []
        self.is_last_ended = True
        self._waiting = b""
        self._over = False
        self.is_done = False

    def write(self, size: int, filler: bytes, ended: bool) -> None:
        """A line of about `size` bytes, the last one if it has no end."""
        if self._over:
            return
        head = b"%d:%05d:" % (self.number, len(self.lines))
        if HEAD_SIZE + size > MAX_LINE:
            line = head + b"%d" % self.number * size
        else:
            line = head + (filler * size)[:size]
        self.lines.append(line)
        self.is_last_ended = ended
        self._waiting += line + b"\n" * ended
        self._over = not ended
        self.push()

    def push(self) -> None:
        """Write what fits; close the pipe after what was to be the last."""
        with suppress(BlockingIOError):
            while self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        if self._over and not self._waiting and not self.is_done:
            os.close(self._fd)
            self.is_done = True

    def finish(self) -> bool:
        """Close it as soon as all is written; whether that was so."""
        self._over = True
        self.push()
        return self.is_done

    def found(self, files: list[list[bytes]]) -> list[bytes]:
        """Its lines, put together from their pieces in files of which the order is unknown."""
        lines: dict[int, bytes] = {}
        loose = 0
        spans = []
        for rows in files:
            numbers: list[int] = []
            for row in rows:
                if head := HEAD.match(row):
                    numbers.append(int(head[2]))
                    assert numbers[-1] not in lines, "twice"
                    lines[numbers[-1]] = row
                elif numbers:
                    lines[numbers[-1]] += row
                else:
                    loose += len(row)
            assert numbers == sorted(numbers), "out of order"
            spans += [(numbers[0], numbers[-1])] if numbers else []
        spans.sort()
        assert all(a[1] < b[0] for a, b in pairwise(spans)), "older lines in a newer file"
        for number in lines:
            short = min(len(self.lines[number]) - len(lines[number]), loose)
            lines[number] += b"%d" % self.number * short
            loose -= short
        assert loose == 0, "more than was written"
        return [lines[number] for number in sorted(lines)]


class Disk:
    """The directory of a log, and all that can go wrong in it."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._home = base / "home"
        self._home.mkdir()
        self.log = self._home / "log"
        self._numbers = count()
        self._gone: list[int] = []

    def befall(self, fault: str) -> None:
        with suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
            getattr(self, fault)()

    def rename(self) -> Path:
        new = self._base / f"moved{next(self._numbers)}"
        if self.log.is_dir():
            raise FileNotFoundError
        self.log.rename(new)
        return new

    def remove(self) -> None:
        moved = self.rename()
        self._gone.append(os.open(moved, os.O_RDONLY | os.O_CLOEXEC))
        moved.unlink()

    def take_away(self) -> None:
        if not (self._base / "away").exists():
            self._home.rename(self._base / "away")

    def give_back(self) -> None:
        (self._base / "away").rename(self._home)

    def obstruct(self) -> None:
        self.rename()
        self.log.mkdir()

    def clear(self) -> None:
        self.log.rmdir()

    def fill(self) -> None:
        with (self._base / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(b"." * 4096)

    def free(self) -> None:
        (self._base / "filler").unlink()

    def heal(self) -> None:
        for cure in ("give_back", "clear", "free"):
            self.befall(cure)

    def contents(self) -> Iterator[bytes]:
        """Of all files that ever were."""
        for path in self._base.rglob("*"):
            if path.is_file():
                yield path.read_bytes()
        for fd in self._gone:
            with os.fdopen(fd, "rb") as gone:
                yield gone.read()


def rows_of(contents: Iterator[bytes]) -> tuple[dict[int, list[list[bytes]]], int]:
    """What each writer has in each file; the sum of what the records of loss tell."""
    parts: dict[int, list[list[bytes]]] = {}
    told = 0
    for data in contents:
        pieces: dict[int, list[bytes]] = {}
        for row in data.split(b"\n"):
            if record := RECORD.match(row):
                told += int(record[1])
            elif row.strip(b"."):  # all else is what fills the disk
                head = HEAD.match(row)
                assert head or not row.strip(row[:1]), f"torn: {row[:80]!r}"
                pieces.setdefault(row[0] - ord("0"), []).append(row)
        for writer, rows in pieces.items():
            parts.setdefault(writer, []).append(rows)
    return parts, told


fillers = st.binary(min_size=1, max_size=9).map(lambda data: data.replace(b"\n", b"\0"))
SIZES = (0, 1, 10, 10, 100, MAX_LINE - HEAD_SIZE, MAX_LINE, 5000, 70_000)
SHORT = (0, 1, 10, 100, MAX_LINE // 2)
MOVED = ("remove", "rename", "take_away", "give_back", "obstruct", "clear")
FULL = ("fill", "free")
"""Not together with MOVED: of a line that the disk took in part, the rest is in the new file."""
MOVES = ("reopen", "reopen", "rotate", "turn", "turn", "turn")

Write = tuple[int, int, bytes, int, bool]
"""Writer, size, filler, how many lines, whether the last one has an end."""


def plans(sizes: Sequence[int], most: int, moves: Sequence[str]) -> st.SearchStrategy[list[Any]]:
    """What is done, in turn: writes of up to `most` lines, and faults."""
    ended = st.sampled_from([True] * 9 + [False])
    writes = st.tuples(
        st.integers(0, 5), st.sampled_from(sizes), fillers, st.integers(1, most), ended
    )
    return st.lists(writes | st.sampled_from(moves), max_size=40)


def trouble(sizes: Sequence[int], most: int) -> st.SearchStrategy[list[Any]]:
    """Plans with faults."""
    return plans(sizes, most, MOVED + MOVES) | plans(sizes, most, FULL + MOVES)


class Trial:
    """Writers, one file that they share, and what happens to them."""

    def __init__(self, base: Path, writers: int, options: dict[str, object]) -> None:
        self.house = House()
        self.disk = Disk(base)
        self.sink = self.house.file(self.disk.log, max_line=MAX_LINE, **options)
        self.writers = [Writer(n, self.house, self.sink) for n in range(writers)]

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.house.stopped:
            self.house.stop(0)

    def go(self, step: str | Write) -> None:
        if isinstance(step, tuple):
            number, size, filler, lines, ended = step
            writer = self.writers[number % len(self.writers)]
            for left in reversed(range(lines)):
                writer.write(size, filler, ended or left > 0)
        elif step == "turn":
            self.house.turn()
        elif step in ("reopen", "rotate"):
            getattr(self.sink, step)()
        else:
            self.disk.befall(step)

    def finish(self) -> tuple[list[list[bytes]], int]:
        """Heal all, write all: the lines of each writer that are found; losses that are told."""
        self.disk.heal()
        self.sink.reopen()
        self.house.until(lambda: all([writer.finish() for writer in self.writers]))
        self.house.until(lambda: all(writer.stream.ended for writer in self.writers))
        assert self.house.stop() == 0
        parts, told = rows_of(self.disk.contents())
        assert set(parts) <= set(range(len(self.writers)))
        return [writer.found(parts.get(writer.number, [])) for writer in self.writers], told


def counted(stream: Stream) -> tuple[int, int, int, int]:
    """Lines and bytes that were dropped, and that were suppressed."""
    losses = stream.losses
    return (
        losses.dropped_lines,
        losses.dropped_bytes,
        losses.suppressed_lines,
        losses.suppressed_bytes,
    )


def missing(writer: Writer, found: list[bytes]) -> tuple[int, int]:
    """Lines and bytes that it wrote and that are not found; all that is found is its own."""
    left = set(writer.lines) - set(found)
    assert len(left) == len(writer.lines) - len(found), "changed on the way"
    endless = not writer.is_last_ended and writer.lines[-1] in left
    return len(left), sum(len(line) + 1 for line in left) - endless


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A megabyte or three; where none can be mounted, a directory that never is full."""
    disk = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("cannot mount a small tmpfs here: needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


ROTATION = st.sampled_from([{}, {"max_bytes": 3000, "backup_count": 10_000}])
TRIALS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(st.integers(1, 6), trouble(SIZES, 1), ROTATION)
@TRIALS
def test_nothing_is_lost_where_writers_wait(
    small_disk: Path, writers: int, plan: list[str | Write], rotation: dict[str, object]
) -> None:
    with (
        tempfile.TemporaryDirectory(dir=small_disk) as base,
        Trial(Path(base), writers, rotation) as trial,
    ):
        for step in plan:
            trial.go(step)
        found, told = trial.finish()
    assert found == [writer.lines for writer in trial.writers]
    assert told == 0
    assert {counted(writer.stream) for writer in trial.writers} == {(0, 0, 0, 0)}


@given(st.integers(1, 6), trouble(SHORT, 40), ROTATION)
@TRIALS
def test_what_may_be_dropped_is_counted(
    small_disk: Path, writers: int, plan: list[str | Write], rotation: dict[str, object]
) -> None:
    options = {"on_full": "drop", "buffer": 4096, **rotation}
    with (
        tempfile.TemporaryDirectory(dir=small_disk) as base,
        Trial(Path(base), writers, options) as trial,
    ):
        for step in plan:
            trial.go(step)
        found, told = trial.finish()
    for writer, lines in zip(trial.writers, found, strict=True):
        assert counted(writer.stream) == (*missing(writer, lines), 0, 0)
    assert told == sum(counted(writer.stream)[0] for writer in trial.writers)


@given(st.integers(1, 6), plans(SHORT, 10, MOVES), st.integers(1, 50), ROTATION)
@TRIALS
def test_what_a_rate_suppresses_is_counted(
    small_disk: Path, writers: int, plan: list[str | Write], most: int, rotation: dict[str, object]
) -> None:
    options = {"rate": Rate(most, 1e6), **rotation}
    with (
        tempfile.TemporaryDirectory(dir=small_disk) as base,
        Trial(Path(base), writers, options) as trial,
    ):
        for step in plan:
            trial.go(step)
        found, told = trial.finish()
    for writer, lines in zip(trial.writers, found, strict=True):
        assert counted(writer.stream) == (0, 0, *missing(writer, lines))
    written = sum(len(writer.lines) for writer in trial.writers)
    assert sum(map(len, found)) == min(most, written)
    assert told == written - min(most, written)


# ---- many --------------------------------------------------------------------------------


def test_five_hundred_into_one_file(house: House, tmp_path: Path) -> None:
    """More at once than a turn of the pump takes; half of them rotate it as well."""
    sink = house.file(tmp_path / "log", max_bytes=100_000, backup_count=10_000)
    writers = [Writer(n % 10, house, sink) for n in range(500)]
    for _ in range(20):
        for n, writer in enumerate(writers):
            writer.write(n % 70, b"%d" % (n % 10), True)
    house.until(lambda: all([writer.finish() for writer in writers]))
    house.until(lambda: len(house.ended) == len(writers))
    rows = b"".join(path.read_bytes() for path in tmp_path.iterdir()).split(b"\n")
    assert sorted(rows[:-1]) == sorted(line for writer in writers for line in writer.lines)


def test_the_quiet_are_heard_while_one_is_loud(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    loud, writing = house.stream(sink)
    quiet = [house.stream(sink, pid=n + 2)[1] for n in range(500)]
    expected = {b"quiet %03d" % n for n in range(500)}

    def heard() -> bool:
        """Of what is in the file now: it grows faster than it is read."""
        with (tmp_path / "log").open("rb") as log:
            return expected <= set(log.read(os.fstat(log.fileno()).st_size).split(b"\n"))

    with subprocess.Popen(["yes", "l" * 99], stdout=writing) as endless:
        os.close(writing)
        house.until(lambda: loud.bytes_read > 1 << 20)
        for n, pipe in enumerate(quiet):
            write_and_close(pipe, b"quiet %03d\n" % n)
        house.until(lambda: len(house.ended) == 500)
        assert heard()
        assert endless.poll() is None
        before = loud.bytes_read
        house.until(lambda: loud.bytes_read > before)
        endless.kill()
    house.until(lambda: loud.ended)
