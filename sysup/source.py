"""Where the config comes from: the files of this machine, or what another daemon had read."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sysup import config
from sysup.config import Config, ConfigError, Reasons


class Kept(NamedTuple):
    """Why a section is not followed, and the files that are followed in its place, if any."""

    why: tuple[str, ...]
    files: Files | None


class Files:
    """The file system as the config parser sees it, and what it saw of it.

    Args:
        record: what another had seen; nothing but that is read then.
    """

    def __init__(self, record: Mapping[str, Any] | None = None) -> None:
        self.is_live = record is None
        record = record or {}
        self.seen = {kind: dict(record.get(kind, {})) for kind in ("texts", "globs", "stamps")}
        before = [Files(each) for each in record.get("before", ())]
        self.kept: dict[str, Kept] = {
            section: Kept(tuple(why), None if at is None else before[at])
            for section, (why, at) in record.get("kept", {}).items()
        }
        """Sections that are not followed."""

    def record(self) -> dict[str, Any]:
        """All of it as it is now, as JSON can say it."""
        before: list[dict[str, Any]] = []
        kept = {}
        for section, (why, files) in self.kept.items():
            if files and files.seen not in before:
                before.append(files.seen)
            kept[section] = [why, before.index(files.seen) if files else None]
        seen = {kind: dict(found) for kind, found in self.seen.items()}
        return {**seen, "kept": kept, "before": before}

    def keep(self, kept: Reasons, known: Collection[str], before: Files) -> None:
        """Note sections that are as they were, those that were `known`, in the files `before`."""
        origin = Files(before.seen)  # without what it kept itself, and so on
        for section, why in kept.items():
            earlier = before.kept.get(section)
            files = earlier.files if earlier else origin
            self.kept[section] = Kept(why, files if section in known else None)

    def read(self, path: str) -> str:
        """A file's text. Raises OSError."""
        if self.is_live:
            self._take(path)
        if path not in self.seen["texts"]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return str(self.seen["texts"][path])

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted."""
        if self.is_live:
            self.seen["globs"][pattern] = sorted(glob.glob(pattern))
        return list(self.seen["globs"].get(pattern, ()))

    def changed(self) -> list[str]:
        """The files that are not what was read any more: of those that were read, and those
        that a pattern finds now or has found then."""
        differing = set()
        for path, before in self.seen["stamps"].items():
            try:
                now = stamp(os.stat(path))
            except OSError:
                now = []
            if now != before:
                differing.add(path)
        for pattern, before in self.seen["globs"].items():
            differing |= {*before} ^ {*glob.glob(pattern)}
        return sorted(differing)

    def note(self, path: str) -> None:
        """Have read a file that we have written, also if it was not there before."""
        for pattern, found in self.seen["globs"].items():
            if path in glob.glob(pattern):
                self.seen["globs"][pattern] = sorted({*found, path})
        self._take(path)

    def _take(self, path: str) -> None:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            self.seen["stamps"][path] = stamp(os.fstat(file.fileno()))
            self.seen["texts"][path] = file.read()


class Amended(Files):
    """The file system as it will be when a file has been written."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__()
        self._path = path
        self._text = text

    def read(self, path: str) -> str:
        """A file's text. Raises OSError."""
        return self._text if path == self._path else super().read(path)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted."""
        found = {*super().glob(pattern)}
        directory, name = os.path.split(self._path)
        if os.path.dirname(pattern) == glob.escape(directory) and fnmatch.fnmatch(
            name, os.path.basename(pattern)
        ):
            found.add(self._path)
        return sorted(found)


def write(path: str, text: str, like: str) -> None:
    """Write a file whole or not at all, for those who may read `like`; its directory is made.

    Raises OSError.
    """
    status = os.stat(like)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, status.st_uid, status.st_gid)
        os.fchmod(fd, status.st_mode & 0o666)
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.rename(new, path)


def stamp(status: os.stat_result) -> list[int]:
    """By what a file is known not to be another, nor to have been written."""
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def load(path: str, files: Files | None = None, *, apart: bool = False) -> Config:
    """Read the config of an app; raises ConfigError with all that is wrong.

    With `apart`, only if that does not lie within sections of watchers and sockets.
    """
    path = os.path.abspath(path)
    return config.parse(path, source=files or Files(), environ=os.environ, apart=apart)


def load_again(path: str, record: Mapping[str, Any]) -> tuple[Files, Config]:
    """The config of another daemon, from the `Files.record` of what it had read.

    Where that was right for another version alone, it is what the files say now. Raises
    ConfigError when they say nothing, either.
    """
    files = Files(record)
    try:
        loaded = load(path, files, apart=True)
        nothing = replace(loaded, watchers={}, sockets={})
        for origin in dict.fromkeys(kept.files for kept in files.kept.values()):
            before = load(path, origin, apart=True) if origin else nothing
            kept = {key: each.why for key, each in files.kept.items() if each.files is origin}
            loaded = config.keep(loaded, kept, before)
    except ConfigError:
        files = Files()
        loaded = load(path, files, apart=True)
    return files, loaded
