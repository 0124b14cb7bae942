"""The pump from Python: what goes into a pipe comes out of its sink, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup import streams
from sysup.config import StreamSpec
from sysup.protocol import SysupError
from sysup.streams import FileOptions, Pump, Sink, Stream, open_sink

PATIENCE = 20.0


class House:
    """A pump, its pipes, and all that it told."""

    def __init__(self) -> None:
        self.pump = Pump()
        self.told: list[tuple[str, str | None]] = []
        self.ended: list[Stream] = []
        self.stopped = False

    def sink(self, cls: str, **options: object) -> Sink:
        return open_sink(self.pump, StreamSpec(cls, options), "stdout", self.tell)

    def file(self, path: Path, **options: object) -> Sink:
        return self.sink("FileStream", filename=str(path), **options)

    def lent(self, fd: int) -> Sink:
        return Sink(streams._File.lent(self.pump, fd, "lent", FileOptions()), None, self.tell)

    def tell(self, sink: Sink, reason: str | None) -> None:
        self.told.append((sink.name, reason))

    def stream(self, sink: Sink, pid: int = 1, tail: int = 100) -> tuple[Stream, int]:
        """A stream, and the end of its pipe to write to."""
        reading, writing = os.pipe()
        stream = self.pump.add(reading, pid, sink, tail=tail, on_eof=self.ended.append)
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

    def pour(self, sink: Sink, data: bytes) -> Stream:
        """Write all of a process's life, and wait for its end."""
        stream, writing = self.stream(sink)
        write_all(writing, data)
        os.close(writing)
        self.until(lambda: stream.ended)
        return stream

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
    return path.read_bytes() if path.exists() else b""


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == path:
                return True
    return False


@pytest.fixture
def house() -> Iterator[House]:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    house = House()
    yield house
    if not house.stopped:
        assert house.stop() == 0
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


# ---- bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"one\ntwo\n", id="lines"),
        pytest.param(b"no newline at the end", id="unfinished"),
        pytest.param(b"\n\n\n", id="empty lines"),
        pytest.param(bytes(range(256)) * 300, id="binary"),
        pytest.param("\N{SNOWMAN}".encode()[:2], id="half a character"),
        pytest.param(b"\0" * 70000, id="zeros"),
        pytest.param(b"x" * 10_000_000, id="10 MB without a newline"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_bytes_are_kept_exactly(house: House, tmp_path: Path, data: bytes) -> None:
    stream = house.pour(house.file(tmp_path / "log"), data)
    assert (tmp_path / "log").read_bytes() == data
    assert stream.bytes_read == len(data)
    assert stream.tail() == data[-100:]


chunks = st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"x" * 70000]), max_size=12)


@given(chunks, st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_one_stream_is_copied(parts: list[bytes], max_line: int) -> None:
    """Whatever the writes, and wherever a line is cut into pieces."""
    with tempfile.TemporaryDirectory() as directory:
        house = House()
        stream, writing = house.stream(house.file(Path(directory, "log"), max_line=max_line))
        for part in parts:
            write_all(writing, part)
        os.close(writing)
        house.until(lambda: stream.ended)
        assert Path(directory, "log").read_bytes() == b"".join(parts)
        assert house.stop() == 0


line = st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")) | st.just(b"y" * 5000)
plans = st.lists(st.lists(line, max_size=8), min_size=2, max_size=4)


@given(plans, st.integers(), st.integers(0, 2000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_lines_of_many_streams_stay_whole(
    plan: list[list[bytes]], seed: int, max_bytes: int, styled: bool
) -> None:
    """In one file, rotated or not: each writer's lines, all of them, in its order."""
    with tempfile.TemporaryDirectory() as directory:
        house = House()
        options: dict[str, object] = {"max_bytes": max_bytes, "backup_count": 1000}
        if styled:
            options["time_format"] = "%H:%M"
        sink = house.file(Path(directory, "log"), **options)
        texts = [b"".join(b"%d:%s\n" % (n, line) for line in lines) for n, lines in enumerate(plan)]
        pipes = [house.stream(sink, pid=n)[1] for n in range(len(plan))]
        left = dict(enumerate(texts))
        chance = random.Random(seed)
        while left:
            n = chance.choice(list(left))
            cut = chance.randint(0, len(left[n]))
            write_all(pipes[n], left[n][:cut])
            left[n] = left[n][cut:]
            if not left[n]:
                del left[n]
        for pipe in pipes:
            os.close(pipe)
        house.until(lambda: len(house.ended) == len(plan))
        assert house.stop() == 0
        logs = sorted(Path(directory).iterdir(), key=backup_number, reverse=True)
        contents = [log.read_bytes() for log in logs]
    assert all(content.endswith(b"\n") for content in contents if content)
    found: dict[int, list[bytes]] = {n: [] for n in range(len(plan))}
    for row in b"".join(contents).split(b"\n")[:-1]:
        if styled:
            stamp = re.match(rb"\d\d:\d\d \[(\d+)\] \| (?=\1:)", row)
            assert stamp, row
            row = row[stamp.end() :]
        writer, _, text = row.partition(b":")
        found[int(writer)].append(text)
    assert [found[n] for n in range(len(plan))] == plan


def backup_number(path: Path) -> int:
    return int(path.suffix[1:] or 0)


def test_an_unfinished_line_is_ended_by_the_next_writer(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    house.pour(sink, b"first\nunfinished")
    house.pour(sink, b"second\n")
    house.pour(sink, b"third\n")
    assert (tmp_path / "log").read_bytes() == b"first\nunfinished\nsecond\nthird\n"


def test_a_long_line_is_interrupted_at_most_at_max_line(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", max_line=10)
    long, writing = house.stream(sink)
    write_all(writing, b"0123456789")
    house.until(lambda: len(content(tmp_path / "log")) == 10)
    house.pour(sink, b"other\n")
    write_all(writing, b"abc\n")
    os.close(writing)
    house.until(lambda: long.ended)
    assert (tmp_path / "log").read_bytes() == b"0123456789\nother\nabc\n"


def test_an_unfinished_line_waits_below_max_line(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    slow, writing = house.stream(sink)
    write_all(writing, b"half ")
    house.until(lambda: slow.bytes_read == 5)
    house.pour(sink, b"other\n")
    write_all(writing, b"whole\n")
    os.close(writing)
    house.until(lambda: slow.ended)
    assert (tmp_path / "log").read_bytes() == b"other\nhalf whole\n"


def test_hundreds_of_streams(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    pipes = [house.stream(sink, pid=n)[1] for n in range(400)]
    for n, pipe in enumerate(pipes):
        write_all(pipe, b"%d a\n%d b\n%d c" % (n, n, n))
        os.close(pipe)
    house.until(lambda: len(house.ended) == len(pipes))
    rows = (tmp_path / "log").read_bytes().split(b"\n")
    assert sorted(rows) == sorted(b"%d %c" % (n, c) for n in range(len(pipes)) for c in b"abc")


# ---- style -------------------------------------------------------------------------------


def test_each_line_is_stamped(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", time_format="%Y"), b"one\n\ntwo")
    year = b"%d" % time.localtime().tm_year
    expected = b"".join(year + b" [1] | " + text + b"\n" for text in (b"one", b"", b"two"))
    assert (tmp_path / "log").read_bytes() == expected


def test_a_stamped_line_longer_than_max_line_has_one_stamp(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", time_format="T", max_line=10), b"x" * 200_000 + b"\n")
    assert (tmp_path / "log").read_bytes() == b"T [1] | " + b"x" * 200_000 + b"\n"


def test_a_time_that_is_too_long_is_left_out(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", time_format="%c" * 100), b"one\n")
    assert (tmp_path / "log").read_bytes() == b" [1] | one\n"


STDOUT_PROGRAM = """
import os, select, sys
from sysup.config import StreamSpec
from sysup.streams import Pump, open_sink
pump = Pump()
cls, name = sys.argv[1:]
spec = StreamSpec(cls, {"color": "green", "time_format": "at"}) if cls else None
reading, writing = os.pipe()
pump.add(reading, 7, open_sink(pump, spec, name))
os.write(writing, b"one\\ntwo")
os.close(writing)
sys.exit(pump.stop(10))
"""


@pytest.mark.parametrize(
    ("cls", "name", "stdout", "stderr"),
    [
        ("", "stdout", b"one\ntwo", b""),
        ("", "stderr", b"", b"one\ntwo"),
        ("StdoutStream", "stderr", b"one\ntwo", b""),
        (
            "FancyStdoutStream",
            "stdout",
            b"\x1b[32mat [7] | one\x1b[0m\n\x1b[32mat [7] | two\x1b[0m\n",
            b"",
        ),
    ],
)
def test_output_of_the_daemon_itself(cls: str, name: str, stdout: bytes, stderr: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STDOUT_PROGRAM, cls, name], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (stdout, stderr)


# ---- when it is written ------------------------------------------------------------------


def test_refresh_time_holds_bytes_back(house: House, tmp_path: Path) -> None:
    stream, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    for number in range(3):
        write_all(writing, b"%d\n" % number)
        house.until(lambda: stream.bytes_read == 2 * (number + 1))  # noqa: B023
    assert (tmp_path / "log").read_bytes() == b""
    os.close(writing)
    house.until(lambda: stream.ended)
    assert (tmp_path / "log").read_bytes() == b"0\n1\n2\n"


def test_refresh_time_ends(house: House, tmp_path: Path) -> None:
    _, writing = house.stream(house.file(tmp_path / "log", refresh_time=0.05))
    begun = time.monotonic()
    write_all(writing, b"one\n")
    house.until(lambda: content(tmp_path / "log") == b"one\n")
    assert time.monotonic() - begun >= 0.05
    os.close(writing)


def test_a_full_batch_does_not_wait(house: House, tmp_path: Path) -> None:
    _, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"0123456789\n" * 20_000)
    house.until(lambda: len(content(tmp_path / "log")) >= 65536)
    os.close(writing)


def test_options_change_in_use(house: House, tmp_path: Path) -> None:
    _, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"one\n")
    house.file(tmp_path / "log", refresh_time=0.0)
    write_all(writing, b"two\n")
    house.until(lambda: content(tmp_path / "log") == b"one\ntwo\n")
    os.close(writing)


def test_waiting_streams_cost_no_turn(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    house.pour(sink, b"one\n")
    house.until(house.is_quiet)
    before = house.pump.heartbeat
    pipes = [house.stream(sink)[1] for _ in range(50)]
    house.turn()
    assert house.pump.heartbeat == before + 1
    for pipe in pipes:
        os.close(pipe)


# ---- the end of a stream -----------------------------------------------------------------


def test_the_end_is_told_after_the_last_byte_is_written(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", refresh_time=3600)
    seen: list[bytes] = []
    reading, writing = os.pipe()
    house.pump.add(reading, 1, sink, on_eof=lambda _: seen.append((tmp_path / "log").read_bytes()))
    write_all(writing, b"last words")
    os.close(writing)
    house.until(lambda: seen)
    assert seen == [b"last words"]


def test_a_copy_of_the_descriptor_does_no_harm(house: House, tmp_path: Path) -> None:
    """A process that is just being started may have one; epoll(7) tells of it on and on."""
    reading, writing = os.pipe()
    copy = os.dup(reading)
    stream = house.pump.add(reading, 1, house.file(tmp_path / "log"))
    os.close(writing)
    house.until(lambda: stream.ended)
    house.until(house.is_quiet)
    os.close(copy)


def test_the_end_waits_for_a_slow_sink(house: House) -> None:
    reader, lent = os.pipe()
    stream, writing = house.stream(house.lent(lent))
    os.close(lent)
    write_all(writing, b"0123456789\n" * 9_000)  # more than a pipe holds
    os.close(writing)
    house.until(lambda: stream.bytes_read == 99_000)
    house.turn()
    house.turn()
    assert not stream.ended
    got = 0
    while got < 99_000:
        got += len(os.read(reader, 65536))
    house.until(lambda: stream.ended)
    os.close(reader)


def test_a_pipe_that_others_hold_is_closed_by_its_owner(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    stream, writing = house.stream(sink)
    write_all(writing, b"one\n" * 10_000 + b"two")
    stream.close()
    stream.close()
    house.until(lambda: stream.ended)
    stream.close()
    assert (tmp_path / "log").read_bytes() == b"one\n" * 10_000 + b"two"
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"to nobody")
    os.close(writing)


def test_who_writes_for_ever_does_not_keep_a_closed_stream(house: House, tmp_path: Path) -> None:
    stream, writing = house.stream(house.file(tmp_path / "log"))
    with subprocess.Popen(["yes"], stdout=writing) as endless:
        os.close(writing)
        house.until(lambda: stream.bytes_read > 100_000)
        stream.close()
        house.until(lambda: stream.ended)
    assert endless.returncode != 0
    assert (tmp_path / "log").stat().st_size == stream.bytes_read


def test_the_tail_is_the_newest_output(house: House, tmp_path: Path) -> None:
    stream, writing = house.stream(house.file(tmp_path / "log"), tail=10)
    assert stream.tail() == b""
    for data, tail in [(b"0123", b"0123"), (b"456789ab", b"23456789ab"), (b"c", b"3456789abc")]:
        before = stream.bytes_read
        write_all(writing, data)
        house.until(lambda: stream.bytes_read == before + len(data))  # noqa: B023
        assert stream.tail() == tail
    os.close(writing)
    house.until(lambda: stream.ended)
    assert stream.tail() == b"3456789abc"
    assert stream.bytes_read == 13


def test_a_descriptor_that_cannot_be_read_stays_the_callers(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    with (tmp_path / "plain").open("w") as plain:
        with pytest.raises(PermissionError):
            house.pump.add(plain.fileno(), 1, sink)
        os.fstat(plain.fileno())


# ---- rotation ----------------------------------------------------------------------------


def test_rotation_keeps_lines_and_count(house: House, tmp_path: Path) -> None:
    rows = [b"%06d" % n + b"." * (n % 50) for n in range(2000)]
    sink = house.file(tmp_path / "log", max_bytes=4096, backup_count=3)
    house.pour(sink, b"\n".join(rows) + b"\n")
    logs = sorted(tmp_path.iterdir(), key=backup_number, reverse=True)
    assert [log.name for log in logs] == ["log.3", "log.2", "log.1", "log"]
    contents = [log.read_bytes() for log in logs]
    assert all(content.endswith(b"\n") and len(content) <= 4096 for content in contents)
    assert all(len(content) > 4096 - 57 for content in contents[:-1])
    kept = b"".join(contents).splitlines()
    assert kept == rows[-len(kept) :]


def test_a_line_longer_than_a_file_stays_whole(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", max_bytes=100, backup_count=5)
    house.pour(sink, b"a\n" + b"b" * 300 + b"\nc\n")
    contents = [(tmp_path / name).read_bytes() for name in ("log.2", "log.1", "log")]
    assert contents == [b"a\n", b"b" * 300 + b"\n", b"c\n"]


def test_a_file_that_ends_in_the_midst_of_a_line_is_not_rotated_there(
    house: House, tmp_path: Path
) -> None:
    sink = house.file(tmp_path / "log", max_line=10, max_bytes=15, backup_count=5)
    stream, writing = house.stream(sink)
    write_all(writing, b"0123456789")
    house.until(lambda: len(content(tmp_path / "log")) == 10)
    write_all(writing, b"abcdefghij\nnext\n")
    os.close(writing)
    house.until(lambda: stream.ended)
    assert (tmp_path / "log.1").read_bytes() == b"0123456789abcdefghij\n"
    assert (tmp_path / "log").read_bytes() == b"next\n"


def test_size_counts_what_was_there_before(house: House, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 99 + b"\n")
    house.pour(house.file(tmp_path / "log", max_bytes=100, backup_count=1), b"new\n")
    assert (tmp_path / "log.1").stat().st_size == 100
    assert (tmp_path / "log").read_bytes() == b"new\n"


def test_without_backups_there_is_no_rotation(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", max_bytes=10, backup_count=0), b"line\n" * 100)
    assert (tmp_path / "log").read_bytes() == b"line\n" * 100


def test_a_failing_rotation_stops_nobody(house: House, tmp_path: Path) -> None:
    (tmp_path / "log.1" / "in the way").mkdir(parents=True)
    sink = house.file(tmp_path / "log", max_bytes=10, backup_count=1)
    house.pour(sink, b"line\n" * 100)
    assert (tmp_path / "log").read_bytes() == b"line\n" * 100
    assert house.told == [
        (str(tmp_path / "log"), f"cannot rotate {tmp_path / 'log'}: Is a directory")
    ]
    assert sink.failure is None


def test_a_link_is_rotated_once(house: House, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    sink = house.file(tmp_path / "log", max_bytes=10, backup_count=9)
    house.pour(sink, b"line\n" * 4)
    assert (tmp_path / "elsewhere").read_bytes() == b"line\n" * 2
    assert (tmp_path / "log").read_bytes() == b"line\n" * 2


def test_reopening_after_another_program_moved_the_file(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    house.pour(sink, b"old\n")
    (tmp_path / "log").rename(tmp_path / "moved")
    house.pump.reopen()
    house.until((tmp_path / "log").exists)
    house.pour(sink, b"new\n")
    assert (tmp_path / "moved").read_bytes() == b"old\n"
    assert (tmp_path / "log").read_bytes() == b"new\n"


# ---- failures ----------------------------------------------------------------------------


def reason(path: Path, number: int) -> tuple[str, str]:
    return str(path), f"cannot write {path}: {os.strerror(number)}"


def test_a_missing_directory_is_waited_for(house: House, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log"
    sink = house.file(path)
    stream, writing = house.stream(sink)
    write_all(writing, b"patient\n")
    os.close(writing)
    house.until(lambda: house.told)
    assert house.told == [reason(path, errno.ENOENT)]
    assert sink.failure == reason(path, errno.ENOENT)[1]
    assert not stream.ended
    path.parent.mkdir()
    house.until(lambda: stream.ended)
    assert path.read_bytes() == b"patient\n"
    assert house.told[1:] == [(str(path), None)]
    assert sink.failure is None


def test_a_failure_is_told_once(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "missing" / "log")
    for _ in range(5):
        sink.reopen()
        house.turn()
        house.turn()
    assert house.told == [reason(tmp_path / "missing" / "log", errno.ENOENT)]
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "log").mkdir()
    sink.reopen()
    house.until(lambda: len(house.told) == 2)
    assert house.told[1] == reason(tmp_path / "missing" / "log", errno.EISDIR)


def test_reopen_does_not_wait_for_the_next_try(house: House, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log"
    sink = house.file(path)
    house.until(lambda: house.told)
    path.parent.mkdir()
    sink.reopen()
    house.until(lambda: house.told[1:] == [(str(path), None)])


@pytest.mark.parametrize(
    ("make", "number"),
    [
        pytest.param(lambda path: path.mkdir(), errno.EISDIR, id="directory"),
        pytest.param(lambda path: path.symlink_to(path), errno.ELOOP, id="loop"),
        pytest.param(lambda path: os.mkfifo(path), errno.ENXIO, id="fifo without a reader"),
        pytest.param(lambda path: path.symlink_to("/dev/full"), errno.ENOSPC, id="full"),
    ],
)
def test_what_is_no_file_fails_until_it_is_one(
    house: House, tmp_path: Path, make: Callable[[Path], None], number: int
) -> None:
    path = tmp_path / "log"
    make(path)
    sink = house.file(path)
    stream, writing = house.stream(sink)
    write_all(writing, b"one\ntwo\n")
    os.close(writing)
    house.until(lambda: house.told)
    assert house.told == [reason(path, number)]
    path.rename(tmp_path / "away")
    sink.reopen()
    house.until(lambda: stream.ended)
    assert path.read_bytes() == b"one\ntwo\n"
    house.until(lambda: house.told[1:] == [(str(path), None)])


def test_a_link_in_a_directory_of_others_is_not_followed(house: House, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    (shared / "log").symlink_to(victim)
    sink = house.file(shared / "log")
    house.until(lambda: house.told)
    assert house.told == [reason(shared / "log", errno.ELOOP)]
    shared.chmod(0o755)
    sink.reopen()
    house.until(lambda: sink.failure is None)
    house.pour(sink, b"wanted\n")
    assert victim.read_bytes() == b"precious\nwanted\n"


def test_a_fifo_is_written_while_it_has_a_reader(house: House, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    data = b"".join(b"%08d\n" % n for n in range(30_000))
    stream, writing = house.stream(house.file(path))
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    got = b""
    while len(got) < len(data):
        select.select([reader], [], [])
        got += os.read(reader, 5000)
    feeding.join()
    house.until(lambda: stream.ended)
    assert got == data
    os.close(reader)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here: needs root and CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.may_skip
def test_a_full_disk_loses_nothing(house: House, small_disk: Path) -> None:
    path = small_disk / "log"
    data = b"".join(b"%08d\n" % n for n in range(50_000))
    sink = house.file(path)
    stream, writing = house.stream(sink)
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    house.until(lambda: house.told)
    assert house.told == [reason(path, errno.ENOSPC)]
    assert feeding.is_alive()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    house.until(lambda: stream.ended)
    feeding.join()
    assert path.read_bytes() == data
    assert house.told[1:] == [(str(path), None)]
    sink.close()
    assert house.stop() == 0


def test_a_failing_sink_harms_no_other(house: House, tmp_path: Path) -> None:
    stuck, writing = house.stream(house.file(tmp_path / "missing" / "log"))
    write_all(writing, b"x" * 60_000)
    house.pour(house.file(tmp_path / "log"), b"fine\n" * 50_000)
    assert stuck.bytes_read == 0
    os.close(writing)
    assert house.stop(0.1) == 60_000


# ---- lent descriptors --------------------------------------------------------------------


def test_a_slow_reader_of_stdout_stops_nobody_else(house: House, tmp_path: Path) -> None:
    reader, lent = os.pipe()
    data = b"".join(b"%08d\n" % n for n in range(100_000))
    stream, writing = house.stream(house.lent(lent))
    os.close(lent)
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    house.until(lambda: stream.bytes_read > 131_072)  # more than its pipe took
    house.until(house.is_quiet)
    house.pour(house.file(tmp_path / "log"), b"fine\n" * 50_000)
    got = b""
    while len(got) < len(data):
        got += os.read(reader, 65536)
    feeding.join()
    house.until(lambda: stream.ended)
    assert got == data
    os.close(reader)


def test_the_flags_of_stdout_are_left_alone(house: House) -> None:
    reader, lent = os.pipe()
    house.pour(house.lent(lent), b"one\n")
    assert os.get_blocking(lent)
    os.close(lent)
    os.close(reader)


def test_output_to_a_reader_that_is_gone_is_discarded(house: House) -> None:
    reader, lent = os.pipe()
    sink = house.lent(lent)
    os.close(lent)
    os.close(reader)
    house.pour(sink, b"unheard\n" * 50_000)
    house.pour(sink, b"unheard too\n")
    house.until(lambda: house.told)
    assert house.told == [("lent", f"cannot write lent: {os.strerror(errno.EPIPE)}")]


def test_a_lent_file_keeps_its_offset(house: House, tmp_path: Path) -> None:
    """The daemon's own log goes through the same open file."""
    with (tmp_path / "log").open("wb", buffering=0) as log:
        sink = house.lent(log.fileno())
        house.pour(sink, b"one\n")
        log.write(b"daemon\n")
        house.pour(sink, b"two\n")
    assert (tmp_path / "log").read_bytes() == b"one\ndaemon\ntwo\n"


def test_a_lent_socket(house: House) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = b"0123456789\n" * 50_000
        stream, writing = house.stream(house.lent(ours.fileno()))
        feeding = threading.Thread(target=write_and_close, args=(writing, data))
        feeding.start()
        got = b""
        while len(got) < len(data):
            got += theirs.recv(65536)
        feeding.join()
        house.until(lambda: stream.ended)
        assert got == data
        assert ours.getblocking()


def test_a_terminal_that_was_hung_up(house: House) -> None:
    ours, theirs = os.openpty()
    sink = house.lent(theirs)
    os.close(theirs)
    os.close(ours)
    house.pour(sink, b"unheard\n")
    house.until(lambda: house.told)
    assert house.told == [("lent", f"cannot write lent: {os.strerror(errno.EIO)}")]


# ---- sharing -----------------------------------------------------------------------------


def test_two_names_of_a_directory_are_one_file(house: House, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    first, second = house.file(tmp_path / "a" / "log"), house.file(tmp_path / "b" / "log")
    assert first._place is second._place
    first.close()
    first.close()
    house.pour(second, b"still here\n")
    assert (tmp_path / "a" / "log").read_bytes() == b"still here\n"


def test_a_file_is_closed_after_its_last_stream(house: House, tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = house.file(path)
    stream, writing = house.stream(sink)
    write_all(writing, b"one\n")
    house.until(lambda: content(tmp_path / "log"))
    sink.close()
    assert is_open(path)
    write_all(writing, b"two\n")
    again = house.file(tmp_path / "log")
    assert again._place is sink._place
    again.close()
    os.close(writing)
    house.until(lambda: stream.ended and not house.pump.places)
    assert not is_open(path)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    house.pour(house.file(tmp_path / "log"), b"three\n")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"


def test_a_closed_sink_takes_no_more(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log")
    sink.close()
    house.until(lambda: not house.pump.places)
    sink.close()
    sink.reopen()
    reading, writing = os.pipe()
    with pytest.raises(ValueError, match="it is closed"):
        house.pump.add(reading, 1, sink)
    os.close(reading)
    os.close(writing)


def test_stdout_and_stderr_that_are_one(house: House) -> None:
    reader, lent = os.pipe()
    other = os.dup(lent)
    assert house.lent(lent)._place is house.lent(other)._place
    for fd in (reader, lent, other):
        os.close(fd)


def test_a_new_log_is_of_the_daemons_umask(house: House, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        house.pour(house.file(tmp_path / "log"), b"one\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


# ---- classes of users --------------------------------------------------------------------


class Collector:
    """Keeps what it is called with."""

    made: list[Collector]

    def __init__(self, **options: str) -> None:
        self.options = options
        self.calls: list[dict[str, Any]] = []
        self.closed = False
        Collector.made.append(self)

    def __call__(self, data: dict[str, Any]) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.closed = True


class Fussy(Collector):
    """Raises when it is told to."""

    def __call__(self, data: dict[str, Any]) -> None:
        super().__call__(data)
        if data["data"].startswith(b"raise"):
            raise ValueError("too fussy")


class Stuck(Collector):
    """Waits for the test."""

    gate: threading.Event

    def __call__(self, data: dict[str, Any]) -> None:
        self.gate.wait(PATIENCE)
        super().__call__(data)


class Plain:
    """Takes no options and has no `close`."""

    def __init__(self) -> None:
        raise SystemExit("no thanks")


@pytest.fixture(autouse=True)
def fresh_classes() -> None:
    Collector.made = []
    Stuck.gate = threading.Event()


def collected(collector: Collector) -> bytes:
    return b"".join(call["data"] for call in list(collector.calls))


def test_a_class_is_called_with_whole_lines(house: House) -> None:
    sink = house.sink(f"{__name__}.Collector", color="red")
    data = b"".join(b"%06d\n" % n for n in range(100_000)) + b"unfinished"
    stream, writing = house.stream(sink, pid=42)
    write_all(writing, data)
    os.close(writing)
    house.until(lambda: stream.ended)
    sink.close()
    collector = Collector.made[0]
    house.until(lambda: collector.closed)
    assert collector.options == {"color": "red"}
    assert collected(collector) == data
    assert all(set(call) == {"data", "pid", "name"} for call in collector.calls)
    assert {(call["pid"], call["name"]) for call in collector.calls} == {(42, "stdout")}
    assert all(call["data"].endswith(b"\n") for call in collector.calls[:-1])


def test_lines_of_several_processes_come_apart(house: House) -> None:
    sink = house.sink(f"{__name__}.Collector")
    pipes = [house.stream(sink, pid=pid)[1] for pid in (1, 2, 3)]
    for pid, pipe in enumerate(pipes, 1):
        write_all(pipe, b"%d\n" % pid * 1000)
        os.close(pipe)
    house.until(lambda: len(house.ended) == 3)
    sink.close()
    house.until(lambda: Collector.made[0].closed)
    for pid in (1, 2, 3):
        calls = [call["data"] for call in Collector.made[0].calls if call["pid"] == pid]
        assert b"".join(calls) == b"%d\n" % pid * 1000


def test_what_a_class_raises_is_told_until_it_works_again(house: House) -> None:
    name = f"{__name__}.Fussy"
    sink = house.sink(name)
    for data in (b"raise\n", b"raise again\n"):
        house.pour(sink, data)
    house.until(lambda: len(Collector.made[0].calls) == 2 and house.told)
    assert len(house.told) == 1
    told = house.told[0][1]
    assert told is not None
    assert told.startswith(f"{name} raised:\nTraceback")
    assert told.rstrip().endswith("ValueError: too fussy")
    assert sink.failure == told
    house.pour(sink, b"fine\n")
    house.until(lambda: sink.failure is None)
    assert house.told[1:] == [(name, None)]
    assert collected(Collector.made[0]) == b"raise\nraise again\nfine\n"


def test_a_slow_class_makes_its_own_streams_wait(house: House, tmp_path: Path) -> None:
    sink = house.sink(f"{__name__}.Stuck")
    data = b"".join(b"%08d\n" % n for n in range(200_000))
    stream, writing = house.stream(sink)
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    house.until(lambda: stream.bytes_read > 200_000)
    house.pour(house.file(tmp_path / "log"), b"fine\n" * 100_000)
    assert feeding.is_alive()
    assert stream.bytes_read < 700_000
    Stuck.gate.set()
    house.until(lambda: stream.ended)
    feeding.join()
    sink.close()
    house.until(lambda: Collector.made[0].closed)
    assert collected(Collector.made[0]) == data


def test_a_class_that_hangs_does_not_keep_the_daemon() -> None:
    """The thread, the pump's memory and its descriptors are left to the end of the program."""
    house = House()
    sink = house.sink(f"{__name__}.Stuck")
    house.pour(sink, b"one\n")
    begun = time.monotonic()
    house.stop(0.2)
    assert time.monotonic() - begun < 2
    Stuck.gate.set()
    place = sink._place
    assert isinstance(place, streams._Python)
    place.join(PATIENCE)
    house.pump.dispatch()
    assert not house.pump.leaving


@pytest.mark.parametrize(
    ("cls", "options", "reason"),
    [
        ("nosuch.Stream", {}, "cannot load stream class nosuch.Stream: ModuleNotFoundError"),
        ("os.Nothing", {}, "cannot load stream class os.Nothing: AttributeError"),
        (f"{__name__}.Plain", {"a": "b"}, f"cannot load stream class {__name__}.Plain: TypeError"),
        (f"{__name__}.Plain", {}, f"cannot load stream class {__name__}.Plain: SystemExit: no"),
        ("NoStream", {}, "cannot open stdout_stream: no such class: NoStream"),
        ("FileStream", {}, "cannot open stdout_stream: FileStream needs a filename"),
        ("FileStream", {"filename": "/"}, "cannot write to /: Invalid argument"),
    ],
)
def test_what_cannot_be_opened(
    house: House, cls: str, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(SysupError, match=re.escape(reason)):
        house.sink(cls, **options)


# ---- the end of the pump -----------------------------------------------------------------


def test_stopping_writes_what_is_held_and_ends_all(house: House, tmp_path: Path) -> None:
    held, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"one\ntwo")
    sink = house.sink(f"{__name__}.Collector")
    other, other_writing = house.stream(sink)
    write_all(other_writing, b"three\n")
    assert house.stop() == 0
    assert held.ended
    assert other.ended
    assert (tmp_path / "log").read_bytes() == b"one\ntwo"
    assert collected(Collector.made[0]) == b"three\n"
    assert Collector.made[0].closed
    os.close(writing)
    os.close(other_writing)
