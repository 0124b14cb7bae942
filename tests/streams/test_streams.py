"""What goes into a pipe comes out of its sink: each byte, whole lines, in time, to the end."""

from __future__ import annotations

import gc
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysup.streams import Stream
from tests.streams.house import (
    PATIENCE,
    House,
    backup_number,
    content,
    write_all,
    write_and_close,
)

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
    assert time.monotonic() - begun >= 0.025  # the other half is for its stream to rest
    os.close(writing)


def test_a_full_batch_does_not_wait(house: House, tmp_path: Path) -> None:
    _, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"0123456789\n" * 20_000)
    house.until(lambda: len(content(tmp_path / "log")) >= 65536)
    os.close(writing)


def test_enormous_options(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", refresh_time=1e12, max_line=1 << 50), b"one\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"


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


def test_who_heard_of_the_end_needs_no_garbage_collector(house: House, tmp_path: Path) -> None:
    """Though it holds the stream: else a thousand processes are looked through to find it."""

    class Owner:
        stream: Stream | None = None

        def hear(self, stream: Stream) -> None:
            self.ended = stream is self.stream

    owner, (reading, writing) = Owner(), os.pipe()
    stream = house.pump.add(reading, 1, house.file(tmp_path / "log"), on_eof=owner.hear)
    owner.stream = stream
    write_and_close(writing, b"one\n")
    house.until(lambda: stream.ended)
    assert owner.ended
    gone = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert gone() is None
    finally:
        gc.enable()


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


def test_a_quiet_stream_is_not_read_at_each_write(house: House, tmp_path: Path) -> None:
    """It waits in its pipe, and is read when the rest is over."""
    stream, writing = house.stream(house.file(tmp_path / "log", refresh_time=0.4))
    write_all(writing, b"first\n")
    house.until(lambda: stream.bytes_read == 6)
    before = house.pump.heartbeat
    begun = time.monotonic()
    for _ in range(1000):
        write_all(writing, b"more\n")
    rests = (time.monotonic() - begun) / 0.2
    assert house.pump.heartbeat - before < 20 + 5 * rests
    house.until(lambda: len(content(tmp_path / "log")) == 5006)
    os.close(writing)
    house.until(lambda: stream.ended)


def test_the_end_of_a_resting_stream_is_heard_at_once(house: House, tmp_path: Path) -> None:
    stream, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    write_all(writing, b"first\n")
    house.until(lambda: stream.bytes_read == 6)
    write_all(writing, b"last")
    os.close(writing)
    house.until(lambda: stream.ended)
    assert content(tmp_path / "log") == b"first\nlast"


def test_a_loud_stream_does_not_rest(house: House, tmp_path: Path) -> None:
    """Else its writer would wait each time the pipe is full."""
    stream, writing = house.stream(house.file(tmp_path / "log", refresh_time=3600))
    data = (b"x" * 99 + b"\n") * 300_000
    feeding = threading.Thread(target=write_and_close, args=(writing, data))
    feeding.start()
    house.until(lambda: not feeding.is_alive())
    feeding.join()
    house.until(lambda: stream.ended)


def test_whoever_asks_for_a_turn_gets_one(house: House) -> None:
    """Also in the moment when the pump serves another request."""
    pump = house.pump
    for _ in range(20_000):
        pump.ping()
        before = pump.heartbeat
        pump.ping()
        late = time.monotonic() + PATIENCE
        while pump.heartbeat == before:
            assert time.monotonic() < late, "the ping was lost"


MEMORY_PROGRAM = """
import os, resource, sys, time
from sysup.config import StreamSpec
from sysup.streams import Pump, open_sink

def size():
    "Of what is not in files: of those, the share changes as other programs begin and end."
    with open("/proc/self/smaps_rollup") as file:
        kinds = [line.split() for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(int(kind[1]) for kind in kinds) * 1024

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
pump = Pump()
sink = open_sink(pump, StreamSpec("FileStream", {"filename": sys.argv[1]}), "stdout")
pipes = [os.pipe() for _ in range(2500)]

def add(some):
    "And have the pump's thread do what that is to it."
    for reading, _ in some:
        pump.add(reading, 1, sink, tail=4096, on_eof=lambda stream: None)
    for _ in range(2):
        before = pump.heartbeat
        pump.ping()
        while pump.heartbeat == before:
            time.sleep(0.001)

add(pipes[:500])
before = size()
add(pipes[500:])
print((size() - before) // 2000)
"""


def test_a_stream_at_rest_takes_less_than_a_kilobyte(tmp_path: Path) -> None:
    """What else a program comes to need meanwhile only adds to it: the least of three counts."""

    def measured() -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path / "log")],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert 0 < min(measured() for _ in range(3)) < 1024
