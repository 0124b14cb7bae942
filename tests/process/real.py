"""Real processes for tests, and how to wait for what becomes of them."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sysup.process import OS, Launch, Process, SpawnError

NOBODY = 65534
PATH = "/usr/bin:/bin"
WITHIN = 60.0
"""Seconds after which what should have happened never will."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root can prove this, a user can't")


def launch(*argv: str, **options: Any) -> Launch:
    """What a test starts: with this PATH and our output, if it isn't told otherwise."""
    return Launch(argv=argv, env={"PATH": PATH}, **{"search": PATH, **options})


def born(system: OS, child: Process) -> Process:
    """Wait until it has executed its program; raises SpawnError, with nothing left, if it can't."""
    if child.birth:
        poll = select.poll()
        poll.register(child.birth.sign, select.POLLIN)
        assert poll.poll(WITHIN * 1000), "it should have executed its program"
    try:
        system.end_birth(child)
    except SpawnError:
        ended(system, child)
        raise
    return child


def ended(system: OS, child: Process) -> int | None:
    """Wait for its end by the pidfd, as the daemon does; returns its status, lets go of it."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    assert poll.poll(WITHIN * 1000), "it should have ended"
    status = system.wait(child)
    system.close(child)
    return status


def output(system: OS, what: Launch, **options: Any) -> str:
    """Run it to its end; returns what it printed."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = born(system, system.launcher(what).spawn(fds={1: writing}, **options))
    finally:
        os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    assert ended(system, child) == 0
    return text


def status(text: str) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    return dict(line.split(":\t", 1) for line in text.splitlines())


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no descriptor tells."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, "it should have happened by now"
        select.select([], [], [], 0.002)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    """Of this process, be it that they have ended: orphans of other tests may be among them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found
