"""Listening sockets: bound once, kept over reloads, handed to watchers.

A socket keeps one descriptor number for its life, the same in the daemon and in the
children (`$(circus.sockets.NAME)` is that number). A socket that can't be bound is a
problem of the watchers that use it, not of the app.

systemd may hold some, by the app's .socket units, and hand them over by name. Such a one takes the
place of the [socket:NAME] of the config, whatever address that has; others are for watchers all
the same. They stay systemd's: nothing here ends their listening or removes their paths.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from sysup.config import SocketSpec
from sysup.protocol import SysupError

log = logging.getLogger("sysup.sockets")


class Sockets:
    """The bound sockets, by name.

    Args:
        given: what systemd holds, by name; what is not a socket is left alone.
    """

    def __init__(self, given: Mapping[str, Sequence[int]] | None = None) -> None:
        self._bound: dict[str, tuple[SocketSpec, socket.socket]] = {}
        self._given: dict[str, socket.socket] = {}
        for name, (fd, *more) in (given or {}).items():
            if sock := as_served(fd):
                self._given[name.lower()] = sock
                if more:
                    log.warning("systemd hands over several sockets %s: one is used", name)
        self.problems: dict[str, str] = {}
        """Why a socket could not be bound, by name."""

    def open(self, spec: SocketSpec) -> None:
        """Bind and listen. Raises SysupError with the reason, which is kept in `problems`."""
        self.problems.pop(spec.name, None)
        if given := self._given.get(spec.name):
            if reason := mismatch(spec, given):
                problem = f"cannot use socket {spec.name} of systemd: {reason}"
                self.problems[spec.name] = problem
                raise SysupError(problem)
            self._bound[spec.name] = (spec, given)
            return
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

    def holds(self, name: str) -> bool:
        """Whether that of the config is there."""
        return name in self._bound

    def is_given(self, name: str) -> bool:
        """Whether systemd holds it."""
        return name in self._given

    def close_one(self, name: str) -> None:
        """Close a socket and remove its path; unknown names are ignored.

        One that systemd holds stays, as one that the config does not name.
        """
        self.problems.pop(name, None)
        spec, sock = self._bound.pop(name, (None, None))
        if sock is not None and spec is not None and not self.is_given(name):
            with contextlib.suppress(OSError):  # frees the address, whoever else has it open
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            if spec.path:
                unlink_socket(spec.path)

    def close(self) -> None:
        """Close all."""
        for name in list(self._bound):
            self.close_one(name)
        for sock in self._given.values():
            sock.close()
        self._given.clear()

    def fds(self) -> dict[str, int]:
        """Descriptor numbers by name."""
        return {name: sock.fileno() for name, sock in self._all().items()}

    def _all(self) -> dict[str, socket.socket]:
        return {**self._given, **{name: sock for name, (_, sock) in self._bound.items()}}

    def describe(self) -> list[Mapping[str, Any]]:
        """As `listsockets` tells them, by descriptor."""
        backlogs = {name: spec.backlog for name, (spec, _) in self._bound.items()}
        rows = []
        for name, sock in self._all().items():
            row: dict[str, Any] = {"fd": sock.fileno(), "name": name}
            if not self.is_given(name):  # else it is in its .socket unit
                row["backlog"] = backlogs[name]
            address = sock.getsockname()
            if sock.family == socket.AF_UNIX:
                row["path"] = os.fsdecode(address)
            else:
                row["host"], row["port"] = address[:2]
            rows.append(row)
        return sorted(rows, key=lambda row: row["fd"])


def as_served(fd: int) -> socket.socket | None:
    """A socket that waits for clients, by its descriptor; None for what is none.

    Whoever handed it over may have handed over other things, too.
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return None
    sock = socket.socket(fileno=fd)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listens or (sock.type == socket.SOCK_DGRAM and sock.getsockname()):
        return sock
    sock.detach()
    return None


def mismatch(spec: SocketSpec, sock: socket.socket) -> str:
    """Why a socket is not what the config says; empty if it is. The address may be any."""
    internet = (
        socket.AF_INET,
        socket.AF_INET6,
    )  # :: is for both, and what systemd takes a port for
    if sock.type != getattr(socket, spec.type):
        return f"it is of type {sock.type.name}, not {spec.type}"
    if spec.path and sock.family != socket.AF_UNIX:
        return f"it is of family {sock.family.name}, and has no path"
    if not spec.path and sock.family not in internet:
        return f"it is of family {sock.family.name}, not {spec.family}"
    return ""


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
