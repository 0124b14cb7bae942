"""systemd's journal as a place for output, and whether it is there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

from sysup._native import ffi, lib
from sysup.config.streams import PRIORITIES
from sysup.protocol import SysupError
from sysup.streams.places import UINT32_MAX, Place, Places, check

log = logging.getLogger("sysup.streams")

DIRECTORY = "/run/systemd/journal"
"""Where journald's sockets are: `socket` for entries, `stdout` for lines."""
DEFAULT_PRIORITY = {"stdout": "info", "stderr": "warning"}


def is_there(name: str = "socket") -> bool:
    """Whether there is a journal; if it only doesn't answer at present, there is."""
    return os.path.exists(os.path.join(DIRECTORY, name))


def leads_there(fd: int) -> bool:
    """Whether a descriptor is a stream of the journal's, as systemd says (systemd.exec(5),
    JOURNAL_STREAM): a variable that is left over from another process says nothing."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def is_own_output() -> bool:
    """Whether what the daemon itself says goes to the journal."""
    return leads_there(2) and is_there()


def priority(options: Mapping[str, Any], stream_name: str) -> int:
    """The number of a line's priority that says none itself."""
    return PRIORITIES.index(options.get("priority") or DEFAULT_PRIORITY[stream_name])


def fields(**values: object) -> str:
    """Journal fields, as a label has them; a newline would begin another field."""
    return "".join(f"{name}={str(value).replace(chr(10), ' ')}\n" for name, value in values.items())


def header(options: Mapping[str, Any], stream_name: str, identifier: str) -> str:
    """What is said first on a connection for lines: identifier, unit, priority, whether
    `<N>` is looked for, and three times no forwarding (journald-stream.c)."""
    level_prefix = int(bool(options.get("level_prefix", True)))
    return f"{identifier}\n\n{priority(options, stream_name)}\n{level_prefix}\n0\n0\n0\n"


class JournalPlace(Place):
    """The journal: entries with fields, or lines that are one connection's."""

    @classmethod
    def open(cls, places: Places, options: Mapping[str, Any], head: str | None) -> JournalPlace:
        """The place of all who write alike; `head`: of a connection for lines."""
        held, refresh = options.get("buffer", 0), options.get("refresh_time", 0.0)
        key = ("journal", DIRECTORY, head, held, refresh)
        place = places.find(key)
        if isinstance(place, JournalPlace):
            return place
        place = cls(places, "the journal", key)
        path = os.path.join(DIRECTORY, "socket" if head is None else "stdout")
        memory = [ffi.new("char[]", os.fsencode(text)) for text in (path, place.lasting_key)]
        if head is not None:
            memory.append(ffi.new("char[]", head.encode("utf-8", "surrogateescape")))
        spec = ffi.new(
            "struct journal_spec *",
            {
                "path": memory[0],
                "key": memory[1],
                "header": memory[2] if head is not None else ffi.NULL,
                "max_held": held,
                "refresh_ms": min(round(refresh * 1000), UINT32_MAX),
                "credentials": os.geteuid() == 0,
            },
        )
        native = ffi.new("struct sink **")
        check(lib.sink_journal_new(places.native, place.id, spec, native))
        place.native = native[0]
        places.enter(place)
        return place


class Direct:
    """A stream that the journal reads itself: nothing of it comes to the pump.

    Attributes:
        name: for messages.
        failure: always None: whether the journal is well is not known here.
    """

    name = "the journal"
    failure: str | None = None
    can_rotate = False

    def __init__(self, options: Mapping[str, Any], stream_name: str, identifier: str) -> None:
        self._header = header(options, stream_name, identifier).encode("utf-8", "surrogateescape")

    def connect(self) -> int:
        """A descriptor for a process to write to, the caller's; raises SysupError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            try:
                connection.connect(os.path.join(DIRECTORY, "stdout"))
                connection.send(self._header)
            except OSError as error:
                raise SysupError(f"cannot reach the journal: {error.strerror}") from None
            connection.setblocking(True)
            connection.shutdown(socket.SHUT_RD)
            return connection.detach()

    def close(self) -> None:
        """There is nothing to do."""
