"""Where the config comes from: the files of this machine, or what another daemon had read."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Mapping
from typing import Any

from sysup import config
from sysup.config import Config


class Files:
    """The file system as the config parser sees it, and what it saw of it.

    Args:
        seen: what another had seen; nothing but that is read then.
    """

    def __init__(self, seen: Mapping[str, Any] | None = None) -> None:
        self.is_live = seen is None
        self.seen: dict[str, dict[str, Any]] = {"texts": {}, "globs": {}, "stamps": {}}
        self.seen.update(seen or {})

    def read(self, path: str) -> str:
        """A file's text. Raises OSError."""
        if self.is_live:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                self.seen["stamps"][path] = stamp(os.fstat(file.fileno()))
                self.seen["texts"][path] = file.read()
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


def stamp(status: os.stat_result) -> list[int]:
    """By what a file is known not to be another, nor to have been written."""
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def load(path: str, files: Files | None = None) -> Config:
    """Read the config of an app; raises ConfigError with all that is wrong."""
    return config.parse(os.path.abspath(path), source=files or Files(), environ=os.environ)
