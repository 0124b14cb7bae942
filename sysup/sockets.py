"""Listening sockets of the config: bound once, kept over reloads, handed to watchers.

A socket keeps one descriptor number for its life, the same in the daemon and in the
children (`$(circus.sockets.NAME)` is that number). A socket that can't be bound is a
problem of the watchers that use it, not of the app.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping
from typing import Any

from sysup.config import SocketSpec
from sysup.protocol import SysupError


class Sockets:
    """The bound sockets, by name."""

    def __init__(self) -> None:
        self._bound: dict[str, tuple[SocketSpec, socket.socket]] = {}
        self.problems: dict[str, str] = {}
        """Why a socket could not be bound, by name."""

    def open(self, spec: SocketSpec) -> None:
        """Bind and listen. Raises SysupError with the reason, which is kept in `problems`."""
        self.problems.pop(spec.name, None)
        try:
            self._bound[spec.name] = (spec, bind(spec))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            place = spec.path or f"{spec.host}:{spec.port}"
            problem = f"cannot bind socket {spec.name} to {place}: {reason.lower()}"
            self.problems[spec.name] = problem
            raise SysupError(problem) from None

    def adopt(self, spec: SocketSpec, fd: int) -> None:
        """Take over one that another daemon bound, as its descriptor says."""
        self._bound[spec.name] = (spec, socket.socket(fileno=fd))

    def close_one(self, name: str) -> None:
        """Close a socket and remove its path; unknown names are ignored."""
        self.problems.pop(name, None)
        spec, sock = self._bound.pop(name, (None, None))
        if sock is not None and spec is not None:
            with contextlib.suppress(OSError):  # frees the address, whoever else has it open
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            if spec.path:
                unlink_socket(spec.path)

    def close(self) -> None:
        """Close all."""
        for name in list(self._bound):
            self.close_one(name)

    def fds(self) -> dict[str, int]:
        """Descriptor numbers by name."""
        return {name: sock.fileno() for name, (_, sock) in self._bound.items()}

    def describe(self) -> list[Mapping[str, Any]]:
        """As `listsockets` tells them, by descriptor."""
        rows = []
        for name, (spec, sock) in self._bound.items():
            row: dict[str, Any] = {"fd": sock.fileno(), "name": name, "backlog": spec.backlog}
            if sock.family == socket.AF_UNIX:
                row["path"] = spec.path
            else:
                row["host"], row["port"] = sock.getsockname()[:2]
            rows.append(row)
        return sorted(rows, key=lambda row: row["fd"])


def bind(spec: SocketSpec) -> socket.socket:
    """Make a socket as the config says. Raises OSError; UnicodeError for what can't be a host."""
    family = socket.AF_UNIX if spec.path else getattr(socket, spec.family)
    kind = getattr(socket, spec.type)
    proto = socket.getprotobyname(spec.proto) if spec.proto else 0
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(spec.blocking)
        if spec.path:
            bind_path(sock, spec, spec.path)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            info = socket.getaddrinfo(spec.host, spec.port, family, kind, proto, socket.AI_PASSIVE)
            sock.bind(info[0][4])
        if kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            sock.listen(spec.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_path(sock: socket.socket, spec: SocketSpec, path: str) -> None:
    """Bind to a path of the file system; `replace` takes a stale one's place."""
    if spec.replace:
        unlink_socket(path)
    before = os.umask(0o117 if spec.umask is None else spec.umask)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


def unlink_socket(path: str) -> None:
    """Remove a socket's file; anything else that stands there is left alone."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
