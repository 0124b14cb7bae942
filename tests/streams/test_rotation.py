"""When files are rotated, what their backups are called and what becomes of them."""

from __future__ import annotations

import gzip
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from sysup._native import lib
from tests.streams.house import House, content, write_all


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_empty(path: Path) -> bool:
    return path.exists() and not content(path)


# ---- on request --------------------------------------------------------------------------


def test_a_file_is_rotated_on_request(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", backup_count=2)
    assert sink.can_rotate
    for text in (b"one\n", b"two\n", b"three\n"):
        house.pour(sink, text)
        sink.rotate()
        house.until(lambda: is_empty(tmp_path / "log"))
    assert names(tmp_path) == ["log", "log.1", "log.2"]
    assert (content(tmp_path / "log.1"), content(tmp_path / "log.2")) == (b"three\n", b"two\n")


def test_an_empty_file_is_not_rotated(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", backup_count=2)
    house.until(lambda: (tmp_path / "log").exists())
    sink.rotate()
    house.turn()
    house.pour(sink, b"text\n")
    assert names(tmp_path) == ["log"]


def test_a_line_is_not_cut_on_request(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", backup_count=2, max_line=4)
    stream, writing = house.stream(sink)
    write_all(writing, b"begun")
    house.until(lambda: content(tmp_path / "log"))
    sink.rotate()
    house.turn()
    write_all(writing, b" ended\nnext\n")
    os.close(writing)
    house.until(lambda: stream.ended)
    assert content(tmp_path / "log.1") == b"begun ended\n"
    assert content(tmp_path / "log") == b"next\n"


def test_who_keeps_no_backups_cannot_rotate(house: House, tmp_path: Path) -> None:
    assert not house.file(tmp_path / "log").can_rotate
    assert not house.sink("QueueStream").can_rotate


def test_a_lower_count_drops_the_surplus(house: House, tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"log.{number}").write_bytes(b"%d" % number)
    (tmp_path / "log.2").rename(tmp_path / "log.2.gz")
    sink = house.file(tmp_path / "log", backup_count=3)
    house.pour(sink, b"new\n")
    sink.rotate()
    house.until(lambda: content(tmp_path / "log.1") == b"new\n")
    assert {"log.2", "log.3.gz"} <= set(names(tmp_path))
    assert content(tmp_path / "log.3.gz") == b"2"
    assert not (tmp_path / "log.3").exists()


# ---- by time -----------------------------------------------------------------------------


def test_a_new_day_begins_a_new_file(house: House, tmp_path: Path) -> None:
    """Yesterday's file is rotated at once, under the name of its day."""
    (tmp_path / "log").write_bytes(b"yesterday\n")
    os.utime(tmp_path / "log", (86400 * 300.5, 86400 * 300.5))
    house.pour(house.file(tmp_path / "log", rotate_when="MIDNIGHT", utc=True), b"today\n")
    assert content(tmp_path / "log") == b"today\n"
    assert content(tmp_path / "log.19701028") == b"yesterday\n"


def test_a_name_that_is_taken_is_not_written_over(house: House, tmp_path: Path) -> None:
    (tmp_path / "log.19701028.gz").write_bytes(b"earlier")
    (tmp_path / "log").write_bytes(b"yesterday\n")
    os.utime(tmp_path / "log", (86400 * 300.5, 86400 * 300.5))
    sink = house.sink(
        "TimedRotatingFileStream", filename=str(tmp_path / "log"), rotate_when="D", utc=True
    )
    house.pour(sink, b"today\n")
    assert content(tmp_path / "log.19701028-1") == b"yesterday\n"
    assert content(tmp_path / "log.19701028.gz") == b"earlier"


def test_old_days_are_dropped(house: House, tmp_path: Path) -> None:
    for day in range(1, 6):
        old = tmp_path / f"log.1970100{day}"
        old.write_bytes(b"old")
        os.utime(old, (86400 * day, 86400 * day))
    (tmp_path / "log").write_bytes(b"yesterday\n")
    os.utime(tmp_path / "log", (86400 * 300.5, 86400 * 300.5))
    sink = house.file(tmp_path / "log", rotate_when="MIDNIGHT", utc=True, backup_count=2)
    house.pour(sink, b"today\n")
    house.until(lambda: len(names(tmp_path)) == 3)
    assert names(tmp_path) == ["log", "log.19701005", "log.19701028"]


def test_a_quiet_file_is_rotated_by_the_clock_alone(tmp_path: Path) -> None:
    due: list[tuple[float, Any]] = []

    def later(seconds: float, function: Any) -> threading.Timer:
        due.append((seconds, function))
        return threading.Timer(0, function)

    house = House(later=later)
    sink = house.file(tmp_path / "log", rotate_when="S", utc=True)
    house.pour(sink, b"a line\n")
    wait, look = due[-1]
    assert 0 < wait <= 1
    while names(tmp_path) == ["log"]:
        look()
        house.turn()
    assert content(tmp_path / "log") == b""
    assert house.stop() == 0


def test_an_old_file_is_rotated_by_its_age(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", rotate_age=1.0, backup_count=1)
    house.pour(sink, b"first\n")

    def is_rotated() -> bool:
        house.pour(sink, b"more\n")
        return (tmp_path / "log.1").exists()

    house.until(is_rotated)
    assert content(tmp_path / "log.1").startswith(b"first\n")


# ---- by others ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["FileStream", "WatchedFileStream"])
@pytest.mark.parametrize("how", ["rename", "remove"])
def test_a_file_that_is_gone_is_made_again(
    house: House, tmp_path: Path, cls: str, how: str
) -> None:
    path = tmp_path / "log"
    stream, writing = house.stream(house.sink(cls, filename=str(path)))
    write_all(writing, b"before\n")
    house.until(lambda: content(path) == b"before\n")
    if how == "rename":
        path.rename(tmp_path / "moved")
    else:
        path.unlink()
    written = b"before\n"

    def is_made_again() -> bool:
        nonlocal written
        written += b"after\n"
        write_all(writing, b"after\n")
        house.until(lambda: stream.bytes_read == len(written))
        return bool(content(path))

    house.until(is_made_again)
    os.close(writing)
    house.until(lambda: stream.ended)
    if how == "rename":
        assert content(tmp_path / "moved") + content(path) == written
    else:
        assert set(content(path).splitlines()) == {b"after"}


def test_a_file_that_was_truncated_is_written_on(house: House, tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = house.file(path)
    house.pour(sink, b"before\n")
    os.truncate(path, 0)  # as logrotate's copytruncate does
    house.pour(sink, b"after\n")
    assert content(path) == b"after\n"


# ---- afterwards --------------------------------------------------------------------------


def test_backups_are_compressed(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", max_bytes=7, backup_count=50, compress="gzip")
    data = b"".join(b"line %d\n" % n for n in range(10))
    for line in data.splitlines(keepends=True):
        house.pour(sink, line)

    def backups() -> list[Path]:
        return sorted(set(tmp_path.glob("log.*")), key=lambda path: -int(path.name.split(".")[1]))

    house.until(lambda: backups() and all(path.suffix == ".gz" for path in backups()))
    found = [gzip.decompress(path.read_bytes()) for path in backups()]
    assert b"".join(found) + content(tmp_path / "log") == data


def test_what_an_earlier_daemon_left_is_compressed(house: House, tmp_path: Path) -> None:
    (tmp_path / "log.1").write_bytes(b"left\n")
    house.file(tmp_path / "log", max_bytes=100, backup_count=3, compress="zstd")
    house.until(lambda: (tmp_path / "log.1.zst").exists())


def test_a_rotation_waits_for_who_renames_backups(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", max_bytes=5, backup_count=3)
    place = sink._place
    lib.sink_file_lock(place.native)
    house.pour(sink, b"one\ntwo\nthree\n")
    assert names(tmp_path) == ["log"]
    lib.sink_file_unlock(place.native)

    def is_rotated() -> bool:
        house.pour(sink, b"on\n")
        return (tmp_path / "log.1").exists()

    house.until(is_rotated)
    assert content(tmp_path / "log.1").startswith(b"one\ntwo\nthree\n")


@pytest.mark.parametrize("fsync", ["rotate", "interval"])
def test_bytes_are_synced(
    house: House, tmp_path: Path, fsync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def note(fd: int, name: str = name, real: Any = real) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            real(fd)

        monkeypatch.setattr(os, name, note)
    sink = house.file(tmp_path / "log", fsync=fsync, fsync_interval=0.0, backup_count=1)
    house.pour(sink, b"a line\n")
    if fsync == "rotate":
        sink.rotate()
        house.until(lambda: str(tmp_path / "log.1") in synced)
    else:
        house.until(lambda: str(tmp_path / "log") in synced)
        synced.clear()
        house.pour(sink, b"another\n")
        house.until(lambda: str(tmp_path / "log") in synced)


# ---- whose they are ----------------------------------------------------------------------


def test_mode_of_a_file(house: House, tmp_path: Path) -> None:
    house.pour(house.file(tmp_path / "log", mode=0o640), b"x\n")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_mode_of_a_file_that_is_there(house: House, tmp_path: Path) -> None:
    (tmp_path / "log").touch(0o600)
    house.pour(house.file(tmp_path / "log", mode=0o644), b"x\n")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_owner_of_a_file_and_of_the_next(house: House, tmp_path: Path) -> None:
    sink = house.file(tmp_path / "log", owner="nobody", mode=0o600, backup_count=1)
    house.pour(sink, b"x\n")
    sink.rotate()
    house.until(lambda: (tmp_path / "log.1").exists())
    house.pour(sink, b"y\n")
    for name in ("log", "log.1"):
        status = (tmp_path / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_a_second_name_is_not_given_away(house: House, tmp_path: Path) -> None:
    """Who may write to the directory may have put another file's name there."""
    secret = tmp_path / "secret"
    secret.write_text("")
    secret.chmod(0o600)
    os.link(secret, tmp_path / "log")
    house.pour(house.file(tmp_path / "log", owner="nobody", mode=0o666), b"x\n")
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (0, 0o600)


@pytest.mark.parametrize("option", ["owner", "group"])
def test_an_owner_that_is_none(house: House, tmp_path: Path, option: str) -> None:
    options: dict[str, Any] = {option: "no-such-one"}
    with pytest.raises(Exception, match="no-such-one"):
        house.file(tmp_path / "log", **options)
