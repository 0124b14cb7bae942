"""The daemon's log in the journal: its fields, and that it waits for nobody."""

from __future__ import annotations

import array
import asyncio
import io
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysup import diary
from sysup.diary import MOST, Diary, about, encode
from tests.e2e.harness import until
from tests.journald import Journald, parse_export

PATIENCE = 60
LINE = "x" * 1000


class Server:
    """The socket of a journald that reads when the test says so."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "socket"
        self.open()

    def open(self) -> None:
        """Be there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(PATIENCE)

    def receive(self) -> dict[str, bytes]:
        """The next entry."""
        fds = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(fds.itemsize))
        for _, _, raw in ancillary:
            fds.frombytes(raw)
        for fd in fds:
            with open(fd, "rb") as file:
                data += os.pread(fd, os.fstat(file.fileno()).st_size, 0)
        (entry,) = parse_export(io.BytesIO(data))
        return entry

    def texts(self, count: int) -> list[str]:
        """Of the next entries."""
        return [self.receive()["MESSAGE"].decode() for _ in range(count)]

    def close(self) -> None:
        """Be gone, with the socket and what waits in it."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("sysup.streams.journal.DIRECTORY", str(tmp_path))
    server = Server(tmp_path)
    yield server
    server.close()


class Stderr:
    """Standard error, which is a stream of somebody who may not read."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.fd = ours.detach()

    def close(self) -> None:
        os.close(self.fd)
        self.theirs.close()

    def text(self) -> str:
        """What was written."""
        self.theirs.setblocking(False)
        try:
            return self.theirs.recv(1 << 20).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stderr]:
    made = Stderr()
    monkeypatch.setattr(diary, "STANDARD_ERROR", made.fd)
    yield made
    made.close()


@pytest.fixture
def book(server: Server, stderr: Stderr) -> Iterator[Diary]:
    book = Diary("shop")
    yield book
    book.close()


def write(book: Diary, text: str, level: int = logging.INFO, **extra: object) -> None:
    record = logging.LogRecord("sysup", level, "/src/a.py", 7, "%s", (text,), None, "work")
    record.__dict__.update(extra)
    book.handle(record)


def in_loop(book: Diary, work: Callable[[], None]) -> None:
    """Attach it to a loop, which turns while `work` is done by another thread."""

    async def main() -> None:
        book.attach(asyncio.get_running_loop())
        await asyncio.to_thread(work)
        book.detach()

    asyncio.run(main())


def fill(book: Diary) -> list[str]:
    """Write until something waits; what was written."""
    texts: list[str] = []
    while not book._waiting:
        texts.append(f"{len(texts)} {LINE}")
        write(book, texts[-1])
    return texts


# ---- entries -----------------------------------------------------------------------------


def test_the_fields_of_an_entry(server: Server, book: Diary) -> None:
    write(book, "web.3: flapping", logging.WARNING, **about("web", 3, "flapping"))
    assert server.receive() == {
        "MESSAGE": b"web.3: flapping",
        "PRIORITY": b"4",
        "SYSLOG_IDENTIFIER": b"sysupd",
        "SYSLOG_FACILITY": b"3",
        "SYSUP_APP": b"shop",
        "SYSUP_WATCHER": b"web",
        "SYSUP_WID": b"3",
        "SYSUP_EVENT": b"flapping",
        "CODE_FILE": b"/src/a.py",
        "CODE_LINE": b"7",
        "CODE_FUNC": b"work",
    }


def test_what_concerns_no_watcher_says_none(server: Server, book: Diary) -> None:
    write(book, "hello", **about("", None, "add"))
    found = server.receive()
    assert found["SYSUP_EVENT"] == b"add"
    assert not {"SYSUP_WATCHER", "SYSUP_WID", "CODE_FILE"} & found.keys()


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (logging.DEBUG, b"7"),
        (logging.DEBUG - 5, b"7"),
        (logging.INFO, b"6"),
        (logging.WARNING, b"4"),
        (logging.ERROR, b"3"),
        (logging.CRITICAL, b"2"),
        (logging.CRITICAL + 5, b"2"),
    ],
)
def test_priorities(server: Server, book: Diary, level: int, number: bytes) -> None:
    write(book, "text", level)
    assert server.receive()["PRIORITY"] == number


def test_a_traceback_is_of_its_entry(server: Server, book: Diary) -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("sysup", logging.ERROR, "a", 1, "failed", (), info)
    book.handle(record)
    first, *_, last = server.receive()["MESSAGE"].decode().split("\n")
    assert (first, last) == ("failed", "ValueError: wrong")


def test_a_record_that_is_wrong_is_told(
    server: Server, book: Diary, capsys: pytest.CaptureFixture[str]
) -> None:
    book.handle(logging.LogRecord("sysup", logging.INFO, "a", 1, "%d", ("x",), None))
    write(book, "next")
    assert server.texts(1) == ["next"]
    assert "--- Logging error ---" in capsys.readouterr().err


@given(
    st.lists(st.tuples(st.sampled_from(["A", "B_C", "D1"]), st.text()), unique_by=lambda f: f[0])
)
def test_no_value_can_begin_another_field(fields: list[tuple[str, str]]) -> None:
    expected = {name: value.encode("utf-8", "backslashreplace") for name, value in fields}
    found = list(parse_export(io.BytesIO(encode(fields))))
    assert found == ([expected] if expected else [])


def test_one_that_is_too_large_for_a_datagram(server: Server, book: Diary) -> None:
    text = "line\n" * 200_000
    write(book, text)
    assert server.receive()["MESSAGE"].decode() == text


# ---- a journald that does not read, or is not there --------------------------------------


def test_what_does_not_fit_waits_and_comes_in_order(server: Server, book: Diary) -> None:
    """While the loop turns."""
    texts = fill(book)
    write(book, "last")

    def work() -> None:
        assert server.texts(len(texts) + 1) == [*texts, "last"]

    in_loop(book, work)


def test_it_waits_in_the_loop_as_well(server: Server, book: Diary) -> None:
    def work() -> None:
        for _ in range(3):
            texts = fill(book)
            assert server.texts(len(texts)) == texts
            write(book, "further")
            assert server.texts(1) == ["further"]

    in_loop(book, work)


def test_what_is_too_much_is_counted_and_told(server: Server, book: Diary) -> None:
    texts = fill(book)
    while book._lost < 3:
        texts.append(f"{len(texts)} {LINE}")
        write(book, texts[-1])
    assert book._size <= MOST
    del texts[-3:]
    notice = "3 lines of the log were lost: the journal did not take them"

    def work() -> None:
        assert server.texts(len(texts) + 1) == [*texts, notice]
        write(book, "next")
        assert server.texts(1) == ["next"]

    in_loop(book, work)


def test_a_loss_is_told_before_what_comes_after_it(server: Server, book: Diary) -> None:
    texts = fill(book)
    write(book, "x" * MOST)
    write(book, "next")
    notice = "1 lines of the log were lost: the journal did not take them"

    def work() -> None:
        assert server.texts(len(texts) + 2) == [*texts, notice, "next"]

    in_loop(book, work)


def test_a_socket_that_comes_back(
    server: Server, book: Diary, stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diary, "RETRY", 0.01)
    write(book, "one")
    assert server.texts(1) == ["one"]
    server.close()
    stderr.theirs.close()
    write(book, "two")
    write(book, "three")

    def work() -> None:
        server.open()
        assert server.texts(2) == ["two", "three"]
        write(book, "four")
        assert server.texts(1) == ["four"]

    in_loop(book, work)


def test_another_socket_in_its_place_is_found_at_once(server: Server, book: Diary) -> None:
    write(book, "one")
    server.close()
    server.open()
    write(book, "two")
    assert server.texts(1) == ["two"]


def test_without_a_socket_lines_go_to_standard_error(
    server: Server, book: Diary, stderr: Stderr
) -> None:
    server.close()
    write(book, "one\ntwo", logging.ERROR)
    write(book, "three")
    assert stderr.text() == "<3>one\n<3>two\n<6>three\n"


def test_at_the_end_what_waits_goes_to_standard_error(
    server: Server, book: Diary, stderr: Stderr
) -> None:
    texts = fill(book)
    write(book, "waits", logging.WARNING)
    book.detach()
    write(book, "last words", logging.ERROR)
    assert stderr.text() == f"<6>{texts[-1]}\n<4>waits\n<3>last words\n"
    assert server.texts(len(texts) - 1) == texts[:-1]
    write(book, "there is room again")
    assert server.texts(1) == ["there is room again"]


def test_at_the_end_nobody_waits_for_standard_error(
    server: Server, book: Diary, stderr: Stderr
) -> None:
    fill(book)
    for _ in range(1000):
        write(book, LINE)
    book.close()
    assert 5 < stderr.text().count("\n") < 1000


def test_a_line_that_is_too_long_for_standard_error_is_cut(
    server: Server, book: Diary, stderr: Stderr
) -> None:
    server.close()
    write(book, "x" * 1_000_000)
    assert stderr.text() == "<6>" + "x" * (diary.LONGEST - 3) + "\n"


# ---- a real one --------------------------------------------------------------------------


def test_a_journald_that_is_stopped_for_a_while(
    journald: Journald, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysup.streams.journal.DIRECTORY", str(journald.directory))
    book = Diary("shop")
    texts = [f"{number}" for number in range(2000)]
    write(book, "before\nit", **about("web", 1, "spawn"))

    def work() -> None:
        journald.stop()
        for text in texts:
            write(book, text)
        assert book._waiting
        journald.start()
        until(lambda: not book._waiting, "all is sent")
        write(book, "\n" * 1_000_000)

    in_loop(book, work)
    book.close()
    journald.sync()
    entries = list(journald.entries("SYSUP_APP=shop"))
    found = [entry["MESSAGE"].decode() for entry in entries]
    assert found == ["before\nit", *texts, "\n" * 1_000_000]
    assert entries[0]["SYSUP_EVENT"] == b"spawn"
