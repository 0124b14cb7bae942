"""What is to be known after this daemon is killed, in a file that outlives it.

A table of JSON values by key, kept as a log: a change appends one record, in microseconds,
whatever the size of the rest. A record that the writer's end cut short is not there: each has
a checksum over its text and the log's number. When most of the log is of the past, what holds is
written as a new log to another place of the file, and only then the head points to it; so at
each moment one whole log is there.

The file survives kill -9, not the machine: it is a memfd in systemd's file descriptor store,
or lies in a directory of the running system.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from sysup.protocol import SysupError

Key: TypeAlias = tuple[str | int, ...]

MAGIC = b"sysup ledger 1\n\0"
HEAD = struct.Struct("<16sQQ")
"""Magic, and where the log begins, and its number. One write of a page's part is atomic against
a kill: signals are looked at between pages."""
RECORD = struct.Struct("<II")
"""Length of the text that follows, and its CRC-32."""
LOGS = 4096
"""Where the first log begins."""
ROOM = 1 << 16
"""Bytes that a log may have beyond four times what holds."""


ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)


class Ledger:
    """The table in an open file.

    Args:
        fd: a memfd or a file, ours from now. Empty: a new table. Raises SysupError when what
            is there is no ledger of this version.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.table: dict[Key, Any] = {}
        self._texts: dict[Key, bytes] = {}
        self._size = 0
        """Bytes of the records that hold."""
        size = os.fstat(fd).st_size
        self._begin = self._end = LOGS
        self._number = 1
        if size:
            self._read(size)
        else:
            self._point()

    def put(self, key: Key, value: Any) -> None:
        """Have a value hold from now on; what holds already is not written again.

        The value is ours: it is not to be changed by who put it.
        """
        if key in self.table and self.table[key] == value:  # a tenth of the time of its text
            return
        text = ENCODER.encode([key, value]).encode()
        before = self._texts.get(key)
        if text != before:
            self._enter(key, value, text)
            self._append(text)

    def drop(self, key: Key) -> None:
        """Have no value for a key any more."""
        if key in self._texts:
            self._forget(key)
            self._append(ENCODER.encode([key]).encode())

    def clear(self) -> None:
        """Have no value at all."""
        self.table.clear()
        self._texts.clear()
        self._size = 0
        self.compact()

    def find(self, kind: str) -> Iterator[tuple[Key, Any]]:
        """The values whose keys begin with a word, by the rest of the key."""
        for key, value in list(self.table.items()):
            if key[0] == kind:
                yield key[1:], value

    def compact(self) -> None:
        """Write a new log of what holds."""
        self._number += 1
        log = b"".join(map(self._record, self._texts.values())) + bytes(RECORD.size)
        fits = LOGS + len(log) <= self._begin
        self._begin = LOGS if fits else self._end + RECORD.size
        _write(self.fd, log, self._begin)
        self._end = self._begin + len(log) - RECORD.size
        self._point()

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def _enter(self, key: Key, value: Any, text: bytes) -> None:
        self._size += len(text) - len(self._texts.get(key, b""))
        self.table[key], self._texts[key] = value, text

    def _forget(self, key: Key) -> None:
        self._size -= len(self._texts.pop(key, b""))
        self.table.pop(key, None)

    def _append(self, text: bytes) -> None:
        record = self._record(text)
        _write(self.fd, record, self._end)
        self._end += len(record)
        if self._end - self._begin > 4 * (self._size + len(self._texts) * RECORD.size) + ROOM:
            self.compact()

    def _record(self, text: bytes) -> bytes:
        return RECORD.pack(len(text), zlib.crc32(text, self._number)) + text

    def _point(self) -> None:
        _write(self.fd, HEAD.pack(MAGIC, self._begin, self._number), 0)

    def _read(self, size: int) -> None:
        magic, self._begin, self._number = _unpack(HEAD, os.pread(self.fd, HEAD.size, 0))
        if magic != MAGIC:
            raise SysupError("cannot take over: the state is of another version of sysup")
        data = os.pread(self.fd, max(0, size - self._begin), self._begin)
        texts, at = [], 0
        while at + RECORD.size <= len(data):
            length, crc = RECORD.unpack_from(data, at)
            text = data[at + RECORD.size : at + RECORD.size + length]
            if not length or len(text) < length or zlib.crc32(text, self._number) != crc:
                break
            texts.append(text)
            at += RECORD.size + length
        self._end = self._begin + at
        records = json.loads(b"[%b]" % b",".join(texts))  # all in one go: half of the time
        for text, (key, *values) in zip(texts, records, strict=True):
            if values:
                self._enter(tuple(key), values[0], text)
            else:
                self._forget(tuple(key))


def _unpack(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    return form.unpack(data.ljust(form.size, b"\0"))


def _write(fd: int, data: bytes, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], at + done)
