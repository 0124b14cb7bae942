"""A cgroup like those that systemd delegates, where this machine lets us make one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

ENTER = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
"""For `sh -c`, with the directory and a command: run it in the cgroup."""


@contextmanager
def delegated() -> Iterator[Path | None]:
    """Its directory, gone afterwards with all that lives there; None where none can be made."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        path = root / f"sysup-test-{uuid4().hex[:8]}"
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            with suppress(OSError):
                path.mkdir()
                os.setxattr(path, "user.delegate", b"1")
                break
    else:
        yield None
        return
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        while lives(path):
            pass
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)


def lives(path: Path) -> bool:
    """Whether any process is in it or below."""
    return "populated 1" in (path / "cgroup.events").read_text()


def members(path: Path) -> set[int]:
    """The processes in it and below; none in what is removed meanwhile."""
    pids: set[int] = set()
    for directory, _, _ in os.walk(path):
        with suppress(OSError):  # ENOENT, or of one that was open then, ENODEV
            pids.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
    return pids
