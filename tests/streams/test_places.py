"""Files that rotate, fail, are full, are shared; descriptors that others are slow to read."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sysup.protocol import SysupError
from tests.streams.house import (
    House,
    backup_number,
    content,
    is_open,
    reason,
    write_all,
    write_and_close,
)

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


def test_who_has_it_reopened_hears_of_it_when_its_failure_is_known(
    house: House, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    sink = house.file(path)
    house.until(path.exists)
    heard: list[str | None] = []

    def reopened() -> str | None:
        sink.reopen(lambda: heard.append(sink.failure))
        house.until(lambda: heard)
        return heard.pop()

    assert reopened() is None
    path.unlink()
    path.mkdir()
    assert [reopened(), reopened()] == [reason(path, errno.EISDIR)[1]] * 2
    path.rmdir()
    assert reopened() is None
    assert path.is_file()
    sink.close()
    assert reopened() is None, "it is about to be closed"
    house.until(lambda: not house.pump.places)
    assert reopened() is None, "it is closed"


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


def test_a_name_that_is_none(house: House, tmp_path: Path) -> None:
    """In a locale of ASCII that is any with an accent."""
    with pytest.raises(SysupError, match=r"cannot write to '.*\\ud800': it can't be encoded"):
        house.file(tmp_path / "\ud800")
