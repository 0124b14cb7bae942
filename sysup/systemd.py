"""What the service manager is told, and what it hands to us: sd_notify(3), sd_listen_fds(3).

Messages go out by the socket that the package sdnotify connects, in bytes of our own: it writes
Latin-1, and passes no descriptors. The socket does not block. A message that finds it full or
gone is lost, which costs a line of status, or a ping that the next one makes up for; but not
descriptors, whose keeping is reported.

The variables by which systemd speaks to a service are for its main process alone. They leave
the environment here, lest a child speak or listen in our name; a program that takes our place
gets back from `Notifier.successor_environ` what it needs to speak.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Mapping

import sdnotify

from sysup.protocol import SysupError

VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID"),
)
FIRST_FD = 3
"""The first of the descriptors that are handed over, sd_listen_fds(3)."""
STATUS_CHARACTERS = 512


class Notifier:
    """The way to the service manager; without NOTIFY_SOCKET every message goes nowhere.

    Made, it takes what systemd says out of the environment of this process.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            self._socket = sdnotify.SystemdNotifier().socket
        self.is_full = False
        """Whether the last message was lost because the manager has yet to read others."""
        if self._socket is not None:
            self._socket.setblocking(False)
        self._environ = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}

    @property
    def connected(self) -> bool:
        """Whether there is somebody to tell."""
        return self._socket is not None

    def environ(self) -> dict[str, str]:
        """The variables that were taken out of the environment."""
        return dict(self._environ)

    def successor_environ(self) -> dict[str, str]:
        """Of those, what a program that takes our place speaks by.

        Not the number of descriptors: it does not inherit all of them, and gets them by name.
        """
        return {n: value for n, value in self._environ.items() if not n.startswith("LISTEN_")}

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # Each of these returns whether the message was sent.

    def ready(self) -> bool:
        """The start, or a reload, is over."""
        return self._send("READY=1")

    def reloading(self) -> bool:
        """The config is being read again; `ready` ends it."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """The end has begun."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """What `systemctl status` shows: one line."""
        line = " ".join(text.split())[:STATUS_CHARACTERS]
        # systemd drops a message that has a NUL in it, or is not UTF-8
        return self._send("STATUS=" + "".join(c if c.isprintable() else "?" for c in line))

    def watchdog(self) -> bool:
        """A sign of life."""
        return self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> bool:
        """The start, reload or stop that is under way may take so long from now."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def store(self, name: str, *fds: int) -> None:
        """Have descriptors kept, and handed to the next daemon under this name.

        A message holds at most 253 of them (unix(7)). FDPOLL=0: by default systemd drops a
        pipe whose other end is closed, and with it what was not yet read. Raises SysupError
        when they could not be sent; that the store is full, systemd does not tell.
        """
        self._check(name)
        if self._socket is None:
            raise SysupError(f"cannot store {name}: there is no service manager to keep it")
        message = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}".encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        try:
            self._socket.sendmsg([message], [rights])
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SysupError(f"cannot store {name}: {reason}") from None

    def forget(self, name: str) -> bool:
        """Have what was stored under this name closed."""
        self._check(name)
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _check(self, name: str) -> None:
        """systemd stores what has a wrong name under another, where nobody would look."""
        printable = name.isascii() and name.isprintable()
        if not name or not printable or ":" in name or len(name) > 255:
            raise SysupError(f"cannot store {name!r}: it is no name for a descriptor")

    def _send(self, *lines: str) -> bool:
        self.is_full = False
        if self._socket is None:
            return False
        try:
            self._socket.send("\n".join(lines).encode())
        except BlockingIOError:
            self.is_full = True
            return False
        except OSError:  # nobody is there any more
            return False
        return True


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds within which a sign of life is due; None where nobody asks for one."""
    usec = environ.get("WATCHDOG_USEC", "")
    if not _is_for_us(environ.get("WATCHDOG_PID")) or not _is_number(usec) or int(usec) == 0:
        return None
    return int(usec) / 1e6


def listen_fds(environ: Mapping[str, str]) -> dict[str, list[int]]:
    """The descriptors that were handed over, by name, none of them to be inherited.

    Raises SysupError where the environment names some that are not open.
    """
    number = environ.get("LISTEN_FDS", "")
    if "LISTEN_PID" not in environ or not _is_for_us(environ["LISTEN_PID"]):
        return {}
    if not _is_number(number):
        return {}
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    for place in range(int(number)):
        fd = FIRST_FD + place
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SysupError(f"cannot take descriptor {fd} over from systemd: {reason}") from None
        name = names[place] if place < len(names) else ""
        found.setdefault(name or "unknown", []).append(fd)
    return found


def _is_for_us(pid: str | None) -> bool:
    """Whether it is our pid; None is for everybody."""
    return pid is None or (_is_number(pid) and int(pid) == os.getpid())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
