"""Lines become entries of the journal: exact, in order, and not one less, whatever journald does.

Where the real one would be too kind, a socket of the test's own plays it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import io
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sysup.config import StreamSpec
from sysup.config.streams import Rate
from sysup.streams import Sink, Source, open_sink
from tests.journald import Journald, parse_export
from tests.streams.house import House, write_all, write_and_close

DIRECTORY = "sysup.streams.journal.DIRECTORY"
REFERENCE_LOSS = 1
"""Messages that any sender of datagrams loses with a killed journald: the one that it had read."""
STREAM_LOSS = 1000
"""Lines of a stream that go with it: those of the buffer that it had read."""


@pytest.fixture
def journal(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> Journald:
    """A real one, where the pump finds it."""
    monkeypatch.setattr(DIRECTORY, str(journald.directory))
    return journald


class Server:
    """The socket of a journald that reads when the test says so."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "socket"
        self._open()

    def _open(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._socket.settimeout(60)

    def receive(self) -> dict[str, bytes]:
        """The next entry."""
        data, fds = self.receive_raw()
        assert not fds
        return entry(data)

    def receive_raw(self) -> tuple[bytes, list[int]]:
        """A datagram, and the descriptors that came with it."""
        fds = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(fds.itemsize))
        for _, _, raw in ancillary:
            fds.frombytes(raw)
        return data, list(fds)

    def take(self, count: int) -> list[bytes]:
        """The texts of the next entries."""
        return [self.receive()["MESSAGE"] for _ in range(count)]

    def close(self) -> None:
        """Be gone, with the socket and what waits in it."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def come_back(self) -> None:
        """The end of `close`."""
        self._open()


@pytest.fixture
def server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("journal")
    monkeypatch.setattr(DIRECTORY, str(directory))
    server = Server(directory)
    yield server
    server.close()


def entry(data: bytes) -> dict[str, bytes]:
    """One in the native protocol, which has the form of the export format."""
    (found,) = parse_export(io.BytesIO(data))
    return found


def stderr_sink(house: House, **options: object) -> Sink:
    source = Source("stderr", "web", "shop")
    sink = open_sink(house.pump, StreamSpec("JournalStream", options), source, house.tell)
    assert isinstance(sink, Sink)
    return sink


class Feeder:
    """A thread that writes into a pipe, and shuts it."""

    def __init__(self, writing: int, data: bytes) -> None:
        self._thread = threading.Thread(target=write_and_close, args=(writing, data))

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def is_done(self) -> bool:
        return not self._thread.is_alive()


# ---- entries -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"plain", id="text"),
        pytest.param(b"", id="empty"),
        pytest.param(b" \t ", id="blanks"),
        pytest.param(bytes(set(range(256)) - {10}), id="any byte"),
        pytest.param("\N{SNOWMAN}".encode()[:2], id="half a character"),
        pytest.param(b"PRIORITY=0", id="like a field"),
        pytest.param(b"\0", id="a zero"),
        pytest.param(b"x" * 60_000, id="long"),
    ],
)
def test_a_line_is_an_entry(house: House, journal: Journald, text: bytes) -> None:
    house.pour(house.sink("JournalStream", identifier="web"), text + b"\n" + text + b"x")
    journal.sync()
    assert journal.messages("SYSLOG_IDENTIFIER=web") == [text, text + b"x"]


def test_an_entry_says_where_it_comes_from(house: House, journal: Journald) -> None:
    stream, writing = house.stream(house.sink("JournalStream", identifier="web"), pid=4711)
    write_and_close(writing, b"hello\n")
    house.until(lambda: stream.ended)
    journal.sync()
    (found,) = journal.entries()
    assert found["MESSAGE"] == b"hello"
    assert found["SYSLOG_IDENTIFIER"] == b"web"
    assert found["SYSLOG_PID"] == b"4711"
    assert found["SYSUP_STREAM"] == b"stdout"
    assert found["PRIORITY"] == b"6"
    assert found["_TRANSPORT"] == b"journal"


@pytest.mark.parametrize(
    ("line", "priority", "text"),
    [
        (b"<3>bad", b"3", b"bad"),
        (b"<0>", b"0", b""),
        (b"<7><3>twice", b"7", b"<3>twice"),
        (b"<8>no level", b"6", b"<8>no level"),
        (b"<30>a facility", b"6", b"<30>a facility"),
        (b"<>", b"6", b"<>"),
        (b"<3", b"6", b"<3"),
        (b" <3>not at the beginning", b"6", b" <3>not at the beginning"),
    ],
)
def test_a_level_before_a_line_is_its_priority(
    house: House, journal: Journald, line: bytes, priority: bytes, text: bytes
) -> None:
    house.pour(house.sink("JournalStream"), line + b"\n")
    journal.sync()
    (found,) = journal.entries()
    assert (found["PRIORITY"], found["MESSAGE"]) == (priority, text)


def test_priorities_that_are_configured(house: House, journal: Journald) -> None:
    house.pour(house.sink("JournalStream", level_prefix=False), b"<3>a\n")
    house.pour(house.sink("JournalStream", priority="err"), b"b\n<5>c\n")
    house.pour(stderr_sink(house), b"d\n<6>e\n")
    house.pour(stderr_sink(house, priority="debug"), b"f\n")
    journal.sync()
    found = [(one["MESSAGE"], one["PRIORITY"], one["SYSUP_STREAM"]) for one in journal.entries()]
    assert found == [
        (b"<3>a", b"6", b"stdout"),
        (b"b", b"3", b"stdout"),
        (b"c", b"5", b"stdout"),
        (b"d", b"4", b"stderr"),
        (b"e", b"6", b"stderr"),
        (b"f", b"7", b"stderr"),
    ]


def test_a_line_longer_than_max_line_comes_in_pieces(house: House, journal: Journald) -> None:
    house.pour(house.sink("JournalStream", max_line=1000), b"0123456789" * 1000 + b"\nnext\n")
    journal.sync()
    *pieces, last = journal.messages()
    assert all(len(piece) <= 1000 for piece in pieces)
    assert (b"".join(pieces), last) == (b"0123456789" * 1000, b"next")


def test_lines_of_a_megabyte(house: House, journal: Journald) -> None:
    texts = [b"%d" % n * 1_000_000 for n in range(5)]
    sink = house.sink("JournalStream", max_line=1 << 20, identifier="web")
    house.pour(sink, b"\n".join(texts))
    journal.sync()
    assert journal.messages("SYSLOG_IDENTIFIER=web") == texts


def test_what_is_too_large_for_a_datagram_is_sealed(house: House, server: Server) -> None:
    """journald takes a descriptor of others only if its content cannot change."""
    stream, writing = house.stream(house.sink("JournalStream", max_line=16 << 20, buffer=64 << 20))
    text = b"x" * 10_000_000
    with Feeder(writing, b"<3>" + text + b"\nnext\n"):
        house.until(lambda: stream.bytes_read == len(text) + 9)
    data, (fd,) = server.receive_raw()
    assert data == b""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    found = entry(os.pread(fd, 11_000_000, 0))
    os.close(fd)
    assert (found["MESSAGE"], found["PRIORITY"]) == (text, b"3")
    assert server.take(1) == [b"next"]
    house.until(lambda: stream.ended)


def test_lines_can_be_left_out(house: House, journal: Journald) -> None:
    sink = house.sink("JournalStream", deselect=("-debug *",), identifier="web")
    house.pour(sink, b"debug one\ntwo\ndebug\ndebug three\n")
    journal.sync()
    assert journal.messages("SYSLOG_IDENTIFIER=web") == [b"two", b"debug"]


def test_a_rate_lets_so_many_pass(house: House, journal: Journald) -> None:
    sink = house.sink("JournalStream", rate=Rate(100, 3600.0), identifier="web")
    stream = house.pour(sink, b"".join(b"%03d\n" % n for n in range(1000)))
    journal.sync()
    found = [text for text in journal.messages() if not text.startswith(b"sysup: ")]
    assert found == [b"%03d" % n for n in range(100)]
    assert stream.losses.suppressed_lines == 900
    assert stream.losses.suppressed_bytes == 900 * 4
    assert stream.losses.dropped_lines == 0


def test_hundreds_of_streams_share_a_socket(house: House, journal: Journald) -> None:
    before = sockets()
    sinks = [house.sink("JournalStream", identifier=f"w{n % 10}") for n in range(300)]
    streams = [house.stream(sink, pid=n + 1) for n, sink in enumerate(sinks)]
    for n, (_, writing) in enumerate(streams):
        write_all(writing, b"%d a\n%d b\n" % (n, n))
    house.until(lambda: all(stream.bytes_read for stream, _ in streams))
    assert sockets() <= before + 1
    for _, writing in streams:
        os.close(writing)
    house.until(lambda: len(house.ended) == 300)
    journal.sync()
    rows = [(one["SYSLOG_PID"], one["MESSAGE"]) for one in journal.entries()]
    assert sorted(rows) == sorted(
        (b"%d" % (n + 1), b"%d %c" % (n, letter)) for n in range(300) for letter in b"ab"
    )


def sockets() -> int:
    """How many this process has open."""
    links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum(str(link).startswith("socket:") for link in links)


# ---- a burst, and what befalls journald meanwhile ----------------------------------------


def nothing(_: Journald) -> None:
    pass


def restart(journal: Journald) -> None:
    journal.stop()
    journal.start()


def pause(journal: Journald) -> None:
    journal.freeze()
    journal.thaw()


def kill(journal: Journald) -> None:
    journal.kill()
    journal.start()


WRITERS, LINES = 4, 25_000


@pytest.mark.parametrize(
    ("fields", "disturb", "loss"),
    [
        (True, nothing, 0),
        (True, restart, 0),
        (True, pause, 0),
        (True, kill, 2 * REFERENCE_LOSS),
        (False, nothing, 0),
        (False, restart, 0),
        (False, pause, 0),
        (False, kill, 2 * WRITERS * STREAM_LOSS),
    ],
)
def test_a_burst_is_stored_whole(
    house: House, journal: Journald, fields: bool, disturb: Callable[[Journald], None], loss: int
) -> None:
    """Of several writers; in the order of each."""
    with ExitStack() as stack:
        pipes = []
        for n in range(WRITERS):
            sink = house.sink("JournalStream", fields=fields, identifier=f"w{n}")
            _, writing = house.stream(sink, pid=os.getpid())
            write_all(writing, b"%d %06d .\n" % (n, 0))
            house.until(lambda: is_stored(journal, f"w{n}"))  # noqa: B023
            rest = b"".join(b"%d %06d .\n" % (n, i) for i in range(1, LINES))
            stack.enter_context(Feeder(os.dup(writing), rest))
            pipes.append(writing)
        for _ in range(2):
            disturb(journal)
            house.turn()
        for writing in pipes:
            os.close(writing)
        house.until(lambda: len(house.ended) == WRITERS)
    journal.sync()
    missing = 0
    for n in range(WRITERS):
        texts = journal.messages(f"SYSLOG_IDENTIFIER=w{n}")
        numbers = [int(text[2:8]) for text in texts if len(text) == len(b"0 000000 .")]
        assert numbers == sorted(set(numbers))
        missing += LINES - len(numbers)
    assert 0 <= missing <= loss


def is_stored(journal: Journald, identifier: str) -> bool:
    """Whether journald knows the sender; one that it has just met dies with it."""
    journal.sync()
    return bool(journal.messages(f"SYSLOG_IDENTIFIER={identifier}"))


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize(
    ("cease", "resume"),
    [(Journald.stop, Journald.start), (Journald.freeze, Journald.thaw)],
)
def test_while_journald_does_nothing_writers_wait(
    house: House,
    journal: Journald,
    fields: bool,
    cease: Callable[[Journald], None],
    resume: Callable[[Journald], None],
) -> None:
    """The sockets take in some, the pump as much as it may hold, the pipe the rest."""
    cease(journal)
    sink = house.sink("JournalStream", fields=fields, identifier="web", buffer=4096)
    stream, writing = house.stream(sink, pid=os.getpid())
    data = b"".join(b"%06d %s\n" % (n, b"." * 2000) for n in range(20_000))
    with Feeder(writing, data) as feeder:
        house.until(lambda: stream.bytes_read > 10_000)
        house.until(house.is_quiet)
        assert not feeder.is_done()
        resume(journal)
        house.until(lambda: stream.ended)
    journal.sync()
    assert b"\n".join(journal.messages("SYSLOG_IDENTIFIER=web")) + b"\n" == data


# ---- one that is slow, full, gone --------------------------------------------------------


def test_a_full_queue_holds_up_nobody_else(house: House, server: Server, tmp_path: Path) -> None:
    stream, writing = house.stream(house.sink("JournalStream"))
    rows = [b"%06d" % n for n in range(60_000)]
    with Feeder(writing, b"\n".join(rows)) as feeder:
        house.until(lambda: stream.bytes_read > 1000)
        house.until(house.is_quiet)
        house.pour(house.file(tmp_path / "log"), b"fine\n" * 50_000)
        assert not feeder.is_done()
        assert server.take(len(rows)) == rows
        house.until(lambda: stream.ended)
    assert stream.losses.dropped_lines == 0


def test_a_full_queue_drops_what_may_be_dropped(house: House, server: Server) -> None:
    sink = house.sink("JournalStream", on_full="drop", buffer=4096)
    stream, writing = house.stream(sink)
    rows = [b"%06d" % n for n in range(60_000)]
    with Feeder(writing, b"\n".join(rows) + b"\n") as feeder:
        house.until(feeder.is_done)
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.extend(iter_messages(server)))
    reading.start()
    house.until(lambda: stream.ended)
    losses = stream.losses
    sink.close()
    house.until(lambda: len(house.pump.places) == 0)
    end(server)
    reading.join()
    kept = [row for row in got if not row.startswith(b"sysup: ")]
    told = [row for row in got if row.startswith(b"sysup: ")]
    assert losses.dropped_lines == len(rows) - len(kept) > 0
    assert losses.dropped_bytes == 7 * losses.dropped_lines
    assert kept == sorted(set(kept))
    assert set(kept) <= set(rows)
    assert sum(map(lines_lost, told)) == losses.dropped_lines


def lines_lost(record: bytes) -> int:
    """The number that a record of loss tells."""
    found = re.search(rb"(\d+) lines?", record)
    assert found, record
    return int(found[1])


def iter_messages(server: Server) -> Iterator[bytes]:
    """Until one that is empty."""
    while text := server.receive()["MESSAGE"]:
        yield text


def end(server: Server) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(server._path))
        sender.send(b"MESSAGE=\n")


def test_one_that_goes_and_comes_back_gets_the_rest(house: House, server: Server) -> None:
    sink = house.sink("JournalStream")
    stream, writing = house.stream(sink)
    write_all(writing, b"one\n")
    house.until(lambda: stream.bytes_read == 4)
    assert server.take(1) == [b"one"]
    server.close()
    write_all(writing, b"two\nthree\n")
    house.until(lambda: house.told)
    assert sink.failure
    server.come_back()
    assert server.take(2) == [b"two", b"three"]
    house.until(lambda: sink.failure is None)
    assert len(house.told) == 2
    write_and_close(writing, b"four\n")
    house.until(lambda: stream.ended)
    assert server.take(1) == [b"four"]


def test_another_one_in_its_place_is_found(house: House, server: Server) -> None:
    stream, writing = house.stream(house.sink("JournalStream"))
    write_all(writing, b"one\n")
    assert server.take(1) == [b"one"]
    server.close()
    server.come_back()
    write_and_close(writing, b"two\n")
    house.until(lambda: stream.ended)
    assert server.take(1) == [b"two"]


# ---- without fields ----------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[int]:
    """The pid of a process that lives."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def test_without_fields_journald_knows_the_process(
    house: House, journal: Journald, child: int
) -> None:
    sink = house.sink("JournalStream", fields=False, identifier="web", priority="notice")
    stream, writing = house.stream(sink, pid=child)
    write_and_close(writing, b"one\n<3>two\nthree")
    house.until(lambda: stream.ended)
    journal.sync()
    names = ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "_PID", "_TRANSPORT")
    assert [tuple(one[name] for name in names) for one in journal.entries()] == [
        (b"one", b"5", b"web", b"%d" % child, b"stdout"),
        (b"two", b"3", b"web", b"%d" % child, b"stdout"),
        (b"three", b"5", b"web", b"%d" % child, b"stdout"),
    ]
    assert "SYSUP_STREAM" not in next(journal.entries())


def test_without_fields_a_level_may_be_text(house: House, journal: Journald, child: int) -> None:
    sink = house.sink("JournalStream", fields=False, level_prefix=False)
    stream, writing = house.stream(sink, pid=child)
    write_and_close(writing, b"<3>one\n")
    house.until(lambda: stream.ended)
    journal.sync()
    assert [(one["MESSAGE"], one["PRIORITY"]) for one in journal.entries()] == [(b"<3>one", b"6")]


def test_without_fields_last_words_are_stored(house: House, journal: Journald) -> None:
    """The kernel lets nobody send with the pid of a process that is gone (ESRCH)."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    sink = house.sink("JournalStream", fields=False, identifier="web")
    stream, writing = house.stream(sink, pid=gone.pid)
    write_and_close(writing, b"last\nwords\n")
    house.until(lambda: stream.ended)
    journal.sync()
    assert journal.messages("SYSLOG_IDENTIFIER=web") == [b"last", b"words"]


def test_without_fields_a_connection_that_breaks_is_made_again(
    house: House, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    monkeypatch.setattr(DIRECTORY, str(directory))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / "stdout"))
        listening.listen()
        listening.settimeout(60)
        sink = house.sink("JournalStream", fields=False, identifier="web")
        stream, writing = house.stream(sink, pid=os.getpid())
        write_all(writing, b"one\n")
        assert greeting_and_line(listening) == (b"web", b"one")
        write_all(writing, b"two\n")
        assert greeting_and_line(listening) == (b"web", b"two")
        os.close(writing)
        house.until(lambda: stream.ended)


def greeting_and_line(listening: socket.socket) -> tuple[bytes, bytes]:
    """Of the next connection, that is then broken off: the identifier, the first line."""
    connection, _ = listening.accept()
    with connection, connection.makefile("rb") as lines:
        identifier, *_, text = (lines.readline()[:-1] for _ in range(8))
        return identifier, text


def test_without_fields_it_waits_for_a_journald(
    house: House, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    monkeypatch.setattr(DIRECTORY, str(directory))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.bind(str(directory / "stdout"))
    sink = house.sink("JournalStream", fields=False, identifier="web")
    stream, writing = house.stream(sink, pid=os.getpid())
    write_and_close(writing, b"patient\n")
    house.until(lambda: house.told)
    assert os.strerror(errno.ECONNREFUSED) in str(house.told[0][1])
    (directory / "stdout").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / "stdout"))
        listening.listen()
        listening.settimeout(60)
        assert greeting_and_line(listening) == (b"web", b"patient")
        house.until(lambda: stream.ended)
