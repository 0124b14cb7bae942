"""The daemon's own log as entries of the journal: with fields, and without ever waiting.

journald may be slow, stopped or restarted. Then a datagram does not fit into its socket's queue,
or nobody is at the socket. So an entry that can't be sent at once waits here, those after it
behind it, until the loop finds that there is room; of more than MOST bytes the rest is lost,
counted and told. Where there is no socket to send to, an entry goes to standard error, which the
journal made for us (JOURNAL_STREAM): without its fields, with its priority (sd-daemon(3)).

Before there is a loop entries wait as well; after the last look of the loop what can't be sent
goes to standard error at once, if that takes it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sysup.streams import journal

MOST = 1 << 20
"""Bytes that may wait."""
LONGEST = 1 << 15
"""Bytes of an entry that standard error is given: so many never make it wait (unix(7))."""
RETRY = 1.0
"""Seconds until a socket that is not there is looked for again."""
PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
WARNING = 4
DAEMON = 3
"""The facility, as systemd gives it to what services write."""
TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""journald takes no file from other users than root that could still change."""
STANDARD_ERROR = 2


def about(watcher: str, wid: int | None = None, event: str | None = None) -> dict[str, Any]:
    """What a record is about: the `extra` of a call of the log, which becomes fields."""
    fields = {"SYSUP_WATCHER": watcher, "SYSUP_WID": wid, "SYSUP_EVENT": event}
    return {"sysup": {name: value for name, value in fields.items() if value not in ("", None)}}


def priority(level: int) -> int:
    """That of syslog(3) for a level of a log."""
    return next(number for least, number in PRIORITIES if level >= least)


def encode(fields: Iterable[tuple[str, object]]) -> bytes:
    """An entry in the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    entry = b""
    for name, value in fields:
        data = str(value).encode("utf-8", "backslashreplace")
        if b"\n" in data:
            entry += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return entry


class Entry(NamedTuple):
    """A record of the log: for the journal's socket, and for a stream of lines."""

    datagram: bytes
    lines: bytes


class Diary(logging.Handler):
    """Writes records into the journal.

    Args:
        app: whose they are.
    """

    def __init__(self, app: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._app = app
        self._socket: socket.socket | None = None
        self._waiting: deque[Entry] = deque()
        self._size = 0
        self._lost = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_watched = False
        self._is_over = False

    # ---- records -------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or let it wait."""
        try:
            entry = self._entry(record)
        except (TypeError, ValueError):  # its arguments do not fit its text
            self.handleError(record)
            return
        self._write(entry)

    def _entry(self, record: logging.LogRecord) -> Entry:
        told: Mapping[str, object] = record.__dict__.get("sysup", {})
        text = self.format(record)
        where = {
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }
        urgency = priority(record.levelno)
        return self._made(text, urgency, told, where if urgency <= WARNING else {})

    def _made(self, text: str, urgency: int, *more: Mapping[str, object]) -> Entry:
        fields: dict[str, object] = {
            "MESSAGE": text,
            "PRIORITY": urgency,
            "SYSLOG_IDENTIFIER": "sysupd",
            "SYSLOG_FACILITY": DAEMON,
            "SYSUP_APP": self._app,
        }
        for mapping in more:
            fields |= mapping
        lines = "".join(f"<{urgency}>{line}\n" for line in text.splitlines() or [""])
        return Entry(encode(fields.items()), lines.encode("utf-8", "backslashreplace"))

    def _write(self, entry: Entry) -> None:
        """Send it, or have it wait behind others; the lock is held."""
        if not self._waiting and not self._lost and self._send(entry):
            return
        if self._is_over:
            self._say(entry)
            return
        if self._size + len(entry.datagram) > MOST:
            self._lost += 1
            return
        if self._loop is not None and not self._waiting:
            self._loop.call_soon_threadsafe(self._look)
        self._keep(*self._notices(), entry)

    def _keep(self, *entries: Entry) -> None:
        self._waiting += entries
        self._size += sum(len(entry.datagram) for entry in entries)

    def _notices(self) -> Iterator[Entry]:
        """That others before were lost, if some were."""
        if self._lost:
            text = f"{self._lost} lines of the log were lost: the journal did not take them"
            self._lost = 0
            yield self._made(text, WARNING)

    # ---- the loop ------------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on this loop sees to what waits."""
        self._loop = loop
        self._look()

    def _look(self) -> None:
        """Send what waits, as far as it can be, and look again when more can."""
        with self._locked():
            self._rest()
            self._drain()
            if not self._waiting or self._loop is None:
                return
            if self._socket is None:
                self._timer = self._loop.call_later(RETRY, self._look)
            else:
                self._loop.add_writer(self._socket, self._look)
                self._is_watched = True

    def _rest(self) -> None:
        """Look no more by itself. Only while something waits there is something to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_watched and self._loop is not None and self._socket is not None:
            self._loop.remove_writer(self._socket)
            self._is_watched = False

    def _drain(self) -> None:
        while self._waiting and self._send(self._waiting[0]):
            self._size -= len(self._waiting.popleft().datagram)
            if not self._waiting:
                self._keep(*self._notices())

    def detach(self) -> None:
        """The loop has turned for the last time: nothing waits any more."""
        with self._locked():
            self._rest()
            self._loop = None
            self._is_over = True
            self._drain()
            for entry in (*self._waiting, *self._notices()):
                self._say(entry)
            self._waiting.clear()
            self._size = 0

    def close(self) -> None:
        """Write what waits, and end."""
        self.detach()
        self._disconnect()
        super().close()

    def _locked(self) -> contextlib.AbstractContextManager[object]:
        """The lock that `emit` is called with: others log as well as the loop."""
        assert self.lock is not None
        return self.lock

    # ---- the ways to the journal ---------------------------------------------------------

    def _send(self, entry: Entry) -> bool:
        """False if it has to wait."""
        for _ in range(2):  # the socket may be another one than it was
            try:
                if self._socket is None:
                    self._socket = connected()
                self._socket.send(entry.datagram)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in TOO_LARGE and self._socket is not None:
                    return self._send_large(self._socket, entry)
                self._disconnect()
            else:
                return True
        return self._say(entry)

    def _send_large(self, connection: socket.socket, entry: Entry) -> bool:
        """As a file, as it is too large for a datagram."""
        try:
            with open(os.memfd_create("log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
                file.write(entry.datagram)
                file.flush()
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))
                connection.sendmsg([], [rights])
        except BlockingIOError:
            return False
        except OSError:
            return self._say(entry)
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._rest()
            self._socket.close()
            self._socket = None

    def _say(self, entry: Entry) -> bool:
        """Write its beginning to standard error; whether that took it."""
        poll = select.poll()
        poll.register(STANDARD_ERROR, select.POLLOUT)
        if [events for _, events in poll.poll(0)] != [select.POLLOUT]:
            return False
        lines = entry.lines[:LONGEST]
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, lines if lines.endswith(b"\n") else lines + b"\n")
            return True
        return False


def connected() -> socket.socket:
    """A way to the journal that does not block. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(os.path.join(journal.DIRECTORY, "socket"))
    except OSError:
        connection.close()
        raise
    return connection
