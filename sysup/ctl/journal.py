"""The journal as `sysupctl logs` reads it: what is of an app, the last of it, and what comes.

By cysystemd's reader, of which three things are to be known (2.0.5):

- A filter is an AND of ORs. Which of several fields makes an entry one of the app is such an
  OR, but some of them anybody may write; so what is found is looked at once more.
- At the tail sd_journal_next(3) may pass over what came meanwhile. No place is taken from
  there: the last entries are found backwards from a time that never comes, and the first of
  them again by its cursor.
- Text that is not UTF-8 comes with U+FFFD in it, and what follows a field of more than a
  megabyte not at all. Such an entry is asked of journalctl(1), which is exact.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import select
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from sysup.ctl.moments import LATEST
from sysup.protocol import SysupError

try:
    from cysystemd.reader import JournalOpenMode, JournalReader, Rule
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError)
    reason = "cysystemd is missing (pip install cysystemd)" if missing else str(error)
    raise SysupError(f"cannot read the journal: {reason}") from None

Value: TypeAlias = str | list[str]
Fields: TypeAlias = dict[str, Value]
"""Of an entry; bytes that are not UTF-8 are surrogates (PEP 383)."""
Match: TypeAlias = tuple[str, str]

FILES = ("/var/log/journal/*/*.journal", "/run/log/journal/*/*.journal")
REPLACED = "\ufffd"


@dataclass(frozen=True)
class Query:
    """What is asked for.

    Attributes:
        app: of which app.
        names: of these watchers alone, if there are any.
        wid: of processes in this slot alone.
        stream: stdout or stderr alone.
        priorities: these alone, if there are any.
        since: not before, in microseconds since the epoch.
        until: not after.
        uid: of who asks.
    """

    app: str
    names: tuple[str, ...] = ()
    wid: int | None = None
    stream: str | None = None
    priorities: tuple[int, ...] = ()
    since: int = 0
    until: int = LATEST
    uid: int = 0

    def matches(self) -> list[list[Match]]:
        """An entry has at least one of each list; those that do may still be of somebody else."""
        unit = f"sysup@{self.app}.service"
        which = [("_SYSTEMD_UNIT", unit), ("UNIT", unit), ("SYSUP_APP", self.app)]
        which += [("COREDUMP_UNIT", unit), ("OBJECT_SYSTEMD_UNIT", unit)]
        if self.uid:
            which += [("_SYSTEMD_USER_UNIT", unit), ("USER_UNIT", unit)]
        fields = ("SYSUP_WATCHER", "SYSLOG_IDENTIFIER")  # `fields = no` has the second alone
        asked = [
            which,
            [(field, name) for name in self.names for field in fields],
            [("SYSUP_WID", str(self.wid))] if self.wid is not None else [],
            [("SYSUP_STREAM", self.stream)] if self.stream else [],
            [("PRIORITY", str(number)) for number in self.priorities],
        ]
        return [alternatives for alternatives in asked if alternatives]

    def takes(self, fields: Mapping[str, Value]) -> bool:
        """Whether an entry that matches is what is asked for.

        journald vouches for the fields that begin with `_`. Others are as true as who sent
        them: PID 1, root, or who asks.
        """
        watcher = fields.get("SYSUP_WATCHER")
        if self.names and watcher is not None and watcher not in self.names:
            return False  # another's, that is called so in the journal
        unit, uid = f"sysup@{self.app}.service", fields.get("_UID")
        root, own = uid == "0", uid == str(self.uid)
        return (
            fields.get("_SYSTEMD_UNIT") == unit
            or (fields.get("UNIT") == unit and fields.get("_PID") == "1")
            or (fields.get("COREDUMP_UNIT") == unit and root)
            or (fields.get("OBJECT_SYSTEMD_UNIT") == unit and root)
            or (fields.get("SYSUP_APP") == self.app and (root or own))
            or (unit in (fields.get("_SYSTEMD_USER_UNIT"), fields.get("USER_UNIT")) and own)
        )


class Journal:
    """The entries that a query asks for. A context; raises SysupError.

    Attributes:
        complaint: why not all may be seen, and what to do about it.
    """

    def __init__(self, query: Query) -> None:
        self._query = query
        self.complaint = check_access()
        self._cut = Cut()
        self._exact = Export(query.matches())
        self._reader = JournalReader()
        with translated():
            self._reader.open(JournalOpenMode.LOCAL_ONLY)
            self._reader.data_threshold = 0
            self._fd: int = self._reader.fd  # from here on files that come are noticed
            for alternatives in query.matches():
                rules = [Rule(*match) for match in alternatives]
                for one, other in itertools.pairwise(rules):
                    one | other
                self._reader.add_filter(rules[0])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._cut.close()
        self._exact.close()

    def read(self, last: int | None) -> Iterator[Fields]:
        """From the beginning, or so many last ones, to the end."""
        with translated():
            if last is None:
                self._reader.seek_realtime_usec(self._query.since)
            else:
                self._seek_back(last)
        yield from self.go_on()

    def _seek_back(self, count: int) -> None:
        """Go where so many are left."""
        self._reader.seek_realtime_usec(min(self._query.until, LATEST))
        entry = self._reader.previous()
        if entry is None:
            self._reader.seek_head()
            return
        oldest = None
        while entry is not None and count and entry.get_realtime_usec() >= self._query.since:
            if self._query.takes(entry.data):
                oldest = entry.cursor
                count -= 1
            entry = self._reader.previous()
        if oldest is not None:
            self._reader.seek_cursor(oldest)

    def go_on(self) -> Iterator[Fields]:
        """Those that came since the last one that was read."""
        while True:
            self._cut.happened = False
            with translated():
                entry = self._reader.next()
            if entry is None or entry.get_realtime_usec() > self._query.until:
                return
            if entry.get_realtime_usec() >= self._query.since and self._query.takes(entry.data):
                yield self._whole(entry)

    def _whole(self, entry: Any) -> Fields:
        cursor = entry.cursor.decode()
        if self._cut.happened or any(REPLACED in text for text in texts(entry.data)):
            exact = self._exact.find(cursor)
            if exact is not None:
                return exact
        return {
            "__CURSOR": cursor,
            "__REALTIME_TIMESTAMP": str(entry.get_realtime_usec()),
            "__MONOTONIC_TIMESTAMP": str(entry.get_monotonic_usec()),
            "_BOOT_ID": entry.boot_id.hex,
            **entry.data,
        }

    def wait(self, out: int) -> None:
        """Until there may be more; BrokenPipeError where nobody reads descriptor `out`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(out, 0)
        if any(fd == out for fd, _ in poll.poll()):
            raise BrokenPipeError
        with translated():
            self._reader.process_events()


class translated:
    """Has errors of the reader, which raises SystemError, be told as ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SystemError):
            reason = str(error.args[0]).lower() if error.args else "the reader failed"
            raise SysupError(f"cannot read the journal: {reason}") from None


def texts(fields: Mapping[str, Value]) -> Iterator[str]:
    """All values."""
    for value in fields.values():
        yield from [value] if isinstance(value, str) else value


def check_access() -> str | None:
    """Why not all of the journal may be read; None if it may. Raises SysupError if nothing."""
    files = [path for pattern in FILES for path in glob.glob(pattern)]
    if not files:
        where = " or ".join(pattern.partition("/*")[0] for pattern in FILES)
        raise SysupError(f"cannot read the journal: there is none in {where}")
    readable = [path for path in files if os.access(path, os.R_OK, effective_ids=True)]
    if len(readable) == len(files):
        return None
    may = "root may, and who is in group systemd-journal or adm (usermod -aG systemd-journal USER)"
    if not readable:
        raise SysupError(f"cannot read the journal: permission denied; {may}")
    return f"this user may not read all of the journal; {may}"


# ---- what cysystemd can't tell -----------------------------------------------------------


class Cut(logging.Handler):
    """Notices that the reader left fields out, of which it tells its log alone."""

    def __init__(self) -> None:
        super().__init__()
        self.happened = False
        self._logger = logging.getLogger("cysystemd.reader")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take what it logs."""
        self.happened = True

    def close(self) -> None:
        """Notice nothing more."""
        self._logger.removeHandler(self)
        super().close()


class Export:
    """Entries by journalctl(1), exact to the byte, each after the one before."""

    def __init__(self, matches: list[list[Match]]) -> None:
        self._matches = list(disjunction(matches))
        self._process: subprocess.Popen[bytes] | None = None
        self._entries: Iterator[Fields] = iter(())
        self._works = True

    def find(self, cursor: str) -> Fields | None:
        """The entry there; None where it can't be had."""
        for entry in self._entries:
            if entry["__CURSOR"] == cursor:
                return entry
        if not self._works:
            return None
        self.close()
        self._entries = self._begin(cursor)
        entry = next(self._entries, {})
        self._works = entry.get("__CURSOR") == cursor
        return entry if self._works else None

    def _begin(self, cursor: str) -> Iterator[Fields]:
        command = ["journalctl", "--quiet", "--all", "--output=export", f"--cursor={cursor}"]
        try:
            self._process = subprocess.Popen(
                [*command, *self._matches],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return iter(())
        assert self._process.stdout is not None
        return exported(self._process.stdout)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None


def disjunction(matches: Iterable[list[Match]]) -> Iterator[str]:
    """The matches as arguments of journalctl: `A=1 B=2 + A=1 B=3`, each with each.

    It takes either of two values of one field, and both of two fields.
    """
    terms: list[list[str]] = [[]]
    for alternatives in matches:
        by_field: dict[str, list[str]] = {}
        for field, value in alternatives:
            by_field.setdefault(field, []).append(f"{field}={value}")
        terms = [[*term, *words] for term in terms for words in by_field.values()]
    for number, term in enumerate(terms):
        yield from ["+", *term] if number else term


def exported(stream: IO[bytes]) -> Iterator[Fields]:
    """Entries in the export format: `NAME=text`, or `NAME`, the length in 8 bytes, and bytes."""
    fields: Fields = {}
    for line in stream:
        name, equals, data = line.removesuffix(b"\n").partition(b"=")
        if not name:
            yield fields
            fields = {}
            continue
        if not equals:
            data = stream.read(int.from_bytes(stream.read(8), "little"))
            stream.read(1)
        key, text = name.decode("ascii", "replace"), data.decode("utf-8", "surrogateescape")
        known = fields.get(key)
        if known is None:
            fields[key] = text
        else:
            fields[key] = [*([known] if isinstance(known, str) else known), text]
    if fields:
        yield fields
