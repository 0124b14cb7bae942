"""The control groups of an app's processes: one for each process and all that it starts.

Where systemd delegated the unit's cgroup to us (`Delegate=yes`; it says so by an extended
attribute of the directory), this daemon lives in `daemon` below it, and each process is born
in `w/WATCHER/WID`. Nothing leaves a cgroup by itself, whatever sessions it makes, environments
it cleans or parents it outlives, so such a group can be killed as a whole (cgroup.kill, Linux
5.14) and is known to be empty when it can be removed (cgroups(7)). No cgroup of ours has a
process and groups below it at the same time, so controllers can be enabled in all of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import quote

from sysup.protocol import SysupError

DELEGATED = ("user.delegate", "trusted.delegate")
"""Attributes that systemd gives to a cgroup it delegates (systemd's CGROUP_DELEGATION.md)."""
OWN = "daemon"
SLOTS = "w"
LONGEST = 200
"""Bytes of a watcher's name in a path, of the 255 that a name may have."""


class Cgroup(NamedTuple):
    """The group of one process.

    Attributes:
        path: below the app's own, such as `w/web/1`.
    """

    root: str
    path: str

    @property
    def directory(self) -> str:
        """Where it is in the file system."""
        return os.path.join(self.root, self.path)

    def open(self) -> int:
        """A descriptor of it, to have a process be born there. Raises OSError."""
        return os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def kill(self) -> None:
        """Send SIGKILL to all that is in it and below. Raises SysupError."""
        try:
            _write(os.path.join(self.directory, "cgroup.kill"), "1")
        except FileNotFoundError:  # before 5.14, or it is gone: both are seen by who looks again
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        except OSError as error:
            if error.errno != errno.ENODEV:  # it was removed this very moment
                raise SysupError(f"cannot kill cgroup {self.path}: {error.strerror}") from None

    def pids(self) -> set[int]:
        """What lives in it and below."""
        return {pid for directory in _tree(self.directory) for pid in _pids(directory)}

    def remove(self) -> bool:
        """Remove it with the groups that were made in it; False while anything lives there."""
        for directory in _tree(self.directory):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


class Cgroups:
    """All that belongs to the app.

    Args:
        root: directory of the cgroup that was delegated.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    @classmethod
    def find(cls) -> Cgroups | None:
        """Those of this process; None where no cgroup was delegated to it."""
        own = own_directory()
        if own is None:
            return None
        if os.path.basename(own) == OWN and is_delegated(os.path.dirname(own)):
            return cls(os.path.dirname(own))
        return cls(own) if is_delegated(own) else None

    def enter(self) -> None:
        """Have this process live in a group of its own. Raises SysupError."""
        own = os.path.join(self.root, OWN)
        try:
            os.makedirs(own, exist_ok=True)
            _write(os.path.join(own, "cgroup.procs"), "0")
        except OSError as error:
            raise SysupError(f"cannot enter cgroup {own}: {error.strerror}") from None

    def make(self, watcher: str, wid: int, serial: int) -> Cgroup:
        """A new, empty group for a process. Raises OSError.

        Where something of the one before still lives in that of the slot, it is
        `WID.SERIAL`.
        """
        slots = os.path.join(SLOTS, _name(watcher))
        os.makedirs(os.path.join(self.root, slots), exist_ok=True)
        group = Cgroup(self.root, os.path.join(slots, str(wid)))
        if not group.remove():
            group = Cgroup(self.root, os.path.join(slots, f"{wid}.{serial}"))
        os.mkdir(group.directory)
        return group

    def at(self, path: str) -> Cgroup:
        """A group that is there already, by its path."""
        return Cgroup(self.root, path)

    def forget(self, watcher: str) -> None:
        """Remove the directory of a watcher that is no more, if nothing lives in it."""
        Cgroup(self.root, os.path.join(SLOTS, _name(watcher))).remove()

    def strays(self, known: Collection[str]) -> list[Cgroup]:
        """The groups of slots that are none of those whose paths are given."""
        found = []
        top = os.path.join(self.root, SLOTS)
        for watcher in _below(top):
            for slot in _below(os.path.join(top, watcher)):
                path = os.path.join(SLOTS, watcher, slot)
                if path not in known:
                    found.append(Cgroup(self.root, path))
        return found

    def kill_all(self) -> bool:
        """Kill all that is in any slot; whether nothing is left. Raises SysupError."""
        everything = Cgroup(self.root, SLOTS)
        if os.path.isdir(everything.directory) and not everything.remove():
            everything.kill()
            return everything.remove()
        return True


def own_directory() -> str | None:
    """Directory of the cgroup (v2) that this process is in; None without one."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            paths = [line.rstrip("\n")[3:] for line in file if line.startswith("0::")]
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file if " - cgroup2 " in line]
    except OSError:
        return None
    for _, _, _, root, place, *_ in mounts if paths else ():
        base = "" if root == "/" else root
        if (paths[0] + "/").startswith(base + "/") and "/../" not in paths[0] + "/":
            return (place + paths[0][len(base) :]).rstrip("/")
    return None


def is_delegated(directory: str) -> bool:
    """Whether systemd says that the groups below it are ours."""
    for name in DELEGATED:
        with suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return os.access(directory, os.W_OK)
    return False


def _name(watcher: str) -> str:
    """A watcher's name as a name of a directory: any is possible, none is taken for another."""
    name = quote(watcher, safe=" ", errors="surrogateescape").replace(".", "%2E")
    if len(name) > LONGEST:
        digest = hashlib.sha256(os.fsencode(watcher)).hexdigest()[:20]
        name = f"{name[: LONGEST - len(digest) - 1]}.{digest}"
    return name


def _below(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []


def _tree(directory: str) -> Iterator[str]:
    """A directory and all below it, the lowest first."""
    for name in _below(directory):
        yield from _tree(os.path.join(directory, name))
    yield directory


def _pids(directory: str) -> list[int]:
    try:
        with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
            return [int(line) for line in file]
    except OSError:  # removed meanwhile
        return []


def _write(path: str, text: str) -> None:
    """Unbuffered: an error is one of this call."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
