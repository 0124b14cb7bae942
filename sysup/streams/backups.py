"""Rotated files: put safely on the disk, dropped when there are too many, compressed.

The pump renames a full file to `path.1` and shifts the others, or to `path.STAMP`; the rest is
done here, in a thread that may take its time. It holds the pump off only while it swaps a
compressed file for its original. Up to there the original may be shifted or dropped at any
moment, so it is known by its inode, never by the name it had.

The daemon may be root and the directory another user's. So it is opened once and all names are
looked up in it; only regular files of our own pattern are opened or removed, no link is
followed, and what has an original's place already is not overwritten, unless it is the same
file, compressed before a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, NamedTuple, TypeVar

from sysup.streams.packing import ENDINGS, available, pack

__all__ = ["Done", "Job", "Keeper", "available"]

NICENESS = 10

Done = Callable[[str | None], None]
"""Told in a thread of the keeper: None, or why something could not be done."""
Identity = tuple[int, int]
T = TypeVar("T")

_NUMBER = r"(?P<number>[1-9]\d{0,4})"
"""As many digits as a backup_count may have: `path.20240517` is not ours."""
_STAMP = r"\d{8}(?:\d\d){0,3}(?:-\d+)?"
_ENDING = "|".join(map(re.escape, ENDINGS.values()))
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Job(NamedTuple):
    """What is to be done for the rotated files of one path.

    Attributes:
        path: of the live file, absolute.
        backup_count: how many to keep; 0: all.
        stamped: whether they are named by time, not numbered.
        compress: "gzip", "zstd", or None.
        fsync: whether the disk shall keep them.
        lock: while it is held, the pump renames none of them.
        done: called once, unless the keeper is closed first.
    """

    path: str
    backup_count: int
    stamped: bool
    compress: str | None
    fsync: bool
    lock: Callable[[], AbstractContextManager[object]]
    done: Done


class Keeper:
    """The threads that look after all rotated files of a daemon.

    They start with their first job. Methods may be called from any thread and don't wait,
    but for `close`.
    """

    def __init__(self) -> None:
        self._closing = threading.Event()
        self._synced: dict[str, set[tuple[int, ...]]] = {}
        self._jobs = _Line("sysup-backups", self._tend, NICENESS, drain=False)
        self._syncs = _Line("sysup-sync", _sync_data, 0, drain=True)

    def tend(self, job: Job) -> None:
        """Do a job; one that waits for the same path is replaced, and both are told."""
        self._jobs.put(job.path, job, job.done)

    def sync(self, fd: int, done: Done) -> None:
        """Have the disk keep what was written to a file.

        Args:
            fd: the keeper's own from now; who asks again for a file that waits waits with it.
            done: called once, unless `close` takes too long.
        """
        status = os.fstat(fd)
        unused = self._syncs.put((status.st_dev, status.st_ino), fd, done)
        if unused is not None:
            os.close(unused)

    def close(self, timeout: float) -> bool:
        """Give up the jobs, end the syncs; whether that was done in `timeout` seconds.

        Later calls do nothing. No `done` is called after it, nor for a job given up.
        """
        self._closing.set()
        until = time.monotonic() + timeout
        lines = (self._jobs, self._syncs)
        for line in lines:
            line.end()
        return all([line.join(max(0.0, until - time.monotonic())) for line in lines])

    def _tend(self, job: Job) -> str | None:
        try:
            with _Folder(job) as folder:
                return _Tending(job, folder, self._synced, self._closing.is_set).run()
        except _ClosingError:
            raise
        except OSError as error:
            return f"cannot open {os.path.dirname(job.path)}: {error.strerror}"
        except Exception as error:  # noqa: BLE001  the other files need this thread
            return f"cannot tend {job.path}: {type(error).__name__}: {error}"


# ---- threads -----------------------------------------------------------------------------


class _ClosingError(Exception):
    """The keeper is being closed: the job is given up."""


class _Line(Generic[T]):
    """A thread and the tasks that wait for it, one of a key."""

    def __init__(
        self, name: str, work: Callable[[T], str | None], niceness: int, *, drain: bool
    ) -> None:
        self._work = work
        self._niceness = niceness
        self._drain = drain
        self._waiting: dict[Hashable, tuple[T, list[Done]]] = {}
        self._changed = threading.Condition()
        self._ending = self._mute = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, key: Hashable, task: T, done: Done) -> T | None:
        """Have a task done; returns the one of the same key that is not needed any more."""
        with self._changed:
            if self._ending:
                return task
            old, tell = self._waiting.get(key, (None, []))
            self._waiting[key] = (task, [*tell, done])
            if not self._thread.ident:
                self._thread.start()
            self._changed.notify()
        return old

    def end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, timeout: float) -> bool:
        """Wait for its end; it is silent from now."""
        if self._thread.ident:
            self._thread.join(timeout)
        self._mute = True
        return not self._thread.is_alive()

    def _take(self) -> tuple[T, list[Done]] | None:
        with self._changed:
            while not self._waiting and not self._ending:
                self._changed.wait()
            if not self._waiting or (self._ending and not self._drain):
                return None
            return self._waiting.pop(next(iter(self._waiting)))

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            if self._niceness:
                thread = threading.get_native_id()  # setpriority(2): Linux takes it for a pid
                nice = os.getpriority(os.PRIO_PROCESS, thread) + self._niceness
                os.setpriority(os.PRIO_PROCESS, thread, nice)
        with contextlib.suppress(_ClosingError):
            while taken := self._take():
                task, tell = taken
                reason = self._work(task)
                for done in tell:
                    if not self._mute:
                        done(reason)


def _sync_data(fd: int) -> str | None:
    try:
        os.fdatasync(fd)
    except OSError as error:
        return f"cannot sync {os.readlink(f'/proc/self/fd/{fd}')}: {error.strerror}"
    finally:
        os.close(fd)
    return None


# ---- files -------------------------------------------------------------------------------


class _Backup(NamedTuple):
    """A rotated file: its name, without ending too, and number (0: a stamp)."""

    name: str
    stem: str
    number: int
    status: os.stat_result

    @property
    def is_plain(self) -> bool:
        return self.name == self.stem

    def age(self) -> tuple[int, int, str]:
        """Sorts the oldest first."""
        return -self.number, 0 if self.number else self.status.st_mtime_ns, self.name


class _Folder:
    """The directory of a job, and what in it is ours."""

    def __init__(self, job: Job) -> None:
        self.path, self._base = os.path.split(job.path)
        kind = _STAMP if job.stamped else _NUMBER
        base = re.escape(self._base)
        self._backup = re.compile(rf"(?P<stem>{base}\.{kind})(?:{_ENDING})?", re.ASCII)
        self._temporary = re.compile(rf"\.{base}\.[0-9a-f]{{8}}\.sysup", re.ASCII)

    def __enter__(self) -> _Folder:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def status(self, name: str) -> os.stat_result | None:
        """Of a regular file; None if there is none of that name."""
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            return status if stat.S_ISREG(status.st_mode) else None
        return None

    def look(self) -> tuple[list[_Backup], list[str]]:
        """The backups, the oldest first, and what a crash left."""
        backups, leftovers = [], []
        for name in os.listdir(self.fd):
            match = self._backup.fullmatch(name)
            if match and (status := self.status(name)):
                number = int(match.groupdict().get("number", 0))
                backups.append(_Backup(name, match["stem"], number, status))
            elif self._temporary.fullmatch(name) and self.status(name):
                leftovers.append(name)
        return sorted(backups, key=_Backup.age), leftovers

    def read(self, name: str) -> int:
        """A descriptor of a file, never of what a link leads to."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self.fd)

    def create(self) -> tuple[str, int]:
        """The name and descriptor of a new hidden file, that none but we can read."""
        name = f".{self._base}.{secrets.token_hex(4)}.sysup"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return name, os.open(name, flags, 0o600, dir_fd=self.fd)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _content(status: os.stat_result) -> tuple[int, ...]:
    """Differs after a write."""
    return *_identity(status), status.st_size, status.st_mtime_ns


def surplus(backups: Iterable[_Backup], count: int) -> Iterator[_Backup]:
    """Those to drop, of files sorted by age. A file and what it became count as one."""
    if not count:
        return
    kept: set[str] = set()
    for backup in reversed(list(backups)):
        if backup.number:
            if backup.number > count:
                yield backup
        elif backup.stem in kept or len(kept) < count:
            kept.add(backup.stem)
        else:
            yield backup


class _Tending:
    """One job being done; what fails is noted, and the rest done nevertheless."""

    def __init__(
        self,
        job: Job,
        folder: _Folder,
        synced: dict[str, set[tuple[int, ...]]],
        is_closing: Callable[[], bool],
    ) -> None:
        self._job = job
        self._folder = folder
        self._synced = synced
        self._is_closing = is_closing
        self._reason: str | None = None

    def run(self) -> str | None:
        """Returns the first reason why something could not be done."""
        backups, leftovers = self._folder.look()
        for name in leftovers:
            with self._noting("remove", name):
                self._folder.remove(name)
        if self._job.fsync:
            self._sync(backups)
        dropped = set()
        for backup in surplus(backups, self._job.backup_count):
            dropped.add(backup.name)
            with self._noting("remove", backup.name):
                self._folder.remove(backup.name)
        plain = [backup for backup in backups if backup.is_plain and backup.name not in dropped]
        if self._job.compress and plain:
            self._compress_all(plain, self._job.compress)
        if self._job.fsync:
            with self._noting("sync", ""):
                os.fsync(self._folder.fd)
        return self._reason

    @contextlib.contextmanager
    def _noting(self, verb: str, name: str) -> Iterator[None]:
        self._check()
        try:
            yield
        except FileNotFoundError:
            pass  # shifted or dropped meanwhile: the pump asks again after that
        except OSError as error:
            self._note(f"cannot {verb} {os.path.join(self._folder.path, name)}: {error.strerror}")

    def _note(self, reason: str) -> None:
        self._reason = self._reason or reason

    def _check(self) -> None:
        if self._is_closing():
            raise _ClosingError

    def _sync(self, backups: list[_Backup]) -> None:
        before = self._synced.get(self._job.path, set())
        after = self._synced[self._job.path] = set()
        for backup in backups:
            content = _content(backup.status)
            if content in before:
                after.add(content)
                continue
            with self._noting("sync", backup.name), self._opened(backup.name) as fd:
                os.fsync(fd)
                after.add(content)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = self._folder.read(name)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileNotFoundError
            yield fd
        finally:
            os.close(fd)

    # -- compression --

    def _compress_all(self, backups: list[_Backup], method: str) -> None:
        if reason := available(method):
            self._note(f"cannot compress {self._job.path}: {reason}")
            return
        for backup in backups:
            full = False
            with self._noting("compress", backup.name):
                try:
                    self._compress(backup, method)
                except OSError as error:
                    full = error.errno in _FULL
                    raise
            if full:
                return

    def _compress(self, backup: _Backup, method: str) -> None:
        with self._opened(backup.name) as source:
            status = os.fstat(source)
            temporary, target = self._folder.create()
            try:
                try:
                    pack(source, target, method, status.st_mtime, self._check)
                    _dress(target, status)
                    if self._job.fsync:
                        os.fsync(target)
                finally:
                    os.close(target)
                with self._job.lock():
                    if _content(os.fstat(source)) != _content(status):
                        raise OSError(errno.EBUSY, "somebody still writes to it")
                    self._swap(temporary, self._name_now(backup, status), method, status)
            finally:
                self._folder.remove(temporary)

    def _name_now(self, backup: _Backup, status: os.stat_result) -> str:
        """The pump shifts upwards only, and leaves stamps alone."""
        start, end = backup.number, max(backup.number, self._job.backup_count)
        head = backup.name.removesuffix(str(start)) if start else backup.name
        for number in range(start, end + 1):
            name = f"{head}{number}" if start else head
            found = self._folder.status(name)
            if found and _identity(found) == _identity(status):
                return name
        raise FileNotFoundError

    def _swap(self, temporary: str, name: str, method: str, status: os.stat_result) -> None:
        target = name + ENDINGS[method]
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(target, dir_fd=self._folder.fd, follow_symlinks=False)
            if not stat.S_ISREG(there.st_mode) or there.st_mtime_ns != status.st_mtime_ns:
                raise OSError(errno.EEXIST, f"{target} is in the way")
        self._folder.rename(temporary, target)
        self._folder.remove(name)


def _dress(fd: int, status: os.stat_result) -> None:
    """Give a file the owner, mode and time of another; if not the group, then no rights for it."""
    mode = status.st_mode & 0o777
    try:
        os.fchown(fd, status.st_uid, status.st_gid)
    except OSError:
        mode &= ~0o070
    os.fchmod(fd, mode)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
