"""The keys of an app's TCP endpoints: its own, and those of whoever may connect.

    DIRECTORY/server.key_secret       who the daemon is
    DIRECTORY/authorized/NAME.key     somebody who may connect: a public key, and a role

What is in `authorized` counts as it is now: a file that comes or goes does so at once, without
a signal. It is looked at when somebody connects, asks or is told something, so nothing is
polled. What others than root or the daemon's user could have written does not count.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from sysup import certificates
from sysup.certificates import BadCertificate, Certificate
from sysup.config import Role
from sysup.protocol import SysupError

log = logging.getLogger("sysup.keys")

SERVER = "server.key_secret"
AUTHORIZED = "authorized"
SUFFIX = ".key"

Stamp = tuple[int, ...]


class Holder(NamedTuple):
    """Whose key it is that may connect, and what they may do."""

    name: str
    role: Role
    path: str
    stamp: Stamp


class Keys:
    """The keys in a directory.

    Args:
        directory: of the layout above.
        uid: the daemon's user.
    """

    def __init__(self, directory: str, uid: int) -> None:
        self.directory = directory
        self._uid = uid
        self.known: Mapping[str, Holder] = {}
        """Who might connect at the last look, by public key; nobody connects without one."""
        self._seen: dict[str, Stamp] = {}
        """All files of the last look, also those that don't count."""
        self._told: dict[str, str] = {}
        """What was said of those."""

    def server(self) -> Certificate:
        """The daemon's own keys. Raises SysupError, which says what to do."""
        path = os.path.join(self.directory, SERVER)
        make = f"; `sysupctl keygen --server --dir {self.directory}` makes it"
        try:
            found, status = _read(path)
        except FileNotFoundError:
            raise SysupError(f"cannot use CURVE: there is no {path}{make}") from None
        except (OSError, BadCertificate) as error:
            raise SysupError(f"cannot use CURVE: {path}: {_reason(error)}") from None
        if status.st_uid not in (0, self._uid):
            raise SysupError(f"cannot use CURVE: {path}: it belongs to user {status.st_uid}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            reason = "others can read it; make its mode 0600"
            raise SysupError(f"cannot use CURVE: {path}: {reason}")
        if not found.secret:
            raise SysupError(f"cannot use CURVE: {path}: it has no secret-key")
        return found

    def holder(self, public: str) -> Holder | None:
        """Whose key it is now; None if it may not connect any more."""
        known = self.known.get(public)
        if known is not None and _stamp(known.path) == known.stamp:
            return known
        self.look()
        return self.known.get(public)

    def authorized(self) -> Mapping[str, Holder]:
        """All that may connect now, by their public keys."""
        self.look()
        return self.known

    def look(self) -> None:
        """Read `authorized` again if something in it is not as it was."""
        directory = os.path.join(self.directory, AUTHORIZED)
        try:
            reason = self._foreign(os.stat(self.directory)) or self._foreign(os.stat(directory))
            names = [name for name in os.listdir(directory) if name.endswith(SUFFIX)]
        except OSError as error:
            reason, names = _reason(error), []
        self._tell(directory, reason)
        paths = [] if reason else [os.path.join(directory, name) for name in sorted(names)]
        seen = {path: _stamp(path) for path in paths}
        if seen == self._seen:
            return
        self._seen = seen
        found = [(path, self._read(path, stamp)) for path, stamp in seen.items()]
        holders: dict[str, Holder] = {}
        for path, entry in found:
            if entry is None:
                continue
            public, holder = entry
            twin = holders.setdefault(public, holder)
            if twin is not holder:
                self._tell(path, f"its key is that of {twin.path}")
        self.known = holders
        for path in self._told.keys() - seen.keys() - {directory}:
            del self._told[path]

    def _read(self, path: str, stamp: Stamp) -> tuple[str, Holder] | None:
        """The public key and its holder; None if the file does not count, which is said."""
        try:
            found, status = _read(path)
            reason = self._foreign(status)
            role = Role(found.metadata.get("role", ""))
        except ValueError:
            reason = f"its role is none of {', '.join(Role)}"
        except (OSError, BadCertificate) as error:
            reason = _reason(error)
        self._tell(path, reason)
        if reason:
            return None
        name = os.path.basename(path).removesuffix(SUFFIX)
        return found.public, Holder(name, role, path, stamp)

    def _foreign(self, status: os.stat_result) -> str:
        """Why what is there may be somebody else's; empty if it can't be."""
        if status.st_uid not in (0, self._uid):
            return f"it belongs to user {status.st_uid}"
        if stat.S_IMODE(status.st_mode) & 0o022:
            return f"others can write it ({stat.S_IMODE(status.st_mode):04o})"
        return ""

    def _tell(self, path: str, reason: str) -> None:
        """Log once why something does not count."""
        if reason and self._told.get(path) != reason:
            log.error("%s does not count: %s", path, reason)
        if reason:
            self._told[path] = reason
        else:
            self._told.pop(path, None)


def _read(path: str) -> tuple[Certificate, os.stat_result]:
    """A certificate, and whose file it is. Raises OSError, BadCertificate."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadCertificate("it is no file")
        text = file.read(certificates.LONGEST).decode("utf-8", "replace")
    return certificates.parse(text), status


def _stamp(path: str) -> Stamp:
    """What tells one state of a file from another; empty if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _reason(error: Exception) -> str:
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    return text[:1].lower() + text[1:]
